"""`wageubn-onnx diff --html`: what the page holds, and what a reader of it sees and does in headless Chromium."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from benchmarks.convert import built
from browser import Browser, browser, missing
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.graph import PREFIX
from wageubn_onnx.graphdiff import align, align_folder
from wageubn_onnx.graphdiff.page import Collector, render
from wageubn_onnx.pipeline import STAGES, convert

FOLDER = Path(__file__).parents[2] / "wageubn_onnx" / "graphdiff" / "page"
LIGHT, DARK = 200, 60  # of 255: the ground is lighter, or darker


def page_of(source: Path, title: str = "a page") -> str:
    found = Collector()
    for step in align_folder(source):
        found.add(step)
    return render(found, title)


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    value: dict[str, Any] = json.loads(match[1])
    return value


@pytest.fixture(scope="module")
def tiny_page(tiny_folder: Path) -> str:
    return page_of(tiny_folder)


# -- what it holds --------------------------------------------------------------------------------------------------------


def decoded(data: dict[str, Any], stage: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a stage, as model.js makes them."""

    def text(number: int, layer: str) -> str:
        string: str = data["strings"][number]
        return string[1:] if string.startswith("\t\t") else layer + string[1:] if string.startswith("\t") else string

    nodes, tensors = [], [data["strings"][name] for name, _, _ in stage["constants"]]
    for kind, layer_number, *operands in stage["nodes"]:
        layer = data["layers"][layer_number]
        place, op, name, path, made_by, source, bits, form, attributes, results = data["kinds"][kind]
        facts = [text(n, layer) for n in (path, made_by, source, bits, form)]
        made = [text(result, layer) for result, _ in results]
        tensors += made
        nodes.append({"place": place, "op": data["strings"][op], "name": text(name, layer), "layer": layer, "facts": facts})
        nodes[-1] |= {"operands": operands, "results": made, "attributes": [data["strings"][n] for n in attributes]}
    for node in nodes:
        node["operands"] = ["" if number < 0 else tensors[number] for number in node["operands"]]
    return nodes


def test_it_holds_every_node_of_every_stage(tiny_folder: Path, tiny_page: str) -> None:
    data = data_of(tiny_page)
    assert [stage["name"] for stage in data["stages"]] == [stage.name for stage in STAGES]
    for stage in data["stages"]:
        model = onnx.load(tiny_folder / f"{stage['name']}.onnx")
        nodes = decoded(data, stage)
        shown = {node["name"]: node for node in nodes if not node["place"]}
        assert len(shown) == stage["count"] == len(model.graph.node)
        for node in model.graph.node:
            facts = {p.key.removeprefix(PREFIX): p.value for p in node.metadata_props}
            there = shown[node.name]
            assert there["op"].split(":")[-1] == node.op_type and there["layer"] == facts["layer"]
            assert there["facts"] == [facts.get(key, "") for key in ("role", "pass", "source", "bits", "format")]
            assert there["operands"] == list(node.input) and there["results"] == list(node.output)
            assert there["attributes"] == sorted(onnx.helper.printable_attribute(a) for a in node.attribute)
        assert {n["name"] for n in nodes if n["place"] == 1} == {i.name for i in model.graph.input}
        assert {n["name"] for n in nodes if n["place"] == 2} == {o.name for o in model.graph.output}


def test_counterparts_are_those_of_diff(tiny_folder: Path, tiny_page: str) -> None:
    data = data_of(tiny_page)
    step = data["steps"][2]
    a, b = (decoded(data, data["stages"][step[side]]) for side in "ab")
    found = align(tiny_folder / "quant_training.onnx", tiny_folder / "int_training.onnx")
    expected = {(node.label, other.label) for node, other in found.to_b.items()}
    assert {(a[i]["name"], b[j]["name"]) for i, j in enumerate(step["pairs"]) if j >= 0} == expected


