"""The road from a protected teacher to a published file, and the parity gate alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from asvp_export.errors import AsvpError, InputError, MachineError
from asvp_export.graph.export import DEFAULT_OPSET, to_onnx
from asvp_export.graph.metadata import Provenance, read_provenance, tool_version, write_provenance
from asvp_export.graph.passes import without_nodes
from asvp_export.graph.protect import Protected, insert, observed
from asvp_export.graph.publish import Staging
from asvp_export.graph.strength import EffectMeter, NodeEffect
from asvp_export.images import list_images, photographs
from asvp_export.operator import Perturbation
from asvp_export.parity.cases import Case, build_cases
from asvp_export.parity.latency import latency
from asvp_export.parity.metrics import IDENTICAL_DB
from asvp_export.parity.session import fits, inputs_of, run_model, session
from asvp_export.parity.verify import GateResult, score
from asvp_export.report.report import environment
from asvp_export.teacher.model import SizeRule, Teacher

FIDELITY_DB = 80.0  # float32: the export is right
PRESERVATION_DB = 48.0  # an RMSE of one 8-bit step

Progress = Callable[[str], None]
Outputs = list[np.ndarray]
Stamps = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class ParityResult:
    """What was verified, and the verdict."""

    passed: bool
    """Whether every gate that was measured passed."""

    model: str
    """File name of the original."""

    source_sha256: str
    """Of the original's bytes."""

    output: Path | None
    """The verified file; None when it was not published."""

    output_sha256: str
    """Of the verified bytes."""

    nodes: dict[str, Perturbation]
    """Layer name to the attributes of its node."""

    effects: dict[str, NodeEffect]
    """What each node does to its feature map; empty when the protected model could not be run in PyTorch."""

    fidelity: GateResult | None
    """The file against the protected model in PyTorch; None when there was none to compare with."""

    preservation: GateResult
    """The file against the original teacher."""

    latency_ms: tuple[float, float]
    """Milliseconds of the original and of the protected model in onnxruntime, on the first input."""

    notes: tuple[str, ...] = ()
    """What a reader of the verdict has to know."""

    @property
    def gates(self) -> dict[str, GateResult]:
        """The gates that were measured, by name."""
        return {"fidelity": self.fidelity, "preservation": self.preservation} if self.fidelity else {
            "preservation": self.preservation
        }  # fmt: skip

    @property
    def fitting_gain(self) -> float | None:
        """About the gain that would have preserved enough; None where one was not missed by the gain alone.

        The change at the output is nearly linear in gain - 1, so a miss of x dB asks for 10^(-x/20) of it; half a dB is
        kept in hand.
        """
        gains = {node.gain for node in self.nodes.values()}
        missing = self.preservation.threshold - self.preservation.min_psnr
        if len(gains) != 1 or not 0 < missing < 100:
            return None
        change = (gains.pop() - 1) * 10 ** (-(missing + 0.5) / 20)
        rounded = math.floor(abs(change) * 1000) / 1000
        return 1 + math.copysign(rounded, change) if rounded else None

    def as_dict(self) -> dict[str, object]:
        """The report: strict JSON types, dB rounded down."""
        original, protected = self.latency_ms
        return {
            "passed": self.passed,
            "tool_version": tool_version(),
            "model": self.model,
            "source_sha256": self.source_sha256,
            "output": self.output.name if self.output else None,
            "output_sha256": self.output_sha256,
            "layers": [
                {"name": name, **node.attributes(), **(asdict(self.effects[name]) if name in self.effects else {})}
                for name, node in self.nodes.items()
            ],
            "fidelity": self.fidelity.as_dict() if self.fidelity else None,
            "preservation": self.preservation.as_dict(),
            "latency": {
                "original": round(original, 3),
                "protected": round(protected, 3),
                "ratio": round(protected / original, 4),
                "unit": "milliseconds",
            },
            "notes": list(self.notes),
            "environment": environment(),
        }


