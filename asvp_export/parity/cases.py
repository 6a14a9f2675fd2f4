"""Which inputs two models are compared on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from asvp_export.errors import InputError
from asvp_export.images import as_channels, pad_to, read_image
from asvp_export.runtime.session import FLOAT_DTYPES, session_inputs
from asvp_export.signature import Signature, SizeRule, ValueRange, shape_text

# Verification runs every image through up to four models. A camera's 24 megapixels would take minutes and
# gigabytes each, and say no more than a crop does; whoever wants them asks for the size.
WHOLE_PIXELS = 1_500_000
WHOLE_SIDE = 1024

# Below this no crop is odd, not square and smaller than the image.
_SMALLEST = 3

Size = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """Where in a picture an image lies: `height` x `width` of the case from here on."""

    picture: Path
    """The file."""

    top: int
    """Its first row."""

    left: int
    """Its first column (of the first frame)."""

    mirrored: bool = False
    """Whether left and right were exchanged then."""


@dataclass(frozen=True)
class Case:
    """One input of a comparison."""

    name: str
    """File name of the image, or of the images of a batch."""

    input: np.ndarray
    """N, C, H, W float32 in 0..data range, padded to the model's minimum and multiple."""

    height: int
    """Rows of the input that are image; what lies below is padding."""

    width: int
    """Columns of the input that are image; what lies to the right is padding."""

    others: tuple[np.ndarray, ...] = ()
    """The inputs besides the image."""

    cuts: tuple[Cut, ...] = ()
    """Where the images of the batch come from."""

    signature: Signature = field(default_factory=Signature)
    """What the model takes."""

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        """All inputs, in the model's order and layout."""
        index, image = self.signature.image_index, np.ascontiguousarray(self.signature.to_model(self.input))
        return (*self.others[:index], image, *self.others[index:])

    def pictures(self, outputs: Iterable[np.ndarray]) -> list[np.ndarray]:
        """What the model gave, in N,C,H,W."""
        return [self.signature.from_model(output) for output in outputs]

    @property
    def size(self) -> str:
        """The size without padding, as "HxW"."""
        return f"{self.height}x{self.width}"

    @property
    def batch(self) -> int:
        """How many images the input holds."""
        return self.input.shape[0]


def build_cases(
    images: Sequence[Path],
    *,
    size: SizeRule,
    data_range: ValueRange,
    signature: Signature,
    sizes: Sequence[Size] = (),
    fixed: Sequence[int | None] = (None, None, None, None),
) -> list[Case]:
    """Cut images into the inputs that two models are compared on.

    Every image comes at two sizes or more, one of them odd and not square, and one input is a batch of 2 (the
    first two images, or the only one and its mirror image):

    - no sizes asked for: the whole image, and an odd crop of about 3/4 of its longer and 1/2 of its shorter
      side. Of an image over 1.5 megapixels, the middle (1024x1024 at most) stands for the whole;
    - sizes asked for: a crop of each, and the odd crop (of the first size) unless the sizes are two or more,
      with a non-square and an odd one among them;
    - a model with a frozen height, width or batch: that height, width and batch only.

    Crops are taken from the middle; the frames of a video pan across it. The picture's colours become the model's
    channels: luminance for one, red, green, green and blue for four (packed Bayer), else its colours in turn.

    Args:
        images: picture files.
        size: the sizes that the model takes; inputs are padded to them.
        data_range: the model's values for black and white.
        signature: its inputs.
        sizes: (height, width) of the crops to compare on.
        fixed: the dimensions N, C, H, W that the model has frozen; None where it is free.

    Returns:
        The cases, image by image, the batch last.

    Raises:
        InputError: no image, an unreadable one, one that is smaller than the model or the sizes need, or a
            size that the model does not take.
    """
    if not images:
        raise InputError("There is no image to compare on; name a folder with pictures.")
    batch, _, *frozen = fixed
    _check_sizes(sizes, size, frozen)
    pictures = [_read(path, sizes, size.minimum, frozen) for path in images]

    def cases(start: int, count: int, only_first_size: bool = False) -> list[Case]:
        members = [_member(pictures, start + offset) for offset in range(count)]
        extent = (min(p.pixels.shape[0] for p in members), min(p.pixels.shape[1] for p in members))
        chosen = _sizes(extent, sizes, size.minimum, frozen)
        return [_case(members, crop, size, data_range, signature) for crop in chosen[: 1 if only_first_size else None]]

    step = batch or 1
    built = [case for start in range(0, len(images), step) for case in cases(start, step)]
    if batch is None:
        built += cases(0, 2, only_first_size=True)
    return built


