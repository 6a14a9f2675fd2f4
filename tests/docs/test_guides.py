"""The commands of the quickstart and the guides, as they stand there, in a folder with the files that they speak of.

All blocks of `sh` and `python` are run, in order. HTML comments before a block, which readers do not see, say what is
otherwise: `setup: FILE ...` the files that a page starts with, `exit CODE`, `needs: WHAT`, `not run: REASON`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import asvp_export
from asvp_export.images import photographs
from tests.helpers.native import CMAKE
from tests.helpers.teachers import EXAMPLES, ROOT, weights

DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", *sorted((DOCS / "guides").glob("*.md"))]
PICTURES = ("dogs_1", "dogs_2", "rocket_1", "astronaut_1")  # the dark ones: a calibration takes four at least
CLEAN = (*PICTURES, "rocket_2", "astronaut_2")  # an audit takes five at least
BOX = (80, 60, 152, 124)  # left, upper, right, lower: 72 x 64 pixels of a photograph

TOKEN = re.compile(r"<!-- (setup: |exit |needs: |not run: )(.*?) -->|^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of a page, and what the comments before it say."""

    language: str
    code: str
    comments: dict[str, str]


def blocks(page: Path) -> tuple[list[str], list[Block]]:
    """The files that a page starts with, and its blocks of code."""
    files: list[str] = []
    found: list[Block] = []
    comments: dict[str, str] = {}
    for comment, value, language, code in TOKEN.findall(page.read_text(encoding="utf-8")):
        if language:
            found.append(Block(language, code, comments))
            comments = {}
        elif comment == "setup: ":
            files = value.split()
        else:
            comments[comment.strip(": ")] = value
    return files, found


def headers() -> Path | None:
    """The folder of onnxruntime's C++ headers, of the release that ONNXRUNTIME names or of the system."""
    for folder in filter(None, (os.environ.get("ONNXRUNTIME"), "/usr", "/usr/local")):
        for inside in ("include", "include/onnxruntime", "include/onnxruntime/core/session"):
            if Path(folder, inside, "onnxruntime_cxx_api.h").exists():
                return Path(folder, inside)
    return None


def missing(need: str) -> str | None:
    """Why a block cannot run here."""
    if need == "onnxruntime headers":
        return None if headers() else "ONNXRUNTIME names no release of onnxruntime with headers"
    return None if importlib.util.find_spec(need) else f"{need} is not installed"


@pytest.fixture(scope="session")
def stock(tmp_path_factory) -> Path:
    """Everything that pages start with."""
    folder = tmp_path_factory.mktemp("stock")
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("node_modules", "build"))
    shutil.copy(EXAMPLES / "nets.py", folder)
    shutil.copy(weights("lowlight"), folder)
    clean, verify = folder / "clean", folder / "asvp_export" / "photographs" / "verify"
    clean.mkdir()
    verify.mkdir(parents=True)
    for name in CLEAN:
        crop = Image.open(photographs("verify") / f"{name}.webp").crop(BOX)
        crop.save(clean / f"{name}.png")
        if name in PICTURES:
            crop.save(verify / f"{name}.webp", lossless=True)
    shell(folder, "python examples/degrade.py lowlight asvp_export/photographs/verify dark")
    command = "asvp-export lowlight.safetensors --arch nets.py:lowlight --layers after_body --images dark"
    shell(folder, f"{command} -o protected.onnx")
    shell(folder, f"{command.replace('after_body', 'none')} -o original.onnx")
    if library := asvp_export.library_path():
        shutil.copy(library, folder / "libasvp.so")
    if found := headers():
        release = folder / "onnxruntime"
        shutil.copytree(found, release / "include")
        (release / "lib").mkdir()
        package = Path(importlib.util.find_spec("onnxruntime").origin).parent
        for library in package.glob("capi/libonnxruntime.so.*"):
            for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
                (release / "lib" / name).symlink_to(library)
    return folder


def shell(folder: Path, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run by bash, as a reader would."""
    path = os.pathsep.join([str(Path(sys.executable).parent), str(Path(CMAKE).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **more}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )


def copied(names: list[str], stock: Path, folder: Path) -> None:
    for name in names:
        stem = name.removesuffix(".onnx")
        for source in stock.glob(f"{stem}.*") if stem != name else [stock / name]:
            target = folder / source.relative_to(stock)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_s_commands_do_what_it_says(page, stock, tmp_path):
    files, found = blocks(page)
    copied(files, stock, tmp_path)
    run, left_out = 0, []
    for block in found:
        if block.language not in ("sh", "python") or "not run" in block.comments:
            continue
        if reason := missing(need) if (need := block.comments.get("needs")) else None:
            left_out.append(reason)
            continue
        script = block.code if block.language == "sh" else f"python - <<'PYTHON'\n{block.code}\nPYTHON"
        done = shell(tmp_path, script, ONNXRUNTIME=str(stock / "onnxruntime"))
        expected = int(block.comments.get("exit", "0"))
        assert done.returncode == expected, f"{block.code}\n{done.stdout}\n{done.stderr}"
        run += 1
    if left_out and not run:  # a page may need what few machines have: npm's packages, onnxruntime's C++ headers, a GPU
        pytest.skip("; ".join(sorted(set(left_out))))


def test_every_block_that_is_not_run_says_why():
    reasons = {page.stem: [b.comments["not run"] for b in blocks(page)[1] if "not run" in b.comments] for page in PAGES}
    assert {name for name, those in reasons.items() if those} == {"index", "deploy-browser", "deploy-tensorrt"}
    assert all(reason for those in reasons.values() for reason in those)


def test_a_page_of_commands_has_commands():
    quiet = {"deploy-browser"}  # `make test-web` runs that page
    for page in PAGES:
        run = [b for b in blocks(page)[1] if b.language in ("sh", "python") and "not run" not in b.comments]
        assert run or page.stem in quiet, page
