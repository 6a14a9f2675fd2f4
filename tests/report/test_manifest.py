"""The manifest: what it lists, and that whatever differs from it is named."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import asvp_export
from asvp_export.onnx_graph.passes import without_nodes
from asvp_export.report.card import generated_part
from asvp_export.report.manifest import manifest
from tests.helpers.commands import call, complaint
from tests.helpers.shipping import data_file, digest, flip, load, plain_result


def test_the_manifest_is_made_of_the_files_and_of_nothing_else(shipped, tmp_path):
    report = load(shipped / "p.report.json")
    expected = {
        "manifest_version": 1,
        "tool_version": report["tool_version"],
        "source": {"name": "lowlight.safetensors", "sha256": report["source_sha256"]},
        "files": [
            {"role": "model", "name": "p.onnx", **digest((shipped / "p.onnx").read_bytes())},
            {"role": "data", "name": data_file(shipped).name, **digest(data_file(shipped).read_bytes())},
            {"role": "report", "name": "p.report.json", **digest((shipped / "p.report.json").read_bytes())},
            {
                "role": "card",
                "name": "README.md",
                **digest(generated_part((shipped / "README.md").read_bytes()) or b""),
            },
        ],
    }
    assert (shipped / "p.manifest.json").read_text() == json.dumps(expected, indent=2) + "\n"
    assert len(list(shipped.iterdir())) == 5
    elsewhere = tmp_path / "reports" / "q.report.json"
    result, written = plain_result(tmp_path / "q.onnx"), tmp_path / "q.manifest.json"
    written.write_bytes(manifest(result, tmp_path / "q.onnx", [("report", elsewhere, b"{}")]))
    assert [one["name"] for one in load(written)["files"]] == ["q.onnx"]
    assert asvp_export.verify_manifest(tmp_path / "q.onnx").passed


def test_files_that_moved_together_are_verified(folder):
    answer = call("inspect", "--verify", folder / "p.onnx")
    names = ["p.onnx", data_file(folder).name, "p.report.json", "README.md"]
    assert answer == (0, f"{folder / 'p.onnx'} is as p.manifest.json lists it: {', '.join(names)}\n", "")
    answer = call("inspect", "--verify", folder / "p.onnx", "--json")
    assert json.loads(answer.out) == {"passed": True, "manifest": "p.manifest.json", "files": names, "problems": []}
    assert call("inspect", "--verify", folder / "p.onnx", "--quiet") == (0, "", "")


def swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def reseal(folder: Path) -> None:
    """Whoever can change a file can change the manifest with it: only what the files say of each other is left then."""
    manifest = load(folder / "p.manifest.json")
    for one in manifest["files"]:
        content = (folder / one["name"]).read_bytes()
        one |= digest(generated_part(content) or b"" if one["role"] == "card" else content)
    (folder / "p.manifest.json").write_text(json.dumps(manifest))


def other_report(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        report = load(folder / "p.report.json")
        (folder / "p.report.json").write_text(json.dumps(report | changes))
        reseal(folder)

    return change


def stripped(folder: Path) -> None:
    model = onnx.load(folder / "p.onnx", load_external_data=False)
    bare = without_nodes(model)
    onnx.save(bare, folder / "p.onnx")
    reseal(folder)


def other_gain(folder: Path) -> None:
    """The metadata names a gain that the node does not have."""
    model = onnx.load(folder / "p.onnx", load_external_data=False)
    (entry,) = [one for one in model.metadata_props if one.key == "asvp.layers"]
    assert "1.003" in entry.value
    entry.value = entry.value.replace("1.003", "9.003")
    onnx.save(model, folder / "p.onnx")
    reseal(folder)


def other_source(folder: Path) -> None:
    manifest = load(folder / "p.manifest.json")
    manifest["source"]["sha256"] = "0" * 64
    (folder / "p.manifest.json").write_text(json.dumps(manifest))


def unlisted_data(folder: Path) -> None:
    manifest = load(folder / "p.manifest.json")
    manifest["files"] = [one for one in manifest["files"] if one["role"] != "data"]
    (folder / "p.manifest.json").write_text(json.dumps(manifest))


def no_model(folder: Path) -> None:
    (folder / "p.onnx").write_bytes(b"not an ONNX model")
    reseal(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed bit of the model": (
        lambda f: flip(f / "p.onnx"),
        r"^p\.onnx was changed: its SHA-256 is \w{64}; p\.mani",
    ),
    "a model that was cut": (lambda f: cut(f / "p.onnx"), r"^p\.onnx has \d+ bytes; p\.manifest\.json lists \d+\.$"),
    "no model": (lambda f: (f / "p.onnx").unlink(), r"^p\.onnx is missing"),
    "a folder as the model": (lambda f: ((f / "p.onnx").unlink(), (f / "p.onnx").mkdir()), r"^p\.onnx is missing"),
    "a pointer as the model": (lambda f: (f / "p.onnx").write_text(POINTER), r"^p\.onnx is a pointer of Git LFS"),
    "a changed bit of the data": (lambda f: flip(data_file(f)), r"^p\.\w{16}\.data was changed"),
    "no data": (
        lambda f: data_file(f).unlink(),
        r"^p\.\w{16}\.data is missing; p\.manifest\.json lists it as the data",
    ),
    "a changed report": (lambda f: swap(f / "p.report.json", "48.0", "28.0"), r"^p\.report\.json was changed"),
    "no report": (lambda f: (f / "p.report.json").unlink(), r"^p\.report\.json is missing"),
    "a changed number in the card": (
        lambda f: swap(f / "README.md", "| 48 dB", "| 49 dB"),
        r"part of README\.md was ch",
    ),
    "a card without its marks": (
        lambda f: swap(f / "README.md", "asvp-export: end", "end"),
        r"^README\.md has lost the part",
    ),
    "no card": (lambda f: (f / "README.md").unlink(), r"^README\.md is missing"),
    "a report that failed": (other_report(passed=False), r"^p\.report\.json and p\.onnx disagree on the verdict\.$"),
    "a report of another file": (other_report(output_sha256="0" * 64), "disagree on the model's SHA-256"),
    "a report of other layers": (other_report(layers=[]), "disagree on the layers"),
    "a report of a better gate": (
        other_report(preservation={"min_psnr": 99.0, "threshold": 48}),
        "on the gate preservation",
    ),
    "a report that is none": (other_report(layers=3), "disagree on what a report is"),
    "a model without its nodes": (stripped, r"disagree on its ASVP nodes \(after_body\)"),
    "metadata of another gain": (other_gain, r"disagree on its ASVP nodes \(after_body\)"),
    "a manifest of another source": (other_source, "disagree on the source's SHA-256"),
    "data that is not listed": (unlisted_data, r"keeps tensors in p\.\w{16}\.data, which the manifest does not list"),
    "a listed model that is none": (no_model, r"p\.onnx is not an ONNX model"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_differs_is_named_and_exits_1(case, folder):
    damage, expected = DAMAGE[case]
    damage(folder)
    answer = call("inspect", "--verify", folder / "p.onnx")
    assert answer.code == 1 and not answer.out
    assert re.search(expected, answer.err), answer.err
    assert all(line.endswith(".") for line in answer.err.splitlines())
    assert (
        json.loads(call("inspect", "--verify", folder / "p.onnx", "--json").out)["problems"] == answer.err.splitlines()
    )


def manifest_with(**changes: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(load(path) | changes))


def first_file(**changes: Any) -> Callable[[Path], object]:
    """The first listed file, changed; None takes a key out."""

    def change(path: Path) -> None:
        manifest = load(path)
        entry = manifest["files"][0] | changes
        manifest["files"][0] = {key: value for key, value in entry.items() if value is not None}
        path.write_text(json.dumps(manifest))

    return change


def added(**entry: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        manifest = load(path)
        manifest["files"].append({"role": "data", "bytes": 1, "sha256": "0" * 64, **entry})
        path.write_text(json.dumps(manifest))

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (Path.unlink, r"no p\.manifest\.json beside .*p\.onnx"),
    "text": (lambda path: path.write_text("files: none"), "it is not JSON"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is not JSON"),
    "an empty file": (lambda path: path.write_bytes(b""), "it is not JSON"),
    "JSON without end": (lambda path: path.write_text("[" * 100_000), "it is not JSON"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "a list": (lambda path: path.write_text("[]"), "not a manifest that this version reads"),
    "another version": (manifest_with(manifest_version=2), "manifest_version 2, 1 was expected"),
    "no files": (manifest_with(files=[]), "it lists no model"),
    "files that are none": (manifest_with(files=7), "cannot be used"),
    "no source": (manifest_with(source={}), r"source\.sha256 is missing"),
    "another file's": (first_file(name="q.onnx"), r"belongs to q\.onnx, not to p\.onnx"),
    "a name above": (added(name="../p.onnx"), "'../p.onnx', which is not the name of a file in its folder"),
    "a name below": (added(name="sub/p.onnx"), "not the name of a file in its folder"),
    "a whole path": (added(name="/etc/passwd"), "not the name of a file in its folder"),
    "the folder above": (added(name=".."), "not the name of a file in its folder"),
    "no name": (added(name=""), "not the name of a file in its folder"),
    "a name of two lines": (added(name="a\nb"), "not the name of a file in its folder"),
    "a file twice": (added(name="p.onnx"), r"names the file 'p\.onnx' twice"),
    "two models": (added(name="q.onnx", role="model"), "names the role 'model' twice"),
    "an unknown role": (added(name="q.txt", role="licence"), "in the unknown role 'licence'"),
    "a hash that is none": (first_file(sha256="0" * 63), "is not a SHA-256"),
    "no hash": (first_file(sha256=None), r"files\.0\.sha256 is missing"),
    "a size that is none": (first_file(bytes=-1), "with -1 bytes"),
    "a size that is a text": (first_file(bytes="7"), "bytes is '7', a whole number was expected"),
    "a role that is a list": (first_file(role=["model"]), r"role is \['model'\], a text was expected"),
    "a name of a megabyte": (first_file(name="x" * 2**20), "a text of at most 4096 characters was expected"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is a pipe or a device"),
    "a device": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is a pipe or a device"),
    "10 GiB": (lambda path: os.truncate(path, 10 * 2**30), "is larger than 32 MiB"),
    "a size that is true": (first_file(bytes=True), "bytes is True, a whole number was expected"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_manifest_that_cannot_be_used_is_bad_input(case, folder):
    damage, expected = BROKEN[case]
    damage(folder / "p.manifest.json")
    assert re.search(expected, complaint(call("inspect", "--verify", folder / "p.onnx")))
