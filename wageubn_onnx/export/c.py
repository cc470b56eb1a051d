"""C99 without floating point: every distinct node a function by emx-onnx-cgen, called on static memory that is planned here.

emx-onnx-cgen by itself gives each intermediate tensor memory of its own, from the heap or on the stack, and each node a
function. Here the nodes go to it apart from the graph, equal ones once; the graph becomes a list of calls on one static array.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import numpy_helper

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.export.base import Array, Bundle, Option, Passes, Runner, Target, Tensors
from wageubn_onnx.export.budget import what_fits
from wageubn_onnx.export.memory import Memory, planned
from wageubn_onnx.graph import OPSET
from wageubn_onnx.onnxir.inline import inline
from wageubn_onnx.passes.targets.kernels import Call, Kernels, Type, tensor_types
from wageubn_onnx.passes.targets.table import PASSES

FILES = Path(__file__).with_name("files") / "c"
KERNELS, SOURCE, HEADER, INITIAL = "kernels.c", "wageubn.c", "wageubn.h", "initial.c"
BATCH = ("images", "labels", "lr", "gradient_range", "seed")
MAGIC = b"WAGEUBN1"  # a saved state begins with it and 8 bytes that tell networks apart
EMX = "emx-onnx-cgen"
FLAGS = ("-std=c99", "-fno-strict-aliasing")


@dataclass(frozen=True)
class Field:
    """A member of one of the structs: its C name, the tensor's name in files (``key``) and in the step, and its type."""

    name: str
    key: str
    tensor: str
    type: Type

    @property
    def declaration(self) -> str:
        return f"{_c_type(self.type)} {self.name}{''.join(f'[{d}]' for d in self.type.shape)};"

    @property
    def described(self) -> dict[str, Any]:
        """In the manifest, in the order of the struct and of its bytes in files."""
        return {"name": self.name, "key": self.key, "dtype": self.type.dtype.name, "shape": list(self.type.shape)}


