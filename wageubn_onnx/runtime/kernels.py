"""What this machine's kernels do best: which are exact (`probes`), and of the exact ones which are the faster, measured once
(`wageubn-onnx bench kernels`) or assumed.

A convolution has several forms with the same integers. ConvInteger of uint8 by uint8 is exact on nearly every machine; of int8 by
uint8 it is about twice as fast on an x86 with VNNI; and a QLinearConv, or a QLinearMatMul, of uint8 by int8 requantizes its sums,
too, in the same kernel. Without VNNI onnxruntime adds pairs of products of the last ones in saturating int16.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import DOMAIN, IR_VERSION, OPSET
from wageubn_onnx.onnxir.edit import rewritten
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.onnxir.nodes import MICROSOFT, import_microsoft
from wageubn_onnx.onnxir.tidy import tidy
from wageubn_onnx.passes.targets.cpu.machine import Kernel
from wageubn_onnx.passes.targets.cpu.maps.channels_last import channels_last
from wageubn_onnx.passes.targets.cpu.maps.merge_images import merge_images
from wageubn_onnx.passes.targets.cpu.products.fuse_requantization import PRODUCT, fused_products
from wageubn_onnx.quantizers.integer import GRID, ROUND_SHIFT
from wageubn_onnx.runtime.cache import Cache
from wageubn_onnx.runtime.models import session_options
from wageubn_onnx.runtime.probes import exact_kernels

T = onnx.TensorProto
Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int, int, int]  # images, input channels, rows and columns, output channels, kernel

# Of ResNets, 224 and 32 pixels
SHAPES: tuple[Shape, ...] = (
    (16, 3, 112, 64, 7), (16, 64, 56, 64, 3), (16, 128, 28, 128, 3), (16, 256, 14, 256, 3), (16, 512, 7, 512, 3),
    (16, 64, 56, 256, 1), (16, 256, 56, 64, 1), (16, 128, 28, 512, 1), (16, 512, 28, 128, 1), (16, 256, 14, 1024, 1),
    (16, 1024, 14, 256, 1), (16, 512, 7, 2048, 1), (16, 2048, 7, 512, 1),
    (128, 16, 32, 16, 3), (128, 64, 8, 64, 3), (1, 512, 7, 512, 3), (1, 256, 14, 1024, 1), (1, 16, 8, 16, 3),
)  # fmt: skip
ROUNDS = 7
REQUANTIZED = GRID["half_even"]
EXACT, MEASURED = "exact", "measured"  # entries of the cache


@dataclass(frozen=True)
class Measured:
    """A convolution's shape; the time of uint8 by uint8 over that of int8 by uint8; the time of the faster of them with the
    requantization after it over that of a QLinearConv, and of a QLinearMatMul, for maps whose channels are last."""

    shape: Shape
    speedup: float
    fused: float
    matrix: float


# Where nothing was measured: x86-64 with AVX512-VNNI, onnxruntime 1.31
SHIPPED: tuple[Measured, ...] = (
    Measured((16, 3, 112, 64, 7), 2.0, 2.6, 1.16),
    Measured((16, 64, 56, 64, 3), 2.1, 2.1, 0.95),
    Measured((16, 128, 28, 128, 3), 2.1, 1.7, 1.1),
    Measured((16, 256, 14, 256, 3), 2.2, 1.3, 1.3),
    Measured((16, 512, 7, 512, 3), 2.2, 0.94, 1.5),
    Measured((16, 64, 56, 256, 1), 2.0, 4.3, 3.7),
    Measured((16, 256, 56, 64, 1), 2.1, 2.8, 2.1),
    Measured((16, 128, 28, 512, 1), 2.2, 3.4, 3.0),
    Measured((16, 512, 28, 128, 1), 2.2, 2.0, 1.7),
    Measured((16, 256, 14, 1024, 1), 2.2, 2.6, 2.7),
    Measured((16, 1024, 14, 256, 1), 2.3, 1.5, 1.6),
    Measured((16, 512, 7, 2048, 1), 2.4, 2.0, 2.3),
    Measured((16, 2048, 7, 512, 1), 2.4, 1.11, 1.7),
    Measured((128, 16, 32, 16, 3), 1.3, 2.4, 1.13),
    Measured((128, 64, 8, 64, 3), 1.5, 2.5, 1.9),
    Measured((1, 512, 7, 512, 3), 2.3, 0.48, 0.88),
    Measured((1, 256, 14, 1024, 1), 2.4, 1.8, 2.6),
    Measured((1, 16, 8, 16, 3), 1.13, 2.6, 1.5),
)  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """machine: whose table it is. exact: the kernels that are exact there. measured: which form is the faster; of a machine
    without a table, the one that is shipped says so."""

    machine: str
    exact: frozenset[Kernel]
    measured: tuple[Measured, ...] = SHIPPED

    def is_exact(self, *kernels: Kernel) -> bool:
        """Whether all of these are."""
        return self.exact.issuperset(kernels)

    def prefers_int8(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether a ConvInteger of ``image`` [N, I, H, W] with ``kernel`` [O, I, KH, KW] should take its images in int8."""
        return self.is_exact(Kernel.INT8) and self._nearest(image, kernel).speedup > 1.0

    def prefers_fused(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether product and requantization should be one QLinearConv."""
        return self.is_exact(Kernel.QLINEAR_CONV) and self._nearest(image, kernel).fused > 1.0

    def prefers_matrix(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether they should be one QLinearMatMul; of maps as large as what the convolution gives."""
        nearest = self._nearest(image, kernel)
        return self.is_exact(Kernel.QLINEAR_MATMUL) and nearest.matrix > max(1.0, nearest.fused)

    def _nearest(self, image: Sequence[int], kernel: Sequence[int]) -> Measured:
        wanted = (image[0], image[1], image[2], kernel[0], kernel[2])
        return min(self.measured, key=lambda m: sum(abs(math.log2(a / b)) for a, b in zip(m.shape, wanted, strict=True)))

    def described(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        exact = {kernel.name: kernel in self.exact for kernel in Kernel}
        return {"machine": self.machine, "exact": exact, "measured": [asdict(m) for m in self.measured]}


def this_machine() -> str:
    """What a table is valid for: the processor's name and what it says that it can do, and onnxruntime's release."""
    name, abilities = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        told = [line.partition(":") for line in info.read_text().splitlines()]
        name = " ".join(_values(told, "model name", "CPU part")) or name
        flags = sorted({flag for value in _values(told, "flags", "Features") for flag in value.split()})
        abilities = f" ({hashlib.sha256(' '.join(flags).encode()).hexdigest()[:8]})"
    return f"{name}{abilities}, onnxruntime {onnxruntime.__version__}"


def _values(told: Iterable[tuple[str, str, str]], *keys: str) -> list[str]:
    """Each once, of lines of /proc/cpuinfo."""
    return list(dict.fromkeys(value.strip() for key, _, value in told if key.strip() in keys))


def kernels() -> Kernels:
    """The table of this machine: which kernels are exact, asked once; the measured times, else the shipped ones."""
    machine = this_machine()
    cache = Cache(machine)
    exact, measured = _exact(cache.get(EXACT)), _times(cache.get(MEASURED))
    if exact is None:
        exact = exact_kernels()
        cache.put(EXACT, {kernel.name: kernel in exact for kernel in Kernel})
    return Kernels(machine, exact, measured or SHIPPED)


def _exact(found: Any) -> frozenset[Kernel] | None:
    """What a cache says; None where that is no answer to what is asked today."""
    if not isinstance(found, dict) or set(found) != {kernel.name for kernel in Kernel}:
        return None
    return frozenset(kernel for kernel in Kernel if found[kernel.name] is True)


def _times(found: Any) -> tuple[Measured, ...]:
    """What a cache says; none where it is damaged."""
    try:
        return tuple(Measured(tuple(m["shape"]), *(float(m[key]) for key in ("speedup", "fused", "matrix"))) for m in found or ())
    except (ValueError, KeyError, TypeError):
        return ()


def measure() -> Kernels:
    """Measure the table on one thread, the forms in turn, and keep it for later sessions. Some seconds.

    Raises WageubnError where it cannot be kept.
    """
    table = replace(kernels(), measured=tuple(_measured(shape) for shape in SHAPES))
    cache = Cache(table.machine)
    if not cache.put(MEASURED, [asdict(m) for m in table.measured]):
        raise WageubnError(f"{cache.file}: cannot be written; set XDG_CACHE_HOME")
    return table


def _measured(shape: Shape) -> Measured:
    n, i, size, o, k = shape
    random = np.random.default_rng(0)
    images, kernel = random.integers(0, 128, (n, i, size, size)), random.integers(0, 256, (o, i, k, k)).astype(np.uint8)
    unsigned, signed = images.astype(np.uint8), images.astype(np.int8)
    signed_kernel = (kernel.astype(int) - 128).astype(np.int8)
    makers: list[Callable[[], Callable[[], Array]]] = [
        partial(_probe, unsigned, kernel),
        partial(_probe, signed, kernel),
        partial(_probe, unsigned, kernel, 10, last=True),
        partial(_probe, signed, kernel, 10, last=True),
        partial(_probe, unsigned, signed_kernel, 10, last=True),
        partial(_matrix, unsigned, signed_kernel, 10),
    ]
    runs = {}
    for at, make in enumerate(makers):
        with suppress(ort_errors.NotImplemented):  # which counts as endless
            runs[at] = make()
    best = [math.inf] * len(makers)
    for _ in range(ROUNDS):
        for at, run in runs.items():
            start = time.perf_counter()
            run()
            best[at] = min(best[at], time.perf_counter() - start)
    plain = min(best[2:4])
    return Measured(shape, round(best[0] / best[1], 3), round(plain / best[4], 3), round(plain / best[5], 3))


def _probe(x: Array, w: Array, shift: int | None = None, last: bool = False) -> Callable[[], Array]:
    """A convolution of images x with kernels w, zero points 0, of uint8 kernels and of uint8 images beside int8 kernels 128, as a
    function that runs it on one thread: ConvInteger, for a ``shift`` with the canonical requantization after it; of int8 kernels
    the fused form. A kernel of depth 1 is depthwise. last: take and give maps whose channels are last, as their neighbours do."""
    size, fused = w.shape[2], w.dtype == np.int8
    pads = [size // 2 if size < x.shape[2] - 1 else 0] * 4
    window: dict[str, Any] = {"kernel_shape": [size, size], "pads": pads, "group": x.shape[1] // w.shape[1]}
    constants = {
        "x_zero": np.array(128 if fused and x.max() > 128 else 0, x.dtype),
        "w_zero": np.array(128, np.uint8),
        "shift": np.full((1, len(w), 1, 1), shift or 0, np.int32),
        "scale": np.full(len(w), 2.0 ** -(shift or 0), np.float32),
        "bottom": np.array(1, np.uint8),
        "top": np.array(255, np.uint8),
    }
    image, result = ("image", "result") if last and not fused else ("x", "y")
    if fused:
        operands = [image, "x_zero", "w", "scale", "bottom", "top"]
        nodes = [
            helper.make_node(PRODUCT.name, operands, ["y"], domain=DOMAIN, strides=[1, 1], dilations=[1, 1], **window),
        ]
    else:
        nodes = [helper.make_node("ConvInteger", [image, "w", "x_zero", "w_zero"], [result if shift is None else "m"], **window)]
        if shift is not None:
            limits: dict[str, Any] = {"least": -127, "greatest": 127, "to": T.INT8}
            nodes.append(helper.make_node(REQUANTIZED.name, ["m", "shift"], [result], domain=DOMAIN, **limits))
    if last:
        x = x.transpose(0, 2, 3, 1).copy()
        if not fused:
            turns = (("x", "image", [0, 3, 1, 2]), ("result", "y", [0, 2, 3, 1]))
            turned = [helper.make_node("Transpose", [source], [made], perm=perm) for source, made, perm in turns]
            nodes = [turned[0], *nodes, turned[1]]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in (("x", x), ("w", w))
    ]
    kind = helper.make_tensor_value_info("y", T.INT32 if shift is None else T.INT8, None)
    graph = helper.make_graph(nodes, "probe", inputs, [kind], [numpy_helper.from_array(v, n) for n, v in constants.items()])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    functions = [PRODUCT, REQUANTIZED, ROUND_SHIFT["half_even"]]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION)
    model = inline(model)
    for node in (n for n in model.graph.node if last and n.op_type == "QLinearConv"):
        node.domain = MICROSOFT
        node.attribute.append(helper.make_attribute("channels_last", 1))
    import_microsoft(model)
    session = _session(merge_images(model))
    return lambda: np.asarray(session.run(None, {"x": x, "w": w})[0])


def _matrix(x: Array, w: Array, shift: int) -> Callable[[], Array]:
    """The last form of `_probe` as a QLinearMatMul, made by the passes that make it of a step."""
    size, zero = w.shape[2], 128 if x.max() > 128 else 0
    pad = size // 2 if size < x.shape[2] - 1 else 0
    n, i, rows, columns = x.shape
    out = [n, rows + 2 * pad - size + 1, columns + 2 * pad - size + 1, len(w)]
    text = f"""<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]>
        probe (uint8[{n}, {rows}, {columns}, {i}] x, int8[{len(w)}, {i}, {size}, {size}] w)
            => (int8[{", ".join(map(str, out))}] y)
            <uint8 x_zero = {{{zero}}}, uint8 w_zero = {{128}}, int32 shift = {{{shift}}}> {{
            [a] image = Transpose <perm: ints = [0, 3, 1, 2]> (x)
            [b] bits = Cast <to: int = {T.UINT8}> (w)
            [c] kernel = BitwiseXor (bits, w_zero)
            [d] m = ConvInteger <kernel_shape: ints = [{size}, {size}], pads: ints = {[pad] * 4}, strides: ints = [1, 1],
                dilations: ints = [1, 1], group: int = 1> (image, kernel, x_zero, w_zero)
            [e] q = {DOMAIN}.{REQUANTIZED.name} <least: int = -127, greatest: int = 127, to: int = {T.INT8}> (m, shift)
            [f] y = Transpose <perm: ints = [0, 2, 3, 1]> (q)
        }}"""
    model = onnx.parser.parse_model(text)
    model.functions.extend([REQUANTIZED, ROUND_SHIFT["half_even"]])
    typed = onnx.shape_inference.infer_shapes(model)
    fused = rewritten(
        typed, {"fuse-requantization": lambda edit: fused_products(edit, lambda *shapes: False, lambda *shapes: True)}
    )
    session = _session(channels_last(tidy(inline(fused))))
    image = x.transpose(0, 2, 3, 1).copy()
    return lambda: np.asarray(session.run(None, {"x": image, "w": w})[0])


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = session_options(threads=1, optimize=False)  # as steps run
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
