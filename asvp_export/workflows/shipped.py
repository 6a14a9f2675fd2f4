"""The parity gate alone: a shipped file against its original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime as ort

from asvp_export.errors import InputError
from asvp_export.files import sha256
from asvp_export.insertion.apply import apply
from asvp_export.insertion.plan import Plan
from asvp_export.insertion.protected import Protected, insert
from asvp_export.onnx_graph.contents import is_half
from asvp_export.onnx_graph.metadata import INLINE, Provenance, read_provenance, tiling_notes
from asvp_export.onnx_graph.pairs import differing, same_node
from asvp_export.onnx_graph.passes import perturbation_nodes
from asvp_export.options import GateOptions
from asvp_export.parity.cases import Case, check_fits
from asvp_export.parity.choice import RequestedInputs, verification_inputs
from asvp_export.parity.evidence import gather
from asvp_export.parity.expected import Expected, expected_of_teacher
from asvp_export.parity.inlined import misbehaving
from asvp_export.parity.judge import GateInputs, judge, judge_tiled, library_notes
from asvp_export.parity.latency import affordable, file_latency
from asvp_export.parity.result import FIDELITY_DB, ParityResult, frozen_notes
from asvp_export.parity.verify import Thresholds, check_threshold
from asvp_export.progress import Printer
from asvp_export.runtime.session import check_provider, session, session_inputs
from asvp_export.runtime.tiles import Tiling
from asvp_export.signature import NHWC, Signature
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.formats import is_onnx
from asvp_export.teacher.layout import frozen
from asvp_export.teacher.load import load
from asvp_export.teacher.model import Teacher


def check_file(
    original: Teacher | Path,
    path: Path,
    gate: GateOptions,
    *,
    tiling: Tiling | None,
    plan: Plan | None,
    evidence: bool,
    progress: Printer,
) -> ParityResult:
    """Compare a shipped file with its original; nothing is written.

    Args:
        original: a teacher, or an ONNX file.
        path: the shipped ONNX file.
        gate: what is compared.
        tiling: compare a run of the file tile by tile as well, against the original's run on the whole image.
        plan: of a compensated file: fidelity is then measured too.
        evidence: keep what the page shows beside the numbers: pictures, singular values.
        progress: called with a line at each stage.

    Returns:
        The verdict. Fidelity is measured where the file names its protected layers, and they are layers of the
        original.

    Raises:
        InputError: a file that cannot be read, or whose inputs do not fit the original's.
    """
    min_psnr, provider = gate.min_psnr, gate.provider
    check_threshold(min_psnr)
    check_provider(provider)
    opened = session(path, provider)
    provenance = read_provenance(opened.get_modelmeta().custom_metadata_map)
    teacher = original if isinstance(original, Teacher) else _loaded(original, provenance)
    rule = teacher.size.stricter(provenance.size) if provenance else teacher.size
    fixed = _frozen_dimensions(path, opened, teacher.signature)
    notes = _node_notes(path, provenance)
    portable = provenance.portable if provenance else ""
    requested = RequestedInputs(gate.images, gate.sizes, gate.thorough)
    cases, comparison = verification_inputs(teacher, requested, rule, fixed)
    notes += requested.notes
    for case in cases:
        check_fits(opened, case)
    progress(str(comparison))
    half = is_half(onnx.load(path, load_external_data=False))
    thresholds = Thresholds(fidelity=FIDELITY_DB["fp16" if half else "fp32"], preservation=min_psnr)
    expected, protected, fidelity_notes = _expected(teacher, provenance, cases, plan, progress)
    inputs = GateInputs(cases, expected, teacher.data_range)
    fidelity, preservation = judge(path, inputs, thresholds, provider, portable, progress)
    tiled = None
    if tiling:
        size, main = tiling.fitting(rule), teacher.signature.floats.index(teacher.signature.main)
        progress(f"comparing tiles of {size.size}, {size.overlap} shared")
        tiled, seams = judge_tiled(path, inputs, min_psnr, size, main, provider)
        notes += [*tiling_notes(provenance), _seams(size, seams)]
    nodes = provenance.layers if provenance else {}
    repeats = affordable(comparison.first_multiply_adds)
    gathered = None
    if evidence:
        model = protected if expected.protected else insert(teacher, {})
        gathered = gather(path, model, cases, expected, preservation, provider)
    return ParityResult(
        passed=all(gate.passed for gate in (fidelity, preservation, tiled) if gate),
        tiled=tiled,
        model=teacher.source,
        source_sha256=teacher.sha256,
        output=path,
        output_sha256=sha256(path),
        nodes=nodes,
        effects=expected.effects,
        fidelity=fidelity,
        preservation=preservation,
        latency_ms=file_latency(path, _onnx_file(original), cases[0].inputs, provider, repeats),
        notes=(*notes, *fidelity_notes, *library_notes(provider, portable), *frozen_notes(*fixed[2:])),
        evidence=gathered,
        comparison=comparison,
        assumptions=teacher.assumptions,
    )


def _loaded(original: Path, provenance: Provenance | None) -> Teacher:
    """The original with the value range that the shipped file names; its layout and output where there is a choice."""
    if provenance is None:
        return load(original)
    teacher = load(original, data_range=provenance.data_range)
    layout = main_output = None
    doubtful = any(assumption.about == "layout" and not assumption.certain for assumption in teacher.assumptions)
    if doubtful and teacher.signature.channels_last != (provenance.layout == NHWC):
        layout = provenance.layout
    names = teacher.signature.outputs
    if provenance.output in names and provenance.output != names[teacher.signature.main]:
        main_output = provenance.output
    if layout is main_output is None:
        return teacher
    return load(original, data_range=provenance.data_range, layout=layout, main_output=main_output)


def _seams(tiles: Tiling, energy: float) -> str:
    return f"Tiles of {tiles.size} with {tiles.overlap} shared: seam energy {energy:.2f} (1: no seams)."


def _onnx_file(original: Teacher | str | Path) -> Path | None:
    """The original as a file that onnxruntime can run, for its latency."""
    return None if isinstance(original, Teacher) or not is_onnx(Path(original)) else Path(original)


def _frozen_dimensions(path: Path, opened: ort.InferenceSession, signature: Signature) -> tuple[int | None, ...]:
    """N, C, H, W of the file's image input, None where free."""
    inputs = session_inputs(opened)
    last = signature.channels_last
    layout = "N, T, C, H, W" if signature.frames is not None else "N, H, W, C" if last else "N, C, H, W"
    image = inputs[signature.image_index] if len(inputs) == len(signature.names) else None
    if image is None or len(image.shape) != (4 if signature.frames is None else 5):
        input_text = "; ".join(map(str, inputs)) or "nothing"
        raise InputError(
            f"The file {path.name} takes {input_text}; {len(signature.names)} input(s), the image [{layout}], were "
            "expected. Check that asvp-export wrote the file, and that all inputs were given."
        )
    n, c, h, w = frozen([dim if isinstance(dim, int) else None for dim in image.shape], last)
    if c not in (None, signature.channels) or (c is None and signature.channels in (h, w)):
        raise InputError(
            f"The file {path.name} takes {image}; {signature.channels} channels were expected, channels "
            f"{'last' if last else 'first'}."
        )
    return n, c, h, w


