"""Running the rows of an audit: finished students are cached, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import itertools
import json
import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from PIL import Image

from asvp_export.distillation.arms import OUTPUTS, Arm, with_baselines
from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.attacks.base import UnavailableError
from asvp_export.distillation.data import Data, Patches, centre_crop, cut_patches
from asvp_export.distillation.students import Student, check_student, source_hash
from asvp_export.distillation.targets import as_unit, clean_targets, distillation_targets
from asvp_export.distillation.training import Budget, EvalSample, EvalSet, TrainingSet, preview, train
from asvp_export.distillation.victim import Activations, Victim
from asvp_export.errors import InputError
from asvp_export.files import atomic_write
from asvp_export.images import as_channels
from asvp_export.insertion.feature_maps import FeatureMapMeter, FeatureMaps
from asvp_export.options import AuditOptions
from asvp_export.parity.metrics import peak_of, psnr, ssim
from asvp_export.progress import Printer, reporter
from asvp_export.signature import ValueRange
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.model import Teacher

_METHOD = (
    3  # raised when students are trained or evaluated in another way: older entries of the cache do not count then
)
_PATCHES = 0  # the seed of the patches: the same for all students


@dataclass(frozen=True)
class ModelScores:
    """What the models themselves score on the test pictures; dB, the outputs clipped as a viewer does.

    The names of the fields are those of the report.
    """

    original_psnr: float
    original_ssim: float
    shipped_psnr: float
    shipped_ssim: float

    worst_preservation: float
    """The shipped model against the original, the worst picture; not clipped."""

    mean_preservation: float
    """The same, mean over the pictures."""

    @property
    def loss(self) -> float:
        """How many dB of PSNR against ground truth the defence costs the user."""
        return self.original_psnr - self.shipped_psnr


@dataclass(frozen=True, eq=False)
class Findings:
    """What the students of an audit scored."""

    scores: dict[Arm, list[dict[str, Any]]]
    """A row to what `train` returned for each seed."""

    unavailable: dict[Arm, str]
    """Rows that this model does not allow, and why."""

    model_scores: ModelScores
    pictures: dict[str, bytes] = field(default_factory=dict)
    """PNG of the middle of the first test picture: of each row's first student by name, and "clean", "input",
    "teacher", "protected"."""

    feature_maps: Mapping[str, FeatureMaps | None] = field(default_factory=dict)
    """Of the shipped model on the middle of the first test picture, as `FeatureMapMeter` keeps them."""


@dataclass(frozen=True)
class Workers:
    """Where the students are trained."""

    jobs: int = AuditOptions.jobs
    """Processes at a time; 0: as many as there are cores, or 1 where there is a GPU."""

    backend: str = AuditOptions.backend
    """joblib's: "loky" (processes) or "ray"."""

    address: str = AuditOptions.address
    """Of a Ray cluster; "" starts one on this machine."""


@dataclass(frozen=True)
class Experiment:
    """Which students are trained, and with how much."""

    arms: Sequence[Arm]
    """The rows."""

    seeds: Sequence[int]
    """A student of each row for each."""

    budget: Budget
    """What each student gets."""


def run(
    victim: Victim,
    data: Data,
    student: Student,
    experiment: Experiment,
    cache: Path,
    workers: Workers | None = None,
    progress: Printer = lambda line: None,
) -> Findings:
    """Train and evaluate a student for each row and seed, and for the rows that these are compared with.

    Args:
        victim: the models.
        data: the pictures.
        student: how to make one.
        experiment: the rows, the seeds, and what each student gets.
        cache: folder that keeps each finished student's scores by the hash of all that they depend on.
        workers: where they are trained.
        progress: called with lines, or counting.

    Raises:
        InputError: the pictures do not fit the model, or a worker cannot be had.
    """
    seeds, budget = experiment.seeds, experiment.budget
    if not seeds:
        raise InputError("No seed was given; at least 1 is needed.")
    progress = reporter(progress)
    rows = with_baselines(experiment.arms)
    cache.mkdir(parents=True, exist_ok=True)
    progress("preparing the test pictures")
    eval_set, model_scores, pictures, feature_maps = _evaluate_models(victim, data)
    particulars = _particulars(victim.teacher)
    common = _digest(_METHOD, data.fingerprint, json.dumps(asdict(budget)), _PATCHES, torch.__version__, *particulars)
    keys = {
        (arm, seed): _digest(common, _dependencies(victim, arm, student), arm, seed) for arm in rows for seed in seeds
    }
    missing = [arm_and_seed for arm_and_seed, key in keys.items() if not _is_cached(cache, key)]
    unavailable: dict[Arm, str] = {}
    if missing:
        cached = len(keys) - len(missing)
        progress(
            f"training {len(missing)} students, {budget.steps} steps each"
            + (f"; {cached} are there already" if cached else "")
        )
        patches = cut_patches(victim.teacher, data.train, budget.patches, _PATCHES)
        samples = (*eval_set.select, *eval_set.test)
        check_student(student, victim.teacher, [patches.inputs, *(sample.image for sample in samples)])
        jobs = _jobs(victim, patches, missing, eval_set, student, budget, unavailable)
        start, total = time.monotonic(), len(missing)
        trained = _parallel(jobs, workers or Workers(), _device(victim.teacher))
        # Closed here, not whenever Python collects it: joblib then warns of the students that are given up.
        with contextlib.closing(trained), progress.track(missing, "training students") as tracked:
            for finished, (arm, seed, result) in enumerate(trained, 1):
                _store(cache, keys[arm, seed], *result)
                next(tracked, None)
                if finished * 10 // total > (finished - 1) * 10 // total and finished < total:
                    minutes = (time.monotonic() - start) / finished * (total - finished) / 60
                    progress(f"{finished} of {total} students are trained, about {minutes:.0f} min left")
    scores: dict[Arm, list[dict[str, Any]]] = {}
    for arm in rows:
        if arm not in unavailable:
            scores[arm] = [json.loads((cache / f"{keys[arm, seed]}.json").read_text()) for seed in seeds]
            pictures[str(arm)] = (cache / f"{keys[arm, seeds[0]]}.png").read_bytes()
    return Findings(scores, unavailable, model_scores, pictures, feature_maps)


