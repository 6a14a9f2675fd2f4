"""From a protected teacher to a published file: staged, exported, verified, and only then named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

from asvp_export.environment import tool_version
from asvp_export.errors import AsvpError, InputError
from asvp_export.files import sha256, signals_held_back
from asvp_export.insertion.protected import Protected, to_onnx
from asvp_export.onnx_graph import publish
from asvp_export.onnx_graph.contents import data_bytes, is_half
from asvp_export.onnx_graph.float16 import check_convertible, to_half
from asvp_export.onnx_graph.inline import inline
from asvp_export.onnx_graph.metadata import MOST_DB, Provenance, same_stamp, stamp_of, write_provenance
from asvp_export.onnx_graph.publish import Staging
from asvp_export.options import FileOptions, GateOptions
from asvp_export.parity.cases import Case
from asvp_export.parity.choice import RequestedInputs, same_inputs, verification_inputs
from asvp_export.parity.evidence import gather
from asvp_export.parity.expected import Expected, expected_of_teacher
from asvp_export.parity.judge import GateInputs, judge, library_notes
from asvp_export.parity.latency import affordable, file_latency
from asvp_export.parity.overflow import first_overflow
from asvp_export.parity.removal import RemovalTest, removal_tests, smallest
from asvp_export.parity.result import FIDELITY_DB, ParityResult, frozen_notes
from asvp_export.parity.traced import checked_at_other_sizes
from asvp_export.parity.truth import read_truth
from asvp_export.parity.verify import GateResult, Thresholds, check_threshold, least_psnr
from asvp_export.progress import Printer
from asvp_export.runtime.session import check_provider
from asvp_export.signature import NCHW, NHWC
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.formats import ONNX
from asvp_export.teacher.model import Teacher
from asvp_export.workflows.artifacts import Files, render_artifacts, write_artifacts

Stamps = dict[str, dict[str, float | None]]

Rehearsal = Callable[[ParityResult], object]
"""Prints a result where nobody sees it, so that an error in printing comes before the file is published."""


def publish_verified(
    protected: Protected,
    path: Path,
    gate: GateOptions,
    file: FileOptions,
    files: Files,
    progress: Printer,
    rehearse: Rehearsal,
) -> ParityResult:
    """Export a protected teacher, verify the file, and only then give it its name; and write what lies beside it.

    Args:
        protected: what is exported.
        path: the ONNX file.
        gate: what is compared.
        file: which file is written.
        files: what is written beside it; for a page, what it shows beside the numbers is kept: pictures, singular
            values.
        progress: called with a line at each stage.
        rehearse: called with the result before anything is written.

    Returns:
        The verdict. When a gate failed, `passed` is False and no file stands at `path`.

    Raises:
        InputError: bad options, images or output; the exporter's refusals are AsvpError.
        MachineError: the disk or the memory is full.
    """
    check_threshold(gate.min_psnr)
    check_provider(gate.provider)
    if file.static_batch:
        protected = replace(protected, teacher=_one_at_a_time(protected.teacher))
    frozen = _frozen_size(protected.teacher, gate.sizes, file.static)
    failed = failed_path(path)
    folder = open_backend(protected.teacher, file.opset).data_folder
    with Staging(path, force=file.force, external_data=file.external_data, data_folder=folder) as staging:
        export = _Export(protected, gate, file, frozen, staging, progress)
        result = export.result(export.model(), evidence="page" in files)
        keeps_failed = file.keep_failed and not result.passed
        if result.passed:
            result = replace(result, output=path)
        elif keeps_failed:
            result = replace(result, notes=(*result.notes, f"The file that failed was kept as {failed.name}."))
        result, artifacts = render_artifacts(result, path.name, staging.path, files)
        rehearse(result)
        with signals_held_back():  # a file and what lies beside it belong together
            if result.passed:
                staging.publish()
            elif keeps_failed:
                staging.publish(staging.output.with_name(failed.name))
            outcome = f"{path} was published whole" if result.passed else "The verdict stands"
            return write_artifacts(result, artifacts, outcome)


def failed_path(output: Path) -> Path:
    """Where a file that failed is kept, where that is asked for."""
    return output.with_name(f"{output.stem}.failed.onnx")


class _Export:
    """One export on its way, within its staging folder.

    Args:
        protected: what is exported.
        gate: what is compared.
        file: which file is written.
        frozen: height and width to freeze; None: they stay free.
        staging: where the bytes go.
        progress: called with a line at each stage.
    """

    def __init__(
        self,
        protected: Protected,
        gate: GateOptions,
        file: FileOptions,
        frozen: tuple[int, int] | None,
        staging: Staging,
        progress: Printer,
    ) -> None:
        self.protected, self.gate, self.file = protected, gate, file
        self.frozen, self.staging, self.progress = frozen, staging, progress
        teacher = protected.teacher
        images = protected.verify_images or None if gate.images is None else gate.images
        self.requested_inputs = RequestedInputs(images, gate.sizes, gate.thorough)
        self.overflow: str = ""
        self._choose_inputs()
        truth = file.ground_truth
        self.truth = None if truth is None else read_truth(truth, self.requested_inputs.paths, teacher)
        one_at_a_time = file.static_batch and not frozen
        self.notes = [
            *library_notes(gate.provider, file.portable),
            *frozen_notes(*(frozen or teacher.static_shape[2:])),
            *_half_notes(teacher, file.dtype),
            *(["The file takes one image at a time (--static-batch)."] if one_at_a_time else []),
            *self.requested_inputs.notes,
        ]

    def _choose_inputs(self) -> None:
        teacher = self.protected.teacher
        shape = (1, None, *self.frozen) if self.frozen else teacher.static_shape
        self.cases, self.comparison = verification_inputs(teacher, self.requested_inputs, teacher.size, shape)

    def model(self) -> onnx.ModelProto:
        """The protected teacher as ONNX, in the type and the form that are asked for."""
        model = self._exported()
        if self.file.dtype == "fp16":
            model = self._halved(model)
        if self.file.portable:
            inline(model)
        return model

    def _exported(self) -> onnx.ModelProto:
        teacher, opset, data_folder = self.protected.teacher, self.file.opset, self.staging.data_folder
        backend = open_backend(teacher, opset)
        nodes = len(self.protected.nodes)
        self.progress(f"exporting {teacher.source} with {nodes} node(s), opset {backend.opset}")
        model = to_onnx(self.protected, opset=opset, static=self.frozen, data_folder=data_folder)
        if self.frozen or not backend.traced or None not in teacher.static_shape[2:]:
            return model
        export_again = partial(to_onnx, self.protected, opset=opset, data_folder=data_folder)
        model, self.protected = checked_at_other_sizes(
            model, self.protected, lambda at: export_again(traced_at=at), data_folder
        )
        if self.protected.teacher.size != teacher.size:
            self._choose_inputs()
            self.notes.append(_size_note(self.protected.teacher))
        return model

    def _halved(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model in float16; `overflow` says where its feature maps do not fit into it."""
        staging, folder = self.staging, open_backend(self.protected.teacher, self.file.opset).data_folder
        check_convertible(model)
        if folder is not None and data_bytes(model) <= publish.EXTERNAL_LIMIT:
            load_external_data_for_model(model, str(folder))
        self.progress(f"looking for overflow in float16 on {len(self.cases)} inputs")
        overflow = first_overflow(model, staging.path.parent, self.cases, staging.data_folder)
        self.overflow = str(overflow) if overflow else ""
        self.notes += [self.overflow] if overflow else []
        model = to_half(model, staging.data_folder, staging.scratch)
        staging.data_folder = staging.scratch
        return model

    def result(self, model: onnx.ModelProto, evidence: bool) -> ParityResult:
        """Write the file into the staging folder, measure it there, and judge."""
        gate, protected, cases = self.gate, self.protected, self.cases
        teacher = protected.teacher
        self.progress(f"verifying: {self.comparison}")
        expected = _expected(protected, cases, self.progress)
        open_backend(teacher, self.file.opset).release(protected.module)
        fidelity, preservation = self._gate_results(model, expected)
        first = affordable(self.comparison.first_multiply_adds)
        path = self.staging.path
        return ParityResult(
            passed=fidelity.passed and preservation.passed and not self.overflow,
            model=teacher.source,
            source_sha256=teacher.sha256,
            output=None,
            output_sha256=sha256(path),
            nodes=protected.nodes,
            effects=expected.effects,
            fidelity=fidelity,
            preservation=preservation,
            latency_ms=file_latency(path, None, cases[0].inputs, gate.provider, first),
            notes=tuple(self.notes),
            evidence=gather(path, protected, cases, expected, preservation, gate.provider) if evidence else None,
            removal_tests=self._removal_tests(expected),
            plan=protected.plan,
            comparison=self.comparison,
            assumptions=teacher.assumptions,
        )

    def _gate_results(self, model: onnx.ModelProto, expected: Expected) -> tuple[GateResult, GateResult]:
        """Fidelity and preservation of the file, which has both in its metadata."""
        data_range, gate, portable = self.protected.teacher.data_range, self.gate, self.file.portable
        fidelity = FIDELITY_DB["fp16" if is_half(model) else "fp32"]
        thresholds = Thresholds(fidelity=fidelity, preservation=gate.min_psnr)
        inputs = GateInputs(self.cases, expected, data_range)
        near = least_psnr(self.cases, expected.original, expected.protected, data_range.peak)
        stamps = {
            "fidelity": _stamp(thresholds.fidelity, MOST_DB),
            "preservation": _stamp(thresholds.preservation, near),
        }
        return write_until_stable(
            self.staging,
            model,
            stamps,
            partial(_provenance, self.protected, portable),
            lambda: judge(self.staging.path, inputs, thresholds, gate.provider, portable, self.progress),
        )

    def _removal_tests(self, expected: Expected) -> tuple[RemovalTest, ...]:
        """The removal tests, where there is ground truth, or a plan whose nodes change the outputs; else none."""
        protected, truth = self.protected, self.truth
        changed = any(node.residual_gain != 1 for node in protected.nodes.values())  # else deleting nodes loses nothing
        if not protected.nodes or (truth is None and (protected.plan is None or not changed)):
            return ()
        self.progress("removal tests: the nodes deleted, and fitted maps in their place")
        few = smallest(self.cases, protected.teacher.device)
        return removal_tests(protected, self.cases, few, truth, self.progress, expected)


