"""Pictures: finding, reading, writing and padding them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from asvp_export.errors import InputError, one_line
from asvp_export.files import atomic_write
from asvp_export.picture import Picture, read_picture, tone_to_srgb
from asvp_export.signature import SizeRule

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SPLITS = ("train", "calibrate", "verify", "audit")

_WRITE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_WRITE_OPTIONS = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


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
        paths = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise InputError(f"The folder of images {folder} cannot be listed ({error.strerror}).") from error
    if not paths:
        raise InputError(
            f"There is no image in {folder}; files that end in {', '.join(SUFFIXES)} are read "
            "(its sub-folders are not searched)."
        )
    return sorted(paths, key=lambda path: path.name)


def read_image(path: str | Path) -> np.ndarray:
    """The colours of a picture as a viewer would show it; what else it holds is told by `read_picture`.

    Grey, palettes and CMYK become RGB, 16 bits are kept, the EXIF orientation is applied, of several frames the first
    is read. Transparency is left out: where nothing shows, the colour is that of the nearest pixel that does.

    Returns:
        H, W, 3 float32 in 0..1.

    Raises:
        InputError: as for `asvp_export.picture.read_picture`.
    """
    return read_picture(path).pixels


def image_format(path: str | Path, like: Picture | None = None) -> str:
    """The format that `write_image` would write to this path; call it before work whose result goes there.

    Args:
        path: the file.
        like: the picture whose transparency the format has to hold.

    Returns:
        "PNG", "JPEG" or "WEBP".

    Raises:
        InputError: the suffix names none of them, or one that holds no transparency where there is some.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITE_FORMATS:
        ending = f"ends in {suffix}" if suffix else "has no suffix"
        raise InputError(f"{path} {ending}; pictures are written as {', '.join(_WRITE_FORMATS)}.")
    form = _WRITE_FORMATS[suffix]
    if like and like.alpha is not None and form == "JPEG":
        raise InputError(f"The picture has transparency, which {path} cannot hold; write a .png or a .webp.")
    return form


def write_image(
    path: str | Path, array: np.ndarray, like: Picture | None = None, note: Callable[[str], None] = lambda line: None
) -> None:
    """Write a picture: PNG, JPEG (quality 95, full colour resolution) or WebP (lossless), as the suffix says.

    The file appears complete or not at all.

    Args:
        path: the file; one that is there is replaced.
        array: H, W, 3 floats; clipped to 0..1 and rounded to 8 bits, or to the 16 of `like` in a PNG.
        like: what the picture was made from, whose transparency (resized), bits, colour profile and grey are kept.
        note: called with a line for what of it is not.

    Raises:
        InputError: the suffix or the folder does not do, the values are not finite, or the format cannot hold
            a picture of this size.
        MachineError: the disk is full.
    """
    like = like or Picture(array)
    form = image_format(path, like)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an H, W, 3 array was expected, found {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{path} was not written: the picture holds NaN or infinite values.")
    bits = like.bits if form == "PNG" else 8
    if bits < like.bits:
        note(f"The picture has {like.bits} bits a channel and {form} holds 8: it was rounded. A .png keeps them.")
    samples = _rounded(array, bits)
    grey, profile = like.grey and form != "WEBP", like.profile
    if like.grey and (spread := int(np.ptp(samples, axis=2).max())):
        note(f"The picture is grey and the model gave it colours (up to {spread} of {2**bits - 1}): written in colour.")
        grey = False
    if like.grey and not grey and profile:
        samples, profile = _rounded(tone_to_srgb(array, profile), bits), b""
    planes = [samples[:, :, :1] if grey else samples]
    if like.alpha is not None:
        planes.append(_rounded(_resized(like.alpha, *array.shape[:2]), bits)[:, :, None])
    encoded = io.BytesIO()  # encoded in memory first, so that an error of the format is told from one of the disk
    try:
        _encode(encoded, np.concatenate(planes, axis=2), form, profile)
    except (OSError, ValueError) as error:
        height, width = array.shape[:2]
        raise InputError(
            f"{form} cannot hold a picture of {height}x{width} ({one_line(error)}); write a .png."
        ) from error
    atomic_write(path, encoded.getvalue())


def _rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """0..1 as whole numbers of 8 or 16 bits."""
    samples = np.rint(np.clip(values, 0, 1).astype(np.float64) * (2**bits - 1))
    return samples.astype(np.uint8 if bits == 8 else np.uint16)


def _resized(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """Transparency for an output of this size: the input times a whole scale, less a border, or smaller."""
    if alpha.shape == (height, width):
        return alpha
    scale = round(height / alpha.shape[0]) if height > 0.75 * alpha.shape[0] else 0
    rows, columns = (side * scale for side in alpha.shape) if scale else (height, width)
    # Bicubic has one lobe below 0, which is clipped; Lanczos has another above it, which would show as a rim.
    resized = np.asarray(Image.fromarray(alpha).resize((columns, rows), Image.Resampling.BICUBIC))
    top, left = (rows - height) // 2, (columns - width) // 2
    return resized[top : top + height, left : left + width]


def _encode(stream: io.BytesIO, samples: np.ndarray, form: str, profile: bytes) -> None:
    """Write H, W, 1 to 4 samples: grey or colours, and perhaps alpha."""
    if samples.dtype == np.uint16 and samples.shape[2] > 1:  # Pillow has no such pictures
        import png

        height, width, count = samples.shape
        plain = io.BytesIO()
        png.Writer(width, height, greyscale=count == 2, alpha=count % 2 == 0, bitdepth=16).write(
            plain, samples.reshape(height, -1)
        )
        head, *rest = png.Reader(bytes=plain.getvalue()).chunks()
        named = [(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))] if profile else []
        png.write_chunks(stream, [head, *named, *rest])
        return
    picture = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    picture.save(stream, form, icc_profile=profile or None, **_WRITE_OPTIONS[form])


# Rec. 709, of the red, green and blue that a screen shows.
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


def as_channels(pictures: np.ndarray, channels: int) -> np.ndarray:
    """Colour pictures with the channels of a model: [..., H, W, 3] to [..., C, H, W].

    One channel is the luminance; four are red, green, green, blue (packed Bayer); other counts take the colours in
    turn.
    """
    if channels == 1:
        return (pictures @ _LUMINANCE)[..., None, :, :]
    order = (0, 1, 1, 2) if channels == 4 else tuple(i % 3 for i in range(channels))
    return np.moveaxis(pictures[..., order], -1, -3)


def pad_to(x: np.ndarray, rule: SizeRule) -> np.ndarray:
    """Pad images on the bottom and on the right to a size that a model takes, as `pad` does.

    Args:
        x: [..., H, W].
        rule: the sizes that it takes.
    """
    return pad(x, *rule.fit_both(*x.shape[-2:]))


def pad(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pad images on the bottom and on the right.

    Args:
        x: [..., H, W], not larger than what is asked for.
        height: of the result.
        width: of the result.

    Returns:
        [..., height, width] of the same dtype; mirrored pixels without the edge itself, or the edge repeated where
        the image is too small to mirror. `x` itself where nothing is missing.
    """
    for axis, size in ((-2, height), (-1, width)):
        missing = size - x.shape[axis]
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
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # NumPy's reader raises what its parts raise: of zip, tokenizer, literals
        raise InputError(
            f"{path} cannot be read as an .npz of numbers ({one_line(error)}); expected the model's inputs, by name "
            "or in order."
        ) from error
    ordered = [f"arr_{i}" for i in range(len(arrays))]  # what numpy.savez calls arrays without names
    return [arrays[name] for name in ordered] if sorted(arrays) == sorted(ordered) else arrays