def _check_sizes(sizes: Sequence[Size], rule: SizeRule, frozen: Sequence[int | None]) -> None:
    for dim in frozen:
        if dim is not None and (dim < rule.minimum or dim % rule.multiple):
            raise InputError(
                f"A side of the model is frozen at {dim}; it has to be a multiple of {rule.multiple} and at least "
                f"{rule.minimum}. Freeze another size."
            )
    for height, width in sizes:
        if min(height, width) < max(rule.minimum, _SMALLEST):
            least = max(rule.minimum, _SMALLEST)
            raise InputError(f"The size {height}x{width} was asked for; at least {least}x{least} is needed.")
        if any(dim is not None and dim != side for dim, side in zip(frozen, (height, width), strict=True)):
            takes = shape_text("any" if dim is None else dim for dim in frozen)
            raise InputError(
                f"The size {height}x{width} was asked for; this model takes {takes} only (height x width)."
            )


@dataclass(frozen=True, eq=False)
class _Picture:
    """The part of a picture that cases are cut from."""

    pixels: np.ndarray
    """H, W, 3 in 0..1."""

    cut: Cut
    """Where it lies; a picture that is mirrored comes mirrored."""

    @property
    def name(self) -> str:
        return f"{self.cut.picture.name} mirrored" if self.cut.mirrored else self.cut.picture.name

    def mirrored(self) -> _Picture:
        return _Picture(self.pixels[:, ::-1], replace(self.cut, mirrored=True))

    def middle(self, size: Size) -> Cut:
        """Where a crop from the middle lies."""
        top, left = _corner(self.pixels, size)
        if self.cut.mirrored:
            left = self.pixels.shape[1] - size[1] - left
        return replace(self.cut, top=self.cut.top + top, left=self.cut.left + left)


def _read(path: Path, sizes: Sequence[Size], minimum: int, frozen: Sequence[int | None]) -> _Picture:
    picture = read_image(path)
    height, width = picture.shape[:2]
    least = [max(minimum, _SMALLEST, *(size[axis] for size in sizes), frozen[axis] or 0) for axis in (0, 1)]
    if height < least[0] or width < least[1]:
        cause = "the size asked for" if sizes else "the model" if max(least) > _SMALLEST else "a comparison"
        raise InputError(
            f"The image {path.name} is {height}x{width} (height x width); {cause} needs at least "
            f"{least[0]}x{least[1]}. Use larger images{' or a smaller size' if sizes else ''}."
        )
    if sizes:
        keep = (least[0], least[1])
    elif height * width > WHOLE_PIXELS:
        keep = (min(height, max(WHOLE_SIDE, least[0])), min(width, max(WHOLE_SIDE, least[1])))
    else:
        return _Picture(picture, Cut(path, 0, 0))
    return _Picture(_middle(picture, keep).copy(), Cut(path, *_corner(picture, keep)))  # the copy lets go of the rest


def _member(pictures: Sequence[_Picture], index: int) -> _Picture:
    """Picture number `index`, counting on through mirror images when the pictures run out."""
    turn, position = divmod(index, len(pictures))
    return pictures[position].mirrored() if turn % 2 else pictures[position]


