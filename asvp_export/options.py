"""Every option once: its name, default, choices and help.

The command line is made from these classes, the functions of the package take them, and the public functions take
their fields as keywords (`asvp_export.keywords`). Importable without PyTorch.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from asvp_export.errors import InputError
from asvp_export.option_groups import Options, option

AUTO, GAIN = "auto", "gain"
Size = tuple[int, int]
"""Height and width in pixels."""

COMPENSATIONS = ("none", "solve", "refine")
"""What may be done to the readers' weights."""

PROVIDERS = ("cpu", "cuda")
"""What onnxruntime may run a file on."""

DEFAULT_LAYERS = 3
"""How many layers `auto` picks."""

DEFAULT_OPSET = 18
"""What most runtimes read, and what PyTorch's exporters write without a conversion."""


@dataclass(frozen=True)
class LoadOptions(Options):
    """What `load` is told of a model."""

    title = "Model"

    arch: str | None = option(
        None,
        "What builds the module of a bare state dict: package.module:factory or path/nets.py:factory.",
        metavar="MODULE:FACTORY",
    )
    arch_args: dict[str, Any] | None = option(None, "Keyword arguments of the factory, as a JSON object.")
    weights_key: str | None = option(
        None,
        "Which weights are meant, in a file with several state dicts: the keys that lead to them, then what their "
        "names begin with, joined by dots.",
        metavar="KEY",
    )
    trust_pickle: bool = option(False, "Open a pickled module. That runs code of the file's author.")
    data_range: Any = option(
        None,
        "The model's values for black and white: 0..1, -1..1 or 0..255. Default: what running the model shows, else "
        "0..1.",
        metavar="LOW..HIGH",
    )
    main_output: str | None = option(
        None,
        "The output that is the restored picture, for a model with several. Default: the largest picture; of several, "
        "the one that is computed from the others.",
        metavar="NAME",
    )
    norm_statistics: str = option(
        "stored",
        "Normalisation layers use the statistics stored in training, or those of each input.",
        choices=("stored", "input"),
    )
    inputs: Path | None = option(
        None,
        "An example of each input (.npz, .pt), for models that take more than a picture.",
        metavar="FILE",
    )
    layout: str | None = option(
        None,
        "Channels first or last, in the picture that the model takes. Default: what the file's sizes and first layers "
        "say, else what runs.",
        choices=("nchw", "nhwc"),
    )
    device: str = option("cpu", "Where PyTorch runs the model.", metavar="cpu|cuda")
    probe_timeout: float = option(
        120.0,
        "While sizes are tried out: how long an ONNX or TorchScript file may take for one small image; ten times as "
        "long to be opened.",
        metavar="SECONDS",
        least=0,
    )
    probe_memory: int | None = option(
        None,
        "While sizes are tried out: how much memory such a file may take (on Linux). Default: four fifths of what is "
        "free.",
        metavar="MIB",
        least=0,
    )


@dataclass(frozen=True)
class ProtectOptions(Options):
    """Which node each layer gets."""

    title = "Protection"

    rank: int | str = option(
        AUTO,
        "How many leading singular values are amplified. auto: the best for the gain; 1 where a gain is given.",
        choices=(AUTO,),
    )
    gain: float | str = option(
        AUTO,
        "The factor on them in the exposed map. auto: the largest that keeps the outputs at 80 dB on the verification "
        "images; with --residual gain, at --min-psnr and 1 dB more.",
        choices=(AUTO,),
    )
    residual: float | str | None = option(
        None,
        "The factor that stays in the map that the layer's readers get. 1 (the default): outputs stay the original's. "
        "auto (the default beside --compensate): as much as re-solved readers allow. gain: there is no inverse node.",
        choices=(AUTO, GAIN),
    )
    max_gain: float = option(100.0, "auto chooses no larger gain.", least=1)
    compensate: str = option(
        COMPENSATIONS[0],
        "solve: fit the layers that read a protected map to the residual gain, so that outputs stay. refine: then "
        "train everything behind it too.",
        choices=COMPENSATIONS,
    )
    energy: float = option(1.0, "Amplify fewer values where these cover this share of the squared sum.")
    axis: int | None = option(None, "The channel axis. Default: what the layer's output shows.")


