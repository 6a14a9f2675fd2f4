"""The road from a protected teacher to a published file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

import onnx
from onnx.external_data_helper import load_external_data_for_model

from asvp_export.environment import tool_version
from asvp_export.errors import AsvpError, InputError
from asvp_export.files import check_output, sha256
from asvp_export.insertion.protected import Protected, to_onnx
from asvp_export.keywords import ExportKeywords
from asvp_export.onnx_graph import publish
from asvp_export.onnx_graph.contents import data_bytes, is_half
from asvp_export.onnx_graph.float16 import check_convertible, to_half
from asvp_export.onnx_graph.inline import inline
from asvp_export.onnx_graph.metadata import Provenance, write_provenance
from asvp_export.onnx_graph.publish import Staging
from asvp_export.options import FileOptions, GateOptions, grouped
from asvp_export.parity.cases import Case
from asvp_export.parity.choice import InputsAsked, same_inputs, verification_inputs
from asvp_export.parity.evidence import gather
from asvp_export.parity.expected import Expected, expected_of_teacher
from asvp_export.parity.judge import GateInputs, judge, library_notes
from asvp_export.parity.latency import affordable, file_latency
from asvp_export.parity.overflow import first_overflow
from asvp_export.parity.removal import RemovalTest, removal_tests, smallest
from asvp_export.parity.result import FIDELITY_DB, ParityResult, frozen_notes
from asvp_export.parity.traced import fitted
from asvp_export.parity.truth import read_truth
from asvp_export.parity.verify import GateResult, Thresholds, check_threshold, least_psnr
from asvp_export.progress import Printer
from asvp_export.runtime.session import check_provider
from asvp_export.signature import NCHW, NHWC
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.model import Teacher
from asvp_export.teacher.onnx_model import OnnxModule

Stamps = dict[str, dict[str, float | None]]

_ROUNDING_DB = 100.0


def export(
    protected: Protected,
    output: str | Path,
    *,
    evidence: bool = False,
    progress: Printer = lambda line: None,
    **options: Unpack[ExportKeywords],
) -> ParityResult:
    """Export, verify, and only then give the file its name.

    Args:
        protected: from `protect`.
        output: the ONNX file to write.
        evidence: keep what `asvp_export.write_page` shows beside the numbers: pictures, singular values.
        progress: called with a line at each stage; a `asvp_export.progress.Progress` counts within stages too.
        **options: see `asvp_export.options.GateOptions` and `FileOptions`. By default the inputs are those that the plan was
            verified on, else the project's own photographs: as many, and as large crops of them, as the model's cost allows
            (`asvp_export.parity.choice`). With `static`, `sizes` has exactly one.

    Returns:
        The verdict. When a gate failed, `passed` is False and no file stands at `output`. Where the protected model was
        planned, or ground truth is given, the removal tests are in it (`asvp_export.parity.removal`), with maps fitted on
        crops of the verification images themselves, which is in the attackers' favour; they never change the verdict.

    Raises:
        InputError: bad options, images or output; the exporter's refusals are AsvpError.
        MachineError: the disk or the memory is full.
    """
    gate, file = grouped(options, GateOptions, FileOptions)
    return export_protected(protected, Path(output), gate, file, evidence=evidence, progress=progress)


def export_protected(
    protected: Protected, path: Path, gate: GateOptions, file: FileOptions, *, evidence: bool, progress: Printer
) -> ParityResult:
    """`export`, with the options as objects."""
    check_threshold(gate.min_psnr)
    check_provider(gate.provider)
    opset, dtype, portable, provider = file.opset, file.dtype, file.portable, gate.provider
    if file.static_batch:
        protected = replace(protected, teacher=_one_at_a_time(protected.teacher))
    teacher = protected.teacher
    frozen = _frozen_size(teacher, gate.sizes, file.static)
    failed = path.with_name(f"{path.stem}.failed.onnx")
    if file.keep_failed:
        check_output(failed, force=file.force)
    notes = [
        *library_notes(provider, portable),
        *frozen_notes(*(frozen or teacher.static_shape[2:])),
        *_half_notes(teacher, dtype),
        *(["The file takes one image at a time (--static-batch)."] if file.static_batch and not frozen else []),
    ]
    backend = open_backend(teacher, opset)
    folder = backend.data_folder
    with Staging(path, force=file.force, external_data=file.external_data, data_folder=folder) as staging:
        fixed = (1, None, *frozen) if frozen else teacher.static_shape
        asked = InputsAsked(
            protected.verify_images or None if gate.images is None else gate.images, gate.sizes, gate.thorough
        )
        cases, comparison = verification_inputs(teacher, asked, teacher.size, fixed)
        truth = read_truth(file.ground_truth, asked.paths, teacher) if file.ground_truth is not None else None
        notes += asked.notes
        progress(f"exporting {teacher.source} with {len(protected.nodes)} node(s), opset {backend.opset}")
        model, overflow = to_onnx(protected, opset=opset, static=frozen, data_folder=staging.data_folder), None
        if backend.traced and None in fixed[2:]:
            again = partial(to_onnx, protected, opset=opset, data_folder=staging.data_folder)
            model, protected = fitted(model, protected, lambda at: again(traced_at=at), staging.data_folder)
            if protected.teacher.size != teacher.size:
                teacher = protected.teacher
                cases, comparison = verification_inputs(teacher, asked, teacher.size, fixed)
                notes.append(_size_note(teacher))
        if dtype == "fp16":
            check_convertible(model)
            if folder is not None and data_bytes(model) <= publish.EXTERNAL_LIMIT:
                load_external_data_for_model(model, str(folder))
            progress(f"looking for overflow in float16 on {len(cases)} inputs")
            overflow = first_overflow(model, staging.path.parent, cases, staging.data_folder)
            notes += [str(overflow)] if overflow else []
            model = to_half(model, staging.data_folder, staging.scratch)
            staging.data_folder = staging.scratch
        if portable:
            inline(model)
        progress(f"verifying: {comparison}")
        expected = _expected(protected, cases, progress)
        backend.release()
        if isinstance(protected.module, OnnxModule):
            protected.module.release()
        thresholds = Thresholds(FIDELITY_DB["fp16" if is_half(model) else "fp32"], gate.min_psnr)
        inputs = GateInputs(cases, expected, teacher.data_range)
        near = least_psnr(cases, expected.original, expected.protected, teacher.data_range.peak)
        fidelity, preservation = write_until_stable(
            staging,
            model,
            {
                "fidelity": _stamp(thresholds.fidelity, _ROUNDING_DB),
                "preservation": _stamp(thresholds.preservation, near),
            },
            partial(_provenance, protected, portable),
            lambda: judge(staging.path, inputs, thresholds, provider, portable, progress),
        )
        timed = file_latency(staging.path, None, cases[0].inputs, provider, affordable(comparison.first))
        seen = gather(staging.path, protected, cases, expected, preservation, provider) if evidence else None
        removals: tuple[RemovalTest, ...] = ()
        changed = any(
            node.left != 1 for node in protected.nodes.values()
        )  # else the graph without its nodes is the original
        if protected.nodes and (truth is not None or (protected.plan is not None and changed)):
            progress("removal tests: the nodes deleted, and fitted maps in their place")
            removals = removal_tests(protected, cases, smallest(cases, teacher.device), truth, progress, expected)
        passed = fidelity.passed and preservation.passed and overflow is None
        digest = sha256(staging.path)
        if passed:
            staging.publish()
        elif file.keep_failed:
            kept = staging.publish(staging.output.with_name(failed.name))
            notes.append(f"The file that failed was kept as {kept.name}.")
    return ParityResult(
        passed=passed,
        model=teacher.source,
        source_sha256=teacher.sha256,
        output=path if passed else None,
        output_sha256=digest,
        nodes=protected.nodes,
        effects=expected.effects,
        fidelity=fidelity,
        preservation=preservation,
        latency_ms=timed,
        notes=tuple(notes),
        evidence=seen,
        removal_tests=removals,
        plan=protected.plan,
        comparison=comparison,
        assumptions=teacher.assumptions,
    )


def _expected(protected: Protected, cases: Sequence[Case], progress: Printer) -> Expected:
    """What the file is held against: what is known of these inputs already, else from a run of both models."""
    if protected.verified and same_inputs(protected.verified[0], cases):
        return protected.verified[1]
    return expected_of_teacher(protected, cases, progress)


def write_until_stable(
    staging: Staging,
    model: onnx.ModelProto,
    measured: Stamps,
    provenance: Callable[[Stamps], Provenance],
    judged: Callable[[], tuple[GateResult | None, GateResult]],
) -> tuple[GateResult, GateResult]:
    """Write and measure until what was measured stands in the metadata of the very bytes that were measured.

    Args:
        staging: where the bytes go.
        model: the metadata of it is replaced.
        measured: what the first bytes say: what PyTorch gave, so that as a rule one measurement is enough.
        provenance: the metadata with a measurement in it.
        judged: measures the bytes that were written.

    Returns:
        Fidelity and preservation.

    Raises:
        AsvpError: the file scores differently from run to run.
    """
    for _ in range(5):
        write_provenance(model, provenance(measured))
        staging.write(model)
        fidelity, preservation = judged()
        assert fidelity is not None
        stamps = {
            "fidelity": _stamp(fidelity.threshold, fidelity.min_psnr),
            "preservation": _stamp(preservation.threshold, preservation.min_psnr),
        }
        if _agree(stamps, measured):
            return fidelity, preservation
        measured = stamps
    raise AsvpError(
        "The exported file scores differently from run to run, by more than 0.1 dB, so it cannot be verified. Use "
        "--provider cpu."
    )


def _stamp(threshold: float, psnr: float) -> dict[str, float | None]:
    """A gate for the metadata, rounded down to 0.1 dB.

    Over 100 dB only the rounding of float32 is measured, which changes with the number of threads: 100 stands there then.
    """
    found = min(psnr, _ROUNDING_DB)
    return {"threshold": threshold, "min_psnr": math.floor(found * 10) / 10 if math.isfinite(found) else None}


def _agree(stamps: Stamps, written: Stamps) -> bool:
    """Whether a second measurement is within the metadata's step of what was written."""
    pairs = [(stamps[gate]["min_psnr"], written.get(gate, {}).get("min_psnr")) for gate in stamps]
    return bool(written) and all(a == b or (a is not None and b is not None and abs(a - b) < 0.15) for a, b in pairs)