@dataclass(frozen=True)
class Program:
    """The step and the evaluation of one image, shaped for C: graphs in their order, plans, and the members of the structs."""

    step: onnx.ModelProto
    evaluation: onnx.ModelProto
    step_memory: Memory
    evaluation_memory: Memory
    state: list[Field]
    batch: list[Field]
    result: list[Field]
    image: Field
    logits: Field

    @staticmethod
    def of(bundle: Bundle) -> Program:
        """That of a bundle which is lowered."""
        step, evaluation = bundle.lowered, _for_one_image(inline(bundle.evaluation))
        for one in PASSES["c"]:
            evaluation = one.run(evaluation)
        types = tensor_types(step)
        entries = bundle.manifest["state"]
        state = _fields([(entry["key"], entry["in"]) for entry in entries], types)
        batch = [Field(key, key, bundle.scalars[key], types[bundle.scalars[key]]) for key in BATCH]
        ends = {entry["out"]: entry["in"] for entry in entries}
        rest = [output.name for output in step.graph.output if output.name not in ends]
        result = _fields([(name, name) for name in rest], types)
        shown, image, logits = tensor_types(evaluation), bundle.manifest["eval"]["images"], bundle.manifest["eval"]["logits"]
        return Program(
            step,
            evaluation,
            planned(step, ends),
            planned(evaluation, {}),
            state,
            batch,
            result,
            Field("image", "image", image, shown[image]),
            Field("logits", "logits", logits, shown[logits]),
        )

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of RAM that stay taken, part by part; the stack is not among them."""
        parts = {
            "state": _bytes(self.state),
            "arena": max(self.step_memory.size, self.evaluation_memory.size),
            "batch": _bytes(self.batch),
            "result": _bytes(self.result),
        }
        return parts | {"total": sum(parts.values())}


def _for_one_image(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, whose batch is open, for a batch of 1."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 1
    return fixed


def _fields(named: Sequence[tuple[str, str]], types: Mapping[str, Type]) -> list[Field]:
    """Members by key and tensor; a C identifier each, which has an underscore and so is no keyword, or is ours."""
    taken, fields = set[str](), []
    for key, tensor in named:
        name = re.sub(r"\W", "_", key, flags=re.ASCII)
        if key not in ("loss", "correct", "health") and ("_" not in name[1:] or not name[0].isalpha()):
            name = f"t_{name}"
        while name in taken:
            name += "_"
        taken.add(name)
        fields.append(Field(name, key, tensor, types[tensor]))
    return fields


def _bytes(fields: Sequence[Field]) -> int:
    """Of a struct with these members, all of natural alignment."""
    size = 0
    for entry in fields:
        width = entry.type.dtype.itemsize
        size = -(-size // width) * width + entry.type.bytes
    widest = max(entry.type.dtype.itemsize for entry in fields)
    return -(-size // widest) * widest


def passes(bundle: Bundle, budget: str | None = None) -> Passes:
    """Those for emx-onnx-cgen, and for little memory."""
    return Passes.chain(bundle.step, PASSES["c"])


def write(bundle: Bundle, folder: Path, budget: str | None = None) -> dict[str, Any]:
    """The sources, with static memory of at most ``budget`` (bytes, or such as 256k or 4M) where that is given.

    Raises WageubnError where the memory does not suffice, or emx-onnx-cgen does not take a node.
    """
    program = Program.of(bundle)
    if budget is not None:
        _require(program.memory, _parsed(budget), bundle)
    kernels = Kernels()
    step = _calls(program.step, program.step_memory, kernels)
    evaluation = _calls(program.evaluation, program.evaluation_memory, kernels)
    (folder / KERNELS).write_text(_generated(kernels, (*step, *evaluation)), encoding="utf-8")
    functions = _functions((folder / KERNELS).read_text(encoding="utf-8"))
    network = _network(program, bundle)
    (folder / HEADER).write_text(_header(program, network, bundle.manifest["exponents"]), encoding="utf-8")
    (folder / SOURCE).write_text(_source(program, step, evaluation, functions, bundle), encoding="utf-8")
    saved = MAGIC + network + _packed([field.described for field in program.state], bundle.state)
    (folder / INITIAL).write_text(_initial(saved), encoding="utf-8")
    for file in sorted(FILES.iterdir()):
        shutil.copyfile(file, folder / file.name)
    sections = {key: bundle.manifest[key] | {"model": SOURCE} for key in ("step", "eval")}
    described = {"network": network.hex(), "memory": program.memory, "kernels": len(functions)}
    members = {"state": program.state, "batch": program.batch, "result": program.result}
    described |= {name: [field.described for field in fields] for name, fields in members.items()}
    return sections | {"state_file": INITIAL, "c": described}


def _require(memory: Mapping[str, int], budget: int, bundle: Bundle) -> None:
    """Raise WageubnError, with what would fit, where ``memory`` is over the budget."""
    if memory["total"] > budget:
        fits = what_fits(bundle, lambda other: Program.of(replace(other, lowered=passes(other).whole)).memory["total"], budget)
        raise WageubnError(
            f"needs {memory['total']:,} bytes of static memory ({_parts(memory)}), over the budget of {budget:,}; {fits}"
        )


def _parts(memory: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {size:,}" for key, size in memory.items() if key != "total")


def _parsed(budget: str) -> int:
    found = re.fullmatch(r"(\d+)([kKmM]?)", budget)
    if not found:
        raise WageubnError(f"budget {budget!r}: give bytes, or such as 256k or 4M")
    return int(found[1]) * {"": 1, "k": 2**10, "m": 2**20}[found[2].lower()]


# Kernels


def _calls(model: onnx.ModelProto, memory: Memory, kernels: Kernels) -> list[Call]:
    types = tensor_types(model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [kernels.call(node, types, constants) for node in model.graph.node if node.output[0] not in memory.roots]


def _command() -> list[str] | None:
    """How emx-onnx-cgen is run: as a module of this python, or as a command."""
    if importlib.util.find_spec("emx_onnx_cgen"):
        return [sys.executable, "-m", "emx_onnx_cgen"]
    found = shutil.which(EMX)
    return [found] if found else None


def missing() -> str | None:
    """See `base.Target`."""
    return None if _command() else f"{EMX} is not installed; pip install 'wageubn-onnx[c]'"


def _generated(kernels: Kernels, calls: Sequence[Call]) -> str:
    """What emx-onnx-cgen makes of the kernels: all in one file, nothing on the heap."""
    command = _command()
    if command is None:
        raise WageubnError(f"target c: {missing()}")
    with tempfile.TemporaryDirectory() as scratch:
        onnx.save(kernels.model(OPSET), f"{scratch}/kernels.onnx")
        options = ["--large-temp-threshold", "0", "--large-weight-threshold", "0", "--no-restrict-arrays", "--color", "never"]
        options += ["--model-name", "wageubn_kernels"]
        arguments = [*command, "compile", "kernels.onnx", KERNELS, *options]
        done = subprocess.run(arguments, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-1:] or ["no reason given"]
            kernel = re.search(r"name=(k\d+)\b", said[0])
            node = next((call.node for call in calls if kernel and call.kernel == kernel[1]), "?")
            raise WageubnError(f"node {node!r}: {EMX} does not take it: {said[0].removeprefix('Result: ')[:200]}")
        return (Path(scratch) / KERNELS).read_text(encoding="utf-8")


def _functions(source: str) -> dict[str, tuple[str, list[str]]]:
    """Of every kernel, its function and arguments, as the generated entry point calls it.

    Arguments are inputs and outputs by name, and constants of the file.
    """
    calls = re.findall(r"^\s+(node\d+_(k\d+))\((.*)\);$", source, re.MULTILINE)
    return {kernel: (function, arguments.split(", ")) for function, kernel, arguments in calls}


# Sources


def _header(program: Program, network: bytes, exponents: Mapping[str, int]) -> str:
    def struct(name: str, fields: Sequence[Field]) -> str:
        return "typedef struct {\n" + "".join(f"    {f.declaration}\n" for f in fields) + f"}} {name};\n"

    batch, image, logits = program.batch[0].type.shape[0], program.image.type, program.logits.type
    memory = program.memory
    return f"""/* A training step in integers. Nothing here allocates, blocks, or computes in floating point.
 *
 * Static memory: {memory["total"]} bytes ({_parts(memory)}). The arena lies inside wageubn.c; calls must not overlap, since all
 * share it.
 */
