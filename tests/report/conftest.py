"""One exported file with all that is shipped with it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.commands import call, complaint
from tests.helpers.teachers import arch, save_pictures, weights

EXPORT = ["--layers=after_body", "--gain=1.003", "--external-data", "--model-card"]


@pytest.fixture(scope="session")
def shipped(tmp_path_factory) -> Path:
    """A folder with one exported file and all that is shipped with it; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("shipped")
    pictures = save_pictures(tmp_path_factory.mktemp("inputs") / "pictures")
    (folder / "README.md").write_text("an older card")
    files = [weights("lowlight"), f"--arch={arch('lowlight')}", f"--images={pictures}", f"--output={folder / 'p.onnx'}"]
    refused = call(*files, *EXPORT)
    assert re.search(r"model card .*README\.md exists; give --force", complaint(refused))
    assert "loading" not in refused.err and (folder / "README.md").read_text() == "an older card"
    done = call(*files, *EXPORT, "--force")
    assert done.code == 0, done.err
    assert [line.split()[-1] for line in done.out.splitlines() if line.startswith(("manifest", "model card"))] == [
        str(folder / "p.manifest.json"),
        str(folder / "README.md"),
    ]
    return folder


@pytest.fixture
def folder(shipped, tmp_path) -> Path:
    """A copy, elsewhere, to be changed."""
    return shutil.copytree(shipped, tmp_path / "copy")