def _provenance(protected: Protected, portable: str, gates: Stamps) -> Provenance:
    teacher = protected.teacher
    return Provenance(
        version=tool_version(),
        layers=protected.nodes,
        source_sha256=teacher.sha256,
        data_range=teacher.data_range,
        scale=float(teacher.scale),
        size=teacher.size,
        image=teacher.signature.image_name,
        output=teacher.signature.outputs[teacher.signature.main],
        gates=gates,
        portable=portable,
        tiling=teacher.architecture.tiling if teacher.architecture else "",
        compensated=protected.plan.compensate if protected.plan and protected.weights else "",
        assumptions=teacher.assumptions,
        layout=NHWC if teacher.signature.channels_last else NCHW,
    )


def _one_at_a_time(teacher: Teacher) -> Teacher:
    """The teacher with its batch frozen at 1.

    Raises:
        InputError: its batch is another number, or that of a graph which keeps its sizes.
    """
    own = teacher.static_shape[0]
    if own == 1:
        return teacher
    if own is not None or isinstance(teacher.module, OnnxModule):
        theirs = f"of {own}" if own else "left free"
        raise InputError(
            f"--static-batch was given; the batch of {teacher.source} is {theirs}, and a graph keeps its sizes. Leave "
            "--static-batch out, or fix the batch of an ONNX file first (onnxruntime.tools.make_dynamic_shape_fixed)."
        )
    return replace(teacher, static_shape=(1, *teacher.static_shape[1:]))


