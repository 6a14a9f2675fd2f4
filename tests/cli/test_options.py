"""Options stand once: the command line and the keywords of the public functions say the same."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from dataclasses import fields
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest

import asvp_export
from asvp_export import keywords, options
from asvp_export.cli import cli
from asvp_export.cli.command import FIRST as FIRST_HEADING
from asvp_export.errors import InputError
from asvp_export.option_groups import Options, shown
from asvp_export.options import (
    AuditOptions,
    FileOptions,
    GateOptions,
    LoadOptions,
    ProtectOptions,
    ReportOptions,
    RunOptions,
    TileOptions,
)

PACKAGE = Path(asvp_export.__file__).parent
GROUPS = [
    one for one in vars(options).values() if isinstance(one, type) and issubclass(one, Options) and one is not Options
]


NOT_OF_PROTECT = {"provider", *(one.name for one in fields(FileOptions))} - {"dtype", "force"}


@pytest.mark.parametrize(
    ("words", "groups", "without"),
    [
        (keywords.LoadKeywords, (LoadOptions,), set()),
        (keywords.ProtectKeywords, (LoadOptions, ProtectOptions, GateOptions, FileOptions), NOT_OF_PROTECT),
        (keywords.ExportKeywords, (LoadOptions, ProtectOptions, GateOptions, FileOptions, ReportOptions), set()),
        (keywords.CheckKeywords, (LoadOptions, GateOptions, TileOptions, ReportOptions), {"model_card"}),
        (keywords.RunKeywords, (RunOptions, TileOptions), set()),
        (keywords.AuditKeywords, (LoadOptions, ProtectOptions, GateOptions, AuditOptions), {"provider"}),
    ],
)
def test_keywords_are_the_options(words: Any, groups: tuple[type[Options], ...], without: set[str]) -> None:
    """All but those that would do nothing."""
    named = {one.name for group in groups for one in fields(group)}
    hints = get_type_hints(words)
    assert set(hints) == named - without
    for group in groups:
        kinds = get_type_hints(group)
        for name, hint in ((one.name, kinds[one.name]) for one in fields(group) if one.name in hints):
            accepted = (
                str(hints[name])
                .replace("pathlib.", "")
                .replace("str | Path", "Path")
                .replace("tuple[tuple[int, int], ...] | list[tuple[int, int]]", "tuple[tuple[int, int], ...]")
                .replace("tuple[str, ...] | list[str]", "tuple[str, ...]")
            )
            assert accepted == str(hint).replace("pathlib.", "").replace("<class 'Path'>", "Path"), name


def test_every_option_has_a_sentence_of_help() -> None:
    for group in GROUPS:
        for one in fields(group):
            assert shown(one).help.endswith("."), (group, one.name)


def test_the_options_come_without_pytorch() -> None:
    code = "import sys, asvp_export.options, asvp_export.keywords, asvp_export.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("group", GROUPS)
def test_the_defaults_of_the_command_line_are_those_of_the_options(group: type[Options]) -> None:
    flags = {
        parameter.name: parameter
        for command in cli.commands.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
    context = click.Context(click.Command("any"))
    for one in fields(group):
        flag = flags[one.name]
        default = None if flag.required else flag.get_default(context)  # a required one has click's mark for none
        assert default in (None, False) or default == (
            str(one.default) if isinstance(one.default, Path) else one.default
        )


@pytest.mark.parametrize(
    ("group", "given", "message"),
    [
        (GateOptions, {"provider": "tpu"}, "The provider 'tpu' was asked for; cpu or cuda was expected"),
        (ProtectOptions, {"gain": "much"}, "The gain 'much' was asked for; a number or auto was expected"),
        (ProtectOptions, {"max_gain": 1.0}, "The max gain 1 was asked for; a number above 1 was expected"),
        (FileOptions, {"dtype": "int8"}, "The dtype 'int8' was asked for; fp32 or fp16 was expected"),
        (LoadOptions, {"layout": "hwc"}, "The layout 'hwc' was asked for; nchw or nhwc was expected"),
    ],
)
def test_a_value_that_is_not_among_them_is_refused(group: type[Options], given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        group(**given)


def test_rows_are_split_at_commas() -> None:
    rows = ["shipped/mse-1, shipped/outputs", "truth,"]
    assert AuditOptions(rows=rows).rows == ("shipped/mse-1", "shipped/outputs", "truth")  # pyright: ignore


IN_CLI = {"options", "option_groups", "errors", "shortage", "interrupts", "environment", "console", "progress"}
IN_CLI |= {"report.tables", "report.audit_table", "report.strict_json"}


def imported(source: str) -> set[str]:
    """The modules of the package that a module of `cli` imports, without the package's own name."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = resolve_name("." * node.level + (node.module or ""), "asvp_export.cli")
            parts = {f"{home}.{alias.name}" for alias in node.names}
            names |= {part if is_module(part) else home for part in parts}
    return {name.removeprefix("asvp_export.") for name in names if name.split(".")[0] == "asvp_export"}


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def test_the_commands_parse_and_print_and_do_nothing_else() -> None:
    """Of the package they import workflows, options, errors, signals, terminal output, and no more."""
    for path in (PACKAGE / "cli").glob("*.py"):
        names = imported(path.read_text()) - IN_CLI
        others = {name for name in names if name.split(".")[0] not in ("cli", "workflows")}
        assert not others, f"{path.name} imports {others}"


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from asvp_export.report.page import page", "report.page"),
        ("from asvp_export.report import page", "report.page"),
        ("from asvp_export import files", "files"),
        ("from asvp_export import Plan", "asvp_export"),
        ("import asvp_export.images as images", "images"),
        ("import asvp_export", "asvp_export"),
        ("from ..report import page", "report.page"),
        ("from .. import files", "files"),
        ("from ..files import atomic_write", "files"),
        ("from .output import Output", "cli.output"),
        ("import click", None),
    ],
)
def test_an_import_is_found_however_it_is_written(line: str, module: str | None) -> None:
    assert imported(f"def later():\n    {line}\n") == ({module} if module else set())


