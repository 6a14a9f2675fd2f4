"""The command line: parses and prints, and holds no logic."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import json
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from asvp_export.console import alone, echo
from asvp_export.errors import AsvpError, InputError

if TYPE_CHECKING:
    from asvp_export.assumptions import Assumption
    from asvp_export.parity.result import ParityResult
    from asvp_export.teacher.model import Teacher
    from asvp_export.tiles import Tiling


_DEBUG = "asvp_export.debug"  # in a command's context


class _Command(click.Command):
    """A command in which nothing is seen but what we say by `echo`; with --debug, all."""

    def invoke(self, ctx: click.Context) -> Any:
        with alone(debug=bool(ctx.meta.get(_DEBUG))):
            return super().invoke(ctx)


class _DefaultGroup(click.Group):
    """`asvp-export MODEL ...` is `asvp-export export MODEL ...`."""

    command_class = _Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help", "-h", "--version"):
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.7)
            if near and not Path(args[0]).exists():
                ctx.fail(f"There is no command and no file {args[0]!r}; did you mean {near[0]}?")
            args = ["export", *args]
        return super().parse_args(ctx, args)


class _Size(click.ParamType):
    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch("0*([1-9][0-9]{0,8})x0*([1-9][0-9]{0,8})", str(value).lower())
        if found is None:
            self.fail(f"{value!r} is not a size; height x width was expected, such as 256x384.", param, ctx)
        return int(found[1]), int(found[2])


class _Auto(click.ParamType):
    """A number, or one of some words."""

    def __init__(self, number: type[int] | type[float], *words: str) -> None:
        self.number = number
        self.words = words or ("auto",)
        self.name = "|".join((*self.words, "INTEGER" if number is int else "FLOAT"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | str:
        if value in self.words:
            return value
        try:
            return self.number(value)
        except ValueError:
            self.fail(f"{value!r} is neither {' nor '.join(self.words)} nor a number.", param, ctx)


class _Json(click.ParamType):
    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(
                f"{value!r} is not JSON ({error}); an object was expected, such as '{{\"scale\": 2}}'.", param, ctx
            )
        if not isinstance(parsed, dict):
            self.fail(f"{value!r} is JSON but not an object; names and values were expected.", param, ctx)
        return parsed


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_PATH = click.Path(path_type=Path)

_LOADING = (
    click.Option(["--arch"], metavar="MODULE:FACTORY", help="What builds the module of a bare state dict: "
                 "package.module:factory or path/nets.py:factory."),
    click.Option(["--arch-args"], type=_Json(), help="Keyword arguments of the factory, as a JSON object."),
    click.Option(["--weights-key"], metavar="KEY", help="Which weights, where the file holds several state dicts: keys, and then "
                 "the beginning of names, joined by dots."),
    click.Option(["--trust-pickle"], is_flag=True, help="Load a pickled module, which runs code from the file."),
    click.Option(["--data-range"], metavar="LOW..HIGH", help="The model's values for black and white: 0..1, -1..1 or 0..255. "
                 "Default: detected where it shows, else 0..1."),
    click.Option(["--main-output"], metavar="NAME", help="Which output is the restored picture, of a model with several. "
                 "Default: the largest picture, and of several the one that is computed from the others."),
    click.Option(["--norm-statistics"], type=click.Choice(["stored", "input"]), default="stored", show_default=True,
                 help="What normalisation layers use: the statistics stored in training, or those of each input."),
    click.Option(["--inputs"], type=_PATH, metavar="FILE", help="An example of each input (.npz, .pt), for models that take "
                 "more than a picture."),
    click.Option(["--layout"], type=click.Choice(["nchw", "nhwc"]), help="Of the picture that the model takes: channels first "
                 "or last. Default: what the file's sizes and first layers say, else what runs."),
    click.Option(["--device"], type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
                 help="Where PyTorch runs the teacher."),
    click.Option(["--probe-timeout"], type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True,
                 metavar="SECONDS", help="How long an ONNX or TorchScript file may take for a run on a small image, while "
                 "sizes are tried out."),
)  # fmt: skip


def _teacher_options(command: Callable[..., int]) -> Callable[..., int]:
    """The options of `asvp_export.load`; the command gets them as one dictionary, `loading`."""

    @functools.wraps(command)
    def gathered(**given: Any) -> int:
        return command(loading={option.name: given.pop(option.name) for option in _LOADING}, **given)

    shown: list[click.Parameter] = gathered.__dict__.setdefault("__click_params__", [])
    shown.extend(reversed(_LOADING))
    return gathered


_gate_options = _options(
    click.option("--images", type=_PATH, help="Folder with inputs of the teacher: degraded pictures where the task is "
                 "restoration. Default: the project's own photographs."),
    click.option("--size", "sizes", type=_Size(), multiple=True, help="Compare on crops of this size; may repeat."),
    click.option("--thorough", is_flag=True, help="Compare on all of the project's own photographs, whole, whatever the model "
                 "costs. Default: as many, and as large crops, as a budget of multiply-adds allows."),
    click.option("--min-psnr", type=float, default=48.0, show_default=True,
                 help="dB that the worst image has to reach against the original."),
    click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
                 help="Where onnxruntime runs the file."),
    click.option("--report", "report", type=_PATH, metavar="DIR", help="Folder for the report, made where it is missing, with a "
                 "page to look at, report.html. Default: the JSON alone, beside the file."),
    click.option("--junit", type=_PATH, metavar="FILE", help="Write the verdict as JUnit XML too."),
)  # fmt: skip

_protect_options = _options(
    click.option(
        "--layers",
        multiple=True,
        metavar="SPEC",
        help="Names or globs of modules (of nodes or tensors of an ONNX file), separated by commas; may repeat. * stays inside one "
        "part of a name, ** crosses parts. auto or auto:N: the N (3) that their spectra speak for, spread over the depth. none: no node.",
    ),
    click.option(
        "--rank",
        type=_Auto(int),
        default="auto",
        show_default=True,
        help="How many leading singular values are amplified. auto: what is best with the gain; 1 beside a gain that is given.",
    ),
    click.option(
        "--gain",
        type=_Auto(float),
        default="auto",
        show_default=True,
        help="The factor on them in the exposed map. auto: the largest that leaves 80 dB of the outputs on the verification "
        "images; with --residual gain the largest that leaves --min-psnr and 1 dB.",
    ),
    click.option(
        "--residual",
        type=_Auto(float, "auto", "gain"),
        help="The factor that is left in the map that the layer's readers get. Default: 1, the outputs stay the original's. "
        "auto (the default beside --compensate): what the re-solved readers allow. gain: no inverse node.",
    ),
    click.option("--max-gain", type=float, default=100.0, show_default=True, help="No gain that is chosen is larger."),
    click.option(
        "--compensate",
        type=click.Choice(["none", "solve", "refine"]),
        default="none",
        show_default=True,
        help="Re-solve the layers that read a protected tensor for the residual gain, so that outputs stay (solve); then "
        "train all behind it (refine).",
    ),
    click.option("--plan", type=_PATH, help="Apply the plan of an earlier export, instead of calibrating."),
    click.option(
        "--energy",
        type=float,
        default=1.0,
        show_default=True,
        help="Stop once this share of the squared singular values is covered.",
    ),
    click.option("--axis", type=int, help="The channel axis. Default: what the layer's output shows."),
)

_WISHES = ("rank", "gain", "residual", "max_gain", "compensate", "energy", "axis")

_tile_options = _options(
    click.option("--tile", type=int, metavar="PIXELS", help="Run tile by tile, for pictures that memory does not hold whole. "
                 "The SVD is global: the result differs from a whole run."),
    click.option("--overlap", type=int, default=32, show_default=True, metavar="PIXELS", help="What two tiles share."),
)  # fmt: skip

_output_options = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."),
    click.option("--quiet", is_flag=True, help="Print nothing but errors."),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        help="Show the traceback of an error, and what the model and the libraries print.",
        callback=lambda context, option, given: context.meta.update({_DEBUG: given}),
    ),
)


@click.group(cls=_DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="asvp-export")
def cli() -> None:
    """Ship an image-restoration model as one ONNX file with a defence against distillation inside.

    `asvp-export MODEL --layers ...` is short for `asvp-export export MODEL --layers ...`.
    """


@cli.command(short_help="Protect MODEL, export it and verify the file (the default).")
@click.argument("model", type=_PATH)
@_protect_options
@click.option(
    "-o", "--output", type=_PATH, help="The ONNX file to write. Default: MODEL's stem + .protected.onnx, here."
)
@_teacher_options
@_gate_options
@click.option(
    "--verify-images",
    type=_PATH,
    help="Folder with the inputs to verify on; --images is then what gains and weights are fitted to. Default: two fifths of "
    "--images.",
)
@click.option(
    "--opset", type=int, help="Of the default ONNX domain, 18 to 26. Default: 18; an ONNX file keeps its own."
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp16: weights and feature maps in float16, the operator's arithmetic in float32.",
)
@click.option("--static", is_flag=True, help="Freeze the one --size, and a batch of 1.")
@click.option("--static-batch", is_flag=True, help="Freeze a batch of 1, and leave height and width free.")
@click.option("--external-data", is_flag=True, help="Keep the tensors in a file of their own, also under 2 GiB.")
@click.option(
    "--portable",
    type=click.Choice(["inline"]),
    help="inline: write the operator's body into the graph, for "
    "readers that do not resolve model-local functions (OpenVINO).",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--model-card", is_flag=True, help="Write a model card, README.md, beside the output.")
@click.option("--keep-failed", is_flag=True, help="When a gate fails, keep the file as OUTPUT's <stem>.failed.onnx.")
@click.option(
    "--ground-truth",
    type=_PATH,
    metavar="DIR",
    help="Folder with the clean picture of each image, under its name: the strip tests are scored against these too.",
)
@_output_options
def export(
    model: Path, layers: Sequence[str], rank: int | str, gain: float | str, residual: float | str | None, max_gain: float,
    compensate: str, plan: Path | None,
    energy: float, axis: int | None, output: Path | None,
    loading: dict[str, Any],
    images: Path | None, sizes: Sequence[tuple[int, int]], thorough: bool, min_psnr: float, provider: str, report: Path | None,
    junit: Path | None, verify_images: Path | None, opset: int | None, dtype: str, static: bool, static_batch: bool,
    external_data: bool, portable: str | None,
    force: bool, model_card: bool, keep_failed: bool, ground_truth: Path | None, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Protect MODEL, export it, verify the file, and only then give it its name."""
    from asvp_export.files import check_output
    from asvp_export.pipeline import export as run_export
    from asvp_export.plan.record import Plan, apply, plan_path
    from asvp_export.protection import check_wishes, protect
    from asvp_export.report.card import card_path
    from asvp_export.report.manifest import manifest_path

    if not layers and plan is None:
        raise click.UsageError("No layers were named: --layers NAMES, --layers auto, or --plan FILE was expected.")
    if plan:
        _refuse_given(("layers", *_WISHES), f"{plan} says what is put in; give one of the two.")
    chosen = Plan.load(plan) if plan else None  # what is wrong with the words is told before a large model is loaded
    check_wishes(rank, gain, max_gain, compensate, energy, residual)
    output = output or Path(f"{model.stem}.protected.onnx")
    check_output(output, force=force)
    shipped = {"manifest": manifest_path(output), **({"model card": card_path(output)} if model_card else {})}
    reports = _report_files(output, report or output.parent, junit, shipped, page=report is not None)
    if model_card:
        check_output(card_path(output), force=force, what="model card")
    if chosen is None and (gain == "auto" or compensate != "none" or any(word.startswith("auto") for word in layers)):
        reports["plan"] = plan_path(output)
    code = {"architecture": Path(loading["arch"].rpartition(":")[0])} if loading["arch"] else {}
    _keep({"model": model, **code, **({"plan": plan} if plan else {})}, {"output": output, **reports})
    say = _progress(quiet or as_json)
    _warn_of_two_runtimes()
    say(f"loading {model.name}")
    teacher = _load(model, loading, quiet)
    if chosen:
        protected = apply(teacher, chosen)
    else:
        protected = protect(
            teacher, layers, rank=rank, gain=gain, residual=residual, energy=energy, axis=axis, min_psnr=min_psnr,
            max_gain=max_gain, compensate=compensate, images=images, verify_images=verify_images, sizes=sizes,
            thorough=thorough, dtype=dtype, progress=say,
        )  # fmt: skip
    if images is None or verify_images is not None:
        images = verify_images
    elif protected.verify_images:
        images = None  # those of the plan
    result = run_export(
        protected, output, images=images, sizes=sizes, thorough=thorough, min_psnr=min_psnr, opset=opset, dtype=dtype, static=static,
        static_batch=static_batch, external_data=external_data, portable=portable or "", force=force, keep_failed=keep_failed,
        provider=provider, evidence="page" in reports, ground_truth=ground_truth, progress=say,
    )  # fmt: skip
    return _finish(result, output, reports, as_json, quiet)