def _is_cached(cache: Path, key: str) -> bool:
    return all((cache / f"{key}.{kind}").exists() for kind in ("json", "png"))


def _particulars(teacher: Teacher) -> Iterator[object]:
    """What outputs depend on beside the weights; options only where they are not the default, so that old keys hold."""
    if open_backend(teacher).traced:  # else its bytes say all that it computes
        yield source_hash(teacher.module)
    if teacher.data_range != ValueRange():
        yield teacher.data_range
    for other in teacher.signature.others:
        yield other.name, other.follows, hashlib.sha256(other.example.tobytes()).hexdigest()
    if any(teacher.static_shape[2:]):
        yield teacher.static_shape[2:]
    if _device(teacher) != "cpu":  # the bits of a GPU are others
        yield torch.device(_device(teacher)).type


def _device(teacher: Teacher) -> str:
    """Where students are trained: beside the teacher, or on a GPU where there is one."""
    return "cuda" if teacher.device == "cpu" and torch.cuda.is_available() else teacher.device


def _dependencies(victim: Victim, arm: Arm, student: Student) -> str:
    """Hash of what a row's students learn from: students of the original stay cached when another gain is tried.

    Those of its outputs alone, and of the truth, stay cached when other layers are tried too.
    """
    source = inspect.getsource(inspect.getmodule(type(attacks()[arm.attack])) or attacks) if arm.attack else ""
    untapped = replace(student, taught=()) if arm.loss == OUTPUTS else student
    source = untapped.fingerprint + source
    if arm.teacher in ("truth", "original") and arm.loss == OUTPUTS:
        return _digest(source, victim.teacher.sha256)
    if arm.teacher in ("truth", "original"):
        taps = [(name, node.axis) for name, node in victim.nodes.items()]
        return _digest(source, victim.teacher.sha256, taps)
    return _digest(source, victim.fingerprint)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _jobs(
    victim: Victim,
    patches: Patches,
    missing: Sequence[tuple[Arm, int]],
    eval_set: EvalSet,
    student: Student,
    budget: Budget,
    unavailable: dict[Arm, str],
) -> Iterator[Any]:
    """The students to train; their targets are computed when the first of them is due, and given up after the last."""
    images = victim.teacher.data_range.to_unit(patches.inputs.numpy())
    for source in dict.fromkeys(arm.target_source for arm, _ in missing):
        due = [(arm, seed) for arm, seed in missing if arm.target_source == source]
        taps = sorted({arm.tap for arm, _ in due if arm.loss != OUTPUTS})
        try:
            if source[0] == "truth":
                targets = clean_targets(patches)
            else:
                targets = distillation_targets(victim, patches, *source, taps)
        except UnavailableError as reason:
            unavailable |= {arm: str(reason) for arm, _ in due}
            continue
        for arm, seed in due:
            if arm.loss != OUTPUTS and arm.tap not in targets.features:
                unavailable[arm] = f"no layer that gives a feature map comes after {', '.join(victim.nodes)}"
                continue
            features = targets.features[arm.tap] if arm.loss != OUTPUTS else ()
            training_set = TrainingSet(images, targets.outputs, features)
            yield delayed(_trained)(student, arm, training_set, eval_set, budget, seed, _device(victim.teacher))


def _trained(
    student: Student, arm: Arm, training_set: TrainingSet, eval_set: EvalSet, budget: Budget, seed: int, device: str
) -> Any:
    return arm, seed, train(student, arm, training_set, eval_set, budget, seed, device)