#ifndef WAGEUBN_H
#define WAGEUBN_H

#include <stddef.h>
#include <stdint.h>

#define WAGEUBN_BATCH {batch}
#define WAGEUBN_CLASSES {logits.shape[-1]}
#define WAGEUBN_IMAGE_BYTES {image.bytes}
#define WAGEUBN_MEMORY_BYTES {memory["total"]}
#define WAGEUBN_SAVED_BYTES {_saved_bytes(program.state)}
#define WAGEUBN_NETWORK "{_escaped(network)}"
#define WAGEUBN_LOSS_BITS {-exponents["loss"]} /* the loss is result.loss / 2^{-exponents["loss"]} */
#define WAGEUBN_LOGIT {_c_type(logits)}

{struct("wageubn_state", program.state)}
/* lr, gradient_range (a power of two from 2 to 128) and seed: see manifest.json, exponents. */
{struct("wageubn_batch", program.batch)}
{struct("wageubn_result", program.result)}
/* A member of a struct, for those who read or write all of them. */
typedef struct {{
    const char *key;
    size_t offset, count;
    uint8_t bytes;      /* of one element */
    uint8_t is_signed;
    int64_t least, greatest; /* of a state's elements */
}} wageubn_field;

#define WAGEUBN_STATES {len(program.state)}
#define WAGEUBN_RESULTS {len(program.result)}
extern const wageubn_field wageubn_state_fields[WAGEUBN_STATES];
extern const wageubn_field wageubn_batch_fields[{len(program.batch)}];
extern const wageubn_field wageubn_result_fields[WAGEUBN_RESULTS];

/* The state to begin with, as saved. */
extern const uint8_t wageubn_initial[WAGEUBN_SAVED_BYTES];

/* One step: the state becomes the next one. */
void wageubn_step(wageubn_state *state, const wageubn_batch *batch, wageubn_result *result);

/* The logits of one image [C][H][W]. */
void wageubn_eval(const wageubn_state *state, const uint8_t image[WAGEUBN_IMAGE_BYTES], WAGEUBN_LOGIT logits[WAGEUBN_CLASSES]);

/* The state in a form that is the same on every machine. */
void wageubn_save(const wageubn_state *state, uint8_t saved[WAGEUBN_SAVED_BYTES]);

/* 0; 1 where the bytes are no state of this network; 2 where a value is out of its range: then the state is of no use. */
int wageubn_load(wageubn_state *state, const uint8_t saved[WAGEUBN_SAVED_BYTES]);

