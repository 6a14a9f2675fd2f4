"""Names of layers, inputs and files can hold what a terminal, a page, a card or a CI system would obey."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import yaml
from markdown_it import MarkdownIt
from onnx import TensorProto, helper, numpy_helper

from asvp_export.console import printable
from asvp_export.report.card import generated_part
from tests.helpers.commands import Answer, call
from tests.helpers.teachers import save_pictures

LAYER = (
    "[/x][bold]\x1b[31m\x07\u202e\x9b2J:smile:<script>alert(1)</script>\n| `` ` *a* | ---\n<!-- asvp-export: end -->"
)
IMAGE = "im\x1b]0;age\x07[/]</script><img src=x onerror=alert(1)>"


def teacher() -> onnx.ModelProto:
    """Two convolutions, one behind the other, whose names are none that a program would choose."""
    rng = np.random.default_rng(0)
    weights = [(0.1 * rng.standard_normal(shape)).astype(np.float32) for shape in ((8, 3, 3, 3), (3, 8, 3, 3))]
    size = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [IMAGE, "w0"], [LAYER], LAYER, pads=[1, 1, 1, 1]),
            helper.make_node("Conv", [LAYER, "w1"], ["change"], "second", pads=[1, 1, 1, 1]),
            helper.make_node("Add", [IMAGE, "change"], ["out"], "sum"),
        ],
        "graph",
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, size)],
        [numpy_helper.from_array(value, f"w{i}") for i, value in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Answer]:
    """A folder with an export of it and everything beside it, and what the command printed."""
    folder = tmp_path_factory.mktemp("names")
    onnx.save(teacher(), folder / "teacher[red].onnx")
    pictures = save_pictures(folder / "pictures[x]")
    done = call(
        folder / "teacher[red].onnx",
        "--layers",
        LAYER,
        "--gain=auto",
        f"--images={pictures}",
        f"--output={folder / 'p.onnx'}",
        "--model-card",
        f"--report={folder / 'report'}",
        f"--junit={folder / 'j.xml'}",
    )
    assert done.code == 0, done
    return folder, done


def harmless(text: str) -> bool:
    """Whether a terminal shows it as it is, line by line."""
    return all(printable(line) == line for line in text.split("\n"))


def test_a_terminal_gets_no_escapes_and_no_markup(exported):
    folder, done = exported
    shown = printable(LAYER)
    assert "\\u001b[31m" in shown and "[/x][bold]" in shown and ":smile:" in shown
    for answer in (
        done,
        call("inspect", folder / "p.onnx"),
        call("layers", folder / "teacher[red].onnx"),
        call("check", folder / "teacher[red].onnx", folder / "p.onnx", "--images", folder / "pictures[x]"),
    ):
        assert answer.code == 0 and harmless(answer.out) and harmless(answer.err), answer
        assert shown in answer.out.replace("\n", "")


def test_json_on_a_terminal_is_the_names_themselves(exported):
    folder, _ = exported
    answer = call("inspect", folder / "p.onnx", "--json")
    assert harmless(answer.out)
    assert [LAYER in one["name"] for one in json.loads(answer.out)["nodes"]] == [True]
    assert IMAGE in json.loads(answer.out)["inputs"]


def test_errors_are_one_line(exported):
    folder, _ = exported
    answer = call("layers", folder / "teacher\x1b[31m\n.onnx")
    assert answer.code == 2 and harmless(answer.err) and answer.err.count("\n") == 1
    (folder / "p.plan.json").write_text((folder / "p.plan.json").read_text().replace('"rank": 1', '"rank": 99'))
    answer = call(folder / "teacher[red].onnx", "--plan", folder / "p.plan.json", "-o", folder / "again.onnx")
    assert answer.code == 2 and harmless(answer.err) and "has 8 channels" in answer.err


class Tags(HTMLParser):
    """Which elements a page has, and the texts in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts += data


def test_the_page_has_no_element_of_a_name(exported):
    folder, _ = exported
    (path,) = (folder / "report").glob("*.html")
    page = Tags(path.read_text())
    assert [tag for tag, _ in page.found].count("script") == 1
    assert not [attributes for _, attributes in page.found if any(name.startswith("on") for name in attributes)]
    assert "<script>alert(1)</script>" in page.texts


def test_the_card_is_yaml_and_markdown_without_html_of_a_name(exported):
    folder, _ = exported
    text = (folder / "README.md").read_text()
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert front and yaml.safe_load(front[1])["library_name"] == "onnx"
    part = generated_part(text.encode())
    assert part is not None and part.endswith(b"<!-- asvp-export: end -->") and b"## Run it" in part
    assert harmless(text)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text[front.end() :])
    inline = [child for token in tokens for child in token.children or []]
    html = [token.content.strip() for token in (*tokens, *inline) if token.type.startswith("html")]
    assert len(html) == 2 and all(one.startswith("<!-- asvp-export:") for one in html), html
    row = next(line for line in text.splitlines() if line.startswith("| ") and "[/x]" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 9  # the cells of the table of layers


def test_junit_is_xml_whatever_a_file_is_called(exported):
    folder, _ = exported
    assert ElementTree.parse(folder / "j.xml").getroot().get("failures") == "0"


def test_a_shipment_with_such_names_is_verified(exported):
    folder, _ = exported
    answer = call("inspect", "--verify", folder / "p.onnx")
    assert answer.code == 0, answer
