"""The manifest: which files were shipped together, by hash; and whether they still are what was shipped."""

from __future__ import annotations

import hashlib
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from asvp_export.environment import tool_version
from asvp_export.errors import InputError, one_line
from asvp_export.files import sha256
from asvp_export.onnx_graph.contents import external_files
from asvp_export.onnx_graph.inline import fold
from asvp_export.onnx_graph.metadata import Provenance, read_provenance, same_stamp, stamp_of
from asvp_export.onnx_graph.pairs import differing, same_node
from asvp_export.operator import Perturbation
from asvp_export.report.card import generated_part
from asvp_export.report.strict_json import json_bytes
from asvp_export.untrusted import checked, file_beside, no_doubles, parsed, read_regular

if TYPE_CHECKING:
    from asvp_export.parity.result import ParityResult

VERSION = 1
ROLES = ("model", "data", "report", "card")

_POINTER = b"version https://git-lfs.github.com/spec/"  # how the stand-in for a large file begins


@dataclass(frozen=True)
class Verification:
    """What became of the files that a manifest lists."""

    manifest: str
    """File name of the manifest."""

    files: tuple[str, ...]
    """File names that it lists, the model's first."""

    problems: tuple[str, ...]
    """What differs, is missing or disagrees, a sentence each; empty when all is as it was shipped."""

    @property
    def passed(self) -> bool:
        """Whether every file is what was shipped."""
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        """The findings for JSON."""
        return {
            "passed": self.passed,
            "manifest": self.manifest,
            "files": list(self.files),
            "problems": list(self.problems),
        }


@dataclass(frozen=True)
class _Entry:
    role: str
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Source:
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """What is read of a manifest; newer versions may write more."""

    tool_version: str
    source: _Source
    files: tuple[_Entry, ...]

    def name(self, role: str) -> str | None:
        return next((entry.name for entry in self.files if entry.role == role), None)


def manifest_path(model: str | Path) -> Path:
    """Where the manifest of an ONNX file lies: beside it, under its stem, so that a folder can hold several models."""
    return Path(model).with_name(f"{Path(model).stem}.manifest.json")


def manifest(result: ParityResult, model: Path, beside: Iterable[tuple[str, Path, bytes]] = ()) -> bytes:
    """List what is shipped together: the ONNX file, its data, its report and its card.

    The same files give the same bytes: the manifest holds no time, and no folder.

    Args:
        result: of an export that passed.
        model: the verified file, its data beside it; it need not have its name yet: that is `result.output`.
        beside: role, path and content of what else is written; listed where it lies beside the ONNX file.

    Raises:
        InputError: a file cannot be read.
    """
    assert result.output is not None
    home = result.output.parent.resolve()
    data = sorted(external_files(onnx.load(model, load_external_data=False)))
    files = [{"role": "model", "name": result.output.name, **_size_and_hash("model", model)}]
    files += [{"role": "data", "name": name, **_size_and_hash("data", model.with_name(name))} for name in data]
    files += [
        {"role": role, "name": path.name, **_content_size_and_hash(role, content)}
        for role, path, content in beside
        if path.resolve().parent == home
    ]
    return json_bytes(
        {
            "manifest_version": VERSION,
            "tool_version": tool_version(),
            "source": {"name": result.model, "sha256": result.source_sha256},
            "files": files,
        }
    )


def verify_manifest(model: str | Path) -> Verification:
    """Hold an ONNX file, and what was shipped with it, against its manifest.

    Checked are size and SHA-256 of every listed file (of the card the part that this tool wrote: the rest is its
    owner's); then, where these are right, that the graph's nodes, the metadata, the report and the manifest tell the
    same.

    Args:
        model: the ONNX file; `<stem>.manifest.json` lies beside it.

    Raises:
        InputError: the manifest is not there, cannot be read, is of another file, or names files outside its folder.
    """
    model_path = Path(model)
    path = manifest_path(model_path)
    manifest = _read_manifest(path, model_path)
    problems = [problem for entry in manifest.files for problem in _differences(entry, model_path, path.name)]
    if not problems:
        problems = list(_disagreements(manifest, model_path))
    return Verification(path.name, tuple(entry.name for entry in manifest.files), tuple(problems))


