"""What mkdocs does with a page before it becomes HTML: links out of docs/, text of other files, generated reference.

A line `<!-- include FILE -->` stands for a file of the repository, `<!-- options COMMAND ... -->` for the options of
commands, `<!-- names NAME ... -->` for the documentation of public names. A Mermaid diagram, which code hosts draw from
its source, is drawn once (mermaid-cli, `htmlLabels: false`) and kept as assets/PAGE.svg: the site's script would fetch
Mermaid from elsewhere.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

import click

import asvp_export
from asvp_export.cli import cli
from asvp_export.cli.command import Command

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
PAGES = {"CONTRIBUTING.md": "docs/contributing.md", "CHANGELOG.md": "docs/changelog.md"}
LINK = re.compile(r"(?<!!)\[([^\]\[]+)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^ {0,3}(`{3,})[^\n]*\n.*?^ {0,3}\2 *$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^<!-- (include|options|names) (.*?) -->\n", re.MULTILINE)
MERMAID = re.compile(r"^```mermaid\n.*?^```$", re.MULTILINE | re.DOTALL)
warn = logging.getLogger("mkdocs.hooks").warning  # a warning ends a strict build


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """See mkdocs."""
    path = PurePosixPath(DOCS, page.file.src_uri)
    drawing = posixpath.relpath(PurePosixPath(DOCS, "assets", f"{path.stem}.svg"), path.parent)
    generated = {
        "include": lambda name: linked((ROOT / name).read_text(encoding="utf-8"), PurePosixPath(name), path),
        "options": lambda names: "\n".join(map(options, names.split())),
        "names": lambda names: "\n".join(map(documented, names.split())),
    }
    markdown = MERMAID.sub(f"![{page.title}, as a diagram]({drawing})", linked(markdown, path, path))
    return MARK.sub(lambda mark: generated[mark[1]](mark[2]), markdown)


def linked(markdown: str, source: PurePosixPath, page: PurePosixPath) -> str:
    """The text of one file as it reads on the page of another: links are moved, those out of docs/ become paths."""
    code: list[str] = []

    def hidden(match: re.Match[str]) -> str:
        code.append(match[0])
        return f"\0{len(code) - 1}\0"

    def shown(text: str) -> str:
        return re.sub("\0(\\d+)\0", lambda match: code[int(match[1])], text)

    def moved(link: re.Match[str]) -> str:
        text, (target, _, anchor) = link[1], link[2].partition("#")
        if not target or ":" in target:
            return link[0]
        inside = PurePosixPath(posixpath.normpath(source.parent / target))
        inside = PurePosixPath(PAGES.get(str(inside), inside))
        if inside.parts[:1] == (DOCS,):
            return f"[{text}]({posixpath.relpath(inside, page.parent)}{'#' * bool(anchor)}{anchor})"
        if not (ROOT / inside).exists():
            warn("%s links to %s, which is not in the repository", source, inside)
        path = f"`{inside}`"
        return path if shown(text).strip("`") in (target, inside.name, str(inside)) else f"{text} ({path})"

    return shown(LINK.sub(moved, CODE.sub(hidden, markdown)))


def options(name: str) -> str:
    """A command's arguments and options as Markdown, a table under each heading of its help."""
    command = cli.commands[name]
    assert isinstance(command, Command)
    context = click.Context(command, info_name=f"asvp-export {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    headed = [
        f"**{heading}**\n\n| option | |\n|---|---|\n" + "".join(row(one, context) for one in those)
        for heading, those in command.under_headings(context).items()
    ]
    text = re.sub(r"`?(?<![\w`])(--[a-z][\w-]*)`?", r"`\1`", command.help or "")
    return f"## {name} {{#{name}}}\n\n```text\n{usage}\n```\n\n{text}\n\n" + "\n".join(headed)


def row(one: click.Option, context: click.Context) -> str:
    """One option as a line of a table."""
    flags, help = one.get_help_record(context) or ("", "")
    help = re.sub(r"(?<![\w`])(--[a-z][\w-]*)", r"`\1`", help).replace("|", "\\|").replace("*", "\\*")
    flags = flags.replace("|", "&#124;").replace("<", "&lt;")
    return f"| <code>{flags}</code> | {help} |\n" if flags else ""


def documented(name: str) -> str:
    """What mkdocstrings turns into the documentation of a public name."""
    return f"::: asvp_export.{asvp_export._HOME[name]}.{name}\n"


def on_post_build(**_: Any) -> None:
    """Every public name has to be on the page of the Python interface, and every command on its own."""
    for page, names in (("python.md", set(asvp_export.__all__)), ("cli.md", set(cli.commands))):
        text = (ROOT / DOCS / "reference" / page).read_text(encoding="utf-8")
        named = [name for kind, those in MARK.findall(text) if kind != "include" for name in those.split()]
        if sorted(named) != sorted(names):
            warn("reference/%s has not just the names %s", page, ", ".join(sorted(names)))
