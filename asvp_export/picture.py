"""Reading one picture with all that an output has to keep: transparency, bits, grey, colour profile."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, TiffImagePlugin
from scipy import ndimage

from asvp_export.errors import InputError, one_line

# Named, because Pillow would otherwise try some forty formats, a few of which start other programs.
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_SIXTEEN_BIT_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY_MODES = ("1", "L", "LA", *_SIXTEEN_BIT_GREY)

_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0
_PNG_GREY_ALPHA = 4
_SRGB_GAMMA = 1 / 2.2


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as a viewer would show it, upright, and what an output has to keep of it."""

    pixels: np.ndarray
    """H, W, 3 float32 in 0..1; where nothing shows, the colour of the nearest pixel that does."""

    alpha: np.ndarray | None = None
    """H, W float32 in 0..1, 1 is opaque; None where every pixel is."""

    bits: int = 8
    """8 or 16 a channel."""

    grey: bool = False
    """Whether it is stored as grey; the three channels of `pixels` are equal then."""

    profile: bytes = b""
    """The ICC profile that the pixels are values of; empty: sRGB."""

    notes: tuple[str, ...] = ()
    """What was not read as it is stored, a sentence each."""


def read_picture(path: str | Path) -> Picture:
    """Read a picture with what an output has to keep.

    The EXIF orientation is applied, palettes are looked up, CMYK is converted to sRGB (by its profile where it has
    one), of several frames the first is read. Other colour profiles are not applied: the values stay those that are
    stored.

    Raises:
        InputError: the file is missing, is no picture of a known format, is damaged or truncated, is so large
            that Pillow takes it for a decompression bomb, or holds samples of unknown range (float, 32 bits).
    """
    with _opened(Path(path)) as picture:
        return _read(picture)


def left_out(paths: Sequence[Path]) -> list[str]:
    """What `read_image` leaves out of these pictures, told from their heads: one line, or none.

    Raises:
        InputError: as for `read_picture`.
    """
    tally: dict[str, int] = {}
    for path in paths:
        with _opened(path) as picture:
            profile = picture.info.get("icc_profile") or b""
            properties = {
                "transparency, which is left out": picture.has_transparency_data,
                "several frames, of which the first is read": getattr(picture, "n_frames", 1) > 1,
                "colours for print (CMYK), which are converted to sRGB": picture.mode == "CMYK",
                "a colour profile other than sRGB, which is not applied": picture.mode != "CMYK"
                and not _is_srgb(profile),
            }
            for note in [note for note, holds in properties.items() if holds]:
                tally[note] = tally.get(note, 0) + 1
    if not tally:
        return []
    counts = "; ".join(f"{count} {'has' if count == 1 else 'have'} {note}" for note, count in tally.items())
    return [f"Of {len(paths)} {'picture' if len(paths) == 1 else 'pictures'}, {counts}."]


def tone_to_srgb(grey: np.ndarray, profile: bytes) -> np.ndarray:
    """Values in 0..1 of a grey profile as those that sRGB shows alike."""
    ramp = np.arange(256, dtype=np.uint8)
    shown = _to_srgb(Image.fromarray(ramp[None]), profile).getchannel(1)
    return np.interp(grey, ramp / 255, np.asarray(shown)[0] / 255).astype(np.float32)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """A picture that is open, what goes wrong inside told as an InputError."""
    try:
        if not path.exists():
            raise InputError(f"The image {path} does not exist.")
        if not path.is_file():  # opening a pipe would wait for ever
            raise InputError(f"{path} is not a file; an image was expected.")
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels and refuses from 179: pictures between the two are real.
            warnings.simplefilter("ignore")
            # Opened by us: from a name, Pillow maps a plain TIFF into memory and scrambles one stored turned.
            with path.open("rb") as stream, Image.open(stream, formats=_READ_FORMATS) as picture:
                yield picture
    except (InputError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"The image {path} is not a picture that can be read: PNG, JPEG, WebP, BMP or TIFF was expected."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"The image {path} is too large: at most {_megapixels()} megapixels are read.") from error
    except Exception as error:  # what a decoder raises on damaged bytes is anything: OSError, SyntaxError, struct.error
        raise InputError(f"The image {path} cannot be read ({one_line(error)}); replace it or take it out.") from error


