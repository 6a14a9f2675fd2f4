"""Colours keep their meaning: profiles, gamma, print, grey."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from asvp_export.images import write_image
from asvp_export.picture import Picture, read_picture
from tests.helpers.coffee import COFFEE, model, run
from tests.helpers.colour_profiles import LINEAR_GREY, SRGB, WIDE, ink, shown


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_output_has_the_colour_profile_of_its_input_and_looks_like_it(tmp_path: Path, suffix: str) -> None:
    smooth = np.stack(
        np.broadcast_arrays(np.linspace(60, 200, 97)[:, None], np.linspace(200, 60, 129), 90.0), 2
    ).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "in.png", icc_profile=WIDE)
    told = run(model(tmp_path / "m.onnx"), tmp_path / "in.png", "-o", tmp_path / f"out{suffix}")
    assert "has the colour profile Made here" in told and told.count("\n") == 1
    output = Image.open(tmp_path / f"out{suffix}")
    assert output.info["icc_profile"] == WIDE
    inside = slice(2, -2), slice(2, -2)
    difference = np.abs(shown(output)[inside] - shown(Image.open(tmp_path / "in.png"))[inside])
    assert difference.mean() < 1.5 and (suffix == ".jpg" or difference.max() <= 2)


def test_a_profile_of_srgb_is_kept_and_not_worth_a_word(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(SRGB).tobytes()
    Image.fromarray(COFFEE).save(tmp_path / "in.png", icc_profile=profile)
    assert run(model(tmp_path / "m.onnx"), tmp_path / "in.png", "-o", tmp_path / "out.png") == ""
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == profile


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_grey_of_a_profile_looks_the_same_as_grey_and_as_colours(tmp_path: Path, suffix: str) -> None:
    grey = np.broadcast_to(np.arange(256, dtype=np.uint8), (20, 256))
    Image.fromarray(grey).save(tmp_path / "in.png", icc_profile=LINEAR_GREY)
    picture = read_picture(tmp_path / "in.png")
    tinted = picture.pixels + np.array([0, 0, 1 / 255], np.float32)
    for pixels, atol in ((picture.pixels, 1), (tinted, 255)):
        write_image(tmp_path / f"out{suffix}", pixels, picture)
        output = shown(Image.open(tmp_path / f"out{suffix}"))
        np.testing.assert_allclose(output[..., :2], shown(Image.open(tmp_path / "in.png"))[..., :2], atol=1)
        np.testing.assert_allclose(output[..., 2], output[..., 1], atol=atol)


def test_a_damaged_profile_is_told_and_ignored(tmp_path: Path) -> None:
    for profile in (b"no profile", WIDE[:200], LINEAR_GREY):
        Image.fromarray(COFFEE).save(tmp_path / "in.png", icc_profile=profile)
        told = run(model(tmp_path / "m.onnx"), tmp_path / "in.png", "-o", tmp_path / "out.png", "--force")
        assert "profile is damaged, or made for another kind of colours, and was ignored" in told
        assert "icc_profile" not in Image.open(tmp_path / "out.png").info


def test_a_gamma_without_a_profile_is_told(tmp_path: Path) -> None:
    for value, told in ((45455, False), (100_000, True)):
        more = PngImagePlugin.PngInfo()
        more.add(b"gAMA", struct.pack(">I", value))
        Image.fromarray(COFFEE).save(tmp_path / "a.png", pnginfo=more)
        assert any("states a gamma of 1" in note for note in read_picture(tmp_path / "a.png").notes) == told


def test_colours_for_print_become_srgb_by_their_profile_and_are_a_guess_without(tmp_path: Path) -> None:
    photo = Image.fromarray(COFFEE).convert("CMYK")
    photo.save(tmp_path / "plain.jpg", quality=95)
    found = read_picture(tmp_path / "plain.jpg")
    assert "without a colour profile, so its colours are a guess" in found.notes[0]
    assert np.abs(found.pixels - COFFEE / 255).mean() < 0.03
    stripes = np.zeros((16, 32, 4), np.uint8)
    stripes[:, :16, 0], stripes[:, 16:, 3] = 255, 255  # cyan, which this press does not print, and black
    Image.fromarray(stripes, "CMYK").save(tmp_path / "press.tif", icc_profile=ink())
    found = read_picture(tmp_path / "press.tif")
    assert found.notes == ("The picture is for print (CMYK); it was converted to sRGB by its colour profile.",)
    assert found.profile == b"" and found.pixels[:, :16].min() > 0.97 and found.pixels[:, 16:].max() < 0.03


def test_grey_stays_grey_where_the_model_leaves_it_so(tmp_path: Path) -> None:
    for name, picture in (
        ("grey", Image.fromarray(COFFEE).convert("L")),
        ("bits", Image.fromarray(COFFEE).convert("1")),
    ):
        picture.save(tmp_path / f"{name}.png")
        for channels in (1, 3):
            told = run(
                model(tmp_path / "m.onnx", channels), tmp_path / f"{name}.png", "-o", tmp_path / "out.png", "--force"
            )
            assert told == "" and Image.open(tmp_path / "out.png").mode == "L"


def test_colours_that_a_model_gives_to_a_grey_picture_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    tinted = np.full((8, 8, 3), 0.4) + np.array([0, 0, 3 / 255])
    write_image(tmp_path / "a.png", tinted, Picture(tinted, grey=True), told.append)
    assert told == ["The picture is grey and the model gave it colours (up to 3 of 255): written in colour."]
    assert Image.open(tmp_path / "a.png").mode == "RGB"
