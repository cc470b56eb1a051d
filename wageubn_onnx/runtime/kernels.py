"""What this machine's kernels do best: a small table, measured once (`wageubn-onnx bench kernels`) or assumed.

A convolution has several forms with the same integers. ConvInteger of uint8 by uint8 is exact on every machine; of int8 by uint8
it is about twice as fast on an x86 with VNNI; and a QLinearConv, or a QLinearMatMul, of uint8 by int8 requantizes its sums, too,
in the same kernel. Without VNNI onnxruntime adds pairs of products of the last ones in saturating int16. So the table says
whether they are exact here, and of some shapes how much faster they are.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
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
from wageubn_onnx.inline import inline
from wageubn_onnx.passes.targets.cpu.affine import BYTE
from wageubn_onnx.passes.targets.cpu.edit import rewritten
from wageubn_onnx.passes.targets.cpu.fused import PRODUCT, fused_products
from wageubn_onnx.passes.targets.cpu.layout import channels_last
from wageubn_onnx.passes.targets.cpu.merged import merged_images
from wageubn_onnx.passes.targets.cpu.moments import RAISED, STEP
from wageubn_onnx.passes.targets.nodes import MICROSOFT, import_microsoft
from wageubn_onnx.passes.targets.tidy import tidy
from wageubn_onnx.quantizers.integer import GRID, ROUND_SHIFT
from wageubn_onnx.runtime.files import write_text
from wageubn_onnx.runtime.models import session_options

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
    """machine: whose table it is. has_unsigned: whether unsigned and short integers have their arithmetic. int8_is_exact,
    fused_is_exact: whether int8 by uint8, and a QLinearConv of uint8 by int8, give exact sums. measured: which form is the
    faster; of a machine without a table, the one that is shipped says so."""

    machine: str
    has_unsigned: bool
    int8_is_exact: bool
    fused_is_exact: bool
    measured: tuple[Measured, ...] = SHIPPED

    def prefers_int8(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether a ConvInteger of ``image`` [N, I, H, W] with ``kernel`` [O, I, KH, KW] should take its images in int8."""
        return self.int8_is_exact and self._nearest(image, kernel).speedup > 1.0

    def prefers_fused(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether product and requantization should be one QLinearConv."""
        return self.fused_is_exact and self._nearest(image, kernel).fused > 1.0

    def prefers_matrix(self, image: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether they should be one QLinearMatMul; of maps as large as what the convolution gives."""
        nearest = self._nearest(image, kernel)
        return self.fused_is_exact and nearest.matrix > max(1.0, nearest.fused)

    def _nearest(self, image: Sequence[int], kernel: Sequence[int]) -> Measured:
        wanted = (image[0], image[1], image[2], kernel[0], kernel[2])
        return min(self.measured, key=lambda m: sum(abs(math.log2(a / b)) for a, b in zip(m.shape, wanted, strict=True)))


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
    """The table of this machine: the measured one, else the shipped one; the kernels are asked whether they are exact."""
    try:
        found = json.loads(cache_file().read_text())
        measured = tuple(
            Measured(tuple(m["shape"]), *(float(m[key]) for key in ("speedup", "fused", "matrix"))) for m in found["measured"]
        )
        unsigned, int8, fused = (bool(found[key]) for key in ("has_unsigned", "int8_is_exact", "fused_is_exact"))
        table = Kernels(found["machine"], unsigned, int8, fused, measured)
    except (OSError, ValueError, KeyError, TypeError):
        table = None
    return table if table is not None and table.machine == this_machine() and table.measured else _asked()


def _asked() -> Kernels:
    unsigned = has_unsigned()
    return Kernels(this_machine(), unsigned, int8_is_exact(), unsigned and fused_is_exact())


def measure() -> Kernels:
    """Measure the table on one thread, the forms in turn, and keep it for later sessions. Some seconds."""
    table = replace(_asked(), measured=tuple(_measured(shape) for shape in SHAPES))
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_text(cache_file(), json.dumps(asdict(table), indent=1) + "\n")
    except OSError as error:
        raise WageubnError(f"{cache_file()}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from None
    return table


def has_unsigned() -> bool:
    """Ask for the arithmetic of unsigned and of short integers, which older releases lack, and whether it wraps."""
    for dtype in (np.uint8, np.uint32, np.uint64, np.uint16, np.int16, np.int8):
        is_short = dtype in (np.uint16, np.int16, np.int8)  # of which the first two have no kernel for Max and Min
        kinds = ("Mul", "Add", "Sub") if is_short else ("Max", "Min", "Mul", "Add", "Sub")
        names = ["x", *(f"x{i}" for i in range(1, len(kinds))), "y"]
        nodes = [helper.make_node(op, [names[i], "f"], [names[i + 1]]) for i, op in enumerate(kinds)]
        compared = ["Greater", "Equal"] if dtype in (np.uint8, np.uint16) else []
        nodes += [helper.make_node(op, ["x", "f"], [op]) for op in compared]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        inputs = [helper.make_tensor_value_info(name, kind, [3]) for name in ("x", "f")]
        outputs = [helper.make_tensor_value_info(op, T.BOOL, [3]) for op in compared]
        graph = helper.make_graph(nodes, "unsigned", inputs, [helper.make_tensor_value_info("y", kind, [3]), *outputs])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        most = np.iinfo(dtype).max
        x, f = np.array([0, 3, 1], dtype), np.array([1, 16, most], dtype)
        try:
            (y,) = _session(model).run(["y"], {"x": f if is_short else x, "f": f})
        except ort_errors.NotImplemented:
            return False
        if y.tolist() != [1, 256 if np.iinfo(dtype).bits > 8 else 0, 1]:  # most * most wraps to 1
            return False
    return True


def int8_is_exact() -> bool:
    """Ask the kernel for the greatest sums of pairs that there are; a release without it is not exact."""
    signs = np.where(np.arange(64) % 4 < 2, 127, -127).astype(np.int8)
    images = np.broadcast_to(signs[None, :, None, None], (1, 64, 4, 4)).copy()
    kernel = np.full((16, 64, 3, 3), 255, np.uint8)
    kernel[1::2] = (signs.astype(int) + 128).astype(np.uint8)[:, None, None]
    try:
        sums = _probe(images, kernel)()
    except ort_errors.NotImplemented:
        return False
    expected = np.array([9 * 127 * int(signs.sum(dtype=int)), 9 * 127 * 127 * len(signs)] * 8)
    return bool((sums == expected[None, :, None, None]).all())


def fused_is_exact() -> bool:
    """The same of a QLinearConv of uint8 by int8, of a depthwise one and of a QLinearMatMul, whose shifts bring the greatest sums
    to 8 bits, for maps whose channels are last; whether QLinearMul gives products of int8 to the nearest step, and QLinearAdd
    their rounded sums."""
    signs = np.where(np.arange(64) % 4 < 2, 127, -127)
    images = np.broadcast_to((signs + 128).astype(np.uint8)[None, :, None, None], (1, 64, 4, 4)).copy()
    dense = np.broadcast_to(signs.astype(np.int8)[None, :, None, None], (64, 64, 3, 3)).copy()
    depthwise = np.broadcast_to(signs.astype(np.int8)[:, None, None, None], (64, 1, 3, 3)).copy()
    if not _products_are_near() or not _sums_are_exact():
        return False
    expected = {shift: round(9 * channels * 127 * 127 / 2**shift) for channels, shift in ((64, 17), (1, 11))}
    runs = (
        (_probe(images, dense, 17, last=True), 17),
        (_probe(images, depthwise, 11, last=True), 11),
        (_matrix(images, dense, 17), 17),
    )
    return all(bool((run() == expected[shift]).all()) for run, shift in runs)


def _products_are_near() -> bool:
    """Whether all products of int8, as uint8, with int8 and with uint8 leave a rest of 8 bits."""
    runs = [_of_all_pairs("QLinearMul", 1, STEP, (RAISED, zero, RAISED)) for zero in (RAISED, 0)]
    return all(bool((abs(x * y - STEP * high) < 128).all()) for x, y, high in runs)


def _sums_are_exact() -> bool:
    """Whether 3/4 of one int8 and 1/4 of another are rounded half to even, for all of them; and fractions and multiples of the
    sum of two, as uint8."""
    x, y, total = _of_all_pairs("QLinearAdd", 3, 4)
    exact = bool((total == np.rint((3 * x + y) / 4)).all())
    for shift in range(-BYTE, BYTE, 3):
        x, y, total = _of_all_pairs("QLinearAdd", 1, 2.0**shift, (RAISED, RAISED, RAISED))
        exact &= bool((total == np.clip(np.rint((x + y) / 2.0**shift), -128, 127)).all())
    return exact


def _of_all_pairs(kind: str, scale: int, step: float, zeros: tuple[int, int, int] = (0, 0, 0)) -> tuple[Array, Array, Array]:
    """All pairs of 8 bits, and what a kernel of com.microsoft makes of the first by ``scale`` and the second, in ``step``s;
    int8, or uint8 with these zero points where there are some."""
    dtype, kind_of_all = (np.uint8, T.UINT8) if any(zeros) else (np.int8, T.INT8)
    x, y = np.meshgrid(*[np.arange(256, dtype=np.uint8).view(dtype)] * 2)
    scales: dict[str, Any] = {"scale": np.float32(scale), "one": np.float32(1), "step": np.float32(step)}
    scales |= {name: dtype(zero) for name, zero in zip(("x_zero", "y_zero", "z_zero"), zeros, strict=True)}
    operands = ["x", "scale", "x_zero", "y", "one", "y_zero", "step", "z_zero"]
    node = helper.make_node(kind, operands, ["z"], domain=MICROSOFT)
    inputs = [helper.make_tensor_value_info(name, kind_of_all, x.shape) for name in "xy"]
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in scales.items()]
    graph = helper.make_graph([node], "pairs", inputs, [helper.make_tensor_value_info("z", kind_of_all, None)], constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    session = _session(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION))
    (z,) = session.run(None, {"x": x, "y": y})
    found = [np.asarray(value).astype(int) - zero for value, zero in zip((x, y, z), zeros, strict=True)]
    return found[0], found[1], found[2]


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
    session = _session(merged_images(model))
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
    fused = rewritten(typed, {"fused-products": lambda edit: fused_products(edit, lambda *shapes: False, lambda *shapes: True)})
    session = _session(channels_last(tidy(inline(fused))))
    image = x.transpose(0, 2, 3, 1).copy()
    return lambda: np.asarray(session.run(None, {"x": image, "w": w})[0])


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = session_options(threads=1, optimize=False)  # as steps run
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