def _megapixels() -> int:
    """Where Pillow's refusal starts, twice its warning."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6


def _read(picture: ImageFile.ImageFile) -> Picture:
    if picture.mode not in (*_EIGHT_BIT_MODES, *_SIXTEEN_BIT_GREY):
        raise ValueError(f"samples of the kind {picture.mode!r}; 8 or 16 bits, grey or colour, were expected")
    _check_stored(picture)
    notes = []
    if (frames := getattr(picture, "n_frames", 1)) > 1:
        notes.append(f"The picture has {frames} frames; the first is read.")
    grey = _is_grey(picture)
    profile = _profile(picture, grey, notes)
    samples = _sixteen_bits(picture, notes)
    bits = 8 if samples is None else 16
    if samples is None:
        samples = _eight_bits(ImageOps.exif_transpose(picture), profile, notes)
    colours = samples.shape[2] - 1 + samples.shape[2] % 2  # one or three, and perhaps alpha
    alpha = samples[:, :, -1] if colours < samples.shape[2] and samples[:, :, -1].min() < 1 else None
    pixels = np.repeat(samples[:, :, :colours], 3 // colours, axis=2)
    return Picture(
        pixels=pixels if alpha is None else _spread(pixels, alpha),
        alpha=alpha,
        bits=bits,
        grey=grey,
        profile=b"" if picture.mode == "CMYK" else profile,
        notes=tuple(notes),
    )


def _check_stored(picture: ImageFile.ImageFile) -> None:
    """Refuse a TIFF that does not store all of its pixels: Pillow makes up the rest, gigabytes if need be."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return
    boxes = [tile[1] or (0, 0, *picture.size) for tile in picture.tile]
    stored = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    if stored < (needed := picture.width * picture.height):
        raise ValueError(f"it stores {stored} of its {needed} pixels")


def _eight_bits(upright: Image.Image, profile: bytes, notes: list[str]) -> np.ndarray:
    """H, W, 3 (colours) or 4 (and alpha) in 0..1."""
    if upright.mode == "CMYK":
        method = "by its colour profile" if profile else "without a colour profile, so its colours are a guess"
        notes.append(f"The picture is for print (CMYK); it was converted to sRGB {method}.")
        upright = _to_srgb(upright, profile) if profile else upright.convert("RGB")
    samples = np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    return samples.astype(np.float32) / np.float32(255)


def _sixteen_bits(picture: ImageFile.ImageFile, notes: list[str]) -> np.ndarray | None:
    """H, W, 1 to 4 in 0..1 of a picture of 16 bits a channel; None: it has 8, or can be read with 8 only."""
    if picture.mode in _SIXTEEN_BIT_GREY and "transparency" not in picture.info:
        grey = np.asarray(ImageOps.exif_transpose(picture))[:, :, None].astype(np.float32) / np.float32(65535)
        # Pillow turns this kind over where it has 8 bits, and not where it has 16.
        return 1 - grey if _tag(picture, _PHOTOMETRIC) == _WHITE_IS_ZERO else grey
    samples = None  # Pillow itself keeps the upper 8 bits of colours
    if picture.format == "PNG":
        samples = _png_samples(picture)
    elif max(_tag(picture, _BITS) or (8,)) > 8:
        samples = _tiff_samples(picture, notes)
    if samples is None:
        return None
    orientation, bands = picture.getexif().get(_ORIENTATION, 1), []
    for channel in range(samples.shape[2]):
        band = Image.fromarray(np.ascontiguousarray(samples[:, :, channel]))
        band.getexif()[_ORIENTATION] = orientation
        bands.append(np.asarray(ImageOps.exif_transpose(band)))
    return np.stack(bands, axis=2).astype(np.float32) / np.float32(65535)


def _tag(picture: Image.Image, number: int) -> Any:
    """A tag of a TIFF; None where it has none, or is another format."""
    return picture.tag_v2.get(number) if isinstance(picture, TiffImagePlugin.TiffImageFile) else None


def _png_samples(picture: ImageFile.ImageFile) -> np.ndarray | None:
    """H, W, 1 to 4 uint16 of a PNG of 16 bits; None where it has fewer."""
    if _png_head(picture)[0] != 16:
        return None
    import png

    with _from_the_start(picture) as stream:
        width, height, rows, info = png.Reader(file=stream).asDirect()
        return np.stack([np.asarray(row, np.uint16) for row in rows]).reshape(height, width, info["planes"])