def _home(model: Path) -> Path:
    """The folder of a model's data files: where a link leads, data lies there."""
    return Path(os.path.realpath(model)).parent


def _size_and_hash(role: str, path: Path) -> dict[str, object]:
    """Size and digest of a file; of a card those of the part that its owner leaves alone."""
    if role == "card":
        return _content_size_and_hash(role, path.read_bytes())
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _content_size_and_hash(role: str, content: bytes) -> dict[str, object]:
    """The same of a content."""
    part = generated_part(content) or b"" if role == "card" else content
    return {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}


def _read_manifest(path: Path, model: Path) -> _Manifest:
    """The manifest, every value of which was checked: anyone can have written it."""
    if not path.exists():
        raise InputError(
            f"There is no {path.name} beside {model}, so it cannot be verified; asvp-export writes one with every "
            "export."
        )
    content = read_regular(path, "manifest")
    try:
        data = parsed(content)
        if not isinstance(data, dict) or data.get("manifest_version") != VERSION:
            version = data.get("manifest_version") if isinstance(data, dict) else None
            raise InputError(
                f"{path} is not a manifest that this version reads (manifest_version {reprlib.repr(version)}, "
                f"{VERSION} was expected)."
            )
        manifest = checked(data, _Manifest, ignore_unknown=True)
        _check_values(manifest)
    except ValueError as error:
        raise InputError(f"The manifest {path} cannot be used: {error}. Export the model again.") from error
    if (listed := manifest.name("model")) != model.name:
        raise InputError(
            f"The manifest {path} belongs to {listed}, not to {model.name}; the files of an export must keep their "
            "names."
        )
    return manifest


def _check_values(manifest: _Manifest) -> None:
    """Refuse values that no export writes; raises ValueError."""
    for entry in manifest.files:
        if entry.role not in ROLES:
            raise ValueError(f"it lists a file in the unknown role {reprlib.repr(entry.role)}")
        file_beside(entry.name)
        if entry.bytes < 0:
            raise ValueError(f"it lists {entry.name} with {entry.bytes} bytes")
    for digest in (manifest.source.sha256, *(entry.sha256 for entry in manifest.files)):
        if re.fullmatch("[0-9a-f]{64}", digest) is None:
            raise ValueError(f"{reprlib.repr(digest)} is not a SHA-256")
    roles = [entry.role for entry in manifest.files]
    no_doubles((entry.name for entry in manifest.files), "file")
    no_doubles((role for role in roles if role != "data"), "role")
    if "model" not in roles:
        raise ValueError("it lists no model")


def _differences(entry: _Entry, model: Path, manifest: str) -> Iterator[str]:
    """What is wrong with one listed file."""
    path = _home(model) / entry.name if entry.role == "data" else model.with_name(entry.name)
    if not path.is_file():
        yield f"{entry.name} is missing; {manifest} lists it as the {entry.role}."
        return
    if entry.role == "card" and generated_part(path.read_bytes()) is None:
        yield f"{entry.name} has lost the part between its asvp-export marks, which {manifest} lists."
        return
    actual = _size_and_hash(entry.role, path)
    subject = f"The generated part of {entry.name}" if entry.role == "card" else entry.name
    with path.open("rb") as stream:
        pointer = stream.read(len(_POINTER)) == _POINTER
    if pointer and actual["bytes"] != entry.bytes:
        yield f"{subject} is a pointer of Git LFS, not the file itself; fetch it with git lfs pull."
    elif actual["bytes"] != entry.bytes:
        yield f"{subject} has {actual['bytes']} bytes; {manifest} lists {entry.bytes}."
    elif actual["sha256"] != entry.sha256:
        yield f"{subject} was changed: its SHA-256 is {actual['sha256']}; {manifest} lists {entry.sha256}."