def test_what_each_pass_did_in_numbers(tiny_page: str) -> None:
    data = data_of(tiny_page)
    for step in data["steps"]:
        a, b = (data["stages"][step[side]] for side in "ab")
        kept = a["count"] - step["removed"]
        assert b["count"] == kept + sum(entry["inserted"] for entry in step["passes"]), b["name"]
    passes = {entry["name"]: entry for entry in data["steps"][1]["passes"]}
    convolutions = sum(node["op"] in ("Conv", "Gemm") for node in decoded(data, data["stages"][0]))
    assert passes["quantize-weights"]["quantizers"]["Q_W"] == convolutions
    assert passes["quantize-errors"]["quantizers"]["Q_E2"] == convolutions
    assert set(passes["quantize-weights"]["dtypes"]) == {"float32"}
    (lowering, *rest) = data["steps"][2]["passes"]
    assert lowering["name"] == "lower-to-integers" and "float32" not in lowering["dtypes"]
    copies = sum(entry["inserted"] for entry in rest if entry["name"] == "outputs")
    assert lowering["inserted"] + lowering["rewritten"] + copies == data["stages"][3]["count"]
    assert not any(entry["inserted"] or entry["rewritten"] for entry in rest if entry["name"] != "outputs")


def test_layers_stand_in_the_order_of_the_network(tiny_folder: Path, tiny_page: str) -> None:
    data = data_of(tiny_page)
    layers = [data["layers"][number] for number in data["order"]]
    nodes = onnx.load(tiny_folder / "forward.onnx").graph.node
    ordered = [p.value for node in nodes for p in node.metadata_props if p.key == PREFIX + "layer"]
    assert [layer for layer in layers if layer in ordered] == ordered
    assert layers[0] == "input" and layers[-2:] == ["loss", "optimizer"]


def test_the_same_stages_give_the_same_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        result = CliRunner().invoke(cli, ["diff", str(tiny_folder), "--html", str(tmp_path / name)])
        assert result.exit_code == 1, result.output  # the stages differ
        assert "data paths, all layers" in result.stdout and "a1/Q_E2" not in result.stdout  # totals only
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert "<title>tiny</title>" in (tmp_path / "one.html").read_text()


def test_two_stages(tiny_folder: Path, tmp_path: Path) -> None:
    files = [str(tiny_folder / f"{name}.onnx") for name in ("fp_training", "int_training")]
    assert CliRunner().invoke(cli, ["diff", *files, "--html", str(tmp_path / "page.html")]).exit_code == 1
    data = data_of((tmp_path / "page.html").read_text())
    passes = {entry["name"]: entry for entry in data["steps"][0]["passes"]}
    assert passes["quantize-errors"]["quantizers"]["Q_E2"]
    assert passes["lower-to-integers"]["rewritten"]


def test_a_missing_folder_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["diff", str(tiny_file), str(tiny_file), "--html", str(tmp_path / "no" / "page.html")])
    assert result.exit_code == 2 and "no such folder" in result.stderr and result.stderr.count("\n") == 1


def test_it_asks_for_nothing_from_anywhere() -> None:
    for file in FOLDER.iterdir():
        if file.suffix in (".html", ".css", ".js"):
            addresses = re.findall(
                r"https?://[^\"' ]+|@import|url\(|fetch\(|XMLHttp|import\(|innerHTML|document\.write", file.read_text()
            )
            assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name
    assert "default-src 'none'" in (FOLDER / "page.html").read_text()


HOSTILE = ['</script><img src=x onerror="document.title=1">', "<b>&amp;{{data}}", "\tone", "\t\ttwo\u2028", "x/../'\"`${1}"]


def hostile_model() -> onnx.ModelProto:
    """A model of another program, whose names are no names."""
    names = ["in", *HOSTILE]
    nodes = [onnx.helper.make_node("Relu", [x], [y], y) for x, y in zip(names, names[1:], strict=False)]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in (names[0], names[-1])]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "<i>", ends[:1], ends[1:]))


