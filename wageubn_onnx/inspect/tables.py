"""A summary as tables for people: title, columns and rows of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wageubn_onnx.inspect.quantizers import QuantizerMap
from wageubn_onnx.inspect.summary import Summary, Value
from wageubn_onnx.symbols import direction

Table = tuple[str, list[str], list[list[str]]]
SHOWN = 12  # inputs or outputs


def stages(folder: str, found: Sequence[Summary]) -> Iterator[Table]:
    """A line a stage."""
    columns = ["stage", "nodes", "quantizers", "gaps", "FLOPs", "state", "kept for backward", "peak", "file"]
    rows = []
    for s in found:
        cells = [cell for row in s.quantizers.cells.values() for cell in row.values()] if s.quantizers else []
        counts = [s.nodes, len(cells), len(s.quantizers.gaps) if s.quantizers else 0, s.flops]
        sizes = [s.memory.state, sum(s.memory.kept.values()), s.memory.peak, s.bytes]
        rows.append([s.stage, *(f"{n:,}" for n in (*counts, *sizes))])
    yield f"{folder} (memory in bytes{_opened(found[0])})", columns, rows


def tables(s: Summary, layers: bool) -> Iterator[Table]:
    """All that the summary holds, what every layer costs on request."""
    about = {
        "stage": s.stage,
        "producer": s.producer,
        "IR version": str(s.ir_version),
        "opsets": ", ".join(f"{domain} {version}" for domain, version in s.opsets.items()),
        "file": f"{s.bytes:,} bytes",
        "nodes": f"{s.nodes:,}",
        "parameters": f"{s.parameters:,} ({s.parameter_bytes:,} bytes)",
        "FLOPs": f"{s.flops:,}{_opened(s)}",
        "unknown shapes": f"{s.unknown:,} results, which count nothing" if s.unknown else "",
    }
    yield s.file, ["what", "value"], [[name, value] for name, value in about.items() if value]
    yield "inputs and outputs", ["", "name", "dtype", "shape"], _interface(s)
    yield "operators", ["operator", "nodes"], [[name, f"{count:,}"] for name, count in s.operators.items()]
    rows = [[dtype, f"{n['tensors']:,}", f"{n['bytes']:,}"] for dtype, n in s.dtypes.items()]
    yield "tensors", ["dtype", "tensors", "bytes"], rows
    if layers:
        columns = ["layer", "nodes", "parameters", "parameter bytes", "FLOPs", "result bytes"]
        counts = [(y.layer, y.nodes, y.parameters, y.parameter_bytes, y.flops, y.result_bytes) for y in s.layers]
        yield "layers", columns, [[name, *(f"{n:,}" for n in numbers)] for name, *numbers in counts]
    yield from _memory(s)
    if s.quantizers:
        yield from _map(s.quantizers)


def _memory(s: Summary) -> Iterator[Table]:
    m = s.memory
    rows = [["state", f"{m.state:,}"], ["initializers", f"{m.stored:,}"]]
    if m.kept:
        rows.append(["kept for backward", f"{sum(m.kept.values()):,}"])
        rows += [[f"  {path}", f"{size:,}"] for path, size in m.kept.items()]
    rows.append([f"peak, at {m.peak_node}", f"{m.peak:,}"])
    yield f"memory, estimated from liveness{_opened(s)}", ["what", "bytes"], rows


def _map(found: QuantizerMap) -> Iterator[Table]:
    """One table for the layers that have the same paths, by direction: the whole map is wider than a screen."""
    for where in ("forward", "backward", "update"):
        kinds: dict[tuple[str, ...], list[list[str]]] = {}
        for layer, row in found.cells.items():
            paths = tuple(path for path in found.paths if path in row and direction(path) == where)
            if paths:
                kinds.setdefault(paths, []).append([layer, *(", ".join(map(_shortened, row[path])) for path in paths)])
        for paths, rows in kinds.items():
            yield f"quantizers, {where}", ["layer", *paths], rows
    yield "gaps", ["layer", "path"], [list(gap) for gap in found.gaps] or [["none", ""]]


def _shortened(cell: str) -> str:
    return cell.removesuffix("/half_even")


def _interface(s: Summary) -> list[list[str]]:
    """Inputs and outputs; states, which are both, are counted."""
    after = {o.name for o in s.outputs}
    states = {i.name for i in s.inputs if f"{i.name}.next" in after}
    rows = _values("in", [i for i in s.inputs if i.name not in states])
    rows += _values("out", [o for o in s.outputs if o.name.removesuffix(".next") not in states])
    return rows + ([["both", f"{len(states)} states, KEY and KEY.next", "", ""]] if states else [])


def _values(side: str, values: Sequence[Value]) -> list[list[str]]:
    rows = [[side, v.name, v.dtype or "?", ", ".join(map(str, v.shape)) if v.dtype else "?"] for v in values[:SHOWN]]
    return rows + ([[side, f"... {len(values) - SHOWN} more", "", ""]] if len(values) > SHOWN else [])


def _opened(s: Summary) -> str:
    return f", with {', '.join(s.open)} = 1" if s.open else ""