def _node_notes(path: Path, provenance: Provenance | None) -> list[str]:
    """Hold the nodes in the graph against the metadata: a file without its nodes must not pass for protected."""
    model = onnx.load(path, load_external_data=False)
    nodes = perturbation_nodes(model)
    if provenance is None:
        return [] if nodes else ["The file carries no ASVP node."]
    wrong = differing(model, provenance.layers)
    if provenance.portable == INLINE:
        wrong = misbehaving(model, provenance.layers)
    if wrong:
        raise InputError(
            f"The metadata of {path.name} names ASVP nodes that its graph does not carry ({', '.join(wrong[:3])}); it "
            "was changed after the export. Export it again."
        )
    return []


def _check_plan(plan: Plan, provenance: Provenance) -> None:
    """Refuse a plan that says something else than the file: fidelity against it would mean nothing."""
    theirs = provenance.layers
    wrong = [name for name in {**plan.nodes, **theirs} if not same_node(plan.nodes.get(name), theirs.get(name))]
    if wrong:
        shown = [
            f"gain {node.gain:g}, residual {node.residual_gain:g}" if node else "no node"
            for node in (plan.nodes.get(wrong[0]), theirs.get(wrong[0]))
        ]
        raise InputError(
            f"The plan and the protected file disagree on {wrong[0]} ({shown[0]} in the plan, {shown[1]} in the file); "
            "give the plan that the file was made with."
        )


def _expected(
    original: Teacher, provenance: Provenance | None, cases: Sequence[Case], plan: Plan | None, progress: Printer
) -> tuple[Expected, Protected, list[str]]:
    """What the file's outputs are held against, what made it, and what the reader of the verdict has to know of it."""
    nodes = provenance.layers if provenance else {}
    backend = open_backend(original)
    missing = sorted(set(nodes) - backend.names.sites.keys())
    if missing and backend.traced:
        raise InputError(
            f"The protected file names layers that the original does not have ({', '.join(missing[:3])}); give the "
            "teacher that it was exported from."
        )
    if plan and provenance:
        _check_plan(plan, provenance)
    protected = apply(original, plan) if plan else insert(original, {} if missing else nodes)
    expected = expected_of_teacher(protected, cases, progress)
    if provenance is None:  # which layers carry a node is not known
        note = "Fidelity was not measured: the file has no asvp metadata, which would name the protected layers."
        return replace(expected, protected=[]), protected, [note]
    if missing:  # an ONNX file has other names for them than the teacher it was made from
        note = (
            f"Fidelity was not measured: {original.source} has no layer {missing[0]}, which the file says is protected."
        )
        return replace(expected, protected=[]), protected, [note]
    if provenance.compensated and plan is None:
        note = (
            "Fidelity was not measured: the weights behind the nodes are compensated, and their plan was not given "
            "(--plan)."
        )
        return replace(expected, protected=[]), protected, [note]
    if provenance.source_sha256 != original.sha256:
        note = f"The protected file was not made from {original.source} (the sha256 differs)."
        return expected, protected, [note]
    return expected, protected, []
