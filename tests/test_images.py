"""Pictures: what is read, what is refused, and that writing leaves all or nothing."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from asvp_export.errors import InputError, MachineError
from asvp_export.files import atomic_write
from asvp_export.images import image_format, list_images, pad_to, photographs, read_image, write_image
from asvp_export.signature import SizeRule

COFFEE = Image.fromarray(data.coffee()[100:260, 200:440])  # 160 x 240, a real photograph
TOP_LEFT_OF_ORIENTATION = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def eight_bit(array: np.ndarray) -> np.ndarray:
    return np.rint(array * 255).astype(np.uint8)


def png_of(samples: np.ndarray, width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG written by hand: Pillow does not write 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_lossless_formats_are_read_to_the_bit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"coffee{suffix}"
    COFFEE.save(path, lossless=True) if suffix == ".webp" else COFFEE.save(path)
    array = read_image(path)
    assert array.shape == (160, 240, 3) and array.dtype == np.float32
    np.testing.assert_array_equal(array, np.asarray(COFFEE).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("orientation", TOP_LEFT_OF_ORIENTATION)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = TOP_LEFT_OF_ORIENTATION[orientation](np.asarray(COFFEE))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    array = read_image(path)
    assert array.shape == (160, 240, 3)
    assert np.abs(array - np.asarray(COFFEE) / 255).mean() < 0.02


def test_grey_palette_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    """What does not show has the colour of a neighbour that does; all else is as stored."""
    colours = np.asarray(COFFEE)
    alpha = Image.linear_gradient("L").resize(COFFEE.size)
    COFFEE.convert("L").save(tmp_path / "grey.png")
    COFFEE.quantize(64).save(tmp_path / "palette.png")
    COFFEE.quantize(64).save(tmp_path / "palette-transparent.png", transparency=3)
    Image.merge("RGBA", (*COFFEE.split(), alpha)).save(tmp_path / "alpha.png")
    Image.merge("LA", (COFFEE.convert("L"), alpha)).save(tmp_path / "grey-alpha.png")
    COFFEE.convert("1").save(tmp_path / "bits.png")

    grey = np.asarray(COFFEE.convert("L"))[:, :, None].repeat(3, axis=2)
    quantised, shows = np.asarray(COFFEE.quantize(64).convert("RGB")), np.asarray(alpha) > 0
    seen = np.asarray(COFFEE.quantize(64)) != 3
    all_of_it = np.ones_like(seen)
    for name, expected, where in (
        ("grey", grey, all_of_it),
        ("grey-alpha", grey, shows),
        ("alpha", colours, shows),
        ("palette", quantised, all_of_it),
        ("palette-transparent", quantised, seen),
    ):
        np.testing.assert_array_equal(eight_bit(read_image(tmp_path / f"{name}.png"))[where], expected[where])
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 1}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_and_keeps_its_bits(tmp_path: Path, suffix: str) -> None:
    samples = np.linspace(0, 65535, 50 * 70).astype(np.uint16).reshape(50, 70)
    Image.fromarray(samples).save(tmp_path / f"grey16{suffix}")
    array = read_image(tmp_path / f"grey16{suffix}")
    assert array.shape == (50, 70, 3)
    np.testing.assert_allclose(array, samples[:, :, None].repeat(3, axis=2) / 65535, atol=1e-7)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour_is_scaled(tmp_path: Path, colour: int, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (40, 30, channels))
    (tmp_path / "colour16.png").write_bytes(png_of(samples, 30, 40, 16, colour))
    np.testing.assert_allclose(read_image(tmp_path / "colour16.png"), samples[..., :3] / 65535, atol=1e-7)


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    COFFEE.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "print.jpg") - np.asarray(COFFEE) / 255).mean() < 0.03


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    for name, form in (("camera.jpg", "MPO"), ("pages.tif", "TIFF")):
        frames = [COFFEE.rotate(180), COFFEE.rotate(90)]
        COFFEE.copy().save(tmp_path / name, form, save_all=True, append_images=frames)
        assert np.abs(read_image(tmp_path / name) - np.asarray(COFFEE) / 255).mean() < 0.02


def test_samples_of_unknown_range_are_refused(tmp_path: Path) -> None:
    for name, dtype in (("float", np.float32), ("long", np.int32)):
        Image.fromarray(np.asarray(COFFEE.convert("L")).astype(dtype)).save(tmp_path / f"{name}.tif")
        with pytest.raises(InputError, match=f"{name}.tif.*8 or 16 bits"):
            read_image(tmp_path / f"{name}.tif")


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    COFFEE.save(tmp_path / "moving.gif")
    for name in ("folder.png", "empty.png", "text.jpg", "moving.gif", "missing.png"):
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused_by_name(tmp_path: Path, form: str) -> None:
    whole = tmp_path / "whole"
    COFFEE.save(whole, form)
    content = whole.read_bytes()
    for share in (0.02, 0.5, 0.9):
        (tmp_path / "half.img").write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match=r"half\.img"):
            read_image(tmp_path / "half.img")


def test_a_decompression_bomb_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(np.zeros((1, 3)), 30_000, 30_000, 8, 2))
    with pytest.raises(InputError, match=r"bomb\.png is too large: at most 178 megapixels"):
        read_image(tmp_path / "bomb.png")


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_picture_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, form: str, damage: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.img"
    exif = Image.Exif()
    exif[0x0112] = 3
    COFFEE.resize((24, 16)).save(path, form, exif=exif)
    content = bytearray(path.read_bytes())
    for place, value in damage:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        array = read_image(path)
    except InputError as error:
        assert "damaged.img" in str(error)
    else:
        assert array.shape[2] == 3 and array.min() >= 0 and array.max() <= 1


def test_a_folder_is_listed_by_name_without_other_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c.Tiff", "d.webp", "e.bmp", ".hidden.png", "notes.txt", "._a.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.PNG", "c.Tiff", "d.webp", "e.bmp"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no image in .*\.png, \.jpg"):
        list_images(tmp_path)
    with pytest.raises(InputError, match=r"notes\.txt is a file"):
        list_images(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="does not exist"):
        list_images(tmp_path / "nowhere")


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="train, calibrate, verify, audit"):
        photographs("test")


@pytest.mark.parametrize(
    ("name", "form", "error"),
    [
        ("a.png", "PNG", 0),
        ("a.PNG", "PNG", 0),
        ("a.webp", "WEBP", 0),
        ("a.jpg", "JPEG", 6),
        ("a.jpeg", "JPEG", 6),
    ],
)
def test_what_was_written_is_read_back(tmp_path: Path, name: str, form: str, error: int) -> None:
    array = np.asarray(COFFEE).astype(np.float32) / 255
    write_image(tmp_path / name, array)
    with Image.open(tmp_path / name) as picture:
        assert picture.format == form
    assert np.abs(eight_bit(read_image(tmp_path / name)).astype(int) - np.asarray(COFFEE)).mean() <= error


def test_values_are_clipped_and_rounded(tmp_path: Path) -> None:
    values = np.array([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 7.0], dtype=np.float32)
    write_image(tmp_path / "a.png", values.reshape(1, 2, 3))
    assert np.asarray(Image.open(tmp_path / "a.png")).ravel().tolist() == [0, 0, 0, 1, 255, 255]


def test_bad_output_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    grey = np.full((4, 4, 3), 0.5, dtype=np.float32)
    with pytest.raises(InputError, match=r"a\.gif ends in \.gif; pictures are written as \.png"):
        write_image(tmp_path / "a.gif", grey)
    with pytest.raises(InputError, match="has no suffix"):
        image_format(tmp_path / "a")
    with pytest.raises(InputError, match="NaN"):
        write_image(tmp_path / "a.png", grey * np.nan)
    with pytest.raises(InputError, match=r"WEBP cannot hold .* write a \.png"):
        write_image(tmp_path / "a.webp", np.zeros((1, 16_400, 3), dtype=np.float32))
    with pytest.raises(InputError, match="does not exist"):
        write_image(tmp_path / "nowhere" / "a.png", grey)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"before")

    def interrupted(stream: BinaryIO) -> None:
        stream.write(b"half of it")
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a.bin", interrupted)
    assert (tmp_path / "a.bin").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def in_a_process(*lines: str) -> None:
    script = "\n".join(("from asvp_export.files import atomic_write", "from asvp_export import errors", *lines))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_disk_that_fills_up_is_the_machines_fault_and_leaves_nothing(tmp_path: Path) -> None:
    in_a_process(
        "import resource",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))",
        "try:",
        f"    atomic_write({str(tmp_path / 'a.bin')!r}, bytes(1_000_000))",
        "except errors.MachineError as error:",
        "    assert 'a.bin could not be written' in str(error), error",
        "else:",
        "    raise SystemExit('it was written')",
    )
    assert list(tmp_path.iterdir()) == []
    assert MachineError.exit_code == 3


def test_a_folder_that_may_not_be_written_to_is_bad_input(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    in_a_process(
        "import os",
        "if os.getuid() == 0:",
        "    os.setuid(65534)  # root may write anywhere",
        "try:",
        f"    atomic_write({str(tmp_path / 'a.bin')!r}, b'x')",
        "except errors.InputError as error:",
        "    print(error)",
        "else:",
        "    raise SystemExit('it was written')",
    )
    tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="a folder or a device"):
            atomic_write(path, b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_write(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"x"


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    minimum=st.integers(1, 60),
    multiple=st.integers(1, 16),
)
def test_padding_reaches_the_size_and_keeps_the_image(size: tuple[int, int], minimum: int, multiple: int) -> None:
    x = np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)
    padded = pad_to(x, SizeRule(minimum, multiple))
    assert padded.dtype == x.dtype and padded.shape[:2] == (2, 3)
    for side, was in zip(padded.shape[2:], size, strict=True):
        assert side % multiple == 0 and side >= max(minimum, was) and side - multiple < max(minimum, was)
    np.testing.assert_array_equal(padded[:, :, : size[0], : size[1]], x)


def test_padding_mirrors_where_it_can_and_repeats_the_edge_where_not() -> None:
    row = np.arange(5.0).reshape(1, 1, 1, 5)
    assert pad_to(row, SizeRule(1, 8))[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert pad_to(row, SizeRule(16))[0, 0, 0].tolist() == [0, 1, 2, 3] + [4] * 12
