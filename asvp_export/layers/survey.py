"""The modules of a teacher whose output can carry a node: finding, measuring and selecting them."""

from __future__ import annotations

import difflib
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

import asvp_export.operator  # noqa: F401  registers torch.ops.asvp.perturb
from asvp_export.errors import InputError, MachineError
from asvp_export.teacher.architecture import one_line
from asvp_export.teacher.model import Teacher
from asvp_export.teacher.onnx_model import OnnxModule

_TIMED_RUNS = 3


@dataclass(frozen=True)
class Layer:
    """A module that can carry a node, measured on the teacher's example image."""

    name: str
    """Its dotted name in `named_modules()`."""

    type: str
    """Its class name; in a .pt2 archive that of the module that was exported."""

    calls: int
    """How often one forward calls it; the node acts at each call."""

    shape: tuple[int, ...]
    """Shape of the first call's output, the batch first."""

    axis: int
    """The channel axis for the node: 1 for N,C,H,W; -1 for N,L,C and N,H,W,C."""

    leading_share: float
    """s_1^2 / sum s_i^2 of the first sample's C x L matrix, float64; 0 for a map of zeros."""

    effective_rank: float
    """exp of the entropy of s_i^2 / sum s_i^2; 0 for a map of zeros. Roy and Vetterli (2007), "The effective rank",
    define it with s_i; this is the variant with energies s_i^2, the shares on which the node's `energy` acts too."""

    layer_ms: float
    """Milliseconds of the module's first call, median of a few forwards."""

    node_ms: float
    """Milliseconds of the PyTorch operator (rank 1) on the first call's output, median of a few runs."""


@dataclass(frozen=True)
class Site:
    """Where a node goes."""

    shape: tuple[int, ...]
    """Shape of the first call's output, the batch first."""

    axis: int
    """The channel axis for the node: 1 for N,C,H,W; -1 for N,L,C and N,H,W,C."""


@dataclass
class _Trace:
    """What the calls of one module returned in one forward."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    """Of each call's output."""

    problem: str = ""
    """Why the output of a call cannot carry a node."""

    tensors: set[tuple[int, int]] = field(default_factory=set)
    """Identity and version of each output: an in-place ReLU returns the same tensor in a new version."""


@dataclass
class _Survey:
    """Who can carry a node."""

    axes: dict[str, int]
    """Carriers and their channel axes, in the order in which their first outputs appear in a forward."""

    reasons: dict[str, str]
    """Every other module, and why not."""

    traces: dict[str, _Trace]
    """What each module returned."""

    aliases: dict[str, str]
    """Every name under which a module can be asked for, to the one under which it goes."""

    kinds: dict[str, str]
    """The class of each module, or the operator of each tensor."""

    elsewhere: dict[str, str] = field(default_factory=dict)
    """Names in the file that are no layers, and what they are."""

    separator: str = "."
    """What stands between the parts of a name."""


def candidates(teacher: Teacher) -> tuple[list[Layer], dict[str, str]]:
    """List the modules whose output can carry a node, and say of every other why it cannot.

    A carrier returns one floating tensor from every call, with the batch on axis 0, one channel axis and at least one
    spatial axis. Which axis is which is observed: a second forward takes another height, another width and two
    images, and the one axis besides the batch that does not change is the channels. Where that forward is impossible
    (a .pt2 archive with static sizes) the layout is inferred from the shape: in four dimensions channels are last
    where only axes 1 and 2 have the image's proportions, otherwise on axis 1; in three they are the axis that is not
    a pixel count of the image at some power of two; what stays unclear is refused.

    Args:
        teacher: the teacher; six forwards at about 64 x 96 pixels.

    Returns:
        The layers in the order of their first outputs in a forward, and a dictionary from name to reason for the rest.

    Raises:
        InputError: the teacher fails on its own example.
    """
    survey = _survey(teacher)
    if (graph := graph_of(teacher)) is not None:
        from asvp_export.teacher.onnx_layers import graph_candidates

        return graph_candidates(teacher, graph, survey), survey.reasons
    modules = dict(teacher.module.named_modules())
    times = _layer_times(teacher, {name: modules[name] for name in survey.axes})
    measured = _measure_outputs(teacher, {name: (modules[name], axis) for name, axis in survey.axes.items()})
    layers = []
    for name, axis in survey.axes.items():
        if name not in measured:
            survey.reasons[name] = "returns NaN or Inf for the example image"
            continue
        share, rank, node_ms = measured[name]
        shapes = survey.traces[name].shapes
        kind = _type_name(modules[name])
        layers.append(Layer(name, kind, len(shapes), shapes[0], axis, share, rank, times[name], node_ms))
    return layers, survey.reasons