def test_names_are_data_never_markup() -> None:
    found = Collector()
    found.add(align(hostile_model(), hostile_model()))
    page = render(found, "<i>title")
    assert "<img" not in page and "<i>" not in page and page.count("</script>") == 2
    data = data_of(page)
    assert [node["name"] for node in decoded(data, data["stages"][0]) if not node["place"]] == HOSTILE


# -- in a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if missing():
        pytest.skip(f"{' and '.join(missing())}: not installed (Debian packages chromium and chromium-driver)")
    with browser() as opened:
        yield opened


@pytest.fixture
def opened(chromium: Browser, tiny_page: str, tmp_path: Path) -> Browser:
    """The page of the tiny network, fresh."""
    (tmp_path / "page.html").write_text(tiny_page, encoding="utf-8")
    chromium.open((tmp_path / "page.html").as_uri())
    chromium.log()
    return chromium


def texts(page: Browser, selector: str) -> list[str]:
    found: list[str] = page.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)
    return found


def visit(page: Browser, **state: str) -> None:
    page.run("location.hash = new URLSearchParams(arguments[0])", {"view": "layers", **state})
    page.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def row(page: Browser, title: str) -> list[str]:
    """A row of the details: what each side says."""
    script = """const row = [...document.querySelectorAll(".details tr")].find((r) => r.cells[0].textContent === arguments[0]);
        return row ? [...row.cells].slice(1).map((c) => c.innerText) : []"""
    found: list[str] = page.run(script, title)
    return found


def test_it_opens_on_the_pipeline(opened: Browser) -> None:
    assert texts(opened, ".card h2") == ["forward", "fp_training", "quant_training", "int_training", "quant_eval", "int_eval"]
    assert "quantize-errors" in texts(opened, ".step tbody th")
    opened.click(".step:nth-of-type(2) a, .step a")
    assert texts(opened, ".layer h1")
    assert opened.log() == []


def test_every_layer_can_be_drawn_in_every_stage(opened: Browser) -> None:
    """No script fails, and every node stands somewhere: itself, in a stack, or among the hidden ones."""
    script = """
        const wrong = [];
        for (const direction of DIRECTIONS)
          for (const layer of DATA.order)
            for (const [a, b] of [[0, 1], [3, 2], [5, 4]])
              for (const whole of ["", "1"]) {
                Object.assign(state, { direction, whole });
                const { items, hidden, svg } = pane(STAGES[a], STAGES[b], layer, "a");
                const drawn = items.reduce((sum, item) => sum + item.nodes.length, 0);
                const there = nodesOf(STAGES[a], layer, direction).length;
                const isRight = drawn + hidden === there && Boolean(svg) === there > 0 && !(whole && hidden);
                if (!isRight) wrong.push([DATA.layers[layer], direction, a, whole]);
              }
        return wrong"""
    assert opened.run(script) == []
    assert opened.log() == []


def test_nothing_overlaps_and_edges_go_down(opened: Browser) -> None:
    for layer in ("a1", "a1_bn", "loss", "optimizer", "pool"):
        visit(opened, layer=layer, direction="all")
        script = """return panes.flatMap((p) => p.items.flatMap((i, n) => p.items.slice(n + 1).filter((j) =>
            Math.abs(i.x - j.x) < (i.width + j.width) / 2 && Math.abs(i.y - j.y) < (i.height + j.height) / 2)))
            .length + panes.flatMap((p) => p.edges.filter((e) => p.items[e.from].rank >= p.items[e.to].rank)).length"""
        assert opened.run(script) == 0, layer