@dataclass(frozen=True)
class GateOptions(Options):
    """What is compared, and what has to hold."""

    title = "Verification"

    images: Path | None = option(
        None,
        "Folder of pictures as the model gets them (dark ones for a low-light model). Default: the project's own "
        "photographs, which are clean.",
    )
    sizes: tuple[Size, ...] = option((), "Compare on crops of this size; may repeat.", flag="--size")
    thorough: bool = option(
        False,
        "Compare on all of the project's own photographs, whole. Default: as many, and as large crops, as a budget of "
        "multiply-adds allows.",
    )
    min_psnr: float = option(48.0, "The PSNR in dB that the worst image has to reach against the original.")
    provider: str = option(PROVIDERS[0], "Where onnxruntime runs the file.", choices=PROVIDERS)


@dataclass(frozen=True)
class LayerOptions(Options):
    """What is protected, and what it is verified on."""

    layers: tuple[str, ...] = option(
        (),
        f"The layers to protect. auto or auto:N picks N ({DEFAULT_LAYERS}) layers by their spectra, spread over the "
        "depth. Else names or globs of modules (of nodes or tensors in an ONNX file), separated by commas; may repeat. "
        "* stays inside one part of a name, ** crosses parts. none inserts nothing.",
        metavar="SPEC",
        heading=ProtectOptions.title,
    )
    plan: Path | None = option(
        None,
        "Apply the plan of an earlier run; nothing is chosen or calibrated anew.",
        heading=ProtectOptions.title,
    )
    verify_images: Path | None = option(
        None, "Folder of other inputs, on which gains are verified.", heading=GateOptions.title
    )


@dataclass(frozen=True)
class ExportedLayerOptions(LayerOptions):
    """The same, where a file is verified too."""

    verify_images: Path | None = option(
        None,
        "Folder of inputs to verify on; gains and weights are then fitted to all of --images. Default: two fifths of "
        "--images.",
        heading=GateOptions.title,
    )


@dataclass(frozen=True)
class ExportOutputOptions(Options):
    """Where `export` writes."""

    output: Path | None = option(
        None, "The ONNX file to write. Default: <MODEL's stem>.protected.onnx, in this folder.", short="-o"
    )


@dataclass(frozen=True)
class PlanOutputOptions(Options):
    """Where `protect` writes."""

    output: Path | None = option(
        None, "The plan to write. Default: <MODEL's stem>.plan.json, in this folder.", short="-o"
    )


@dataclass(frozen=True)
class PictureOutputOptions(Options):
    """Where `run` writes."""

    output: Path = option(MISSING, "The picture to write: .png, .jpg or .webp.", short="-o")


@dataclass(frozen=True)
class CheckPlanOptions(Options):
    """What `check` knows of a file."""

    title = GateOptions.title

    plan: Path | None = option(None, "The plan of a compensated file; with it fidelity is measured too.")


@dataclass(frozen=True)
class InspectOptions(Options):
    """What `inspect` does."""

    title = GateOptions.title

    verify: bool = option(False, "Compare PROTECTED, and what was shipped with it, with its manifest instead.")


