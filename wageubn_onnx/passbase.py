"""What a pass is: a name, a sentence, and a function from model to model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model


@dataclass(frozen=True)
class Pass:
    """One step of the pipeline.

    name: as `wageubn-onnx passes` lists it and as nodes record it. summary: what it does, in one sentence. run: rewrites the
    model in place, or returns the model that takes its place. roles: the data paths it puts quantizers on.
    """

    name: str
    summary: str
    run: Callable[[Any, Config], Model | None]
    roles: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The file that defines it, as a module name."""
        return self.run.__module__

    @property
    def file(self) -> str:
        """The same as a path from the repository's root."""
        return self.module.removeprefix("wageubn_onnx.").replace(".", "/") + ".py"

    def __call__(self, model: Any, config: Config) -> Model:
        """Apply the pass; whatever it adds to ``model`` carries its name."""
        if not isinstance(model, Model):
            made = self.run(model, config)
        else:
            with model.context(made_by=self.name):
                made = self.run(model, config)
        return made if made is not None else model
