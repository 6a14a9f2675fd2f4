"""The documentation as a site: it builds strictly, says what the tool says, and asks nobody for anything."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import asvp_export
from asvp_export.cli import cli
from tests.helpers.teachers import ROOT

# What a browser fetches by itself. A link that a reader may follow is none of these.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=["']?(https?:)?//|url\(["']?https?://"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:  # `make setup` spares those who do not build the site; CI builds it
        pytest.skip("mkdocs is not installed; `make docs` installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def words(page: Path) -> str:
    """What a page says."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 25
    assert [page.name for page in pages if FETCHED.search(page.read_text(encoding="utf-8"))] == []
    # Material's script would fetch mermaid for such a diagram.
    assert [page.name for page in pages if 'class="mermaid"' in page.read_text(encoding="utf-8")] == []


@pytest.mark.slow
def test_the_reference_has_every_option_and_every_public_name(site):
    said = words(site / "reference" / "cli.html")
    for name, command in cli.commands.items():
        flags = [flag for one in command.params if isinstance(one, click.Option) for flag in one.opts]
        assert [flag for flag in flags if flag not in said] == [], name
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    missing = [name for name in asvp_export.__all__ if not re.search(rf'id="asvp_export\.[\w.]*\b{name}"', python)]
    assert missing == []


@pytest.mark.slow
def test_other_files_of_the_repository_are_on_their_pages(site):
    assert "How we work" in words(site / "contributing.html")
    assert "Changelog" in words(site / "changelog.html")
    for page in site.rglob("*.html"):
        assert "<!-- include" not in (text := page.read_text(encoding="utf-8")), page
        assert "<!-- options" not in text and "<!-- names" not in text and "\0" not in text, page


def test_the_diagram_of_the_architecture_is_drawn_from_its_source_and_names_packages_that_are_there():
    source = (ROOT / "docs" / "concepts" / "architecture.md").read_text(encoding="utf-8")
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```$", source, re.MULTILINE | re.DOTALL)
    drawing = (ROOT / "docs" / "assets" / "architecture.svg").read_text(encoding="utf-8")
    labels = [label.strip("|[]") for label in re.findall(r"\[[^\]]+\]|\|\w+\|", diagram)]
    drawn = re.sub(r"<style>.*?</style>|<[^>]+>", "", drawing)
    assert sorted("".join(labels).replace(" ", "")) == sorted(drawn.replace(" ", ""))
    edges = re.findall(r"^ *(\w+)(?:\[[^\]]+\])? -->(?:\|\w+\|)? (\w+)", diagram, re.MULTILINE)
    assert len(edges) == diagram.count("-->") > 10
    assert set(edges) == set(re.findall(r'data-id="L_([a-z0-9]+)_([a-z0-9]+)_0"', drawing))
    packages = [label.partition(":")[0] for label in labels if "/" in label.partition(":")[0]]
    assert [name for name in packages if not list((ROOT / "asvp_export").glob(f"{name.rstrip('/')}*"))] == []