@dataclass(frozen=True)
class FileOptions(Options):
    """Which file is written."""

    title = "Output"

    opset: int | None = option(
        None, f"Of the default ONNX domain, 18 to 26. Default: {DEFAULT_OPSET}; an ONNX file keeps its own."
    )
    dtype: str = option(
        "fp32",
        "fp16: weights and feature maps in float16, the operator's arithmetic in float32.",
        choices=("fp32", "fp16"),
    )
    static: bool = option(False, "Freeze height and width at the one --size, and the batch at 1.")
    static_batch: bool = option(False, "Freeze the batch at 1; height and width stay free.")
    external_data: bool = option(False, "Keep the weights in a file of their own, under 2 GiB too.")
    portable: str = option(
        "",
        "inline: write the operator's body into the graph, for runtimes without model-local functions (OpenVINO).",
        choices=("inline", ""),
    )
    force: bool = option(False, "Replace an existing output.")
    keep_failed: bool = option(False, "When a gate fails, keep the file as OUTPUT's <stem>.failed.onnx.")
    ground_truth: Path | None = option(
        None,
        "Folder with the clean picture of each image, under the same name; the report then scores removed nodes "
        "against these too.",
        metavar="DIR",
        heading="Reports",
    )


@dataclass(frozen=True)
class ReportOptions(Options):
    """What is written beside the file."""

    title = "Reports"

    report: Path | None = option(
        None,
        "Folder for the report and its page, report.html. Default: the JSON alone, beside the file.",
        metavar="DIR",
    )
    junit: Path | None = option(None, "Write the verdict as JUnit XML.", metavar="FILE")
    model_card: bool = option(False, "Write a model card, README.md, beside the output.")


@dataclass(frozen=True)
class TileOptions(Options):
    """Running tile by tile."""

    title = "Tiles"

    tile: int | None = option(
        None,
        "Run tile by tile, for pictures too large for the memory. The result differs from a whole run, because the SVD "
        "is of the whole map.",
        metavar="PIXELS",
    )
    overlap: int = option(32, "How many pixels two tiles share.", metavar="PIXELS")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile is None and self.overlap != TileOptions.overlap:
            raise InputError("An overlap was given without tiles (--overlap); give --tile PIXELS too, or leave it out.")


@dataclass(frozen=True)
class RunOptions(Options):
    """Restoring one picture."""

    title = "Running"

    provider: str = option(GateOptions.provider, "Where onnxruntime runs the file.", choices=PROVIDERS)
    force: bool = option(False, "Replace an existing picture.")
    inputs: Path | None = option(
        None, "What the model takes beside the picture, by name or in order (.npz).", metavar="FILE"
    )


@dataclass(frozen=True)
class AuditOptions(Options):
    """Which students learn what."""

    title = "Students"

    task: str | None = option(
        None,
        "How clean pictures are degraded for the teacher: sr_x2, lowlight, underwater, dehaze or derain.",
    )
    data: Path | None = option(
        None,
        "Folder with train/ and test/ (or one folder, which is cut in two), each with input/ and truth/, or with clean "
        "pictures that --task degrades. Default: the project's own photographs.",
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
        "These rows instead of the profile's, such as shipped+undo/mse-1, separated by commas; may repeat.",
        metavar="NAME",
    )
    seeds: int | None = option(None, "How many students a row has. Default: the profile's.")
    steps: int | None = option(None, "How many steps each student trains. Default: the profile's.")
    require: tuple[str, ...] = option(
        (), "Exit with 1 unless this holds, such as 'feature_kd_drop>=1.0'; may repeat.", metavar="LIMIT"
    )
    report: Path | None = option(None, "Folder for the report. Default: this folder.", metavar="DIR")
    cache: Path = option(
        Path(".asvp-audit"), "Folder that keeps finished students, so that a stopped run goes on from there."
    )
    jobs: int = option(0, "How many students train at a time. Default: one a core; 1 on a GPU.")
    backend: str = option("loky", "Students train in processes (loky) or on a cluster (ray).", choices=("loky", "ray"))
    address: str = option("", "Address of the Ray cluster. Default: one on this machine.")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = (name.strip() for row in self.rows for name in row.split(","))
        object.__setattr__(self, "rows", tuple(filter(None, names)))
        if self.address and self.backend != "ray":
            raise InputError(
                "An address of a cluster was given (--address) for students that train on this machine; give --backend "
                "ray too, or leave it out."
            )