def test_search_and_filters(opened: Browser) -> None:
    visit(opened, layer="a1")
    opened.write("#search", "a1")
    found = texts(opened, ".layers .name")
    assert "a1" in found and "a1_bn" in found and "b1" not in found
    opened.run("document.getElementById('search').value = ''")
    opened.write("#search", "q_ed")
    assert found != texts(opened, ".layers .name")
    visit(opened, layer="a2")  # what was typed stays
    opened.run("filters.search = ''; fillList()")
    opened.click("#filter-op option[value=ConvInteger]")
    convolutions = texts(opened, ".layers .name")
    assert "a1" in convolutions and "a1_bn" not in convolutions and "fc" not in convolutions
    opened.click("#filter-op option[value='']")
    opened.click("#filter-path option[value='BN.mu']")
    assert texts(opened, ".layers .name") and all("bn" in name for name in texts(opened, ".layers .name"))
    opened.click("#filter-path option[value='']")
    opened.click("#filter-pass option[value='quantize-loss']")
    assert texts(opened, ".layers .name") == ["loss"]
    opened.click("#filter-pass option[value='']")
    assert opened.log() == []


def test_a_reader_learns_what_became_of_a_layer(opened: Browser) -> None:
    """Which pass turned its error to 8 bits, what exponent its weights have, where its gradient goes."""
    visit(opened, layer="a1", direction="backward")
    opened.click(".pane:nth-child(2) [data-name='a1/Q_E2']")
    assert row(opened, "made by")[1] == "quantize-errors, then lower-to-integers"
    assert row(opened, "format")[1].startswith("int8 · 2ᵉ, 8 bits")
    assert "fp_training, replaced" in texts(opened, ".details .stage") and "a1/slot_E2" in texts(opened, ".details thead")[0]
    visit(opened, layer="a1", direction="forward")
    opened.click(".pane:nth-child(2) [data-name='a1/Q_W']")
    assert row(opened, "format")[1] == "int8 · 2⁻⁷, 8 bits"
    visit(opened, layer="a1", direction="update")  # the stored weights, an input
    opened.click(".pane:nth-child(2) .port.input[data-name='a1.weight']")
    assert row(opened, "format")[1] == "int32 · 2⁻²³, 24 bits"
    visit(opened, layer="a1", direction="backward")
    goes_to = dict(zip(texts(opened, ".paths .chip"), texts(opened, ".paths td:last-child"), strict=True))
    assert "M.W" in goes_to["Q_GW"]
    ports = texts(opened, ".pane:nth-child(2) .port.link .line")
    (onward,) = (port for port in ports if port.startswith("to ") and "E1" in port)
    layer = onward.split()[1]
    opened.run("[...document.querySelectorAll('.pane:nth-child(2) .port')].find((p) => p.textContent.includes(arguments[0]))"
               ".dispatchEvent(new MouseEvent('click'))", onward)  # fmt: skip
    visit(opened, **opened.run("return Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"))
    assert texts(opened, ".layer h1") == [layer] and not opened.run("return details.hidden")
    assert opened.log() == []


def test_counterparts_are_highlighted_and_differences_marked(opened: Browser) -> None:
    visit(opened, layer="a1_bn", direction="forward", a="2", b="3")
    opened.run("document.querySelector(\".pane:nth-child(1) [data-name='a1_bn/Q_BN']\").focus()")  # as hovering does
    assert texts(opened, ".hot .title") == ["Q_BN8 bits", "Q_BNint8 · 2⁻⁴"]
    opened.click(".pane:nth-child(1) [data-name='a1_bn/Q_BN']")
    assert texts(opened, ".chosen .title") == ["Q_BN8 bits", "Q_BNint8 · 2⁻⁴"]
    here, there = row(opened, "operator")
    assert (here, there) == ("DirectQuantize", "DirectQuantizeRatio")
    assert "operator" in texts(opened, ".differs th")
    assert "int_training, in its place" in texts(opened, ".details .stage")
    opened.click(".pane:nth-child(1) [data-name='a1_bn/Q_gamma']")  # one that diff pairs: the same function in integers
    assert "int_training" in texts(opened, ".details .stage")
    assert row(opened, "result")[1].startswith("int8 ") and "result" in texts(opened, ".differs th")
    opened.press("Escape")
    assert opened.run("return details.hidden")


