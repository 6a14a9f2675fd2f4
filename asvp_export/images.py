"""Pictures: finding, reading, writing and padding them."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from asvp_export.errors import InputError
from asvp_export.files import atomic_write
from asvp_export.signature import SizeRule

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SPLITS = ("train", "calibrate", "verify", "audit")

# Named, because Pillow would otherwise try some forty formats, a few of which start other programs.
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_WRITE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_WRITE_OPTIONS = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def photographs(split: str = "verify") -> Path:
    """The folder of the project's own photographs.

    Args:
        split: "train", "calibrate", "verify" or "audit"; no scene is in two of them.

    Raises:
        InputError: there is no such split.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r} of the photographs; choose one of {', '.join(SPLITS)}.")
    return Path(__file__).parent / "photographs" / split


def list_images(folder: str | Path) -> list[Path]:
    """The pictures directly inside a folder, sorted by name; hidden files and other files are left out.

    Raises:
        InputError: the folder does not exist, is not a folder, cannot be listed, or holds no picture.
    """
    folder = Path(folder)
    try:
        if not folder.exists():
            raise InputError(f"The folder of images {folder} does not exist; name one that holds pictures.")
        if not folder.is_dir():
            raise InputError(f"{folder} is a file, a folder of images was expected; name the folder that holds it.")
        found = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise InputError(f"The folder of images {folder} cannot be listed ({error.strerror}).") from error
    if not found:
        raise InputError(
            f"There is no image in {folder}; files that end in {', '.join(SUFFIXES)} are read "
            "(its sub-folders are not searched)."
        )
    return sorted(found, key=lambda path: path.name)


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture as a viewer would show it.

    The EXIF orientation is applied; grey, palette, CMYK and 16-bit pictures become RGB; transparency is
    dropped (the colours stay as they are stored); of several frames the first is read; colour profiles are
    not applied. Grey of 16 bits keeps them, 16-bit colour comes with its upper 8, which is what Pillow reads.

    Returns:
        H, W, 3 float32 in 0..1.

    Raises:
        InputError: the file is missing, is no picture of a known format, is damaged or truncated, is so large
            that Pillow takes it for a decompression bomb, or holds samples of unknown range (float, 32 bits).
    """
    path = Path(path)
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
                return _rgb(ImageOps.exif_transpose(picture))
    except (InputError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"The image {path} is not a picture that can be read: PNG, JPEG, WebP, BMP or TIFF was expected."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"The image {path} is too large: at most {_megapixels()} megapixels are read.") from error
    except Exception as error:  # what a decoder raises on damaged bytes is anything: OSError, SyntaxError, struct.error
        raise InputError(f"The image {path} cannot be read ({_one_line(error)}); replace it or take it out.") from error


def _megapixels() -> int:
    """Where Pillow's refusal starts, twice its warning."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6


def _rgb(picture: Image.Image) -> np.ndarray:
    """H, W, 3 float32 in 0..1 of a decoded picture."""
    if picture.mode in _SIXTEEN_BIT_MODES:  # convert("RGB") would clip these at 255
        grey = np.asarray(picture).astype(np.float32) / np.float32(65535)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"samples of the kind {picture.mode!r}; 8 or 16 bits, grey or colour, were expected")
    return np.asarray(picture.convert("RGB")).astype(np.float32) / np.float32(255)


def image_format(path: str | Path) -> str:
    """The format that `write_image` would write to this path; call it before work whose result goes there.

    Returns:
        "PNG", "JPEG" or "WEBP".

    Raises:
        InputError: the suffix names none of them.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITE_FORMATS:
        found = f"ends in {suffix}" if suffix else "has no suffix"
        raise InputError(f"{path} {found}; pictures are written as {', '.join(_WRITE_FORMATS)}.")
    return _WRITE_FORMATS[suffix]


def write_image(path: str | Path, array: np.ndarray) -> None:
    """Write a picture: PNG, JPEG (quality 95, full colour resolution) or WebP (lossless), as the suffix says.

    The file appears complete or not at all.

    Args:
        path: the file; one that is there is replaced.
        array: H, W, 3 floats; clipped to 0..1 and rounded to 8 bits.

    Raises:
        InputError: the suffix or the folder does not do, the values are not finite, or the format cannot hold
            a picture of this size.
        MachineError: the disk is full.
    """
    form = image_format(path)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an H, W, 3 array was expected, found {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{path} was not written: the picture holds NaN or infinite values.")
    pixels = np.rint(np.clip(array, 0, 1).astype(np.float64) * 255).astype(np.uint8)
    encoded = io.BytesIO()  # encoded in memory first, so that an error of the format is told from one of the disk
    try:
        Image.fromarray(pixels).save(encoded, form, **_WRITE_OPTIONS[form])
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise InputError(
            f"{form} cannot hold a picture of {height}x{width} ({_one_line(error)}); write a .png."
        ) from error
    atomic_write(path, encoded.getvalue())


# Rec. 709, of the red, green and blue that a screen shows.
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


def as_channels(pictures: np.ndarray, channels: int) -> np.ndarray:
    """Colour pictures with the channels of a model: [..., H, W, 3] to [..., C, H, W].

    One channel is the luminance; four are red, green, green, blue (packed Bayer); other counts take the colours in turn.
    """
    if channels == 1:
        return (pictures @ _LUMINANCE)[..., None, :, :]
    order = (0, 1, 1, 2) if channels == 4 else tuple(i % 3 for i in range(channels))
    return np.moveaxis(pictures[..., order], -1, -3)


def pad_to(x: np.ndarray, rule: SizeRule) -> np.ndarray:
    """Pad images on the bottom and on the right to a size that a model takes.

    Args:
        x: [..., H, W].
        rule: the sizes that it takes.

    Returns:
        [..., H', W'] of the same dtype; mirrored pixels without the edge itself, or the edge repeated where
        the image is too small to mirror. `x` itself where nothing is missing.
    """
    for axis, wanted in zip((-2, -1), rule.fit_both(*x.shape[-2:]), strict=True):
        missing = wanted - x.shape[axis]
        if missing:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, missing)
            x = np.pad(x, widths, mode="reflect" if missing < x.shape[axis] else "edge")
    return x


def read_npz(path: Path) -> dict[str, np.ndarray] | list[np.ndarray]:
    """Read what numpy.savez wrote: by name, or in order where it was handed arrays without names.

    Raises:
        InputError: the file is missing or damaged, or holds objects, which are not unpickled.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: np.asarray(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:  # TypeError: a single array
        raise InputError(
            f"{path} is no .npz of numbers ({_one_line(error)}); expected the model's inputs, by name or in order."
        ) from error
    ordered = [f"arr_{i}" for i in range(len(found))]  # what numpy.savez calls arrays without names
    return [found[name] for name in ordered] if sorted(found) == sorted(ordered) else found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