@pytest.mark.parametrize(
    ("verb", "word"),
    [
        ("protect", "ranks"),
        ("protect", "provider"),
        ("check", "model_card"),
        ("audit", "provider"),
        ("layers", "rank"),
        ("run", "min_psnr"),
    ],
)
def test_a_word_that_would_do_nothing_is_refused(verb: str, word: str) -> None:
    paths = ["missing"] if verb == "layers" else ["missing", "missing"]
    with pytest.raises(TypeError, match=f"there is no option '{word}'"):
        getattr(asvp_export, verb)(*paths, **{word: 1})


VERBS = ("layers", "protect", "export", "check", "inspect", "run", "audit")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_one_name_in_the_package_the_module_and_the_command_line(verb: str) -> None:
    function = getattr(asvp_export, verb)
    assert function.__module__ == f"asvp_export.workflows.{verb}" and function.__name__ == verb
    assert verb in cli.commands
    assert callable(importlib.reload(asvp_export).__getattr__(verb)), "no package of that name takes its place"


def test_the_command_line_has_no_other_verbs() -> None:
    assert set(cli.commands) == set(VERBS)


FIRST = {"layers": 0, "inspect": 0, "run": 1, "check": 4, "protect": 4, "audit": 5, "export": 5}


@pytest.mark.parametrize("name", FIRST)
def test_the_help_begins_with_what_people_need_first_and_shows_each_option_once(name: str) -> None:
    command = cli.commands[name]
    context = click.Context(command, info_name=name)
    headings = command.under_headings(context)
    assert len(headings.get(FIRST_HEADING, [])) == FIRST[name]
    shown = [flag for options in headings.values() for one in options for flag in one.opts]
    assert sorted(shown) == sorted({flag for one in command.get_params(context) for flag in one.opts if flag[0] == "-"})
    text = command.get_help(context)
    assert [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] != " "] == list(headings)


def test_export_s_help_has_the_headings_in_the_order_of_the_work() -> None:
    command = cli.commands["export"]
    expected = [FIRST_HEADING, "Model", "Protection", "Verification", "Output", "Reports", "Screen"]
    assert list(command.under_headings(click.Context(command))) == expected


@pytest.mark.parametrize(
    ("group", "values", "needed"),
    [(TileOptions, {"overlap": 16}, "--tile PIXELS"), (AuditOptions, {"address": "10.0.0.1:6379"}, "--backend ray")],
)
def test_what_would_do_nothing_without_another_option_is_refused(group, values, needed):
    with pytest.raises(InputError, match=f"give {needed} too, or leave it out"):
        group(**values)