def _expected(protected: Protected, cases: Sequence[Case], progress: Printer) -> Expected:
    """The outputs that the file is compared with: those that planning computed for these inputs, else of a new run."""
    if protected.verified and same_inputs(protected.verified[0], cases):
        return protected.verified[1]
    return expected_of_teacher(protected, cases, progress)


def write_until_stable(
    staging: Staging,
    model: onnx.ModelProto,
    stamped: Stamps,
    provenance: Callable[[Stamps], Provenance],
    measure: Callable[[], tuple[GateResult | None, GateResult]],
) -> tuple[GateResult, GateResult]:
    """Write and measure until what was measured stands in the metadata of the very bytes that were measured.

    Args:
        staging: where the bytes go.
        model: the metadata of it is replaced.
        stamped: what the first bytes say: the figures of PyTorch, so that as a rule one measurement is enough.
        provenance: the metadata with a measurement in it.
        measure: measures the bytes that were written.

    Returns:
        Fidelity and preservation.

    Raises:
        AsvpError: the file scores differently from run to run.
    """
    for _ in range(5):
        write_provenance(model, provenance(stamped))
        staging.write(model)
        fidelity, preservation = measure()
        assert fidelity is not None
        measured = {
            "fidelity": _stamp(fidelity.threshold, fidelity.min_psnr),
            "preservation": _stamp(preservation.threshold, preservation.min_psnr),
        }
        if _agree(measured, stamped):
            return fidelity, preservation
        stamped = measured
    raise AsvpError(
        "The scores of the exported file differ from run to run by more than 0.1 dB, so it cannot be verified. Use "
        "--provider cpu."
    )