def _disagreements(manifest: _Manifest, model: Path) -> Iterator[str]:
    """Where files that are what the manifest lists tell different things: then no export made the manifest."""
    try:
        graph = onnx.load(model, load_external_data=False)
        provenance = read_provenance({p.key: p.value for p in graph.metadata_props})
        fold(graph)
        wrong = differing(graph, provenance.layers) if provenance else []
    except InputError as error:
        yield f"{model.name}: {error}"
        return
    except Exception as error:  # protobuf's errors have no common base
        yield f"{model.name} is not an ONNX model ({one_line(error, 200)})."
        return
    listed = {entry.name for entry in manifest.files if entry.role == "data"}
    for name in sorted(external_files(graph) - listed):
        yield f"{model.name} keeps tensors in {name}, which the manifest does not list."
    if provenance is None:
        yield f"{model.name} has no asvp metadata."
        return
    if wrong:
        yield f"The graph and the metadata of {model.name} disagree on its ASVP nodes ({', '.join(wrong[:3])})."
    for fact, ours, theirs in (
        ("the source's SHA-256", provenance.source_sha256, manifest.source.sha256),
        ("the version of asvp-export", provenance.version, manifest.tool_version),
    ):
        if ours != theirs:
            yield f"{model.name} and the manifest disagree on {fact}: {ours} and {theirs}."
    if name := manifest.name("report"):
        digest = next(entry.sha256 for entry in manifest.files if entry.role == "model")
        if wrong := report_disagreements(model.with_name(name), digest, provenance):
            yield f"{name} and {model.name} disagree on {', '.join(wrong)}."


@dataclass(frozen=True)
class _ReportedLayer:
    name: str
    rank: int
    gain: float
    energy: float
    axis: int
    residual: float | None = None

    @property
    def node(self) -> Perturbation:
        return Perturbation(self.rank, self.gain, self.energy, self.axis, self.residual)


@dataclass(frozen=True)
class _ReportedGate:
    min_psnr: float | None
    threshold: float


@dataclass(frozen=True)
class _Report:
    """What is read of a report, which holds much more."""

    passed: bool
    output_sha256: str
    source_sha256: str
    layers: tuple[_ReportedLayer, ...]
    fidelity: _ReportedGate | None = None
    preservation: _ReportedGate | None = None


def report_disagreements(path: Path, digest: str, provenance: Provenance) -> Sequence[str]:
    """Which parts of a report are not of this model."""
    try:
        report = checked(parsed(read_regular(path, "report")), _Report, ignore_unknown=True)
        layers = {layer.name: layer.node for layer in report.layers}
    except (ValueError, InputError) as error:
        return [f"what a report is ({str(error).rstrip('.')})"]
    gates = {"fidelity": report.fidelity, "preservation": report.preservation}
    checks = {
        "the verdict": report.passed,
        "the model's SHA-256": report.output_sha256 == digest,
        "the source's SHA-256": report.source_sha256 == provenance.source_sha256,
        "the layers": layers.keys() == provenance.layers.keys()
        and all(same_node(layer, provenance.layers[name]) for name, layer in layers.items()),
        **{f"the gate {name}": _agrees(gates.get(name), gate) for name, gate in provenance.gates.items()},
    }
    return [part for part, agrees in checks.items() if not agrees]


def _agrees(reported: _ReportedGate | None, gate: Mapping[str, float | None]) -> bool:
    """Whether a gate in the report is that of the metadata."""
    if reported is None:
        return False
    ours, theirs = reported.min_psnr, gate["min_psnr"]
    near = ours is not None and same_stamp(stamp_of(ours), theirs)
    return reported.threshold == gate["threshold"] and near