def export(
    protected: Protected,
    output: str | Path,
    *,
    images: str | Path | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    min_psnr: float = PRESERVATION_DB,
    opset: int = DEFAULT_OPSET,
    static: bool = False,
    external_data: bool = False,
    force: bool = False,
    keep_failed: bool = False,
    provider: str = "cpu",
    progress: Progress = lambda line: None,
) -> ParityResult:
    """Export, verify, and only then give the file its name.

    Args:
        protected: from `protect`.
        output: the ONNX file to write.
        images: folder of inputs of the teacher (degraded pictures where the task is restoration); by default the
            project's own photographs.
        sizes: (height, width) of the crops to verify on; with `static` exactly one, which is frozen.
        min_psnr: dB that the worst image has to reach against the original teacher.
        opset: of the default ONNX domain, 18 to 26.
        static: freeze batch (1), height and width.
        external_data: keep the tensors in a file of their own, also under 2 GiB.
        force: replace an existing file.
        keep_failed: when a gate fails, keep the file as `<stem>.failed.onnx`.
        provider: of onnxruntime, "cpu" or "cuda".
        progress: called with a line at each step.

    Returns:
        The verdict. When a gate failed, `passed` is False and no file stands at `output`.

    Raises:
        InputError: bad options, images or output; the exporter's refusals are AsvpError.
        MachineError: the disk or the memory is full.
    """
    _check_gate(min_psnr, provider)
    teacher, path = protected.teacher, Path(output)
    frozen = _frozen_size(teacher, sizes, static)
    notes = [*_static_notes(frozen or teacher.fixed[2:])]
    with Staging(path, force=force, external_data=external_data) as staging:
        fixed = (1, None, *frozen) if frozen else teacher.fixed
        cases = _cases(teacher, images, sizes, fixed)
        progress(f"exporting {teacher.source} with {len(protected.nodes)} node(s), opset {opset}")
        model = to_onnx(protected, opset=opset, static=frozen)
        progress(f"verifying on {len(cases)} inputs")
        expected = _expected(protected, cases)
        measured: Stamps = {}
        while True:  # what was measured stands in the metadata of the very bytes that were measured
            write_provenance(model, _provenance(protected, measured))
            staging.write(model)
            fidelity, preservation = _measure(staging.path, cases, expected, teacher, min_psnr, provider)
            stamp = {"fidelity": _stamp(fidelity), "preservation": _stamp(preservation)}
            if stamp == measured:
                break
            measured = stamp
        timed = _latency(staging.path, None, cases[0], provider)
        passed = fidelity.passed and preservation.passed
        digest = _sha256(staging.path)
        if passed:
            staging.publish()
        elif keep_failed:
            kept = staging.publish(staging.output.with_name(f"{path.stem}.failed.onnx"))
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
    )


