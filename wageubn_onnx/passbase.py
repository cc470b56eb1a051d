"""What a pass is: a name, a sentence, and a function that rewrites a model in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model


@dataclass(frozen=True)
class Pass:
    """One step of the pipeline.

    name: as `wageubn-onnx passes` lists it and as nodes record it. summary: what it does, in one sentence. run: rewrites the
    model in place; whatever it makes carries the pass's name. roles: the data paths it quantizes, if it quantizes any.
    """

    name: str
    summary: str
    run: Callable[[Model, Config], None]
    roles: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The file that defines it, as a module name."""
        return self.run.__module__

    def __call__(self, model: Model, config: Config) -> None:
        with model.context(made_by=self.name):
            self.run(model, config)
