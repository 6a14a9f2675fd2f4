"""The files beside a shipped one: where they go, that nothing is overwritten, and writing them."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from asvp_export.errors import AsvpError, InputError
from asvp_export.files import atomic_write, check_output, write_error
from asvp_export.insertion.plan import plan_path
from asvp_export.onnx_graph.publish import is_data_of
from asvp_export.options import ReportOptions
from asvp_export.parity.result import ParityResult
from asvp_export.report.card import card, card_path
from asvp_export.report.junit import junit
from asvp_export.report.manifest import manifest, manifest_path
from asvp_export.report.page import page
from asvp_export.report.plan import plan_tables
from asvp_export.report.removal import removal_table
from asvp_export.report.strict_json import json_bytes
from asvp_export.workflows.reading import Named

Files = dict[str, Path]
"""What a file is, such as "report", to its path."""


_MARKS = {
    "report": rb'^\{.*"tool_version"',
    "page": rb"^\s*<!doctype html.*asvp-export",
    "manifest": rb'^\{.*"manifest_version"',
    "plan": rb'^\{.*"format".*"tool_version"',
    "plan's weights": rb"^.{8}\{",
    "JUnit file": rb"<testsuites?\b",  # also another tool's, whose place it may take in CI
}
"""What stands at the beginning of each kind."""


@dataclass(frozen=True)
class Artifact:
    """A file that lies beside a shipped one, rendered."""

    kind: str
    """What it is, such as "report" or "manifest"."""

    path: Path
    """Where it goes."""

    content: bytes


def shipped_files(output: Path, reports: ReportOptions, force: bool, planned: bool) -> Files:
    """The paths of what is written beside an exported file.

    Args:
        output: the ONNX file.
        reports: which reports.
        force: an existing model card is replaced.
        planned: whether there will be a plan.

    Raises:
        InputError: a folder does not exist or is not writable, or a card is there already.
    """
    files = report_files(output, reports, output.parent) | {"manifest": manifest_path(output)}
    if reports.model_card:
        files["model card"] = card_path(output)
        check_output(card_path(output), force=force, role="model card")
    _check_folders(output, files, reports)
    return files | ({"plan": plan_path(output)} if planned else {})


def report_files(file: Path, reports: ReportOptions, default: Path | None) -> Files:
    """The paths of the reports on a file.

    Args:
        file: the ONNX file.
        reports: which are asked for, and where.
        default: folder of the JSON report where none is asked for; None: then there is no JSON report.

    Raises:
        InputError: a folder does not exist, or is not writable.
    """
    folder, files = reports.report or default, Files()
    if folder is not None:
        files["report"] = folder / f"{file.stem}.report.json"
    if reports.report is not None:
        files["page"] = reports.report / "report.html"
    if reports.junit is not None:
        files["JUnit file"] = reports.junit
    _check_folders(file, files, reports)
    return files


def audit_files(folder: Path, stem: str) -> Files:
    """Where the audit's reports go.

    Raises:
        InputError: the folder cannot be made, or is not writable.
    """
    files = {"report": folder / f"{stem}.audit.json", "page": folder / f"{stem}.audit.html"}
    existing = folder if folder.exists() else folder.parent
    if not existing.is_dir():
        raise InputError(f"The folder of the report, {existing}, does not exist; create it first.")
    _check_writable(existing, files["report"])
    return files


def check_cache(folder: Path) -> None:
    """Refuse a folder for finished students that could not be made or written to, before the first is trained.

    Raises:
        InputError: a file is in the way, or the folder, or the one it would be made in, is not writable.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(
            f"The cache {folder} cannot be a folder, because {existing} is a file; name another with --cache."
        )
    _check_writable(existing, folder)


def _check_folders(file: Path, files: Files, reports: ReportOptions) -> None:
    """Refuse folders that cannot be written to, before the long work."""
    for kind, path in files.items():
        folder = path.parent
        if folder == reports.report and not folder.exists():  # it is made when there is something to put into it
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"The folder of the {kind}, {path.parent}, does not exist; create it first.")
        _check_writable(folder, file if path.parent == file.parent else path)


