"""What this machine's kernels do best: a small table, measured once (`wageubn-onnx bench kernels`) or assumed.

A convolution has two forms with the same sums. uint8 by uint8 is exact on every machine. int8 by uint8 is about twice as fast on
an x86 with VNNI; without it, onnxruntime adds pairs of products in saturating int16. So the table says whether that form is exact
here, and of some shapes how much faster it is.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import IR_VERSION, OPSET
from wageubn_onnx.runtime.files import write_text

T = onnx.TensorProto
Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int, int, int]  # images, input channels, rows and columns, output channels, kernel

# Of ResNets, 224 and 32 pixels
SHAPES: tuple[Shape, ...] = (
    (4, 3, 112, 64, 7), (4, 64, 56, 64, 3), (4, 128, 28, 128, 3), (4, 256, 14, 256, 3), (4, 512, 7, 512, 3),
    (4, 64, 56, 256, 1), (4, 512, 7, 2048, 1), (32, 16, 32, 16, 3), (32, 64, 8, 64, 3), (1, 16, 8, 16, 3),
)  # fmt: skip
ROUNDS = 7


@dataclass(frozen=True)
class Measured:
    """A convolution's shape, and the time of uint8 by uint8 over that of int8 by uint8."""

    shape: Shape
    speedup: float


@dataclass(frozen=True)
class Kernels:
    """machine: whose table it is. int8_is_exact: whether int8 by uint8 gives exact sums; it is then taken for the faster form,
    unless something else was ``measured``."""

    machine: str
    int8_is_exact: bool
    measured: tuple[Measured, ...] = ()

    def prefers_int8(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether a convolution of ``image`` [N, I, H, W] with ``kernel`` [O, I, KH, KW] should take its images in int8."""
        if not self.int8_is_exact or not self.measured:
            return self.int8_is_exact
        wanted = (image[0], image[1], image[2], kernel[0], kernel[2])
        nearest = min(self.measured, key=lambda m: sum(abs(math.log2(a / b)) for a, b in zip(m.shape, wanted, strict=True)))
        return nearest.speedup > 1.0


def this_machine() -> str:
    """What a table is valid for: the processor's name and onnxruntime's release."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        told = [line.partition(":") for line in info.read_text().splitlines()]
        name = (
            " ".join(dict.fromkeys(value.strip() for key, _, value in told if key.strip() in ("model name", "CPU part"))) or name
        )
    return f"{name}, onnxruntime {onnxruntime.__version__}"


def cache_file() -> Path:
    """Where `bench kernels` leaves its table: in XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wageubn-onnx" / "kernels.json"


def kernels() -> Kernels:
    """The table of this machine: the measured one, else the default, which asks the kernel whether it is exact."""
    try:
        found = json.loads(cache_file().read_text())
        measured = tuple(Measured(tuple(m["shape"]), float(m["speedup"])) for m in found["measured"])
        table = Kernels(found["machine"], bool(found["int8_is_exact"]), measured)
    except (OSError, ValueError, KeyError, TypeError):
        table = None
    return table if table is not None and table.machine == this_machine() else Kernels(this_machine(), int8_is_exact())


def measure() -> Kernels:
    """Measure the table on one thread, the forms in turn, and keep it for later sessions. Some seconds."""
    table = Kernels(this_machine(), int8_is_exact(), tuple(Measured(shape, _speedup(shape)) for shape in SHAPES))
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_text(cache_file(), json.dumps(asdict(table), indent=1) + "\n")
    except OSError as error:
        raise WageubnError(f"{cache_file()}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from None
    return table


def int8_is_exact() -> bool:
    """Ask the kernel for the greatest sums of pairs that there are."""
    signs = np.where(np.arange(64) % 4 < 2, 127, -127).astype(np.int8)
    images = np.broadcast_to(signs[None, :, None, None], (1, 64, 4, 4)).copy()
    kernel = np.full((16, 64, 3, 3), 255, np.uint8)
    kernel[1::2] = (signs.astype(int) + 128).astype(np.uint8)[:, None, None]
    (sums,) = _convolution(images, kernel).run(None, {"x": images, "w": kernel})
    expected = np.array([9 * 127 * int(signs.sum(dtype=int)), 9 * 127 * 127 * len(signs)] * 8)
    return bool((sums == expected[None, :, None, None]).all())


def _speedup(shape: Shape) -> float:
    n, i, size, o, k = shape
    random = np.random.default_rng(0)
    images, kernel = random.integers(0, 128, (n, i, size, size)), random.integers(0, 256, (o, i, k, k)).astype(np.uint8)
    runs = [(_convolution(x, kernel), {"x": x, "w": kernel}) for x in (images.astype(np.uint8), images.astype(np.int8))]
    best = [math.inf, math.inf]
    for _ in range(ROUNDS):
        for at, (session, feeds) in enumerate(runs):
            start = time.perf_counter()
            session.run(None, feeds)
            best[at] = min(best[at], time.perf_counter() - start)
    return round(best[0] / best[1], 3)


def _convolution(x: Array, w: Array) -> onnxruntime.InferenceSession:
    """A session for ConvInteger of images like x with kernels like w, zero points 0 and 128, one thread."""
    size = w.shape[2]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in (("x", x), ("w", w))
    ]
    zeros = [numpy_helper.from_array(np.array(0, x.dtype), "xz"), numpy_helper.from_array(np.array(128, np.uint8), "wz")]
    pad = size // 2 if size < x.shape[2] - 1 else 0
    node = helper.make_node("ConvInteger", ["x", "w", "xz", "wz"], ["y"], kernel_shape=[size, size], pads=[pad] * 4)
    graph = helper.make_graph([node], "probe", inputs, [helper.make_tensor_value_info("y", T.INT32, None)], zeros)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
