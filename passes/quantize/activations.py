"""Q_A: 8 bits after a ReLU (0..127) or an average; Q_S: 16 bits on a residual sum that no ReLU follows."""

from __future__ import annotations

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model, Tensor
from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.quantize.place import expect_also, insert, is_quantized, quantizer_of, source, static_exponent
from wageubn_onnx.profiles import Format
from wageubn_onnx.quantizers import floating

MOVES = ("Flatten", "Identity", "Pad", "Reshape")  # what may stand between a tensor and the product that reads it
WIDE = ("Add", "Sub", "ReduceSum")  # what may read a convolution beside the product that it feeds: a residual sum, a BN


def quantize_activations(g: Model, config: Config) -> None:
    """Insert after every tensor of role A, after sums that stay a stream, and before products still unquantized.

    The backward of Q_A is the identity, also where it saturates; the ReLU mask is taken before it.
    """

    def form(tensor: Tensor, role: str = "A") -> Format:
        return config.profile.format(role, g.tag(tensor).layer)

    bits = config.profile.format("A").bits
    for tensor in g.by_role("A"):
        least = 0 if source(tensor).op == "Relu" and form(tensor).bounded else None
        insert(g, tensor, floating.direct, "A", form(tensor), static_exponent(g, tensor, form(tensor)), lo=least)
    for pool in g.by_role("A.pool"):
        tensor = source(pool).inputs[0]
        if not _is_narrow(tensor, bits):  # a maximum needs 8 bits; most pools stand behind a ReLU and have them
            insert(g, tensor, floating.direct, "A", form(tensor), static_exponent(g, tensor, form(tensor)))
    for tensor in g.by_role("sum"):
        if any(user.op not in ("Relu", "Greater") for user in tensor.outputs):
            insert(g, tensor, floating.direct, "S", form(tensor, "S"), static_exponent(g, tensor, form(tensor, "S")))
            if not form(tensor, "S").is_float:
                expect_also(g, tensor, "S")
    for tensor in g.by_role("Y", "sum", "S", "C"):
        if _enters_a_product(tensor) and not _is_narrow(tensor, bits):
            wide = [u for u in tensor.outputs if u.op in WIDE] if g.tag(tensor).role == "C" else []
            insert(g, tensor, floating.direct, "A", form(tensor), static_exponent(g, tensor, form(tensor)), keep=wide)


def _enters_a_product(tensor: Tensor) -> bool:
    """Whether ``tensor``, or its elements in another shape, is the first operand of a product."""
    read = [user for user in tensor.outputs if user.inputs[0] is tensor]
    return any(user.op in ("Conv", "MatMul") or user.op in MOVES and _enters_a_product(user.outputs[0]) for user in read)


def _is_narrow(tensor: Tensor, bits: int) -> bool:
    return is_quantized(tensor) and int(quantizer_of(tensor).attrs["bits"]) <= bits


PASS = Pass("quantize-activations", "Q_A on every activation, Q_S on every residual stream", quantize_activations, ("A", "S"))
