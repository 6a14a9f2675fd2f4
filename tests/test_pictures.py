"""A picture is never made worse in silence: what `run` keeps of it, and what a folder's pictures lose."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from asvp_export.errors import InputError
from asvp_export.images import read_image, write_image
from asvp_export.parity.choice import RequestedInputs
from asvp_export.picture import Picture, left_out, read_picture
from asvp_export.runtime.restoration import restore
from tests.helpers.coffee import COFFEE, DISC, cut_out, model, run
from tests.helpers.colour_profiles import LINEAR_GREY, WIDE

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_cut_out_is_restored_with_its_transparency_and_without_what_lies_under_it(
    tmp_path: Path, suffix: str
) -> None:
    file, found = model(tmp_path / "m.onnx", scale=2), []
    for hidden in (np.zeros(3), RNG.integers(0, 256, (97, 129, 3))):
        cut_out(hidden).save(tmp_path / "in.png")
        assert run(file, tmp_path / "in.png", "-o", tmp_path / f"out{suffix}", "--force") == ""
        found.append(np.asarray(Image.open(tmp_path / f"out{suffix}")))
    assert found[0].shape == (194, 258, 4)
    visible = found[0][..., 3] > 0
    np.testing.assert_array_equal(found[0][visible], found[1][visible])
    wanted = DISC.repeat(2, 0).repeat(2, 1)
    assert np.mean((found[0][..., 3] > 127) != wanted) < 0.005 and set(found[0][::9, 0, 3]) == {0}
    plain = restore(file, COFFEE.astype(np.float32) / 255)
    inside = np.hypot(*(np.mgrid[:194, :258] - np.array([96, 128])[:, None, None])) < 74
    np.testing.assert_allclose(found[0][inside][:, :3], plain[inside] * 255, atol=0.51)


def test_transparency_is_not_touched_where_the_size_stays(tmp_path: Path) -> None:
    ramp = RNG.integers(0, 256, (97, 129), np.uint8)
    Image.fromarray(np.dstack([COFFEE, ramp])).save(tmp_path / "in.png")
    run(model(tmp_path / "m.onnx"), tmp_path / "in.png", "-o", tmp_path / "out.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png"))[..., 3], ramp)


def test_a_border_that_the_model_loses_is_cut_off_the_transparency_too(tmp_path: Path) -> None:
    alpha = RNG.random((20, 30), np.float32)
    write_image(tmp_path / "a.png", np.zeros((16, 26, 3)), Picture(np.zeros((20, 30, 3)), alpha))
    np.testing.assert_allclose(
        np.asarray(Image.open(tmp_path / "a.png"))[..., 3] / 255, alpha[2:18, 2:28], atol=0.5 / 255 + 1e-6
    )
    write_image(tmp_path / "b.png", np.zeros((10, 15, 3)), Picture(np.zeros((20, 30, 3)), alpha))
    assert Image.open(tmp_path / "b.png").mode == "RGBA"


def test_transparency_that_the_output_cannot_hold_is_refused_before_the_work(tmp_path: Path) -> None:
    cut_out(np.zeros(3)).save(tmp_path / "in.png")
    with pytest.raises(InputError, match=r"transparency, which .*out\.jpg cannot hold; write a \.png"):
        run(tmp_path / "no_model.onnx", tmp_path / "in.png", "-o", tmp_path / "out.jpg")
    Image.fromarray(np.dstack([COFFEE, np.full((97, 129), 255, np.uint8)])).save(tmp_path / "opaque.png")
    assert run(model(tmp_path / "m.onnx"), tmp_path / "opaque.png", "-o", tmp_path / "out.jpg") == ""


def test_every_kind_of_transparency_is_found(tmp_path: Path) -> None:
    photo = Image.fromarray(COFFEE)
    Image.merge("LA", (photo.convert("L"), Image.fromarray(DISC.astype(np.uint8) * 255))).save(
        tmp_path / "grey_alpha.png"
    )
    photo.quantize(64).save(tmp_path / "palette.png", transparency=3)
    photo.quantize(64).save(tmp_path / "palette_of_bytes.png", transparency=bytes([0, 128, 255]))
    photo.convert("L").save(tmp_path / "one_grey.png", transparency=int(photo.convert("L").getpixel((5, 5))))
    photo.save(tmp_path / "one_colour.png", transparency=photo.getpixel((5, 5)))
    samples = (COFFEE.astype(np.uint16)[..., 0] * 257).ravel()
    with (tmp_path / "one_grey_of_16.png").open("wb") as stream:
        png.Writer(129, 97, greyscale=True, bitdepth=16, transparent=int(samples[0])).write(
            stream, samples.reshape(97, -1)
        )
    for path in tmp_path.iterdir():
        found = read_picture(path)
        assert found.alpha is not None and found.alpha.min() == 0 and found.alpha.max() == 1, path
        assert found.pixels.shape == (97, 129, 3)
        assert found.grey == ("grey" in path.name) and found.bits == (16 if "16" in path.name else 8)


def test_a_picture_that_is_all_transparent_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([COFFEE, np.zeros((97, 129), np.uint8)])).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").max() == 0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_16_bits_are_written_and_read_back_to_the_bit(tmp_path: Path, count: int) -> None:
    samples = RNG.integers(1, 65536, (40, 30, count)).astype(np.float32) / 65535
    colours, alpha = (samples, None) if count % 2 else (samples[..., :-1], samples[..., -1])
    like = Picture(
        np.broadcast_to(colours, (40, 30, 3)),
        alpha,
        bits=16,
        grey=count < 3,
        profile=WIDE if count > 2 else LINEAR_GREY,
    )
    write_image(tmp_path / "a.png", like.pixels, like)
    found = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(np.rint(found.pixels * 65535), np.rint(like.pixels * 65535))
    assert (found.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(np.rint(found.alpha * 65535), np.rint(alpha * 65535))
    assert (found.bits, found.grey, found.profile) == (16, like.grey, like.profile)


def test_run_keeps_16_bits_of_grey_and_of_colour(tmp_path: Path) -> None:
    grey = np.broadcast_to(np.arange(129) * 500, (97, 129)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    colours = (COFFEE.astype(np.uint16) * 257 + RNG.integers(-100, 100, COFFEE.shape)).clip(0, 65535).astype(np.uint16)
    with (tmp_path / "colour.png").open("wb") as stream:
        png.Writer(129, 97, greyscale=False, bitdepth=16).write(stream, colours.reshape(97, -1))
    for name, channels in (("grey", 1), ("colour", 3)):
        file = model(tmp_path / "m.onnx", channels)
        assert run(file, tmp_path / f"{name}.png", "-o", tmp_path / "out.png", "--force") == ""
        found = read_picture(tmp_path / "out.png")
        assert found.bits == 16 and found.grey == (channels == 1)
        expected = restore(file, read_image(tmp_path / f"{name}.png"))
        np.testing.assert_allclose(found.pixels, expected.clip(0, 1), atol=0.51 / 65535)
        told = run(file, tmp_path / f"{name}.png", "-o", tmp_path / "out.jpg", "--force")
        assert "16 bits a channel and JPEG holds 8" in told and told.count("\n") == 1


def test_16_bit_tiff_is_read_to_the_bit(tmp_path: Path) -> None:
    colours = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    alpha = RNG.integers(20_000, 65536, (20, 30, 1)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "plain.tif", colours, photometric="rgb")
    tifffile.imwrite(tmp_path / "zip.tif", colours, photometric="rgb", compression="zlib", predictor=2)
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(colours, 2, 0), photometric="rgb", planarconfig="separate")
    turned = np.ascontiguousarray(np.rot90(colours))  # orientation 6: to be turned by 90 degrees to the right
    tifffile.imwrite(tmp_path / "turned.tif", turned, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    tifffile.imwrite(
        tmp_path / "alpha.tif", np.dstack([colours, alpha]), photometric="rgb", extrasamples=["unassalpha"]
    )
    weighted = np.rint(colours * (alpha / 65535)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "weighted.tif", np.dstack([weighted, alpha]), photometric="rgb", extrasamples=["assocalpha"]
    )
    for path in tmp_path.iterdir():
        found = read_picture(path)
        assert found.bits == 16 and found.notes == (), path
        atol = 2.5 / 65535 if path.stem == "weighted" else 1e-7
        np.testing.assert_allclose(found.pixels, colours / 65535, atol=atol, err_msg=path.name)
        assert (found.alpha is not None) == (path.stem in ("alpha", "weighted"))


def test_white_is_white_where_a_tiff_stores_it_as_zero(tmp_path: Path) -> None:
    samples = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    for kind in (np.uint8, np.uint16):
        stored = (samples >> (0 if kind == np.uint16 else 8)).astype(kind)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
        np.testing.assert_allclose(read_image(tmp_path / "a.tif")[..., 0], 1 - stored / np.iinfo(kind).max, atol=1e-6)


def test_16_bits_that_are_not_read_are_told(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RNG.integers(0, 65536, (20, 30, 4)).astype(np.uint16), photometric="separated")
    found = read_picture(tmp_path / "a.tif")
    assert found.bits == 8 and any("16 bits a channel, of which 8 are read" in note for note in found.notes)


def test_the_frames_that_are_not_read_are_told(tmp_path: Path) -> None:
    frames = [Image.fromarray(COFFEE).rotate(90), Image.fromarray(COFFEE).rotate(180)]
    for name in ("a.png", "a.webp", "a.tif"):
        Image.fromarray(COFFEE).save(tmp_path / name, save_all=True, append_images=frames)
        assert read_picture(tmp_path / name).notes == ("The picture has 3 frames; the first is read.",)


def test_an_output_has_no_orientation_that_would_turn_it_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with (tmp_path / "plain.png").open("wb") as stream:
        png.Writer(129, 97, greyscale=False, bitdepth=16).write(
            stream, (COFFEE.astype(np.uint16) * 257).reshape(97, -1)
        )
    head, *rest = png.Reader(str(tmp_path / "plain.png")).chunks()
    with (tmp_path / "deep.png").open("wb") as stream:
        png.write_chunks(stream, [head, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), *rest])
    Image.fromarray(COFFEE).save(tmp_path / "flat.png", exif=exif)
    for name in ("deep.png", "flat.png"):
        for suffix in (".png", ".jpg", ".webp"):
            run(model(tmp_path / "m.onnx"), tmp_path / name, "-o", tmp_path / f"out{suffix}", "--force")
            output = Image.open(tmp_path / f"out{suffix}")
            assert output.size == (97, 129) and 0x0112 not in output.getexif()
        assert np.abs(read_image(tmp_path / name) - np.rot90(COFFEE, -1) / 255).max() < 1e-6


def test_what_a_folder_of_pictures_loses_is_told_in_one_line(tmp_path: Path) -> None:
    Image.fromarray(COFFEE).save(tmp_path / "a.png")
    assert RequestedInputs(tmp_path).notes == [] and RequestedInputs().notes == []
    cut_out(np.zeros(3)).save(tmp_path / "b.png")
    cut_out(np.zeros(3)).save(tmp_path / "c.webp")
    Image.fromarray(COFFEE).convert("CMYK").save(tmp_path / "d.jpg")
    Image.fromarray(COFFEE).save(tmp_path / "e.png", icc_profile=WIDE)
    (line,) = RequestedInputs(tmp_path).notes
    assert line == (
        "Of 5 pictures, 2 have transparency, which is left out; "
        "1 has colours for print (CMYK), which are converted to sRGB; "
        "1 has a colour profile other than sRGB, which is not applied."
    )
    (tmp_path / "e.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"e\.png"):
        left_out([tmp_path / "e.png"])


def test_a_16_bit_png_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    png.Writer(129, 97, greyscale=False, bitdepth=16).write(stream, (COFFEE.astype(np.uint16) * 257).reshape(97, -1))
    for share in (0.1, 0.5, 0.98):
        (tmp_path / "half.png").write_bytes(stream.getvalue()[: int(share * len(stream.getvalue()))])
        with pytest.raises(InputError, match=r"half\.png"):
            read_picture(tmp_path / "half.png")
    head, *rest = png.Reader(bytes=stream.getvalue()).chunks()
    with (tmp_path / "few.png").open("wb") as short:
        rows = zlib.decompress(b"".join(body for kind, body in rest if kind == b"IDAT"))
        png.write_chunks(short, [head, (b"IDAT", zlib.compress(rows[: 50 * (129 * 6 + 1)])), (b"IEND", b"")])
    with pytest.raises(InputError, match=r"few\.png"):
        read_picture(tmp_path / "few.png")


def test_a_file_of_a_fixed_batch_restores_one_picture(tmp_path: Path) -> None:
    picture = COFFEE.astype(np.float32) / 255
    free = restore(model(tmp_path / "free.onnx"), picture)
    np.testing.assert_array_equal(restore(model(tmp_path / "four.onnx", shape=(4, "h", "w")), picture), free)


@pytest.mark.parametrize("fixed", [(48, 64), (48, "w"), (97, 200), (200, 300)])
def test_a_file_of_a_fixed_size_restores_larger_and_smaller_pictures(
    tmp_path: Path, fixed: tuple[int | str, int | str]
) -> None:
    picture, told = COFFEE.astype(np.float32) / 255, []
    free = restore(model(tmp_path / "free.onnx", scale=2), picture)
    found = restore(model(tmp_path / "fixed.onnx", scale=2, shape=(1, *fixed)), picture, note=told.append)
    # A tile's first and last rows have no neighbours, and count for a few percent.
    np.testing.assert_allclose(found[4:-4, 4:-4], free[4:-4, 4:-4], atol=0.02)
    assert found.shape == free.shape
    if fixed[0] == 48:
        size = "48x64" if fixed[1] == 64 else "48x129"
        assert told == [
            f"The file takes {size} (height x width) only and the picture is 97x129: it is restored in tiles "
            "that share 24 pixels, which differs from a run on the whole."
        ]
    else:
        assert told == []


@pytest.mark.parametrize(
    ("compression", "said"), [(None, "it stores 108 of its 160432236"), ("tiff_deflate", "cannot be read")]
)
def test_a_tiff_that_does_not_store_all_of_its_pixels_is_refused_before_they_are_made_up(
    tmp_path: Path, compression: str | None, said: str
) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(RNG.integers(0, 256, (9, 12, 3), np.uint8)).save(path, compression=compression)
    assert read_picture(path).pixels.shape == (9, 12, 3)
    content = path.read_bytes()
    with Image.open(path) as picture:
        assert picture.tag_v2[257] == 9
    # The entry of tag 257, the height: a number of 16 or 32 bits.
    for kind, form in ((3, "<HHIHH"), (4, "<HHII")):
        entry = struct.pack(form, 257, kind, 1, *((9, 0) if kind == 3 else (9,)))
        larger = struct.pack("<HHII", 257, 4, 1, 13_369_353)
        content = content.replace(entry, larger)
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_picture(path)
