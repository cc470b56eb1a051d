"""What a pass is: a name, a sentence, and a function that rewrites a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model


@dataclass(frozen=True)
class Pass:
    """One step of the pipeline, or of what a target makes of its end.

    name: as `wageubn-onnx passes` lists it and as nodes record it. summary: what it does, in one sentence. run: in the pipeline,
    of a model and a `Config`: rewrites the model in place, or returns the model that takes its place; in a target, of an ONNX
    model: returns another one. roles: the data paths it puts quantizers on.
    """

    name: str
    summary: str
    run: Callable[..., Any]
    roles: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The file that defines it, as a module name."""
        return self.run.__module__

    @property
    def file(self) -> str:
        """The same as a path from the repository's root."""
        return self.module.removeprefix("wageubn_onnx." if ".passes." in self.module else "").replace(".", "/") + ".py"

    def __call__(self, model: Any, config: Config) -> Any:
        """Apply the pass; whatever it adds to ``model`` carries its name."""
        if not isinstance(model, Model):
            made = self.run(model, config)
        else:
            with model.context(made_by=self.name):
                made = self.run(model, config)
        return made if made is not None else model
