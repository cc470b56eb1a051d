"""Fixtures that several folders of tests share: the tiny network, converted once, and real networks where they are at hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from miniature import data, data_file, edit_manifest, folder  # noqa: F401 (fixtures)
from networks import BATCH, MEAN, STD, tiny
from wageubn_onnx.artifacts.artifacts import Artifacts
from wageubn_onnx.config import Config
from wageubn_onnx.pipeline import convert

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files that this project did not make; tests that use it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/data, beside the checkout, is absent")
    return SHARED


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(tiny(), path)
    return path


@pytest.fixture(scope="session")
def tiny_artifacts(tiny_file: Path) -> Artifacts:
    """The tiny network, converted with every gradient exposed. Tests do not change what they get; they copy it."""
    return convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD, expose_gradients=True))


@pytest.fixture(scope="session")
def tiny_folder(tiny_artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("converted") / "tiny"
    tiny_artifacts.save(made)
    return made
