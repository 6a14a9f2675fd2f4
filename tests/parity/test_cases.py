"""Which inputs models are compared on: sizes, batches, frozen shapes, and images that do not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from asvp_export.errors import InputError
from asvp_export.images import read_image
from asvp_export.parity.cases import build_cases
from asvp_export.signature import Signature, SizeRule, ValueRange
from tests.helpers.restorers import FREE, UNIT, WIDE, sizes_of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three real photographs: 400 x 600, 300 x 451, 512 x 512."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("coffee", "chelsea", "astronaut"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in ("coffee", "chelsea", "astronaut")]


def saved(folder: Path, name: str, height: int, width: int) -> Path:
    """A piece of a real photograph, of this size."""
    Image.fromarray(data.astronaut()).resize((width, height)).save(folder / name)
    return folder / name


def test_every_image_comes_whole_and_odd_and_one_input_is_a_batch(pictures: list[Path]) -> None:
    assert sizes_of(build_cases(pictures, **FREE)) == [
        ("coffee.png", "400x600", 1),
        ("coffee.png", "201x451", 1),
        ("chelsea.png", "300x451", 1),
        ("chelsea.png", "151x339", 1),
        ("astronaut.png", "512x512", 1),
        ("astronaut.png", "385x257", 1),
        ("coffee.png + chelsea.png", "300x451", 2),
    ]


def test_one_image_is_batched_with_its_mirror_image(pictures: list[Path]) -> None:
    batch = build_cases(pictures[:1], **FREE)[-1]
    assert (batch.name, batch.batch) == ("coffee.png + coffee.png mirrored", 2)
    np.testing.assert_array_equal(batch.input[0], batch.input[1][:, :, ::-1])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    minimum=st.integers(1, 40),
    multiple=st.integers(1, 9),
    data_range=st.sampled_from([UNIT, WIDE, ValueRange(-1, 1)]),
)
def test_the_contract_holds_for_every_size(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    minimum: int,
    multiple: int,
    data_range: ValueRange,
) -> None:
    path = saved(tmp_path_factory.getbasetemp(), "any.png", height, width)
    minimum = min(minimum, height, width)
    cases = build_cases([path], size=SizeRule(minimum, multiple), data_range=data_range, signature=Signature())
    singles = [case for case in cases if case.batch == 1]
    assert len({(case.height, case.width) for case in singles}) >= 2
    assert any(case.height % 2 and case.width % 2 and case.height != case.width for case in singles)
    assert [case.batch for case in cases if case.batch != 1] == [2]
    picture = data_range.of(read_image(path))
    for case in cases:
        rows, columns = case.input.shape[2:]
        assert case.input.dtype == np.float32 and case.input.flags.c_contiguous
        assert rows % multiple == 0 == columns % multiple and min(rows, columns) >= minimum
        top, left = (height - case.height) // 2, (width - case.width) // 2
        expected = picture[top : top + case.height, left : left + case.width].transpose(2, 0, 1)
        np.testing.assert_array_equal(case.input[0, :, : case.height, : case.width], expected)


def test_large_photographs_are_compared_on_their_middle(tmp_path: Path) -> None:
    path = saved(tmp_path, "camera.jpg", 1100, 1500)
    assert [case.size for case in build_cases([path], **FREE)] == ["1024x1024", "769x513", "1024x1024"]
    assert build_cases([path], **FREE, sizes=[(1100, 1500)])[0].size == "1100x1500"


def test_sizes_that_were_asked_for_are_cut_and_the_odd_one_added(pictures: list[Path]) -> None:
    one = [case.size for case in build_cases(pictures[:1], **FREE, sizes=[(64, 64)])]
    assert one == ["64x64", "49x33", "64x64"]
    two = [case.size for case in build_cases(pictures[:1], **FREE, sizes=[(64, 64), (65, 97)])]
    assert two == ["64x64", "65x97", "64x64"]


def test_a_static_model_is_compared_on_its_size_and_batch_only(pictures: list[Path]) -> None:
    small = build_cases(pictures[:2], **FREE, fixed=(1, 3, 64, 96))
    assert sizes_of(small) == [("coffee.png", "64x96", 1), ("chelsea.png", "64x96", 1)]
    three = build_cases(pictures[:2], **FREE, fixed=(3, 3, 64, 96))
    assert sizes_of(three) == [("coffee.png + 2 more", "64x96", 3)]
    np.testing.assert_array_equal(three[0].input[2], small[0].input[0][:, :, ::-1])
    tall = build_cases(pictures[:1], **FREE, fixed=(None, 3, 64, None))
    assert [case.size for case in tall] == ["64x600", "64x451", "64x600"]


def test_images_and_sizes_that_do_not_do_are_refused_by_name(tmp_path: Path, pictures: list[Path]) -> None:
    tiny = saved(tmp_path, "tiny.png", 20, 30)
    images = [pictures[0], tiny]
    with pytest.raises(InputError, match=r"tiny\.png is 20x30 .* the model needs at least 24x24\. Use larger"):
        build_cases(images, **FREE | {"size": SizeRule(24)})
    with pytest.raises(InputError, match=r"tiny\.png is 20x30 .* size asked for needs at least 21x16.* smaller size"):
        build_cases(images, **FREE, sizes=[(16, 16), (21, 16)])
    with pytest.raises(InputError, match=r"tiny\.png is 20x30 .* the model needs at least 64x96"):
        build_cases(images, **FREE, fixed=(1, 3, 64, 96))
    with pytest.raises(InputError, match="size 8x8 was asked for; at least 16x16"):
        build_cases(images, **FREE | {"size": SizeRule(16)}, sizes=[(8, 8)])
    with pytest.raises(InputError, match="size 8x8 was asked for; this model takes 16xany only"):
        build_cases(images, **FREE, sizes=[(8, 8)], fixed=(1, 3, 16, None))
    with pytest.raises(InputError, match="frozen at 100; it has to be a multiple of 8"):
        build_cases(images, **FREE | {"size": SizeRule(8, 8)}, fixed=(1, 3, 64, 100))
    with pytest.raises(InputError, match=r"tiny2\.png is 2x2 .* at least 3x3"):
        build_cases([saved(tmp_path, "tiny2.png", 2, 2)], **FREE)
    with pytest.raises(InputError, match="no image"):
        build_cases([], **FREE)
