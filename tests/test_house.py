"""The rules for code and documents of the whole repository that a machine can hold and that no linter has."""

from __future__ import annotations

import ast
import re
import tokenize
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

from tests.helpers.teachers import ROOT

TESTS = ("tests", "tests_zoo", "tests_field", "custom_ops/tests")
FOLDERS = ("asvp_export", "benchmarks", "docs", "examples", *TESTS)
CHANGES = {"append", "clear", "extend", "insert", "pop", "remove"}  # methods of a list


def files(*folders: str) -> list[Path]:
    """Python files, but those that npm brought."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return [path for path in found if "node_modules" not in path.parts]


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def location(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def lines_of(node: ast.stmt) -> int:
    assert node.end_lineno
    return node.end_lineno - node.lineno + 1


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` on, its docstring apart."""
    return lines_of(function) - (lines_of(function.body[0]) if ast.get_docstring(function) else 0)


def edits_sys_path(node: ast.AST) -> bool:
    """`sys.path = ...`, `sys.path[...] = ...`, `del sys.path[...]` or a method that changes it."""
    match node:
        case ast.Call(func=ast.Attribute(value=edited, attr=method)) if method in CHANGES:
            pass
        case ast.Subscript(value=edited, ctx=ast.Store() | ast.Del()):
            pass
        case ast.Attribute(ctx=ast.Store()):
            edited = node
        case _:
            return False
    return ast.unparse(edited) == "sys.path"


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return [path for path in sorted(found) if "node_modules" not in path.parts]


def prose(text: str) -> dict[int, str]:
    """The lines of a document's paragraphs by their number, URLs left out: no tables, code, headings."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    spans = [one.map for one in tokens if one.type == "paragraph_open" and one.map]
    lines = text.splitlines()
    return {at + 1: re.sub(r"https?://[^\s)>]+", "", lines[at]) for start, end in spans for at in range(start, end)}


def test_no_file_has_more_than_400_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files(*FOLDERS)}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


def test_no_function_has_more_than_60_lines():
    lengths = {
        f"{location(path, node.lineno)} {node.name}": length(node)
        for path in files("asvp_export", "benchmarks", "docs", "examples")
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}


def test_the_formatter_is_switched_off_nowhere():
    found = []
    for path in files(*FOLDERS):
        with path.open("rb") as stream:
            comments = [one for one in tokenize.tokenize(stream.readline) if one.type == tokenize.COMMENT]
        found += [location(path, one.start[0]) for one in comments if re.search(r"fmt: *(skip|off)", one.string)]
    assert found == []


def test_no_test_edits_sys_path():
    """Monkeypatch's syspath_prepend takes back what it did."""
    found = [
        location(path, getattr(node, "lineno", 0))
        for path in files(*TESTS)
        for node in nodes(path)
        if edits_sys_path(node)
    ]
    assert found == []


def test_an_edit_of_sys_path_is_known_by_its_form():
    edits = "sys.path.insert(0, a)", "sys.path[:0] = [a]", "sys.path += [a]", "sys.path = [a]", "del sys.path[0]"
    for code in edits:
        assert any(edits_sys_path(node) for node in ast.walk(ast.parse(code))), code
    for code in ("sys.path.copy()", "sys.path == a", "a = sys.path[0]", "os.path.append(a)"):
        assert not any(edits_sys_path(node) for node in ast.walk(ast.parse(code))), code


def test_a_documents_prose_has_lines_of_at_most_100():
    found = [
        location(path, at) for path in documents() for at, line in prose(path.read_text()).items() if len(line) > 100
    ]
    assert found == []


def test_what_counts_as_prose():
    table, code, items = "| a | b |\n|---|---|\n| c | d |", "    code", "- three\n  four"
    text = "\n\n".join(["# Title", "One, [two](https://a.example/b).", table, code, items])
    assert prose(text) == {3: "One, [two]().", 11: "- three", 12: "  four"}