def _sizes(extent: Size, sizes: Sequence[Size], minimum: int, frozen: Sequence[int | None]) -> list[Size]:
    """The sizes that an image of this extent is cut to, the main one first, without repetition."""
    chosen = list(sizes) or [extent]
    enough = (
        len(set(chosen)) > 1
        and any(height != width for height, width in chosen)
        and any(height % 2 and width % 2 for height, width in chosen)
    )
    if not enough:
        chosen.append(_odd_crop(chosen[0], minimum))
    return list(dict.fromkeys((frozen[0] or height, frozen[1] or width) for height, width in chosen))


def _odd_crop(size: Size, minimum: int) -> Size:
    """A smaller size, odd both ways and not square; at least the minimum where there is room for it."""
    # The longer side keeps more, so that no common aspect ratio comes out square.
    quarters = (3, 2) if size[0] >= size[1] else (2, 3)
    height, width = (_odd(max(q * side // 4, minimum), side) for q, side in zip(quarters, size, strict=True))
    if height == width:  # both at the minimum
        if width + 2 < size[1]:
            width += 2
        elif height + 2 < size[0]:
            height += 2
        else:
            width -= 2  # a hair under the minimum: padding makes up for it
    return height, width


def _odd(side: int, limit: int) -> int:
    return side | 1 if side | 1 <= limit else side - 1


def _case(
    members: Sequence[_Picture], size: Size, rule: SizeRule, data_range: ValueRange, signature: Signature
) -> Case:
    names = [picture.name for picture in members]
    frames = [[_middle(picture.pixels, size, frame) for frame in range(signature.frames or 1)] for picture in members]
    x = as_channels(np.asarray(frames), signature.channels)  # [N, T, C, H, W]
    x = data_range.of(pad_to(x, rule))
    x = np.ascontiguousarray(x if signature.frames else x[:, 0])
    name = " + ".join(names) if len(names) <= 2 else f"{names[0]} + {len(names) - 1} more"
    cuts = tuple(picture.middle(size) for picture in members)
    return Case(name, x, *size, others=signature.others_for(x.shape), cuts=cuts, signature=signature)


def _middle(picture: np.ndarray, size: Size, frame: int = 0) -> np.ndarray:
    """A crop from the middle; each further frame lies 2 pixels to the right, as far as the picture goes."""
    top, left = _corner(picture, size)
    left = min(left + 2 * frame, picture.shape[1] - size[1])
    return picture[top : top + size[0], left : left + size[1]]


def _corner(picture: np.ndarray, size: Size) -> tuple[int, int]:
    """The first row and column of a crop from the middle."""
    return (picture.shape[0] - size[0]) // 2, (picture.shape[1] - size[1]) // 2


def check_fits(opened: ort.InferenceSession, case: Case) -> None:
    """Check that a model takes the inputs of a case.

    Raises:
        InputError: it has another number of inputs, or one of another rank, channel count, fixed size or type.
    """
    inputs = session_inputs(opened)
    input_text = "; ".join(str(declared) for declared in inputs) or "nothing"
    if len(inputs) != len(case.inputs):
        raise InputError(
            f"The ONNX model takes {input_text}; {len(case.inputs)} inputs were given. Give an example of each "
            "(--inputs)."
        )
    for declared, array in zip(inputs, case.inputs, strict=True):
        if array.dtype.kind == "f" and declared.type not in FLOAT_DTYPES:
            raise InputError(
                f"The ONNX model takes {input_text}; float16, float32 or float64 was expected for {declared.name}."
            )
        if len(declared.shape) != array.ndim or any(
            isinstance(dim, int) and dim != size for dim, size in zip(declared.shape, array.shape, strict=True)
        ):
            expected = shape_text(array.shape)
            raise InputError(
                f"The ONNX model takes {declared}; the input of {case.name} is {expected}. Check that it is the same "
                "model, exported for this size."
            )
