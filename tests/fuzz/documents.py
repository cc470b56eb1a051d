"""Mutations of what is no model: JSON, TOML, safetensors, data sets."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from .models import FLOATS, INTEGERS, STRINGS, Draw, spoiled

ODD: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"a": 1}, -1, 0, 1, 2**31, 2**70, 1e400, "", "x", [1, "2", None])


def odd_value(old: Any, draw: Draw) -> Any:
    """Something else in a document's place: of the same type, or not."""
    if isinstance(old, bool) or draw.random() < 0.4:
        return draw.choice(ODD)
    if isinstance(old, int):
        return draw.choice([*INTEGERS, old + 1, -old, float(old), str(old)])
    if isinstance(old, float):
        return draw.choice([*FLOATS, -old, int(old)])
    if isinstance(old, str):
        return draw.choice([*STRINGS, old + "x", old.upper(), old[:-1]])
    return draw.choice(ODD)


def _places(document: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a document, what lies deep no more often than what lies high."""
    by_depth: list[list[tuple[Any, Any]]] = []
    level = [document]
    while level:
        places = [(c, k) for c in level for k in (c if isinstance(c, dict) else range(len(c)))]
        if places:
            by_depth.append(places)
        level = [c[k] for c, k in places if isinstance(c[k], dict | list)]
    return by_depth


def mutated_document(document: Any, draw: Draw) -> Any:
    """A copy of a document of dicts and lists with one to three things changed, removed, repeated, added or moved."""
    made = json.loads(json.dumps(document))
    for _ in range(draw.choice([1, 1, 2, 3])):
        by_depth = _places(made)
        if not by_depth:
            return odd_value(made, draw)
        container, key = draw.choice(draw.choice(by_depth))
        choice = draw.random()
        if choice < 0.5:
            container[key] = odd_value(container[key], draw)
        elif choice < 0.7:
            del container[key]
        elif choice < 0.8 and isinstance(container, list):
            container.insert(draw.randrange(len(container) + 1), json.loads(json.dumps(container[key])))
        elif choice < 0.9:
            other, where = draw.choice(draw.choice(by_depth))
            container[key] = json.loads(json.dumps(other[where]))
        elif isinstance(container, dict):
            container[draw.choice([*STRINGS, *container])] = container.pop(key)
    return odd_value(made, draw) if draw.random() < 0.02 else made


def mutated_json(content: bytes, draw: Draw) -> bytes:
    """Of a JSON file."""
    if draw.random() < 0.15:
        return spoiled(content, draw)
    return json.dumps(mutated_document(json.loads(content), draw)).encode()


def mutated_lines(content: bytes, draw: Draw) -> bytes:
    """Of a file with one JSON document a line."""
    lines = content.splitlines(keepends=True)
    if draw.random() < 0.4 or not lines:
        return spoiled(content, draw)
    place = draw.randrange(len(lines))
    lines[place] = mutated_json(lines[place], draw) + b"\n"
    return b"".join(lines)


def mutated_safetensors(content: bytes, draw: Draw) -> bytes:
    """Header (with its metadata, JSON within JSON) or numbers; the header's length is made to fit, or not."""
    if draw.random() < 0.2:
        return spoiled(content, draw)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header.get("__metadata__", {})
    choice = draw.random()
    if choice < 0.5 and metadata:
        key = draw.choice(sorted(metadata))
        try:
            metadata[key] = json.dumps(mutated_document(json.loads(metadata[key]), draw))
        except (json.JSONDecodeError, ValueError):
            metadata[key] = draw.choice(STRINGS)
    elif choice < 0.75:
        header = mutated_document(header, draw)
    elif data:
        values = bytearray(data)
        place = draw.randrange(max(len(values) // 4, 1)) * 4
        values[place : place + 4] = draw.choice(
            [b"\xff\xff\xff\x7f", b"\x00\x00\xc0\x7f", b"\x00\x00\x00\x80", b"\x00\x00\x80\x7f"]
        )
        data = bytes(values[: len(data)])
    text = json.dumps(header).encode()
    length = len(text) if draw.random() < 0.95 else draw.choice([0, 1, 2**31, 2**62, 2**63, len(text) - 1])
    return struct.pack("<Q", length) + text + data


WORDS = (
    "-1", "0", "1", "7", "33", "true", "nan", "inf", "-inf", "2.5", '"shift"', '"float"', '"x\\u001b[1m"', "[]", "{", "}",
    "=", ",", "bits", "fraction", "function", "9" * 30, "1e400", "1979-05-27", "'", '"',
)  # fmt: skip
TABLES = ('[layers."*"]', "[A]", "[layers]", "extends = 3", 'extends = "full8"', "[layers.first.W]", "name = 1")


def mutated_text(content: bytes, draw: Draw) -> bytes:
    """Lines of a text file, and the words on them, changed: TOML."""
    if draw.random() < 0.15:
        return spoiled(content, draw)
    lines = content.decode().splitlines()
    for _ in range(draw.choice([1, 1, 2, 4])):
        place = draw.randrange(len(lines))
        words = lines[place].split(" ")
        choice = draw.random()
        if choice < 0.6:
            word = draw.randrange(len(words))
            words[word] = draw.choice([*WORDS, words[word] + "1"])
            lines[place] = " ".join(words)
        elif choice < 0.75:
            del lines[place]
        elif choice < 0.85:
            lines.insert(draw.randrange(len(lines)), lines[place])
        elif choice < 0.95:
            other = draw.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        else:
            lines.append(draw.choice(TABLES))
        if not lines:
            break
    return "\n".join(lines).encode()


DTYPES = (np.float32, np.int8, np.int64, np.uint64, bool, np.complex64, "U3", "S2", "datetime64[s]")


def mutated_npz(arrays: dict[str, Any], draw: Draw) -> bytes:
    """Of a data set: an array of another dtype, shape or length, or none; or the file's bytes."""
    made = dict(arrays)
    for _ in range(draw.choice([1, 1, 2])):
        key = draw.choice(sorted(made))
        array, choice = made[key], draw.random()
        if choice < 0.1:
            del made[key]
        elif choice < 0.35:
            with np.errstate(all="ignore"):
                made[key] = array.astype(draw.choice(DTYPES))
        elif choice < 0.5:
            made[key] = array[: draw.choice([0, 1, 2])]
        elif choice < 0.6:
            made[key] = array.reshape(-1)
        elif choice < 0.7:
            made[key] = array[..., None]
        elif choice < 0.8:
            made[key] = array[..., :2]
        elif choice < 0.9 and array.size:
            made[key] = array.astype(np.int64) + draw.choice([-1, 300, 2**31, 2**62])
        else:
            made[key] = np.asarray(draw.choice([3, 2.5, "x"]))
        if not made:
            break
    file = io.BytesIO()
    (np.savez if draw.random() < 0.5 else np.savez_compressed)(file, **made)
    return spoiled(file.getvalue(), draw) if draw.random() < 0.4 else file.getvalue()


def mutate_images(folder: Path, draw: Draw) -> None:
    """Of class folders of images: a file spoiled, removed, renamed or of another kind."""
    from PIL import Image

    files = sorted(f for f in folder.rglob("*") if f.is_file())
    for _ in range(draw.choice([1, 1, 2])):
        file = draw.choice(files)
        choice = draw.random()
        if not file.is_file():
            continue
        if choice < 0.35:
            file.write_bytes(spoiled(file.read_bytes(), draw))
        elif choice < 0.45:
            file.unlink()
        elif choice < 0.7:
            mode = draw.choice(["1", "L", "P", "RGBA", "CMYK", "I;16", "I", "F", "LA"])
            size = draw.choice([(12, 12), (12, 12), (1, 1), (13, 12), (3000, 1)])
            kind = {"CMYK": "jpeg", "F": "tiff", "I": "tiff"}.get(mode, "png")
            Image.new(mode, size).save(file, kind)
        elif choice < 0.8:
            (file.parent / draw.choice(["notes.txt", "\x1b[2J.png", ".hidden", "x\ny.png"])).write_bytes(b"text")
        elif choice < 0.9:
            (folder / draw.choice(["train", "test"]) / draw.choice(["extra", "\x1b[31m", "0", "10", "\u202ex"])).mkdir(
                exist_ok=True
            )
        else:
            (file.parent / "sub.png").mkdir(exist_ok=True)