@cli.command(short_help="Compare PROTECTED with ORIGINAL: the parity gate for CI.")
@click.argument("original", type=_PATH)
@click.argument("protected", type=_PATH)
@_teacher_options
@_gate_options
@_tile_options
@click.option("--plan", type=_PATH, help="The plan of a compensated file: fidelity is then measured too.")
@_output_options
def check(
    original: Path, protected: Path, loading: dict[str, Any], images: Path | None, sizes: Sequence[tuple[int, int]], thorough: bool,
    min_psnr: float, provider: str, report: Path | None, junit: Path | None, tile: int | None,
    overlap: int, plan: Path | None, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Compare PROTECTED with ORIGINAL (a teacher or an ONNX file): the parity gate for CI."""
    from asvp_export.gate import check as run_check
    from asvp_export.plan.record import Plan
    from asvp_export.teacher.formats import is_onnx

    tiling = _tiling(tile, overlap)
    reports = _report_files(protected, report, junit, page=report is not None)
    _keep({"original": original, "protected file": protected}, reports)
    say = _progress(quiet or as_json)
    _warn_of_two_runtimes()
    source: Path | Teacher = original
    if not is_onnx(original) or _said("data_range", "inputs", "layout", "main_output"):
        source = _load(original, loading, quiet)
    result = run_check(
        source,
        protected,
        images=images,
        sizes=sizes,
        thorough=thorough,
        min_psnr=min_psnr,
        tiling=tiling,
        plan=Plan.load(plan) if plan else None,
        provider=provider,
        evidence="page" in reports,
        progress=say,
    )
    if source is original and not quiet:
        _tell(result.assumptions)
    return _finish(result, protected, reports, as_json, quiet)


@cli.command(short_help="Train students on what MODEL gives away: what does a thief lose?")
@click.argument("model", type=_PATH)
@click.argument("protected", type=_PATH, required=False)
@click.option(
    "--task", help="How clean pictures become inputs of the teacher: sr_x2, lowlight, underwater, dehaze or derain."
)
@click.option(
    "--data",
    type=_PATH,
    metavar="DIR",
    help="Pictures: train/ and test/ (or one folder, which is cut), each with input/ and truth/, or clean pictures that --task "
    "degrades. Default: the project's own photographs.",
)
@click.option(
    "--student",
    metavar="MODULE:FACTORY",
    default="",
    help="What builds a student. Default: a small residual net of ours.",
)
@click.option("--student-args", type=_Json(), help="Keyword arguments of the student's factory, as a JSON object.")
@click.option(
    "--profile",
    type=click.Choice(["quick", "screen", "full"]),
    default="quick",
    show_default=True,
    help="quick: each question once, 2 seeds, minutes. screen: all losses, weights, taps and attackers, 1 seed. full: eight "
    "rows, 3 seeds, longer training.",
)
@click.option(
    "--rows",
    multiple=True,
    metavar="NAME",
    help="Rows instead of the profile's, such as shipped+undo/mse-1, separated by commas; may repeat.",
)
@click.option("--seeds", type=int, help="Students a row. Default: the profile's.")
@click.option("--steps", type=int, help="Of each student's training. Default: the profile's.")
@click.option(
    "--require", multiple=True, metavar="BAR", help="Fail unless it holds, such as 'feature_kd_drop>=1.0'; may repeat."
)
@click.option(
    "--report", type=_PATH, metavar="DIR", help="Folder for the report, made where it is missing. Default: here."
)
@click.option(
    "--cache",
    type=_PATH,
    default=".asvp-audit",
    show_default=True,
    help="Keeps finished students: a run that was stopped goes on.",
)
@click.option("--jobs", type=int, default=0, help="Students at a time. Default: one a core; 1 on a GPU.")
@click.option(
    "--backend",
    type=click.Choice(["loky", "ray"]),
    default="loky",
    show_default=True,
    help="loky: processes. ray: a cluster.",
)
@click.option("--address", default="", help="Of the Ray cluster. Default: one on this machine.")
@_protect_options
@_teacher_options
@click.option(
    "--images", type=_PATH, help="Folder with inputs of the teacher, which --gain auto and --compensate fit to."
)
@click.option("--verify-images", type=_PATH, help="Folder with other inputs, on which they are verified.")
@click.option(
    "--min-psnr", type=float, default=48.0, show_default=True, help="dB that --gain auto leaves the worst of them."
)
@_output_options
def audit(
    model: Path, protected: Path | None, task: str | None, data: Path | None, student: str,
    student_args: dict[str, Any] | None, profile: str, rows: Sequence[str], seeds: int | None, steps: int | None,
    require: Sequence[str], report: Path | None, cache: Path, jobs: int, backend: str, address: str,
    layers: Sequence[str], rank: int | str, gain: float | str, residual: float | str | None, max_gain: float, compensate: str,
    plan: Path | None, energy: float, axis: int | None, loading: dict[str, Any], images: Path | None, verify_images: Path | None, min_psnr: float,
    as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Train students on what the shipped model gives away, and say what the defence costs them.

    MODEL is the original teacher. What is shipped is PROTECTED, or MODEL protected here, as --plan or --layers say.
    """
    from asvp_export.audit.auditing import run_audit
    from asvp_export.audit.runner import Workers
    from asvp_export.audit.verdict import check_requirements
    from asvp_export.plan.record import Plan, apply
    from asvp_export.protection import check_wishes, protect
    from asvp_export.report.audit_page import write_audit_page
    from asvp_export.report.audit_table import audit_table
    from asvp_export.report.report import write_json

    if sum((protected is not None, plan is not None, bool(layers))) != 1:
        raise click.UsageError(
            "One of the PROTECTED file, --plan FILE and --layers NAMES was expected: what is shipped?"
        )
    if not layers:
        wishes = (*_WISHES, "images", "verify_images", "min_psnr")
        _refuse_given(wishes, f"{protected or plan} says what is shipped; name layers, or leave the option out.")
    if task is None and data is None:
        raise click.UsageError("No pictures were named: --task NAME, --data DIR, or both, was expected.")
    check_requirements(require)
    named = [name.strip() for one in rows for name in one.split(",") if name.strip()]
    check_wishes(rank, gain, max_gain, compensate, energy, residual)
    reports = _audit_files(report or Path(), (protected or model).stem)
    given = {"model": model, **({"protected file": protected} if protected else {}), **({"plan": plan} if plan else {})}
    _keep(given, reports)
    chosen, say = Plan.load(plan) if plan else None, _progress(quiet or as_json)
    say(f"loading {model.name}")
    teacher = _load(model, loading, quiet)
    subject: Any = teacher
    if chosen:
        subject = apply(teacher, chosen)
    elif protected is None:
        subject = protect(
            teacher, layers, rank=rank, gain=gain, residual=residual, energy=energy, axis=axis, min_psnr=min_psnr,
            max_gain=max_gain, compensate=compensate, images=images, verify_images=verify_images, progress=say,
        )  # fmt: skip
    result = run_audit(
        subject, protected, task=task, data=data, student=student, student_args=student_args, profile=profile,
        rows=named, seeds=seeds, steps=steps, require=require, cache=cache, workers=Workers(jobs, backend, address),
        progress=say,
    )  # fmt: skip
    with contextlib.suppress(FileExistsError):
        reports["report"].parent.mkdir()
    write_json(reports["report"], result.as_dict())
    write_audit_page(result, reports["page"])
    if as_json:
        _print_json(result.as_dict())
    elif not quiet:
        audit_table(result, reports)
    for bar in result.bars:
        if not bar.passed:
            found = "its row was not run" if bar.found is None else f"it is {bar.found:.2f}"
            echo(f"The bar {bar.text} is not cleared: {found}.", err=True)
    return 0 if result.passed else 1


def _audit_files(folder: Path, stem: str) -> dict[str, Path]:
    """Where the audit's reports go; refused here, before the long work, where they could not be written."""
    found = {"report": folder / f"{stem}.audit.json", "page": folder / f"{stem}.audit.html"}
    place = folder if folder.exists() else folder.parent
    if not place.is_dir():
        raise InputError(f"The folder of the report, {place}, does not exist; create it first.")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        from asvp_export.files import write_error

        raise write_error(error, found["report"]) from error
    return found


@cli.command()
@click.argument("model", type=_PATH)
@_teacher_options
@_output_options
def layers(
    model: Path, loading: dict[str, Any], as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """List the layers of MODEL that can carry the node."""
    from asvp_export.report.tables import layers_as_dict, layers_table
    from asvp_export.teacher.layers import candidates

    teacher = _load(model, loading, quiet=quiet or not as_json)  # the table opens with what was concluded
    found, refused = candidates(teacher)
    if as_json:
        _print_json(layers_as_dict(teacher, found, refused))
    elif not quiet:
        layers_table(teacher, found, refused)
    return 0


@cli.command()
@click.argument("protected", type=_PATH)
@click.option(
    "--verify", is_flag=True, help="Hold PROTECTED and what was shipped with it against its manifest instead."
)
@_output_options
def inspect(protected: Path, verify: bool, as_json: bool, quiet: bool) -> int:
    """Show the nodes, the attributes and the provenance of PROTECTED."""
    if verify:
        return _verify(protected, as_json, quiet)

    from asvp_export.graph.describe import describe
    from asvp_export.report.tables import description_table

    found = describe(protected)
    if as_json:
        _print_json(found)
    elif not quiet:
        description_table(found)
    return 0


def _verify(protected: Path, as_json: bool, quiet: bool) -> int:
    from asvp_export.report.manifest import verify

    found = verify(protected)
    if as_json:
        _print_json(found.as_dict())
        return 0 if found.passed else 1
    for problem in found.problems:
        echo(problem, err=True)
    if found.passed and not quiet:
        echo(f"{protected} is as {found.manifest} lists it: {', '.join(found.files)}")
    return 0 if found.passed else 1


@cli.command()
@click.argument("protected", type=_PATH)
@click.argument("image", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="The picture to write: .png, .jpg or .webp.")
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--force", is_flag=True, help="Replace an existing picture.")
@click.option(
    "--inputs", type=_PATH, metavar="FILE", help="What the model takes beside the image, by name or in order (.npz)."
)
@_tile_options
@_output_options
def run(
    protected: Path,
    image: Path,
    output: Path,
    provider: str,
    inputs: Path | None,
    force: bool,
    tile: int | None,
    overlap: int,
    as_json: bool,
    quiet: bool,
) -> int:
    """Restore IMAGE with PROTECTED, at any size."""
    from asvp_export.files import check_output
    from asvp_export.images import image_format, read_npz, write_image
    from asvp_export.picture import read_picture
    from asvp_export.restoration import restore

    image_format(output)
    check_output(output, force=force)
    _keep({"protected file": protected, "image": image}, {"output": output})
    picture = read_picture(image)
    image_format(output, picture)
    note = (lambda line: None) if quiet else (lambda line: echo(line, err=True))
    for line in picture.notes:
        note(line)
    restored = restore(
        protected, picture.pixels, provider=provider, tiling=_tiling(tile, overlap),
        others=read_npz(inputs) if inputs else (), note=note,
    )  # fmt: skip
    write_image(output, restored, picture, note)
    height, width = picture.pixels.shape[:2]
    sizes = {"input": [height, width], "output": list(restored.shape[:2])}
    if as_json:
        _print_json({"written": output.name, **sizes})
    elif not quiet:
        echo(f"{output}: {restored.shape[1]} x {restored.shape[0]} (from {width} x {height})")
    return 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point: exit codes 0 done, 1 gate failed, 2 bad usage or input, 3 the machine failed us, 130 Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("SIGTERM", "SIGHUP"):  # so that a kill and a closed terminal also clean up
        if number := getattr(signal, name, None):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(cli.main(args=arguments, prog_name="asvp-export", standalone_mode=False) or 0)
    except AsvpError as error:
        _trace(arguments)
        _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        helped = f" {context.command_path} --help lists what it takes." if context else ""
        _fail(error.format_message() + helped, 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("Interrupted; nothing half-written was left.", 130)
    except MemoryError:
        _fail("The machine ran out of memory; use smaller images, or a machine with more.", 3)
    except OSError as error:
        _trace(arguments)
        where = f" ({error.filename})" if error.filename else ""
        _fail(
            f"The machine says {error.strerror or error}{where}; see to that and run again.",
            2 if error.errno == errno.ENAMETOOLONG else 3,
        )
    except Exception as error:  # Python would end with 1, which says that a gate failed
        _trace(arguments)
        reason = next(iter(str(error).splitlines()), "").rstrip(".")
        _fail(f"Something went wrong that was not foreseen, {type(error).__name__}: {reason}. Run it with --debug.", 3)


def _trace(arguments: Sequence[str]) -> None:
    if "--debug" in arguments:
        traceback.print_exc()


def _fail(message: str, code: int) -> NoReturn:
    echo(f"Error: {message}", err=True)
    sys.exit(code)


def _load(model: Path, loading: dict[str, Any], quiet: bool) -> Teacher:
    """Load the teacher, and say what was concluded of it that is not certain."""
    from asvp_export.teacher.load import load

    teacher = load(model, **loading)
    if not quiet:
        _tell(teacher.assumptions)
    return teacher


def _tell(assumptions: Sequence[Assumption]) -> None:
    for one in assumptions:
        if not one.certain:
            echo(f"assumed, {one}", err=True)


def _said(*names: str) -> bool:
    """Whether any of these options stands on the command line."""
    context = click.get_current_context()
    return any(context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE for name in names)


def _tiling(tile: int | None, overlap: int) -> Tiling | None:
    from asvp_export.tiles import Tiling

    return None if tile is None else Tiling(tile, overlap)


def _report_files(
    file: Path, folder: Path | None, junit: Path | None, shipped: dict[str, Path] | None = None, page: bool = False
) -> dict[str, Path]:
    """Where the reports on `file` go, and what is shipped with it; refused here, before the long work, where they could not be written."""
    from asvp_export.files import write_error

    found: dict[str, Path] = {}
    if folder is not None:
        found["report"] = folder / f"{file.stem}.report.json"
    if folder is not None and page:
        found["page"] = folder / "report.html"
    if junit is not None:
        found["JUnit file"] = junit
    found |= shipped or {}
    for what, path in found.items():
        place = path.parent
        if page and place == folder and not place.exists():  # it is made when there is something to put into it
            place = place.parent
        if not place.is_dir():
            raise InputError(f"The folder of the {what}, {path.parent}, does not exist; create it first.")
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise write_error(error, file if path.parent == file.parent else path) from error
    return found


def _refuse_given(names: Sequence[str], reason: str) -> None:
    """Refuse options that would say nothing here."""
    for name in names:
        if _said(name):
            raise click.UsageError(f"--{name.replace('_', '-')} was given, and {reason}")


def _keep(read: dict[str, Path], written: dict[str, Path]) -> None:
    """Refuse to write two things to one file, over a file that is read, or over what is no file, --force or not."""
    seen = dict(read)
    for what, path in written.items():
        if path.exists() and not path.is_file():
            raise InputError(f"The {what} {path} is a folder or a device; name a file.")
        for other, theirs in seen.items():
            same = path.exists() and theirs.exists() and path.samefile(theirs)  # hard links too
            if same or path.resolve() == theirs.resolve():
                raise InputError(f"The {what} {path} is the {other} itself; name another file for the {what}.")
        seen[what] = path


def _finish(result: ParityResult, file: Path, reports: dict[str, Path], as_json: bool, quiet: bool) -> int:
    """Write the reports, print the verdict, and say with which code to exit."""
    from asvp_export.report.junit import write_junit
    from asvp_export.report.report import write_json
    from asvp_export.report.tables import result_table

    data = result.as_dict()
    if result.plan and "plan" in reports:
        result.plan.save(reports["plan"])
    else:
        reports = {what: path for what, path in reports.items() if what != "plan"}
    if path := reports.get("report"):
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir()
        write_json(path, data)
    if path := reports.get("page"):
        from asvp_export.report.page import write_page
        from asvp_export.report.plan import plan_tables
        from asvp_export.report.strips import strip_table

        write_page(
            result,
            path,
            plan=plan_tables(result.plan) if result.plan else [],
            strips=[strip_table(result.strips)] if result.strips else [],
        )
    if path := reports.get("JUnit file"):
        write_junit(path, file.name, result.gates)
    if "manifest" in reports:
        if result.passed:
            _ship(result, reports)
        else:
            reports = {what: path for what, path in reports.items() if what not in ("manifest", "model card")}
    if as_json:
        _print_json(data)
    elif not quiet:
        result_table(result, file, reports)
    if not result.passed and not as_json:
        from asvp_export.parity.verify import failure_text

        for name, gate in result.gates.items():
            if not gate.passed:
                echo(failure_text(name, gate), err=True)
        if result.fitting_gain:
            taken_back = any(node.inverse for node in result.nodes.values())
            other = "" if taken_back else (
                " Or accept a lower --min-psnr, or leave --residual gain out: the outputs then stay the original's at any gain."
            )  # fmt: skip
            echo(f"At these layers --gain {result.fitting_gain:g} would about fit.{other}", err=True)
    return 0 if result.passed else 1


def _ship(result: ParityResult, files: dict[str, Path]) -> None:
    """Write what lies beside a file that passed: its card, then the manifest of all."""
    from asvp_export.report.card import write_card
    from asvp_export.report.manifest import write_manifest

    card = write_card(result) if "model card" in files else None
    write_manifest(result, report=files["report"], card=card)


def _progress(silent: bool) -> Callable[[str], None]:
    from asvp_export.progress import for_terminal

    return (lambda line: None) if silent else for_terminal(lambda line: echo(f"{line} ...", err=True))


def _warn_of_two_runtimes() -> None:
    from asvp_export.parity.session import conflicting_onnxruntime

    if warning := conflicting_onnxruntime():
        echo(f"Warning: {warning}", err=True)


def _print_json(data: Any) -> None:
    from asvp_export.report.report import strict_json

    echo(strict_json(data), nl=False)
