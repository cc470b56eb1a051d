"""Tensors that a model keeps in files of its own beside it, looked at before onnx reads them; and pointers in place of files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from wageubn_onnx.errors import WageubnError

POINTER = b"version https://git-lfs.github.com/spec/"  # how the text begins that Git LFS keeps in a large file's place
FACTS = ("location", "offset", "length")  # what a tensor says of where its bytes are


def refuse_pointer(file: Path) -> None:
    """Raise WageubnError where ``file`` is a pointer of Git LFS instead of what it points to."""
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise WageubnError(f"{file}: a pointer of Git LFS, not the file itself; run `git lfs pull` where it was cloned")


def load_external(model: onnx.ModelProto, file: Path) -> None:
    """Read into ``model``, which ``file`` holds, the tensors that lie in other files.

    Raises WageubnError, naming the file and the tensor, where one is missing, a link, a pointer, outside of the folder, or short.
    """
    checked = set[Path]()
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            _check(tensor, file, checked)
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WageubnError(f"{file}: its external data cannot be read ({reason}); keep the data files beside it") from None


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor, those in attributes and in the bodies of branches and loops too."""
    waiting = [graph]
    while waiting:
        inner = waiting.pop()
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _check(tensor: onnx.TensorProto, file: Path, checked: set[Path]) -> None:
    """Whether the bytes of ``tensor`` are there; ``checked``: the data files already found to be such."""
    facts = {entry.key: entry.value for entry in tensor.external_data if entry.key in FACTS}
    where, location = f"{file}: tensor {tensor.name!r}: its external data cannot be read", facts.get("location", "")
    if not location or os.path.isabs(location) or ".." in Path(location).parts:
        raise WageubnError(f"{where}: it is said to be at {location!r}; it must be in a file beside the model")
    data = file.parent / location
    if data not in checked:
        _check_file(data, where)
        checked.add(data)
    try:
        offset = int(facts.get("offset") or 0)
        whole = _bytes(tensor)
        needed = int(facts["length"]) if facts.get("length") else whole
    except (ValueError, KeyError):
        raise WageubnError(f"{where}: {facts} says no place in a file; export the model again") from None
    size = data.stat().st_size
    if min(offset, needed) < 0 or offset + needed > size:
        raise WageubnError(
            f"{where}: bytes {offset} to {offset + needed} of {location}, which has {size}: the file is truncated or another "
            "model's; copy it again"
        )
    if needed != whole:
        raise WageubnError(f"{where}: {needed} bytes, and its shape {list(tensor.dims)} wants {whole}; export the model again")


def _check_file(data: Path, where: str) -> None:
    if data.is_symlink():
        raise WageubnError(
            f"{where}: {data.name} is a symbolic link, which onnx does not follow; copy the model and its data with `cp -L` to a "
            "folder of their own"
        )
    if not data.is_file():
        raise WageubnError(f"{where}: {data.name} is missing; keep the data files beside the model")
    refuse_pointer(data)


def _bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes the tensor's dtype and shape take; two elements of 4 bits share one."""
    four = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, getattr(onnx.TensorProto, "FLOAT4E2M1", -1))
    bits = 4 if four else onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    return int(math.prod(tensor.dims) * bits + 7) // 8
