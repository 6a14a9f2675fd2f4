"""Which of an image's axes are its channels: N,C,H,W or N,H,W,C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError
from asvp_export.signature import CHANNELS, NCHW, NHWC, looks_channels_last, shape_text
from asvp_export.teacher.onnx_model import OnnxModule
from asvp_export.teacher.probe import Findings
from asvp_export.teacher.pt2 import Dims

_OPTION = "--layout nchw|nhwc"
_NAMES = {False: "N,C,H,W (channels first)", True: "N,H,W,C (channels last)"}

# What leaves the axes where they are, and what takes the channels from axis 1.
_PLAIN = ("Add", "Cast", "Clip", "DequantizeLinear", "Div", "Identity", "Mul", "Pad", "QuantizeLinear", "Sub")
_FIRST = ("AveragePool", "BatchNormalization", "Conv", "DepthToSpace", "InstanceNormalization", "MaxPool")
_TO_FRONT = [0, 3, 1, 2]


@dataclass(frozen=True)
class Layout:
    """One reading of the image's axes."""

    channels_last: bool
    """N,H,W,C, not N,C,H,W."""

    because: str = ""
    """What speaks for it, as the rest of a sentence; "" where it is the usual one and nothing speaks against it."""

    certain: bool = True
    """Whether nothing speaks for the other one."""


def frozen(sizes: Sequence[int | None], channels_last: bool) -> Dims:
    """The frozen sizes of an image input as N, C, H, W.

    Args:
        sizes: as the model declares them, None where free; of a video N, T, C, H, W.
        channels_last: they are N, H, W, C.
    """
    if channels_last:
        n, h, w, c = sizes
        return n, c, h, w
    return sizes[0], sizes[-3], sizes[-2], sizes[-1]


def readings(requested: str | None, sizes: Sequence[int | None], module: nn.Module) -> list[Layout]:
    """The layouts in which a model is tried, the likelier one first.

    A graph that begins by moving the last axis in front of the others, or by a convolution, shows its layout. Else the
    sizes that it declares may show it; where they do not, both layouts are run.

    Args:
        requested: what the user says of it, "nchw" or "nhwc"; None: nothing.
        sizes: of the image input as the model declares them, None where free.
        module: the model.

    Raises:
        InputError: the model takes videos channels last.
    """
    if len(sizes) == 5 and (requested == NHWC or (requested is None and looks_channels_last(sizes))):
        shown = shape_text(size or "?" for size in sizes)
        raise InputError(
            f"The image input is {shown}, a video with its channels last; videos are taken as N,T,C,H,W only. Put a "
            f"transpose before and behind the model, or give --layout {NCHW} if the input is not a video."
        )
    if requested is not None:
        return [Layout(requested == NHWC)]
    if len(sizes) == 5:
        return [Layout(False)]
    moves_channels = _moves_channels(module) if isinstance(module, OnnxModule) else None
    _, second, _, last = sizes
    second_axis = f"the second axis is {second or 'free'}"
    if moves_channels is not False and looks_channels_last(sizes):
        shape = f"the last axis of the picture is {last} and fixed, while {second_axis}"
        moved = ", and the graph begins by moving the last axis in front of the others" if moves_channels else ""
        return [Layout(True, shape + moved, certain=bool(moves_channels) or None in sizes[1:3])]
    if moves_channels and not (second in CHANNELS and last not in CHANNELS):
        return [Layout(True, "the graph begins by moving the last axis in front of the others")]
    if moves_channels is False and last in CHANNELS:
        return [Layout(False, f"its first layers read channels from the second axis, though the last one is {last}")]
    if second in CHANNELS and last in CHANNELS:
        return [Layout(False, f"{second_axis} and the last axis is {last}: either may be the channels", certain=False)]
    if moves_channels is False or last not in (None, *CHANNELS):
        return [Layout(False)]
    return [Layout(False), Layout(True, "it runs on such images, and not on N,C,H,W")]


def _moves_channels(graph: OnnxModule) -> bool | None:
    """Whether the first layers of a graph move channels from the end to the front; False: they read them there."""
    unmoved, answers = {value.name for value in graph.inputs if len(value.type.tensor_type.shape.dim) == 4}, set[bool]()
    for node in graph.model.graph.node:
        if not unmoved.intersection(node.input):
            continue
        if node.op_type in _PLAIN:
            unmoved.update(node.output)
        elif node.op_type in _FIRST:
            answers.add(False)
        elif node.op_type == "Transpose" and any(list(attribute.ints) == _TO_FRONT for attribute in node.attribute):
            answers.add(True)
    return answers.pop() if len(answers) == 1 else None


def first_that_works(
    layouts: Sequence[Layout], attempt: Callable[[bool], Findings]
) -> tuple[Findings, tuple[Assumption, ...]]:
    """Try the layouts in turn.

    Args:
        layouts: from `readings`.
        attempt: takes whether channels are last, and probes the model.

    Returns:
        The findings of the first that works, and what was concluded where there was a choice.

    Raises:
        InputError: none works; the first one's reason.
    """
    problems = []
    for layout in layouts:
        try:
            findings = attempt(layout.channels_last)
        except InputError as error:
            problems.append(error)
            continue
        if findings.other_layout and len(layouts) > 1:
            layout = Layout(False, "it runs on such images, and on N,H,W,C as well", certain=False)
        assumption = Assumption("layout", _NAMES[layout.channels_last], layout.because, layout.certain, _OPTION)
        return findings, (assumption,) if layout.because else ()
    raise problems[0]
