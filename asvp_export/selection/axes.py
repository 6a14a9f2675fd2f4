"""Which axis of a feature map holds the channels: observed at two sizes of the image, or inferred from one shape."""

from __future__ import annotations

from dataclasses import dataclass

from asvp_export.signature import shape_text
from asvp_export.teacher.backends.base import LayerOutputs


@dataclass(frozen=True)
class Probe:
    """The images that a teacher was run on."""

    batches: tuple[int, int]
    """How many images the first and the second run had."""

    size: tuple[int, int]
    """Height and width of the first run's images."""

    frames: int | None
    """Of each image where it is a video, else None."""


def channel_axis(first: LayerOutputs, second: LayerOutputs | None, probe: Probe) -> int | str:
    """The channel axis of a layer's outputs, or why the layer cannot carry a node.

    Args:
        first: what it returned in the first run.
        second: what it returned at another height, width and batch; None: there is no such run.
        probe: the images of both runs.

    Returns:
        1 or -1 where it is one of these; else a reason that follows the layer's name in a sentence.
    """
    problem = first.problem or (second.problem if second else "")
    if problem:
        return problem
    if second is not None and len(first.shapes) != len(second.shapes):
        return f"is called {len(first.shapes)} times at one image size and {len(second.shapes)} times at another"
    verdicts: list[int | str] = []
    for call, shape in enumerate(first.shapes):
        if second is None:
            verdicts.append(inferred_axis(shape, probe.batches[0], probe.size))
        else:
            verdicts.append(_observed_axis(shape, second.shapes[call], probe.batches, probe.frames))
    reason = next((verdict for verdict in verdicts if isinstance(verdict, str)), None)
    if reason is not None:
        return reason
    return verdicts[0] if len(set(verdicts)) == 1 else "returns its channels on another axis at another call"


def _observed_axis(
    first: tuple[int, ...], second: tuple[int, ...], batches: tuple[int, int], frames: int | None
) -> int | str:
    """The axis that stays when height, width and batch change; of a video, the frames stay as well.

    Frames folded into the batch are samples of their own: a node there works a frame at a time.
    """
    shown = shape_text(first)
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
    pieces, remainder = divmod(shape[0], batch)
    shown = shape_text(shape)
    if remainder or pieces < 2:
        return f"returns {shown}, whose first axis is not the batch"
    return (
        f"returns {shown}, {pieces} windows or patches of each image on the batch axis: a node there would work on "
        "each of them alone, not on the image (take a layer around them, such as the block)"
    )


def inferred_axis(shape: tuple[int, ...], batch: int, image: tuple[int, int]) -> int | str:
    """The likely channel axis of one shape, where the image's size cannot be changed."""
    shown = shape_text(shape)
    height, width = image
    if shape[0] != batch:
        return _folded(shape, batch)
    if len(shape) == 4:
        channels_first = shape[2] * width == shape[3] * height and shape[2] * shape[3] > 1
        channels_last = shape[1] * width == shape[2] * height and shape[1] * shape[2] > 1
        if shape[2:] == (1, 1):
            return f"returns {shown}: there is no spatial axis"
        return -1 if channels_last and not channels_first else 1
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