def check(
    original: Teacher | str | Path,
    protected: str | Path,
    *,
    images: str | Path | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    min_psnr: float = PRESERVATION_DB,
    provider: str = "cpu",
    progress: Progress = lambda line: None,
) -> ParityResult:
    """The parity gate alone: compare a shipped file with its original; nothing is written.

    Args:
        original: a teacher, or an ONNX file.
        protected: the shipped ONNX file.
        images, sizes, min_psnr, provider, progress: as for `export`.

    Returns:
        The verdict. Fidelity is measured where the original is a teacher that has the protected layers.

    Raises:
        InputError: a file that cannot be read, or whose inputs do not fit the original's.
    """
    _check_gate(min_psnr, provider)
    path = Path(protected)
    opened = session(path, provider)
    provenance = read_provenance(opened.get_modelmeta().custom_metadata_map)
    size = _size_rule(provenance)
    nodes = provenance.layers if provenance else {}
    shapes = [one.shape for one in inputs_of(opened)]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        found = ", ".join(str(list(shape)) for shape in shapes) or "nothing"
        raise InputError(
            f"The file {path.name} takes {found}; one image batch [N, C, H, W] was expected. Is it a file of asvp-export?"
        )
    fixed = tuple(dim if isinstance(dim, int) else None for dim in shapes[0])
    if isinstance(original, Teacher):
        size = original.size
        data_range, scale = original.data_range, original.scale
    else:
        meta = session(original, provider).get_modelmeta()  # it may be a file of ours too, with sizes of its own
        own = _size_rule(read_provenance(meta.custom_metadata_map))
        size = SizeRule(max(size.minimum, own.minimum), math.lcm(size.multiple, own.multiple))
        data_range, scale = provenance.data_range if provenance else 1.0, None
    cases = build_cases(
        _pictures(images), minimum=size.minimum, multiple=size.multiple, data_range=data_range, sizes=sizes, fixed=fixed
    )
    for case in cases:
        fits(opened, case)
    progress(f"comparing on {len(cases)} inputs")
    notes: list[str] = []
    if isinstance(original, Teacher):
        source, digest = original.source, original.sha256
        expected = _expected(_reinsert(original, nodes), cases)
        if provenance is None:  # which layers carry a node is not known
            expected = replace(expected, protected=[])
            notes.append(
                "Fidelity was not measured: the file has no asvp metadata, which would name the protected layers."
            )
        file = None
    else:
        file = Path(original)
        source, digest = file.name, _sha256(file)
        expected = _expected_of_file(file, cases, provider)
        notes.append("Fidelity was not measured: the original is an ONNX file, not a teacher that PyTorch can run.")
    if provenance and provenance.source_sha256 != digest and isinstance(original, Teacher):
        notes.append(f"The protected file was made from another file than {source} (its sha256 differs).")
    if scale is None:
        given, made = cases[0].input.shape, expected.original[0].shape
        scale = max(1, made[2] // given[2]) if len(made) == 4 else 1  # the score says what is wrong with other outputs
    got = [run_model(opened, case.input) for case in cases]
    preservation = score(zip(cases, expected.original, got, strict=True), min_psnr, data_range, scale)
    fidelity = None
    if expected.protected:
        fidelity = score(zip(cases, expected.protected, got, strict=True), FIDELITY_DB, data_range, scale)
    return ParityResult(
        passed=preservation.passed and (fidelity is None or fidelity.passed),
        model=source,
        source_sha256=digest,
        output=path,
        output_sha256=_sha256(path),
        nodes=nodes,
        effects=expected.effects,
        fidelity=fidelity,
        preservation=preservation,
        latency_ms=_latency(path, file, cases[0], provider),
        notes=(*notes, *_static_notes(fixed[2:])),
    )


@dataclass(frozen=True)
class _Expected:
    """What the outputs of a file are held against, case by case."""

    original: Outputs
    protected: Outputs
    effects: dict[str, NodeEffect]


def _expected(protected: Protected, cases: Sequence[Case]) -> _Expected:
    """Outputs of the original and of the protected module in PyTorch, and the effect of the nodes meanwhile."""
    meter = EffectMeter(protected.nodes)
    original = list(_torch_outputs(protected.teacher.module, cases, protected.teacher.device))
    with observed(protected, meter):
        outputs = list(_torch_outputs(protected.module, cases, protected.teacher.device))
    return _Expected(original, outputs, meter.effects())


def _torch_outputs(module: torch.nn.Module, cases: Sequence[Case], device: str) -> Iterator[np.ndarray]:
    for case in cases:
        try:
            with torch.inference_mode():
                output = module(torch.from_numpy(case.input).to(device))
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            if "memory" in reason:
                raise MachineError(f"The teacher ran out of memory on {case.name} ({case.size}): {reason}.") from error
            raise InputError(
                f"The teacher does not run on {case.name} ({case.size}): {reason}. Use other images or another --size."
            ) from error
        yield output.float().cpu().numpy()


def _expected_of_file(original: Path, cases: Sequence[Case], provider: str) -> _Expected:
    opened = session(original, provider)
    for case in cases:
        fits(opened, case)
    return _Expected([run_model(opened, case.input) for case in cases], [], {})


def _size_rule(provenance: Provenance | None) -> SizeRule:
    return SizeRule(provenance.minimum, provenance.multiple) if provenance else SizeRule()


def _reinsert(original: Teacher, nodes: dict[str, Perturbation]) -> Protected:
    """The protected model again, from the layers that the file names."""
    missing = sorted(set(nodes) - {name for name, _ in original.module.named_modules()})
    if missing:
        raise InputError(
            f"The protected file names layers that the original does not have ({', '.join(missing[:3])}); "
            "hand in the teacher that it was exported from."
        )
    return insert(original, nodes)


def _measure(
    path: Path, cases: Sequence[Case], expected: _Expected, teacher: Teacher, min_psnr: float, provider: str
) -> tuple[GateResult, GateResult]:
    """Both gates on the file at `path`."""
    opened = session(path, provider)
    got = [run_model(opened, case.input) for case in cases]
    fidelity = zip(cases, expected.protected, got, strict=True)
    preservation = zip(cases, expected.original, got, strict=True)
    return (
        score(fidelity, FIDELITY_DB, teacher.data_range, teacher.scale),
        score(preservation, min_psnr, teacher.data_range, teacher.scale),
    )


def _stamp(gate: GateResult) -> dict[str, float | None]:
    """A gate for the metadata: rounded down to 0.1 dB, so that the last bits of a run do not change the bytes."""
    found = gate.min_psnr
    return {"threshold": gate.threshold, "min_psnr": math.floor(found * 10) / 10 if math.isfinite(found) else None}


def _provenance(protected: Protected, gates: Stamps) -> Provenance:
    teacher = protected.teacher
    return Provenance(
        version=tool_version(),
        layers=protected.nodes,
        source_sha256=teacher.sha256,
        data_range=teacher.data_range,
        scale=teacher.scale,
        minimum=teacher.size.minimum,
        multiple=teacher.size.multiple,
        gates=gates,
    )


def _latency(path: Path, original: Path | None, case: Case, provider: str) -> tuple[float, float]:
    """Milliseconds of the unprotected and of the protected file in onnxruntime."""
    if original is None:  # the same graph without its nodes
        bare = without_nodes(onnx.load(path, load_external_data=False)).SerializeToString()
        return latency(session(bare, provider, data_folder=path.parent), session(path, provider), case.input)
    return latency(session(original, provider), session(path, provider), case.input)


def _check_gate(min_psnr: float, provider: str) -> None:
    """Refuse a threshold that nothing reaches and a provider that is not there, before the long work."""
    if not (math.isfinite(min_psnr) and min_psnr <= IDENTICAL_DB):
        raise InputError(
            f"The least PSNR asked for is {min_psnr!r} dB; a number of at most {IDENTICAL_DB:g} was expected, which is what "
            "identical images score."
        )
    if provider != "cpu":
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        identity = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_graph([identity], "probe", [value], [onnx.helper.make_tensor_value_info("y", 1, [1])])
        opsets = [onnx.helper.make_opsetid("", DEFAULT_OPSET)]
        session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString(), provider)


