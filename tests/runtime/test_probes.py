"""The kernels are asked so that a planted fault of any kind is found, and in the kernel that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from wageubn_onnx.passes.targets.cpu.machine import MENDED, Kernel, missing
from wageubn_onnx.runtime import probes
from wageubn_onnx.runtime.kernels import Kernels
from wageubn_onnx.runtime.probes import exact_kernels

Array = np.ndarray[Any, Any]
Fault = Callable[[onnx.NodeProto, list[tuple[Any, tuple[int, ...]]], Array], bool]
"""Whether a kernel is wrong about a node with operands of these dtypes and shapes (of constants, too), and this result."""


def faulty(fault: Fault) -> probes.Run:
    """onnxruntime, but for the last element of what ``fault`` is about."""

    def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
        known = feeds | {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        results = probes.run(model, feeds)
        for at, node in enumerate(model.graph.node):
            if fault(node, [(known[name].dtype, known[name].shape) for name in node.input], results[at]):
                results[at] = results[at].copy()
                results[at].reshape(-1)[-1] ^= 1
        return results

    return run


def ragged(rows: int, columns: int) -> bool:
    return rows >= 32 and columns % 16 != 0


def amx(node: onnx.NodeProto, operands: list[tuple[Any, tuple[int, ...]]], result: Array) -> bool:
    """That of onnxruntime 1.21 to 1.24 on processors with AMX: 32 rows and more, a rest of 16 in the columns."""
    if node.op_type == "MatMulInteger":
        return ragged(*result.shape[-2:])
    return node.op_type == "ConvInteger" and ragged(result.shape[1], result.shape[2] * result.shape[3])


def all_but(*lacking: Kernel) -> frozenset[Kernel]:
    return exact_kernels() - set(lacking)


def only(monkeypatch: pytest.MonkeyPatch, *kernels: Kernel) -> None:
    """Ask of these alone."""
    monkeypatch.setattr(probes, "PROBES", {kernel: probes.PROBES[kernel] for kernel in kernels})


def test_every_kernel_has_its_cases() -> None:
    assert list(probes.PROBES) == list(Kernel)


def test_what_every_step_needs_is_exact_here() -> None:
    assert {Kernel.ARITHMETIC, *MENDED, *MENDED.values()} <= exact_kernels()


def test_a_rest_of_columns_is_found_and_can_be_mended() -> None:
    found = exact_kernels(faulty(amx))
    assert found == all_but(Kernel.MATMUL, Kernel.CONV, Kernel.INT8, Kernel.SUMS)
    assert missing(Kernels("here", found)) is None


SINGLE: dict[str, tuple[Kernel, Fault]] = {
    "one row": (Kernel.MATMUL, lambda n, o, r: r.shape[0] == 1),
    "one column": (Kernel.MATMUL, lambda n, o, r: r.shape[1] == 1),
    "a rest of 64 in the sums": (Kernel.MATMUL, lambda n, o, r: o[0][1][1] % 64 == 1),
    "uint8 by uint8 alone": (Kernel.MATMUL, lambda n, o, r: o[1][0] == np.uint8 and r.shape[0] > 64),
    "whole columns": (Kernel.WHOLE_MATMUL, lambda n, o, r: r.shape[0] >= 32 and o[0][1][1] % 4 > 0),
    "a kernel a channel": (Kernel.CONV, lambda n, o, r: o[1][1][1] == 1 and o[0][1][1] > 1),
    "strides": (Kernel.CONV, lambda n, o, r: any(a.name == "strides" and a.ints[0] == 2 for a in n.attribute)),
    "whole places": (Kernel.WHOLE_CONV, lambda n, o, r: r.shape[1] == 33),
    "ties": (Kernel.QLINEAR_ADD, lambda n, o, r: r.size == 33),
    "33 channels": (Kernel.DEPTHWISE, lambda n, o, r: r.shape[-1] == 33),
    "17 channels": (Kernel.QLINEAR_CONV, lambda n, o, r: r.shape[-1] == 17),
    "a rest of channels": (Kernel.POOL, lambda n, o, r: r.shape[-1] % 16 == 1),
    "a row": (Kernel.QLINEAR_MATMUL, lambda n, o, r: r.shape[0] == 1),
    "few": (Kernel.QLINEAR_MUL, lambda n, o, r: r.size == 1),
    "uint32": (Kernel.UNSIGNED, lambda n, o, r: r.dtype == np.uint32 and n.op_type == "Mul"),
    "int8 errors": (Kernel.INT8, lambda n, o, r: n.op_type == "MatMulInteger" and r.shape[1] == 24),
    "three channels": (Kernel.SUMS, lambda n, o, r: r.shape[-1] == 3),
    "wide sums": (Kernel.ARITHMETIC, lambda n, o, r: r.dtype == np.int64 and n.op_type == "ReduceSum"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, fault = SINGLE[name]
    only(monkeypatch, kernel)
    if kernel not in exact_kernels():
        pytest.skip("not exact here as it is")
    assert exact_kernels(faulty(fault)) == frozenset()


def test_a_kernel_that_a_release_lacks_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
        raise ort_errors.NotImplemented("no such kernel")

    only(monkeypatch, Kernel.POOL)
    assert exact_kernels(lacks) == frozenset()