def _size_note(teacher: Teacher) -> str:
    return (
        f"The file takes heights and widths that are multiples of {teacher.size.multiple}, and was compared at such sizes alone: "
        f"the forward of {teacher.source} computes a Python number from the image's size, which the trace freezes. "
        "--static --size HxW gets a file for any one size."
    )


def _half_notes(teacher: Teacher, dtype: str) -> list[str]:
    known = teacher.architecture
    if dtype != "fp16" or known is None or known.supports_half:
        return []
    return [f"spandrel does not vouch for {known.name} in float16: pictures beyond those verified may overflow."]


def _frozen_size(teacher: Teacher, sizes: Sequence[tuple[int, int]], static: bool) -> tuple[int, int] | None:
    """The height and width to freeze, or None for free ones."""
    _, _, height, width = teacher.static_shape
    if height is not None and width is not None and static:
        return height, width
    if any(dim is not None for dim in teacher.static_shape[2:]) and not static and open_backend(teacher).traced:
        raise InputError(
            f"{teacher.source} was traced with fixed sizes ({height} x {width}) and cannot become dynamic. Give --static, "
            "or trace it again with dynamic shapes."
        )
    if not static:
        return None
    if len(sizes) != 1:
        raise InputError(f"--static freezes one size, and {len(sizes)} were given; give exactly one --size HxW.")
    return sizes[0]