def _png_head(picture: ImageFile.ImageFile) -> tuple[int, int]:
    """Bit depth and colour type of a PNG: they stand behind signature, length, name, width and height."""
    with _from_the_start(picture) as stream:
        depth, kind = stream.read(26)[24:]
    return depth, kind


def _is_grey(picture: ImageFile.ImageFile) -> bool:
    """Whether it is stored as grey; Pillow takes grey of 16 bits with alpha for colours."""
    return picture.mode in _GREY_MODES or (picture.format == "PNG" and _png_head(picture)[1] == _PNG_GREY_ALPHA)


def _tiff_samples(picture: ImageFile.ImageFile, notes: list[str]) -> np.ndarray | None:
    """H, W, 3 or 4 uint16 of a TIFF of 16-bit colours; None where it is of a kind that Pillow alone reads, with 8."""
    import tifffile

    try:
        with _from_the_start(picture) as stream:
            page = tifffile.TiffFile(stream).pages.first
            samples = np.asarray(page.asarray())
        if page.photometric != tifffile.PHOTOMETRIC.RGB or samples.dtype != np.uint16:
            raise ValueError(f"{page.photometric} of the type {samples.dtype}")
        samples = np.moveaxis(samples, 0, 2) if page.axes == "SYX" else samples
        if page.extrasamples[:1] == (tifffile.EXTRASAMPLE.ASSOCALPHA,):
            weighted, alpha = samples[:, :, :3].astype(np.float64), samples[:, :, 3:4]
            colours = np.minimum(np.rint(weighted * 65535 / np.maximum(alpha, 1)), 65535)
            samples = np.concatenate([colours.astype(np.uint16), alpha], axis=2)
        return samples[:, :, : 4 if picture.has_transparency_data else 3]
    except Exception as error:  # what is damaged fails again in Pillow, and is refused there
        notes.append(f"The picture has 16 bits a channel, of which 8 are read ({one_line(error)}); a PNG keeps them.")
        return None


@contextlib.contextmanager
def _from_the_start(picture: ImageFile.ImageFile) -> Iterator[IO[bytes]]:
    """The file of a picture that is not loaded yet, for another reader; Pillow finds it where it left it."""
    stream = picture.fp
    assert stream is not None
    position = stream.tell()
    stream.seek(0)
    try:
        yield stream
    finally:
        stream.seek(position)


def _profile(picture: Image.Image, grey: bool, notes: list[str]) -> bytes:
    """The ICC profile where it is whole and for colours of the picture's kind."""
    profile = picture.info.get("icc_profile")
    mode = "CMYK" if picture.mode == "CMYK" else "L" if grey else "RGB"
    if not profile:
        gamma = picture.info.get("gamma", _SRGB_GAMMA)
        if "icc_profile" in picture.info:
            notes.append("The picture's colour profile is damaged and was ignored.")
        elif abs(gamma - _SRGB_GAMMA) > 0.01 and "srgb" not in picture.info:
            notes.append(f"The picture states a gamma of {gamma:g}, which was ignored: its values are taken as sRGB.")
        return b""
    try:
        _to_srgb(Image.new(mode, (1, 1)), profile)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        notes.append("The picture's colour profile is damaged, or made for another kind of colours, and was ignored.")
        return b""
    if mode != "CMYK" and not _is_srgb(profile):
        notes.append(
            f"The picture has the colour profile {_name(profile)}: it is not applied to the values that the model "
            "gets, and the picture that is written keeps it."
        )
    return profile


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    converted = ImageCms.profileToProfile(
        picture,
        io.BytesIO(profile),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    assert converted is not None
    return converted


def _is_srgb(profile: bytes) -> bool:
    return not profile or "sRGB" in _name(profile)


def _name(profile: bytes) -> str:
    try:
        return one_line(ImageCms.getProfileDescription(io.BytesIO(profile)))
    except (OSError, ImageCms.PyCMSError):
        return "without a name"


def _spread(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours that do not show, replaced by the nearest ones that do: a model would blur them into what shows."""
    hidden = alpha == 0
    if hidden.all():
        return np.zeros_like(pixels)
    nearest: Any = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return pixels[tuple(nearest)]