def test_like_nodes_are_drawn_as_one(opened: Browser) -> None:
    visit(opened, layer="a1", direction="backward")
    assert "9 × Slice" in texts(opened, ".pane:nth-child(2) .title")
    opened.click(".pane:nth-child(2) [data-name='a1/tap00']")
    assert len(row(opened, "drawn as one with")[1].split()) == 8
    visit(opened, layer="a1", direction="backward", whole="1")
    assert texts(opened, ".pane:nth-child(2) .title").count("Slice") >= 9
    assert opened.log() == []


def test_keys(opened: Browser) -> None:
    visit(opened, layer="a1", direction="forward")
    opened.press("/")
    assert opened.run("return document.activeElement.id") == "search"
    opened.press("ArrowDown", "ArrowDown", "Enter")
    visit(opened, **opened.run("return Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"))
    assert texts(opened, ".layer h1") == [texts(opened, ".layers .name")[1]]
    visit(opened, layer="a1", direction="forward")
    opened.run("document.querySelector('.pane:nth-child(2) [tabindex=\"0\"]').focus()")
    start = opened.run("return document.activeElement.dataset.name")
    opened.press("ArrowDown")
    assert opened.run("return document.activeElement.dataset.name") != start
    opened.press("Enter")
    assert not opened.run("return details.hidden")
    assert opened.log() == []


def ground(page: Browser) -> int:
    """How light the ground is, of 255."""
    colour = page.run("return getComputedStyle(document.body).backgroundColor")
    return min(map(int, re.findall(r"\d+", colour)[:3]))


def test_light_and_dark(opened: Browser, tiny_page: str, tmp_path: Path) -> None:
    assert ground(opened) > LIGHT
    opened.click("#theme option[value=dark]")
    assert ground(opened) < DARK
    opened.click("#theme option[value=light]")
    assert ground(opened) > LIGHT
    (tmp_path / "dark.html").write_text(tiny_page, encoding="utf-8")
    with browser(1000, 700, "--blink-settings=preferredColorScheme=0") as dark:
        dark.open((tmp_path / "dark.html").as_uri())
        assert ground(dark) < DARK
        dark.click("#theme option[value=light]")
        assert ground(dark) > LIGHT


def test_hostile_names_are_shown_as_they_are(chromium: Browser, tmp_path: Path) -> None:
    found = Collector()
    found.add(align(hostile_model(), hostile_model()))
    (tmp_path / "page.html").write_text(render(found, "hostile"), encoding="utf-8")
    chromium.open((tmp_path / "page.html").as_uri())
    assert texts(chromium, ".layers .name") == HOSTILE
    for name in HOSTILE:
        visit(chromium, layer=name, node=name)
        assert texts(chromium, ".layer h1") == [name]
    assert chromium.run("return document.title") == "hostile" and chromium.run("return document.images.length") == 0
    assert chromium.log() == []


@pytest.mark.slow
def test_resnet50_opens_in_two_seconds(chromium: Browser, tmp_path: Path) -> None:
    (source,) = built(tmp_path, ["resnet50"])
    convert(source, Config(batch=16), tmp_path / "resnet50")
    page = page_of(tmp_path / "resnet50", "ResNet-50")
    assert len(page) < 1.5e6  # bytes: nothing but the characters of JSON, code and a few signs
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    for fragment in ("", "#view=layers&layer=layer2.3.conv2&direction=backward", "#view=layers&layer=conv1&direction=all"):
        chromium.open("about:blank")
        start = time.perf_counter()
        chromium.open((tmp_path / "page.html").as_uri() + fragment)  # comes back when all is drawn
        assert time.perf_counter() - start < 2, fragment
        assert texts(chromium, "h1")[0] == "ResNet-50"
    assert chromium.log() == []
