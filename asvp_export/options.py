"""Every option once: its name, default, choices and help.

The command line is made from these classes, the functions of the package take them, and the public functions take
their fields as keywords (`asvp_export.keywords`). Importable without PyTorch.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from asvp_export.errors import InputError

AUTO, GAIN = "auto", "gain"
Size = tuple[int, int]
"""Height and width in pixels."""

DEFAULT_OPSET = 18
"""What most runtimes read, and what PyTorch's exporters write without a conversion."""


@dataclass(frozen=True)
class Shown:
    """How the command line shows an option."""

    help: str
    """What it does, in a sentence or two."""

    metavar: str = ""
    """What stands for its value; "" for what its type says."""

    choices: tuple[str, ...] = ()
    """The words that it takes; with a number as its type, beside numbers."""

    least: float | None = None
    """It has to be over this number."""

    flag: str = ""
    """Its name on the command line; "" for that of the field."""


def option(default: Any, help: str, **shown: Any) -> Any:
    """A field that is an option."""
    return field(default=default, metadata={"shown": Shown(help, **shown)})


def shown(one: Field[Any]) -> Shown:
    """How a field is shown."""
    return one.metadata["shown"]


def value_type(hint: Any) -> Any:
    """The type of one value: without None, and what a tuple of any length holds."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [one for one in get_args(hint) if one is not type(None)]
        hint = rest[0]
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        return get_args(hint)[0]
    return hint


@dataclass(frozen=True)
class Options:
    """A group of options; values are checked, and brought to their types, when it is made.

    Raises:
        InputError: a word that is not among the choices, or a number out of range.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):
            value, hint = getattr(self, one.name), hints[one.name]
            if value is None:
                continue
            name = one.name.replace("_", " ")
            if value_type(hint) is Path and isinstance(value, str):
                object.__setattr__(self, one.name, Path(value))
            elif isinstance(value, list):
                object.__setattr__(self, one.name, tuple(value))
            _check(name, value, shown(one), numeric=value_type(hint) in (int, float))