def select(teacher: Teacher, patterns: Sequence[str]) -> dict[str, Site]:
    """Resolve names and globs to the modules that get a node.

    In a glob `*` stands for any part of one name between dots, `**` for any number of names, `?` for one character and
    `[ab]` for one of several: `body.*` takes the children of body, `body.**` everything inside it, `**.conv1` every
    conv1. A glob takes the modules that can carry the node and passes over the others; a plain name must be able to.
    Where two modules return one and the same tensor (a container and its last child, a layer and the inactive
    dropout behind it) a glob takes the first to return it, or the one that is named plainly.

    Args:
        teacher: the teacher; two forwards.
        patterns: each may hold several, split at commas; what is a layer's own name, commas and all, is not split.

    Returns:
        Name to site, in the order of the layers' first outputs in a forward.

    Raises:
        InputError: an unknown name (with the nearest), a module that cannot carry the node (with the reason), a glob
            that matches nothing or no carrier, or two plain names for one tensor.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    if not any(pattern.replace(",", " ").strip() for pattern in given):
        raise InputError(
            "No layer is named; give names or globs such as body.*, and list them with asvp-export layers."
        )
    survey = _survey(teacher)
    words = [word for pattern in given for word in _words(pattern, survey.aliases)]
    plain: set[str] = set()
    matched: set[str] = set()
    for word in words:
        if re.search(r"[*?[]", word) and word not in survey.aliases:
            matched |= _match(word, survey)
        else:
            plain.add(_named(word, survey))
    names = _without_doubles([name for name in survey.axes if name in plain | matched], plain, survey)
    return {name: Site(survey.traces[name].shapes[0], survey.axes[name]) for name in names}


def _words(pattern: str, names: Collection[str]) -> list[str]:
    """A pattern split at its commas, but for those inside a layer's name: the longest name wins, unless its parts are names too."""
    if pattern.strip() in names:
        return [pattern.strip()]
    parts, words = pattern.split(","), []
    while parts:
        for end in range(len(parts), 0, -1):
            word = ",".join(parts[:end]).strip()
            if end == 1 or (word in names and not all(part.strip() in names for part in parts[:end])):
                words += [word] if word else []
                del parts[:end]
                break
    return words


