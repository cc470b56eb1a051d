"""Softmax cross-entropy on the logits, its error, and the count of correct answers."""

from __future__ import annotations

import numpy as np
import onnx

from wageubn_onnx.config import Config
from wageubn_onnx.graph import Model
from wageubn_onnx.passbase import Pass


def add_loss(g: Model, config: Config) -> None:
    """loss = mean(log sum exp t - t[label]), t = z - max z; dL/dz = (softmax(z) - onehot) / N.

    Adds the input ``labels`` int32 [N]; names ``loss`` float32 [], ``correct`` int32 [] and ``dlogits`` [N, K].
    """
    z = g.named["logits"]
    n, classes = z.shape
    last = g.ints(1)
    with g.context(layer="loss", path="loss"):
        labels = g.named["labels"] = g.input("labels", np.int32, [n])
        with g.context(path="S.t"):
            shifted = g.op("Sub", z, g.op("ReduceMax", z, last, name="max", keepdims=1), name="shifted", role="S.t")
        with g.context(path="S.p"):
            exponential = g.op("Exp", shifted, name="exp", role="S.exp")
            total = g.op("ReduceSum", exponential, last, name="total", role="S.total", keepdims=1)
            probability = g.op("Div", exponential, total, name="probability", role="S.p")
        index = g.constant(np.arange(classes)[None], np.int32, name="classes")
        is_label = g.op("Equal", g.op("Unsqueeze", labels, last, name="label"), index, name="is_label")
        share = g.constant(1.0 / n, name="reciprocal")
        with g.context(path="E2"):
            onehot = g.op("Where", is_label, g.scalar(1.0), g.scalar(0.0), name="onehot")
            g.named["dlogits"] = g.op("Mul", g.op("Sub", probability, onehot, name="gap"), share, name="dlogits")
        picked = g.op(
            "ReduceSum", g.op("Where", is_label, shifted, g.scalar(0.0), name="picked"), last, name="picked", keepdims=1
        )
        nats = g.op("Sub", g.op("Log", total, name="log", role="S.log"), picked, name="nats")
        g.named["loss"] = g.op(
            "Mul", g.op("ReduceSum", nats, g.ints(0, 1), name="sum", keepdims=0), share, name="mean", role="loss"
        )
        right = g.op(
            "Equal",
            g.op("ArgMax", z, name="answer", axis=1, keepdims=0),
            g.op("Cast", labels, name="labels", to=onnx.TensorProto.INT64),
            name="right",
        )
        g.named["correct"] = g.op(
            "ReduceSum", g.op("Cast", right, name="right", to=onnx.TensorProto.INT32), g.ints(0), name="correct", keepdims=0
        )


PASS = Pass("loss", "softmax cross-entropy, its error at the logits, and the number of correct answers", add_loss)
