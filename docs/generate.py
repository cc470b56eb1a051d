"""Write docs/passes.md from the code: `python docs/generate.py`; a test fails when the file is stale."""

from __future__ import annotations

from pathlib import Path

from wageubn_onnx.passbase import Pass
from wageubn_onnx.passes.targets.cpu.form import Form
from wageubn_onnx.passes.targets.table import PASSES
from wageubn_onnx.pipeline import STAGES
from wageubn_onnx.stages import CONTRACTS
from wageubn_onnx.symbols import SYMBOLS

CALLS = {
    (False, False): "and no functions.",
    (True, False): "and calls of composites.",
    (True, True): "and calls of composites and of quantize functions.",
}
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
        lines += [CALLS[contract.composites, contract.quantizers], ""]
    lines += [
        "## Targets",
        "",
        "Targets rewrite `int_training` further, to the same integers. [performance.md](performance.md) says what the passes for",
        "onnxruntime's CPU kernels gain, [backends.md](backends.md) how `verify` finds the pass or the kernel that changes a",
        "number.",
        "",
    ]
    for target, passes in PASSES.items():
        lines += [f"### {target}", "", "| pass | does | file | needs, exact |", "| --- | --- | --- | --- |"]
        lines += [f"| {p.name} | {p.summary} | [{p.file}](../{p.file}) | {_needs(p)} |" for p in passes]
        lines.append("")
    lines += ["## Symbols", "", "| symbol | role | on |", "| --- | --- | --- |"]
    lines += [f"| {symbol} | {role} | {meaning} |" for role, (symbol, meaning) in SYMBOLS.items()]
    return "\n".join(lines) + "\n"


def _needs(one: Pass) -> str:
    if not isinstance(one, Form):
        return ""
    instead = [f"in place of {one.instead_of.value}"] if one.instead_of else []
    return "; ".join([kernel.value for kernel in one.needs] + instead)


if __name__ == "__main__":
    PAGE.write_text(page())