def _stamp(threshold: float, psnr: float) -> dict[str, float | None]:
    """A gate for the metadata."""
    return {"threshold": threshold, "min_psnr": stamp_of(psnr)}


def _agree(measured: Stamps, written: Stamps) -> bool:
    """Whether a second measurement is within the metadata's step of what was written."""
    pairs = [(measured[gate]["min_psnr"], written.get(gate, {}).get("min_psnr")) for gate in measured]
    return bool(written) and all(same_stamp(*pair) for pair in pairs)


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
    batch = teacher.static_shape[0]
    if batch == 1:
        return teacher
    if batch is not None or teacher.format == ONNX:
        size = f"of {batch}" if batch else "left free"
        raise InputError(
            f"--static-batch was given; the batch of {teacher.source} is {size}, and a graph keeps its sizes. "
            "Leave --static-batch out, or fix the batch of an ONNX file first "
            "(onnxruntime.tools.make_dynamic_shape_fixed)."
        )
    return replace(teacher, static_shape=(1, *teacher.static_shape[1:]))


def _size_note(teacher: Teacher) -> str:
    return (
        f"The file takes heights and widths that are multiples of {teacher.size.multiple}, and was compared only at "
        f"such sizes: the forward of {teacher.source} computes a Python number from the image's size, which the "
        "trace freezes. --static --size HxW makes a file for any single size."
    )


def _half_notes(teacher: Teacher, dtype: str) -> list[str]:
    architecture = teacher.architecture
    if dtype != "fp16" or architecture is None or architecture.supports_half:
        return []
    return [
        f"spandrel does not list {architecture.name} as safe in float16: pictures other than those verified may "
        "overflow."
    ]


def _frozen_size(teacher: Teacher, sizes: Sequence[tuple[int, int]], static: bool) -> tuple[int, int] | None:
    """The height and width to freeze, or None for free ones."""
    _, _, height, width = teacher.static_shape
    if height is not None and width is not None and static:
        return height, width
    if any(dim is not None for dim in teacher.static_shape[2:]) and not static and open_backend(teacher).traced:
        raise InputError(
            f"{teacher.source} was traced with fixed sizes ({height} x {width}) and cannot become dynamic. Give "
            "--static, or trace it again with dynamic shapes."
        )
    if not static:
        return None
    if len(sizes) != 1:
        raise InputError(f"--static freezes one size, and {len(sizes)} were given; give exactly one --size HxW.")
    return sizes[0]