def grouped(given: Mapping[str, Any], *groups: type[Options], also: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """The groups from the keywords of a public function.

    Args:
        given: name to value.
        *groups: to be made.
        also: names that belong to none of them.

    Raises:
        TypeError: a name that is not known.
        InputError: a value that does not do.
    """
    names = [{one.name for one in fields(group)} for group in groups]
    if unknown := set(given).difference(also, *names):
        raise TypeError(
            f"there is no option {min(unknown)!r}; {', '.join(sorted(set().union(*names, also)))} are known"
        )
    return tuple(
        group(**{name: given[name] for name in those if name in given})
        for group, those in zip(groups, names, strict=True)
    )


def _check(name: str, value: object, about: Shown, numeric: bool) -> None:
    if about.choices and isinstance(value, str) and value not in about.choices:
        known = (*(("a number",) if numeric else ()), *filter(None, about.choices))
        raise InputError(f"The {name} {value!r} was asked for; {' or '.join(known)} was expected.")
    if (
        about.least is not None
        and isinstance(value, int | float)
        and not (math.isfinite(value) and value > about.least)
    ):
        raise InputError(f"The {name} {value:g} was asked for; a number over {about.least:g} was expected.")


def defaults(group: type[Options]) -> dict[str, Any]:
    """Name to default."""
    return {one.name: None if one.default is MISSING else one.default for one in fields(group)}


@dataclass(frozen=True)
class LoadOptions(Options):
    """What `load` is told of a model."""

    arch: str | None = option(
        None,
        "What builds the module of a bare state dict: package.module:factory or path/nets.py:factory.",
        metavar="MODULE:FACTORY",
    )
    arch_args: dict[str, Any] | None = option(None, "Keyword arguments of the factory, as a JSON object.")
    weights_key: str | None = option(
        None,
        "Which weights, where the file holds several state dicts: keys, and then the beginning of names, joined by "
        "dots.",
        metavar="KEY",
    )
    trust_pickle: bool = option(False, "Load a pickled module, which runs code from the file.")
    data_range: Any = option(
        None,
        "The model's values for black and white: 0..1, -1..1 or 0..255. Default: detected where it shows, else 0..1.",
        metavar="LOW..HIGH",
    )
    main_output: str | None = option(
        None,
        "Which output is the restored picture, of a model with several. Default: the largest picture, and of several "
        "the one that is computed from the others.",
        metavar="NAME",
    )
    norm_statistics: str = option(
        "stored",
        "What normalisation layers use: the statistics stored in training, or those of each input.",
        choices=("stored", "input"),
    )
    inputs: Path | None = option(
        None,
        "An example of each input (.npz, .pt), for models that take more than a picture.",
        metavar="FILE",
    )
    layout: str | None = option(
        None,
        "Of the picture that the model takes: channels first or last. Default: what the file's sizes and first layers "
        "say, else what runs.",
        choices=("nchw", "nhwc"),
    )
    device: str = option("cpu", "Where PyTorch runs the teacher: cpu or cuda.", metavar="cpu|cuda")
    probe_timeout: float = option(
        120.0,
        "How long an ONNX or TorchScript file may take for a run on a small image, while sizes are tried out; ten "
        "times as long for being opened.",
        metavar="SECONDS",
        least=0,
    )
    probe_memory: int | None = option(
        None,
        "How much memory it may take then (on Linux). Default: four fifths of what is free.",
        metavar="MIB",
        least=0,
    )


@dataclass(frozen=True)
class ProtectOptions(Options):
    """Which node each layer gets."""

    rank: int | str = option(
        AUTO,
        "How many leading singular values are amplified. auto: what is best with the gain; 1 beside a gain that is "
        "given.",
        choices=(AUTO,),
    )
    gain: float | str = option(
        AUTO,
        "The factor on them in the exposed map. auto: the largest that leaves 80 dB of the outputs on the "
        "verification images; with --residual gain the largest that leaves --min-psnr and 1 dB.",
        choices=(AUTO,),
    )
    residual: float | str | None = option(
        None,
        "The factor that is left in the map that the layer's readers get. Default: 1, the outputs stay the "
        "original's. auto (the default beside --compensate): what the re-solved readers allow. gain: no inverse node.",
        choices=(AUTO, GAIN),
    )
    max_gain: float = option(100.0, "No gain that is chosen is larger.", least=1)
    compensate: str = option(
        "none",
        "Re-solve the layers that read a protected tensor for the residual gain, so that outputs stay (solve); then "
        "train all behind it (refine).",
        choices=("none", "solve", "refine"),
    )
    energy: float = option(1.0, "Stop once this share of the squared singular values is covered.")
    axis: int | None = option(None, "The channel axis. Default: what the layer's output shows.")


@dataclass(frozen=True)
class GateOptions(Options):
    """What is compared, and what has to hold."""

    images: Path | None = option(
        None,
        "Folder with inputs of the teacher: degraded pictures where the task is restoration. Default: the project's "
        "own photographs.",
    )
    sizes: tuple[Size, ...] = option((), "Compare on crops of this size; may repeat.", flag="--size")
    thorough: bool = option(
        False,
        "Compare on all of the project's own photographs, whole, whatever the model costs. Default: as many, and as "
        "large crops, as a budget of multiply-adds allows.",
    )
    min_psnr: float = option(48.0, "dB that the worst image has to reach against the original.")
    provider: str = option("cpu", "Where onnxruntime runs the file.", choices=("cpu", "cuda"))


@dataclass(frozen=True)
class FileOptions(Options):
    """Which file is written."""

    opset: int | None = option(
        None, f"Of the default ONNX domain, 18 to 26. Default: {DEFAULT_OPSET}; an ONNX file keeps its own."
    )
    dtype: str = option(
        "fp32",
        "fp16: weights and feature maps in float16, the operator's arithmetic in float32.",
        choices=("fp32", "fp16"),
    )
    static: bool = option(False, "Freeze the one --size, and a batch of 1.")
    static_batch: bool = option(False, "Freeze the batch at 1, and leave height and width free.")
    external_data: bool = option(False, "Keep the tensors in a file of their own, also under 2 GiB.")
    portable: str = option(
        "",
        "inline: write the operator's body into the graph, for readers that do not resolve model-local functions "
        "(OpenVINO).",
        choices=("inline", ""),
    )
    force: bool = option(False, "Replace an existing output.")
    keep_failed: bool = option(False, "When a gate fails, keep the file as OUTPUT's <stem>.failed.onnx.")
    ground_truth: Path | None = option(
        None,
        "Folder with the clean picture of each image, under its name: the removal tests are scored against these too.",
        metavar="DIR",
    )


@dataclass(frozen=True)
class ReportOptions(Options):
    """What is written beside the file."""

    report: Path | None = option(
        None,
        "Folder for the report, made where it is missing, with a page to look at, report.html. Default: the JSON "
        "alone, beside the file.",
        metavar="DIR",
    )
    junit: Path | None = option(None, "Write the verdict as JUnit XML too.", metavar="FILE")
    model_card: bool = option(False, "Write a model card, README.md, beside the output.")


@dataclass(frozen=True)
class TileOptions(Options):
    """Running tile by tile."""

    tile: int | None = option(
        None,
        "Run tile by tile, for pictures that memory does not hold whole. The SVD is global: the result differs from a "
        "whole run.",
        metavar="PIXELS",
    )
    overlap: int = option(32, "What two tiles share.", metavar="PIXELS")


@dataclass(frozen=True)
class RunOptions(Options):
    """Restoring one picture."""

    provider: str = option("cpu", "Where onnxruntime runs the file.", choices=("cpu", "cuda"))
    force: bool = option(False, "Replace an existing picture.")
    inputs: Path | None = option(
        None, "What the model takes beside the image, by name or in order (.npz).", metavar="FILE"
    )


@dataclass(frozen=True)
class AuditOptions(Options):
    """Which students learn what."""

    task: str | None = option(
        None,
        "How clean pictures become inputs of the teacher: sr_x2, lowlight, underwater, dehaze or derain.",
    )
    data: Path | None = option(
        None,
        "Pictures: train/ and test/ (or one folder, which is cut), each with input/ and truth/, or clean pictures "
        "that --task degrades. Default: the project's own photographs.",
        metavar="DIR",
    )
    student: str = option("", "What builds a student. Default: a small residual net of ours.", metavar="MODULE:FACTORY")
    student_args: dict[str, Any] | None = option(None, "Keyword arguments of the student's factory, as a JSON object.")
    profile: str = option(
        "quick",
        "quick: each question once, 2 seeds, minutes. screen: all losses, weights, taps and attackers, 1 seed. full: "
        "eight rows, 3 seeds, longer training.",
        choices=("quick", "screen", "full"),
    )
    rows: tuple[str, ...] = option(
        (),
        "Rows instead of the profile's, such as shipped+undo/mse-1, separated by commas; may repeat.",
        metavar="NAME",
    )
    seeds: int | None = option(None, "Students a row. Default: the profile's.")
    steps: int | None = option(None, "Of each student's training. Default: the profile's.")
    require: tuple[str, ...] = option(
        (), "Fail unless it holds, such as 'feature_kd_drop>=1.0'; may repeat.", metavar="LIMIT"
    )
    report: Path | None = option(None, "Folder for the report, made where it is missing. Default: here.", metavar="DIR")
    cache: Path = option(Path(".asvp-audit"), "Keeps finished students: a run that was stopped goes on.")
    jobs: int = option(0, "Students at a time. Default: one a core; 1 on a GPU.")
    backend: str = option("loky", "loky: processes. ray: a cluster.", choices=("loky", "ray"))
    address: str = option("", "Of the Ray cluster. Default: one on this machine.")
