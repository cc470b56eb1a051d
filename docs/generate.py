"""Write docs/passes.md from the code: `python docs/generate.py`; a test fails when the file is stale."""

from __future__ import annotations

from pathlib import Path

from wageubn_onnx.pipeline import STAGES
from wageubn_onnx.quantizers.symbols import SYMBOLS
from wageubn_onnx.stages import CONTRACTS

PAGE = Path(__file__).with_name("passes.md")


def page() -> str:
    """The stages with their passes and legal operators, and the symbols of the quantizers."""
    lines = ["# Stages, passes and quantizers", "", "Written by `python docs/generate.py` from the code; do not edit.", ""]
    for stage in STAGES:
        lines += [f"## {stage.name}", "", stage.summary[0].upper() + stage.summary[1:] + ".", ""]
        lines += ["| pass | does | file | quantizers |", "| --- | --- | --- | --- |"]
        for step in stage.passes:
            symbols = ", ".join(dict.fromkeys(SYMBOLS[role][0] for role in step.roles))
            lines.append(f"| {step.name} | {step.summary} | [{step.file}](../{step.file}) | {symbols} |")
        contract = CONTRACTS[stage.name]
        lines += ["", f"Legal operators: {', '.join(sorted(contract.ops))}"]
        lines += [("and calls of quantize functions." if contract.functions else "and no functions."), ""]
    lines += [
        "Targets rewrite `int_training` further, to the same integers: [performance.md](performance.md) has the passes for",
        "onnxruntime's CPU kernels, [backends.md](backends.md) the other targets, and how `verify` finds the pass or the",
        "kernel that changes a number.",
        "",
    ]
    lines += ["## Symbols", "", "| symbol | role | on |", "| --- | --- | --- |"]
    lines += [f"| {symbol} | {role} | {meaning} |" for role, (symbol, meaning) in SYMBOLS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