def _check_writable(folder: Path, file: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(error, file) from error


def keep_apart(read_files: Iterable[Named], written_files: Mapping[str, Path], force: bool = False) -> None:
    """Refuse to write two things to one file, over what is read, over what is no file, or over a stranger's file.

    Files are compared by what they are, not by name: links are followed, hard links found.

    Args:
        read_files: every file that is read.
        written_files: every file that may be written; "output" is the ONNX file, whose data files count too.
        force: replace also what no earlier run wrote.

    Raises:
        InputError: as above.
    """
    written_files = dict(written_files)
    if "plan" in written_files:
        written_files["plan's weights"] = written_files["plan"].with_suffix(".safetensors")
    kinds = dict[object, str]()
    for kind, path in read_files:
        kinds.setdefault(_identity(path), kind)
        _check_not_data(path, kind, written_files.get("output"))
    for kind, path in written_files.items():
        if path.exists() and not path.is_file():
            raise InputError(f"The {kind} {path} is a folder or a device; name a file.")
        # Names that differ in case alone are one file on some systems, and nobody needs both.
        for key in (_identity(path), os.path.realpath(path).casefold()):
            if (other_kind := kinds.setdefault(key, kind)) != kind:
                raise InputError(f"The {kind} {path} is the {other_kind} itself; name another file for the {kind}.")
        if kind != "output":
            _check_not_data(path, kind, written_files.get("output"))
        if not force and kind in _MARKS and path.exists() and not _has_mark(path, kind):
            raise InputError(
                f"The {kind} {path} exists, and no earlier run wrote it; name another file, or move that one away."
            )


def _identity(path: Path) -> object:
    """The same for two paths of one file."""
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return os.path.realpath(path)


def _check_not_data(path: Path, kind: str, output: Path | None) -> None:
    """Refuse a file that has the name of a data file of the output: those are replaced, and removed."""
    if output is None:
        return
    real_path, real_output = (Path(os.path.realpath(file)) for file in (path, output))
    if real_path.parent == real_output.parent and is_data_of(real_path.name, real_output):
        raise InputError(
            f"The {kind} {path} has the name of external data of the output {output.name}; name another output."
        )


def _has_mark(path: Path, kind: str) -> bool:
    """Whether a file begins as files of its kind do, or is empty."""
    try:
        with path.open("rb") as stream:
            head = stream.read(2**16)
    except OSError:
        return False
    return not head or re.search(_MARKS[kind], head, re.DOTALL) is not None


def render_artifacts(result: ParityResult, name: str, file: Path, files: Files) -> tuple[ParityResult, list[Artifact]]:
    """Render the files that lie beside a shipped one, before that one has its name: a failure stops the publication.

    Args:
        result: of its export or check; `output` is the path that the file will have.
        name: under which the file was asked for.
        file: the ONNX file as it lies now.
        files: where everything goes.

    Returns:
        The result with the files that there will be, and these in the order of writing. No manifest and no card of a
        file that failed, no plan where nothing was planned.
    """
    artifacts = list[Artifact]()
    if result.plan and "plan" in files:
        artifacts += [Artifact("plan", path, content) for path, content in result.plan.contents(files["plan"]).items()]
    if path := files.get("report"):
        artifacts.append(Artifact("report", path, json_bytes(result.as_dict())))
    if path := files.get("page"):
        plan = plan_tables(result.plan) if result.plan else []
        removal = [removal_table(result.removal_tests)] if result.removal_tests else []
        text = page(result, plan=plan, removal_tests=removal)
        artifacts.append(
            Artifact("page", path, text.encode("utf-8", "replace"))
        )  # file names may hold bytes that are no text
    if path := files.get("JUnit file"):
        artifacts.append(Artifact("JUnit file", path, junit(name, result.gates)))
    if "manifest" in files and result.output and result.passed:
        if path := files.get("model card"):
            artifacts.append(Artifact("model card", path, card(result, file).encode("utf-8", "backslashreplace")))
        roles = {"report": "report", "model card": "card"}
        beside = [
            (roles[artifact.kind], artifact.path, artifact.content) for artifact in artifacts if artifact.kind in roles
        ]
        artifacts.append(Artifact("manifest", files["manifest"], manifest(result, file, beside)))
    kinds = {artifact.kind for artifact in artifacts}
    return replace(result, files={kind: path for kind, path in files.items() if kind in kinds}), artifacts


def write_artifacts(result: ParityResult, artifacts: Iterable[Artifact], outcome: str) -> ParityResult:
    """Write what was rendered, once the verdict is known and a file that passed has its name.

    Nothing is raised for a full disk or a folder that is gone: an error says that nothing was done, which would be
    wrong here. The result says what is missing.

    Args:
        result: with the files as they were planned.
        artifacts: see `render_artifacts`.
        outcome: what is done all the same, as the beginning of a sentence.
    """
    unwritten = dict[str, str]()
    for artifact in artifacts:
        try:
            make_folder(artifact.path)
            atomic_write(artifact.path, artifact.content)
        except (AsvpError, OSError) as error:
            unwritten[artifact.kind] = f"{outcome}, but the {artifact.kind} was not written. {error}"
    files = {kind: path for kind, path in result.files.items() if kind not in unwritten}
    return replace(result, files=files, unwritten=tuple(unwritten.values()))


def make_folder(file: Path) -> None:
    """The folder of a report, where it is not there yet."""
    with contextlib.suppress(FileExistsError):
        file.parent.mkdir()