/* The elements of a field, little-endian, to and from bytes. */
void wageubn_pack(const wageubn_field *field, const void *from, uint8_t *bytes);
void wageubn_unpack(const wageubn_field *field, void *to, const uint8_t *bytes);

#endif
"""


def _source(
    program: Program,
    step: Sequence[Call],
    evaluation: Sequence[Call],
    functions: Mapping[str, tuple[str, list[str]]],
    bundle: Bundle,
) -> str:
    places = {f.tensor: f"state->{f.name}" for f in program.state}
    places |= {f.tensor: f"batch->{f.name}" for f in program.batch}
    places |= {f.tensor: f"result->{f.name}" for f in program.result}
    homes = {e["out"]: e["in"] for e in bundle.manifest["state"]}
    places |= {out: places[start] for out, start in homes.items()}
    addresses = {name: f"&{place}" for name, place in places.items()}
    tables = _Constants()
    stepping = _body(program.step, program.step_memory, step, functions, addresses, tables)
    members = {e["in"]: f"&state->{f.name}" for e, f in zip(bundle.manifest["state"], program.state, strict=True)}
    local = members | {program.image.tensor: "image", program.logits.tensor: "logits"}
    evaluating = _body(program.evaluation, program.evaluation_memory, evaluation, functions, local, tables)
    ranges = {key: (entry["min"], entry["max"]) for key, entry in bundle.manifest["tensors"].items() if "min" in entry}
    return f"""#include "wageubn.h"

#ifdef __GNUC__
#define EMX_NODE_FN static __attribute__((noinline)) /* a tenth of the time to compile, and a third less code */
#else
#define EMX_NODE_FN static
#endif
#include "{KERNELS}"

#define ARENA(offset) ((void *)((uint8_t *)arena + (offset)))