def _cases(
    teacher: Teacher, images: str | Path | None, sizes: Sequence[tuple[int, int]], fixed: Sequence[int | None]
) -> list[Case]:
    return build_cases(
        _pictures(images),
        minimum=teacher.size.minimum,
        multiple=teacher.size.multiple,
        data_range=teacher.data_range,
        sizes=sizes,
        fixed=fixed,
    )


def _pictures(images: str | Path | None) -> list[Path]:
    return list_images(photographs("verify") if images is None else images)


def _frozen_size(teacher: Teacher, sizes: Sequence[tuple[int, int]], static: bool) -> tuple[int, int] | None:
    """The height and width to freeze, or None for free ones."""
    _, _, height, width = teacher.fixed
    if height is not None and width is not None and static:
        return height, width
    if any(dim is not None for dim in teacher.fixed[2:]) and not static:
        raise InputError(
            f"{teacher.source} was traced with fixed sizes ({height} x {width}) and cannot become dynamic. Give --static, "
            "or trace it again with dynamic shapes."
        )
    if not static:
        return None
    if len(sizes) != 1:
        raise InputError(f"--static freezes one size, and {len(sizes)} were given; give exactly one --size HxW.")
    return sizes[0]


def _static_notes(size: Sequence[int | None]) -> tuple[str, ...]:
    if None in size:
        return ()
    return (f"The file takes only inputs of {size[0]}x{size[1]}; other sizes were not verified.",)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise AsvpError(f"The file {path} cannot be read ({error.strerror}).") from error