def _parallel(jobs: Iterator[Any], workers: Workers, device: str) -> Generator[Any, None, None]:
    """The results as they come."""
    pool: Any = Parallel  # its types do not know what it returns as a generator
    if workers.backend != "ray":
        with parallel_config(backend=workers.backend, n_jobs=workers.jobs or (_cores() if device == "cpu" else 1)):
            yield from pool(return_as="generator_unordered", pre_dispatch="n_jobs", batch_size=1)(jobs)
        return
    count = _start_ray(workers)
    options: dict[str, Any] = {"ray_remote_args": {"num_gpus": 1}} if device != "cpu" else {}
    with parallel_config(backend="ray", n_jobs=count, **options):
        # Ray gives nothing back before all that it was given is done.
        while batch := list(itertools.islice(jobs, count)):
            yield from pool(batch_size=1)(batch)


def _start_ray(workers: Workers) -> int:
    """Connect to the cluster; how many students it trains at a time."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise InputError(
            "The backend ray was asked for and is not installed: pip install 'asvp-export[ray]'."
        ) from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of an audit is told to anybody
        cores = None if workers.address else workers.jobs or _cores()
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            ray.init(workers.address or None, num_cpus=cores, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"There is no Ray cluster at {workers.address or 'this machine'} ({error}). Start it, or leave "
                "--backend ray out."
            ) from error
    register_ray()
    return workers.jobs or int(ray.cluster_resources()["CPU"])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _store(cache: Path, key: str, scores: dict[str, Any], picture: np.ndarray) -> None:
    atomic_write(cache / f"{key}.png", _png(picture))
    atomic_write(cache / f"{key}.json", json.dumps(scores).encode())  # last: where it is, the picture is


def _png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture[..., :3] if picture.shape[-1] >= 3 else picture[..., 0]).save(stream, "PNG")
    return stream.getvalue()


def _evaluate_models(
    victim: Victim, data: Data
) -> tuple[EvalSet, ModelScores, dict[str, bytes], dict[str, FeatureMaps | None]]:
    """The evaluation set, what the models themselves score on its test, pictures and maps of the first test sample."""
    teacher, scored, pictures, feature_maps = victim.teacher, [], {}, {}
    parts: dict[str, list[EvalSample]] = {}
    for part, pairs in (("select", data.select), ("test", data.test)):
        parts[part] = []
        for pair in (centre_crop(teacher, pair) for pair in pairs):
            unit, clean = (as_channels(x, teacher.channels)[None] for x in (pair.degraded, pair.clean))
            images = torch.from_numpy(teacher.data_range.of(unit)).to(teacher.device)
            original = as_unit(teacher, victim.original(images).outputs)
            activations = victim.shipped(images)
            shipped = as_unit(teacher, activations.outputs)
            if part == "test" and not pictures:
                feature_maps = _feature_maps(victim, images, activations)
            del activations  # before the next picture's are there
            _check_shape(teacher, pair.name, original, clean)
            parts[part].append(EvalSample(pair.name, np.ascontiguousarray(unit), clean, np.clip(original, 0, 1)))
            if part == "test":
                scored.append(_scores(clean, original, shipped))
                pictures = pictures or _previews(unit, clean, original, shipped)
    means = [float(np.mean(column)) for column in zip(*scored, strict=True)]
    worst = min(scores[4] for scores in scored)
    model_scores = ModelScores(*means[:4], worst_preservation=worst, mean_preservation=means[4])
    return EvalSet(parts["select"], parts["test"]), model_scores, pictures, feature_maps


def _feature_maps(victim: Victim, images: torch.Tensor, shipped: Activations) -> dict[str, FeatureMaps | None]:
    meter = FeatureMapMeter(victim.nodes, (images.shape[2], images.shape[3]), len(images))
    if shipped.features.keys() >= {"before", "exposed", "readers"}:
        for layer, *maps in zip(victim.nodes, *map(shipped.__getitem__, ("before", "exposed", "readers")), strict=True):
            meter(layer, *maps)
    return meter.by_layer


def _check_shape(teacher: Teacher, name: str, original: np.ndarray, clean: np.ndarray) -> None:
    if original.shape == clean.shape:
        return
    if original.shape[1] != clean.shape[1]:
        raise InputError(
            f"{teacher.source} takes {clean.shape[1]} channels and gives {original.shape[1]}; an audit needs a model "
            "with as many channels out as in."
        )
    raise InputError(
        f"{teacher.source} gives {original.shape[2:]} for {name}, whose clean picture is {clean.shape[2:]}: the model "
        "cuts a border off, so its outputs cannot be compared with clean pictures."
    )


def _previews(unit: np.ndarray, clean: np.ndarray, original: np.ndarray, shipped: np.ndarray) -> dict[str, bytes]:
    scale = unit.shape[2] / clean.shape[2]
    return {
        "clean": _png(preview(clean)),
        "input": _png(preview(unit, scale)),
        "teacher": _png(preview(original)),
        "protected": _png(preview(shipped)),
    }


def _scores(clean: np.ndarray, original: np.ndarray, shipped: np.ndarray) -> list[float]:
    clipped = [np.clip(output, 0, 1) for output in (original, shipped)]
    preservation = psnr(original, shipped, peak_of(original, 1.0))
    return [
        *(score for output in clipped for score in (psnr(clean, output, 1.0), ssim(clean, output, 1.0))),
        preservation,
    ]