static int64_t arena[{max(program.memory["arena"] // 8, 1)}];

{tables.text}
void wageubn_step(wageubn_state *state, const wageubn_batch *batch, wageubn_result *result)
{{
{stepping}}}

void wageubn_eval(const wageubn_state *state, const uint8_t image[WAGEUBN_IMAGE_BYTES], WAGEUBN_LOGIT logits[WAGEUBN_CLASSES])
{{
{evaluating}}}

{_table("state", program.state, ranges)}
{_table("batch", program.batch, {})}
{_table("result", program.result, {})}"""


class _Constants:
    """Arrays of wageubn.c: the constants that are too large to be part of a kernel."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, bytes], str] = {}
        self.text = ""

    def name(self, value: Array) -> str:
        key = (value.dtype.str, value.tobytes())
        if key not in self._names:
            name = self._names[key] = f"constant{len(self._names)}"
            kind = Type(value.dtype, value.shape)
            self.text += f"static const {_c_type(kind)} {name}[{value.size}] = {{\n{_numbers(value)}\n}};\n"
        return self._names[key]


def _body(
    model: onnx.ModelProto,
    memory: Memory,
    calls: Sequence[Call],
    functions: Mapping[str, tuple[str, list[str]]],
    addresses: Mapping[str, str],
    tables: _Constants,
) -> str:
    """Statements: every call in order, then the outputs that could not be written home at once."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    types = tensor_types(model)

    def address(name: str) -> str:
        root = memory.roots.get(name, name)
        if root in memory.offsets:
            return f"ARENA({memory.offsets[root]})"
        return tables.name(constants[root]) if root in constants else addresses[root]

    lines = []
    for call in calls:
        function, arguments = functions[call.kernel]
        results = {name for argument, name in call.tensors.items() if "_y" in argument}
        given = []
        for argument in arguments:
            tensor = call.tensors.get(argument)
            if tensor is None:
                given.append(argument)  # a constant of the kernels' file
            else:
                given.append(f"({'' if tensor in results else 'const '}void *){address(tensor)}")
        lines.append(f"    {function}({', '.join(given)}); /* {re.sub(r'[^ -~]|[*/]{2,}', '_', call.node)} */\n")
    lines += [
        f"    memcpy({addresses[name]}, ARENA({memory.offsets[name]}), {types[name].bytes}); /* {name} */\n"
        for name in memory.copied
    ]
    return "".join(lines)


def _table(name: str, fields: Sequence[Field], ranges: Mapping[str, tuple[int, int]]) -> str:
    rows = []
    for entry in fields:
        kind, width = entry.type.dtype, entry.type.dtype.itemsize
        least, greatest = ranges.get(entry.key, (0, 0))
        count = math.prod(entry.type.shape)
        numbers = f"{count}, {width}, {int(kind.kind == 'i')}, {_literal(least, 8)}, {_literal(greatest, 8)}"
        rows.append(f'    {{"{entry.key}", offsetof(wageubn_{name}, {entry.name}), {numbers}}},\n')
    return f"const wageubn_field wageubn_{name}_fields[{len(fields)}] = {{\n{''.join(rows)}}};\n"


def _initial(saved: bytes) -> str:
    values = _numbers(np.frombuffer(saved, np.uint8))
    return f'#include "wageubn.h"\n\nconst uint8_t wageubn_initial[WAGEUBN_SAVED_BYTES] = {{\n{values}\n}};\n'


def _c_type(kind: Type) -> str:
    return "bool" if kind.dtype == np.bool_ else f"{kind.dtype.name}_t"


def _numbers(value: Array) -> str:
    width = value.dtype.itemsize
    texts = [_literal(int(v), width) for v in value.reshape(-1)]
    return "\n".join("    " + ", ".join(texts[i : i + 16]) + "," for i in range(0, len(texts), 16))


def _literal(value: int, width: int) -> str:
    """C has no negative literals, so that the least number of a type needs to be made of its neighbour."""
    if value == -(2 ** (8 * width - 1)) and width >= 4:
        return f"({_literal(value + 1, width)} - 1)"
    return f"INT64_C({value})" if width == 8 else str(value)


def _escaped(network: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in network)


# The state in files


def _network(program: Program, bundle: Bundle) -> bytes:
    """8 bytes by which states of other networks or formats are told apart."""
    rows = [f"{f.key} {f.type.dtype} {f.type.shape} {bundle.manifest['tensors'].get(f.key)}" for f in program.state]
    return hashlib.blake2b("\n".join(rows).encode(), digest_size=8).digest()


def _saved_bytes(state: Sequence[Field]) -> int:
    return len(MAGIC) + 8 + sum(f.type.bytes for f in state)


# Running it


@dataclass(frozen=True)
class Compiled:
    """The exported sources with run.c, compiled by ``compiler``; ``command`` runs the program, whose file is put behind it."""

    folder: Path
    name: str
    compiler: tuple[str, ...]
    sources: tuple[str, ...] = ("run.c", SOURCE, "state.c", INITIAL)
    command: tuple[str, ...] = ()

    def build(self, program: Path) -> None:
        """Compile to the file ``program``; raises WageubnError with the compiler's first complaint."""
        done = _run([*self.compiler, *FLAGS, *self.sources, "-o", str(program)], self.folder)
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
            raise WageubnError(f"{self.folder}: {self.compiler[0]}: {said[:200]}")

    def steps(self, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """See `base.Runner`."""
        with tempfile.TemporaryDirectory() as scratch:
            program = Path(scratch) / "program"
            self.build(program)
            yield from self.run(program, state, feeds)

    def run(self, program: Path, state: Tensors, feeds: Sequence[Tensors]) -> Iterator[dict[str, Array]]:
        """The same by a program that `build` made, whose folder gets input.bin and output.bin."""
        manifest = ArtifactFolder(self.folder).manifest
        members, network = manifest["c"], bytes.fromhex(manifest["c"]["network"])
        outs = {entry["key"]: entry["out"] for entry in manifest["state"]}
        with (program.parent / "input.bin").open("wb") as file:
            file.write(MAGIC + network + _packed(members["state"], state))
            for fed in feeds:
                file.write(_packed(members["batch"], {key: fed[manifest["step"][key]] for key in BATCH}))
        done = _run([*self.command, str(program)], program.parent)
        if done.returncode:
            raise WageubnError(f"{self.folder}: {self.name}: exit code {done.returncode} {done.stderr.strip()[:200]}")
        with (program.parent / "output.bin").open("rb") as file:
            for _ in feeds:
                file.read(len(MAGIC) + len(network))
                found = _unpacked(members["state"], file)
                yield {outs[key]: value for key, value in found.items()} | _unpacked(members["result"], file)


def _packed(members: Sequence[Mapping[str, Any]], values: Tensors) -> bytes:
    return b"".join(np.asarray(values[m["key"]], np.dtype(m["dtype"]).newbyteorder("<")).tobytes() for m in members)


def _unpacked(members: Sequence[Mapping[str, Any]], file: BinaryIO) -> dict[str, Array]:
    found = {}
    for member in members:
        dtype = np.dtype(member["dtype"])
        raw = file.read(math.prod(member["shape"]) * dtype.itemsize)
        found[member["key"]] = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(member["shape"])
    return found


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def cannot_run() -> str | None:
    """See `base.Target`."""
    return None if _compiler() else "no C compiler; install Debian's package gcc"


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def runners(folder: Path) -> list[Runner]:
    """The C compiler of this machine. Raises WageubnError where there is none."""
    found = _compiler()
    if found is None:
        raise WageubnError(f"target c: {cannot_run()}")
    version = _run([found, "-dumpfullversion"], folder).stdout.strip()
    return [Compiled(folder, f"{Path(found).name} {version}, -O2", (found, "-O2"))]


def cortex_m(folder: Path) -> Compiled:
    """An emulated Cortex-M3. Raises WageubnError, naming the Debian package, where a tool is missing."""
    for tool, packages in (("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi"), ("qemu-system-arm",) * 2):
        if shutil.which(tool) is None:
            raise WageubnError(f"target c: {tool} is not installed; apt install {packages}")
    arm = ("arm-none-eabi-gcc", "-mcpu=cortex-m3", "-mthumb", "-Os")
    linked = (
        "-ffunction-sections",
        "-fdata-sections",
        "-Wl,--gc-sections",
        "-T",
        "cortex_m.ld",
        "-nostartfiles",
        "--specs=rdimon.specs",
        "--specs=nano.specs",
        "cortex_m.c",
    )
    board = ("qemu-system-arm", "-M", "mps2-an385", "-nographic", "-semihosting-config", "enable=on,target=native", "-kernel")
    return Compiled(folder, "Cortex-M3, QEMU", (*arm, *linked), command=board)


def readme(manifest: dict[str, Any]) -> str:
    """How to train from the folder with a C compiler."""
    memory, unit = manifest["c"]["memory"], manifest["exponents"]["lr"]
    return f"""# A training step in integers, in C99

    make
    ./train IMAGES LABELS 5

IMAGES holds uint8 images [C][H][W] one after the other, LABELS a byte each. From an .npz:

    python3 -c "import numpy as np; d = np.load('DATA.npz'); d['x_train'].tofile('IMAGES')
    d['y_train'].astype('u1').tofile('LABELS')"

The state goes to state.bin after every epoch, and training goes on from there. `./train IMAGES LABELS EPOCHS LR STATE`: LR is in
units of 2^{unit}.

* `{HEADER}` is all that a program needs to know: `wageubn_step`, `wageubn_eval`, `wageubn_save`, `wageubn_load`. Compile
  `{SOURCE}`, `state.c` and `{INITIAL}` (the state to begin with) beside it, with `{" ".join(FLAGS)}`:
  one array holds tensors of several types.
* Static memory: {memory["total"]:,} bytes ({_parts(memory)}); no heap, and less than 1 KiB of stack.
* `{KERNELS}` is written by emx-onnx-cgen, one function for every distinct node; `{SOURCE}` calls them.
* `make cortex_m.elf` compiles `run.c` (steps from files, for comparisons) for a Cortex-M3 without FPU; `cortex_m.c` and
  `cortex_m.ld` start it on QEMU's board mps2-an385, with input.bin beside it:
  `qemu-system-arm -M mps2-an385 -nographic -semihosting-config enable=on,target=native -kernel cortex_m.elf`.
* A saved state is 8 bytes `WAGEUBN1`, 8 bytes that name the network, then the tensors of manifest.json, `c.state`, in that order,
  little-endian.
"""


TARGET = Target(
    "c",
    "C99 without floating point, on static memory: emx-onnx-cgen",
    write,
    readme,
    runners,
    missing,
    cannot_run,
    options={"budget": Option("the most static memory, such as 256k; where more is needed, say what would fit")},
    passes=passes,
)