def _named(word: str, survey: _Survey) -> str:
    if word not in survey.aliases and word in survey.elsewhere:
        raise InputError(f"The name {word} cannot carry the node: it {survey.elsewhere[word]}.")
    if word not in survey.aliases:
        near = difflib.get_close_matches(word, survey.aliases, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else _there_is(survey)
        raise InputError(f"There is no layer {word!r}; {hint}.")
    name = survey.aliases[word]
    if name not in survey.axes:
        raise InputError(f"The layer {word} cannot carry the node: it {survey.reasons[name]}.")
    return name


def _match(glob: str, survey: _Survey) -> set[str]:
    pattern = _translate(glob, survey.separator)
    everyone = [*survey.axes, *survey.reasons]
    meant = {survey.aliases.get(name, name) for name in (*everyone, *survey.aliases) if pattern.fullmatch(name)}
    found = [name for name in everyone if name in meant]
    if not found:
        near = difflib.get_close_matches(re.sub(r"[*?\[\]]", "", glob), everyone, n=3, cutoff=0.3)
        nearest = f"the nearest names are {', '.join(near)}; " if near else ""
        raise InputError(
            f"No layer matches {glob!r} (* stays inside one part of a name, ** crosses parts); {nearest}{_there_is(survey)}."
        )
    carriers = {name for name in found if name in survey.axes}
    if not carriers:
        why = "; ".join(f"{name} {survey.reasons[name]}" for name in found[:3])
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(f"None of the layers that match {glob!r} can carry the node: {why}{more}.")
    return carriers


def _there_is(survey: _Survey) -> str:
    """How many layers of which kinds could be named, the commonest kinds first."""
    kinds = Counter(survey.kinds[name] for name in survey.axes).most_common()
    shown = [f"{count} {kind}" for kind, count in kinds[:4]]
    others = sum(count for _, count in kinds[4:])
    listed = ", ".join([*shown, f"{others} others"] if others else shown)
    return f"{len(survey.axes)} layers can carry the node ({listed}), and asvp-export layers MODEL lists them"


def _translate(glob: str, separator: str) -> re.Pattern[str]:
    """A regular expression for our globs; fnmatch will not do, since its * crosses dots (slashes in an ONNX graph)."""
    between = re.escape(separator)
    tokens = {f"**{separator}": rf"(?:.*{between})?", "**": ".*", "*": rf"[^{between}]*", "?": rf"[^{between}]"}
    out = []
    for token in re.findall(rf"\*\*{between}|\*\*|\*|\?|\[[^]]+\]|.", glob):
        if len(token) > 2 and token.startswith("["):
            inside = re.sub(r"([\\\[])", r"\\\1", token[1:-1])
            out.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
        else:
            out.append(tokens.get(token) or re.escape(token))
    try:
        return re.compile("".join(out))
    except re.error as error:
        raise InputError(f"The pattern {glob!r} cannot be read: {error}.") from error


def graph_of(teacher: Teacher, opset: int | None = None) -> OnnxModule | None:
    """The ONNX graph of a teacher whose layers are tensors of a graph, None where they are modules.

    Args:
        teacher: of any format.
        opset: in which a TorchScript teacher becomes a graph; None: the default.
    """
    if isinstance(teacher.module, torch.jit.ScriptModule):
        from asvp_export.teacher.torchscript import converted

        return converted(teacher, opset)
    return teacher.module if isinstance(teacher.module, OnnxModule) else None


def _without_doubles(names: list[str], plain: set[str], survey: _Survey) -> list[str]:
    """Leave one module for each tensor."""
    kept: list[str] = []
    for name in sorted(names, key=lambda name: name not in plain):  # plain names first; stable otherwise
        tensors = survey.traces[name].tensors
        twin = next((other for other in kept if survey.traces[other].tensors & tensors), None)
        if twin is None:
            kept.append(name)
        elif name in plain:
            raise InputError(
                f"{twin} and {name} return one and the same tensor, which would get two nodes: select one of them."
            )
    return [name for name in names if name in kept]


def _aliases(root: nn.Module) -> dict[str, str]:
    """Every name of every module but the root; a module with two names goes under the first."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(module), name) for name, module in root.named_modules(remove_duplicate=False) if name
    }


def _type_name(module: nn.Module) -> str:
    exported = getattr(module, "type_name", None)  # modules of an unflattened archive
    name = exported() if callable(exported) else None
    return name.rpartition(".")[2] if isinstance(name, str) else type(module).__name__


def _survey(teacher: Teacher) -> _Survey:
    """Run the teacher at two sizes and judge every module, or every tensor of an ONNX graph."""
    if (graph := graph_of(teacher)) is not None:
        from asvp_export.teacher.onnx_layers import graph_survey

        return graph_survey(teacher, graph)
    image = teacher.example()
    first = _trace(teacher, image)
    second = None
    if teacher.fixed[2] is None and teacher.fixed[3] is None:
        height = image.shape[-2]
        # Not 128 x 64, which has as many positions as 64 x 96 once both are padded to a multiple of 64.
        try:
            second = _trace(teacher, teacher.example(height * (2 if teacher.size.square else 3), height, batch=2))
        except InputError:  # an archive with an upper bound on its sizes
            second = None
    axes: dict[str, int] = {}
    reasons: dict[str, str] = {}
    batches = (image.shape[0], teacher.fixed[0] or 2)
    for name, trace in first.items():
        other = None if second is None else second.get(name, _Trace())
        verdict = _judge(trace, other, batches, (image.shape[-2], image.shape[-1]), teacher.signature.frames)
        if isinstance(verdict, int):
            axes[name] = verdict
        else:
            reasons[name] = verdict
    for name, module in teacher.module.named_modules():
        if name and name not in first:
            listed = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict))
            reasons[name] = "is a list of modules, never called itself" if listed else "is never called in a forward"
    kinds = {name: _type_name(module) for name, module in teacher.module.named_modules()}
    return _Survey(axes, reasons, first, _aliases(teacher.module), kinds)


def _trace(teacher: Teacher, image: torch.Tensor) -> dict[str, _Trace]:
    """Run once and note what each module returned, in the order in which the outputs appeared."""
    traces: dict[str, _Trace] = {}
    alive: list[torch.Tensor] = []  # so that no identity is used twice

    def hook(name: str, output: object) -> None:
        trace = traces.setdefault(name, _Trace())
        problem = _output_problem(output)
        if isinstance(output, torch.Tensor) and not problem:
            trace.shapes.append(tuple(output.shape))
            version = 0 if output.is_inference() else output._version
            trace.tensors.add((id(output), version))
            alive.append(output)
        trace.problem = trace.problem or problem

    _run(teacher, image, hook)
    return traces


def _run(
    teacher: Teacher,
    image: torch.Tensor,
    after: Callable[[str, object], None],
    before: Callable[[str], None] | None = None,
    names: set[str] | None = None,
) -> None:
    """One forward with `after(name, output)` behind, and `before(name)` in front of, each call of the named modules."""
    handles = []
    try:
        for name, module in teacher.module.named_modules():
            if not name or (names is not None and name not in names):
                continue
            if before is not None:
                handles.append(module.register_forward_pre_hook(lambda _m, _i, name=name: before(name)))
            handles.append(module.register_forward_hook(lambda _m, _i, output, name=name: after(name, output)))
        with torch.no_grad():
            teacher.module(*teacher.inputs(image))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MachineError(f"Memory ran out while {teacher.source} ran at {_shape(image)}.") from error
    except Exception as error:
        raise InputError(f"{teacher.source} fails on an image of {_shape(image)}: {one_line(error)}.") from error
    finally:
        for handle in handles:
            handle.remove()


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _output_problem(output: object) -> str:
    if not isinstance(output, torch.Tensor):
        items = f" of {len(output)}" if isinstance(output, (tuple, list, dict)) else ""
        return f"returns {'nothing' if output is None else f'a {type(output).__name__}{items}, not one tensor'}"
    if not output.is_floating_point():
        return f"returns {str(output.dtype).removeprefix('torch.')} numbers, not floating-point ones"
    shape = "x".join(map(str, output.shape)) or "no dimensions"
    if output.ndim < 3:
        return f"returns a {output.ndim}-D tensor ({shape}), not a feature map"
    if output.layout != torch.strided:
        return "returns a sparse tensor"
    return ""


def _judge(
    first: _Trace, second: _Trace | None, batches: tuple[int, int], image: tuple[int, int], frames: int | None
) -> int | str:
    """The channel axis of a module's outputs, or why it cannot carry a node."""
    problem = first.problem or (second.problem if second else "")
    if problem:
        return problem
    if second is not None and len(first.shapes) != len(second.shapes):
        return f"is called {len(first.shapes)} times at one image size and {len(second.shapes)} times at another"
    verdicts: list[int | str] = []
    for call, shape in enumerate(first.shapes):
        if second is None:
            verdicts.append(_infer_axis(shape, batches[0], image))
        else:
            verdicts.append(_observe_axis(shape, second.shapes[call], batches, frames))
    reason = next((verdict for verdict in verdicts if isinstance(verdict, str)), None)
    if reason is not None:
        return reason
    return verdicts[0] if len(set(verdicts)) == 1 else "returns its channels on another axis at another call"


def _observe_axis(
    first: tuple[int, ...], second: tuple[int, ...], batches: tuple[int, int], frames: int | None
) -> int | str:
    """The axis that stays when height, width and batch change; of a video, the frames stay as well.

    Frames folded into the batch are samples of their own: a node there works a frame at a time.
    """
    shown = "x".join(map(str, first))
    if len(first) != len(second):
        return f"returns {len(first)} dimensions at one image size and {len(second)} at another"
    folded = frames is not None and (first[0], second[0]) == (frames * batches[0], frames * batches[1])
    if (first[0], second[0]) != batches and not folded:
        return f"returns {shown} at every image size" if first == second else _folded(first, batches[0])
    moving = [axis for axis in range(1, len(first)) if first[axis] != second[axis]]
    if not moving:
        return f"returns {shown} at every image size: there is no spatial axis"
    constant = [axis for axis in range(1, len(first)) if axis not in moving]
    if len(constant) > 1:
        constant = [axis for axis in constant if first[axis] != 1]
    if len(constant) > 1 and frames is not None and not folded:
        constant = [axis for axis in constant if first[axis] != frames] or constant
    if len(constant) != 1:
        count = "no axis" if not constant else "more than one axis"
        return f"returns {shown}, in which {count} stays when the image's size changes: the channel axis is not clear"
    return _normal(constant[0], len(first))


def _folded(shape: tuple[int, ...], batch: int) -> str:
    """Why an output is refused whose first axis is not the batch: as a rule there are windows or patches in it."""
    pieces, rest = divmod(shape[0], batch)
    shown = "x".join(map(str, shape))
    if rest or pieces < 2:
        return f"returns {shown}, whose first axis is not the batch"
    return (
        f"returns {shown}, {pieces} windows or patches of each image on the batch axis: a node there would work on each of them "
        "alone, not on the image (take a layer around them, such as the block)"
    )


def _infer_axis(shape: tuple[int, ...], batch: int, image: tuple[int, int]) -> int | str:
    """The likely channel axis of one shape, where the image's size cannot be changed."""
    shown = "x".join(map(str, shape))
    height, width = image
    if shape[0] != batch:
        return _folded(shape, batch)
    if len(shape) == 4:
        first = shape[2] * width == shape[3] * height and shape[2] * shape[3] > 1
        last = shape[1] * width == shape[2] * height and shape[1] * shape[2] > 1
        if shape[2:] == (1, 1):
            return f"returns {shown}: there is no spatial axis"
        return -1 if last and not first else 1
    if len(shape) == 3:
        counts = {height * width * up * up for up in (1, 2, 3, 4)}
        counts |= {height * width // down**2 for down in (2, 4, 8, 16, 32) if height % down == width % down == 0}
        fits = [axis for axis in (1, 2) if shape[axis] in counts]
        if len(fits) == 1:
            return _normal(3 - fits[0], 3)
    return f"returns {shown}, in which the channel axis is not clear; an archive with dynamic sizes would show it"


def _normal(axis: int, ndim: int) -> int:
    """-1 for the last axis: the two spellings of the operator's contract are 1 and -1."""
    return -1 if axis == ndim - 1 else axis


def _layer_times(teacher: Teacher, modules: dict[str, nn.Module]) -> dict[str, float]:
    """Milliseconds of each module's first call, the median of a few forwards."""
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(_TIMED_RUNS):
        started: dict[str, float] = {}
        ended: dict[str, float] = {}

        def start(name: str, started: dict[str, float] = started) -> None:
            started.setdefault(name, _now(teacher.device))

        def end(name: str, _output: object, ended: dict[str, float] = ended) -> None:
            ended.setdefault(name, _now(teacher.device))

        _run(teacher, teacher.example(), end, start, set(modules))
        for name, moment in ended.items():
            times[name].append(1000 * (moment - started[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _measure_outputs(
    teacher: Teacher, carriers: dict[str, tuple[nn.Module, int]]
) -> dict[str, tuple[float, float, float]]:
    """Leading share, effective rank and the node's milliseconds for each first output; none where it is not finite."""
    measured: dict[str, tuple[float, float, float]] = {}
    seen: set[str] = set()

    def hook(name: str, output: object) -> None:
        if name in seen or not isinstance(output, torch.Tensor):
            return
        seen.add(name)
        axis = carriers[name][1]
        if torch.isfinite(output).all():
            measured[name] = (*_spectrum(output[0], axis if axis < 0 else axis - 1), _node_time(output, axis))

    _run(teacher, teacher.example(), hook, names=set(carriers))
    return measured


def _spectrum(sample: torch.Tensor, axis: int) -> tuple[float, float]:
    """Leading share and effective rank of one sample's channels x positions matrix."""
    matrix = sample.detach().to("cpu", torch.float64).movedim(axis, 0).flatten(1)  # [C, L]
    matrix = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    peak = matrix.abs().max()
    if peak == 0:
        return 0.0, 0.0
    matrix = matrix / peak
    energies = torch.linalg.eigvalsh(matrix @ matrix.T).clamp(min=0)
    shares = energies / energies.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(shares.max()), float(entropy.exp())


def _node_time(output: torch.Tensor, axis: int) -> float:
    times = []
    for _ in range(_TIMED_RUNS + 1):
        begin = _now(str(output.device))
        torch.ops.asvp.perturb(output, 1, 1.1, 1.0, axis)
        times.append(1000 * (_now(str(output.device)) - begin))
    return statistics.median(times[1:])  # the first one warms up


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
