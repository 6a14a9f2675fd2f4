"""Teachers that take and give N,H,W,C: told apart from N,C,H,W, protected, verified and run like their twins."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional

import asvp_export
from asvp_export.cli import cli
from asvp_export.distillation.victim import Victim
from asvp_export.images import list_images, photographs, read_image
from asvp_export.runtime.restoration import restore
from asvp_export.runtime.tiles import Tiling
from asvp_export.selection.survey import survey_layers
from asvp_export.signature import following
from tests.helpers.graphs import legacy, pointwise
from tests.helpers.teachers import save_pictures


class First(nn.Module):
    """A residual net that works at half size, so that sizes are multiples of 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body, self.tail = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((12, 16), (16, 16), (16, 12)))

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.body(torch.relu(self.head(functional.pixel_unshuffle(x, 2)))))
        return x + 0.1 * functional.pixel_shuffle(self.tail(features), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.restored(x)


class Last(First):
    """The same net, channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.restored(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LastWithMap(nn.Module):
    """A noise map N,H,W,1 of half the size beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = First()

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noise = functional.interpolate(noise.permute(0, 3, 1, 2), scale_factor=2.0)
        return self.net(x.permute(0, 3, 1, 2) + 0.1 * noise).permute(0, 2, 3, 1)


class Brighter(nn.Module):
    """Takes whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


def written(path: Path, module: nn.Module, *sample: int, free: dict[int, str] | None = None) -> Path:
    return legacy(path, module, sample=sample, free=dict.fromkeys(("x", "y"), free) if free else None)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The net of both layouts, with free sizes and with fixed ones."""
    folder = tmp_path_factory.mktemp("files")
    written(folder / "first.onnx", First(), 1, 3, 64, 80, free={0: "n", 2: "h", 3: "w"})
    written(folder / "first_fixed.onnx", First(), 1, 3, 64, 80)
    written(folder / "last.onnx", Last(), 1, 64, 80, 3, free={0: "n", 1: "h", 2: "w"})
    written(folder / "last_fixed.onnx", Last(), 1, 64, 80, 3)
    torch.jit.script(Last().eval()).save(folder / "last.pt")
    sizes = {0: torch.export.Dim("n"), 1: 2 * torch.export.Dim("h", min=2), 2: 2 * torch.export.Dim("w", min=2)}
    torch.export.save(
        torch.export.export(Last().eval(), (torch.rand(2, 64, 80, 3),), dynamic_shapes=(sizes,)), folder / "last.pt2"
    )
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 2, 65, 81)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return read_image(list_images(photographs("verify"))[0])[:64, :80]


def metadata(path: Path) -> dict[str, str]:
    return {one.key: one.value for one in onnx.load(path).metadata_props}


def shapes(path: Path) -> list[list[int | str]]:
    graph = onnx.load(path).graph
    return [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]


@pytest.mark.parametrize(
    "name, why",
    [
        ("last.onnx", "the last axis of the picture is 3 and fixed, while the second axis is free"),
        ("last_fixed.onnx", "the last axis of the picture is 3 and fixed, while the second axis is 64"),
        ("last.pt", "not on N,C,H,W"),
        ("last.pt2", "3 and fixed, while the second axis is free"),
        ("memory", "not on N,C,H,W"),
    ],
)
def test_channels_last_is_found_and_told_whatever_the_teacher_comes_as(name, why, files):
    teacher = asvp_export.load(Last() if name == "memory" else files / name)
    assert teacher.signature.channels_last and teacher.channels == 3 and teacher.scale == 1
    assert teacher.example().shape[1] == 3
    (told,) = [one for one in teacher.assumptions if one.about == "layout"]
    assert told.concluded == "N,H,W,C (channels last)" and why in told.because
    assert told.certain and told.option == "--layout nchw|nhwc"
    if name == "last_fixed.onnx":
        assert teacher.static_shape == (1, 3, 64, 80)
    else:
        assert teacher.size.multiple == 2


def test_nothing_is_told_of_the_usual_layout(files):
    for model in (First(), files / "first.onnx", files / "first_fixed.onnx"):
        teacher = asvp_export.load(model)
        assert not teacher.signature.channels_last
        assert not [one for one in teacher.assumptions if one.about == "layout"]


@pytest.mark.parametrize("name", ["last.onnx", "last_fixed.onnx", "last.pt"])
def test_layers_have_their_channels_where_they_are(name, files):
    layers, _ = survey_layers(asvp_export.load(files / name))
    assert len(layers) > 8 and layers[-1].type == "Transpose"
    assert (layers[-1].axis, layers[-1].shape[-1]) == (-1, 3)
    assert {layer.axis for layer in layers[:-1]} == {1}


@pytest.mark.parametrize("name", ["last.onnx", "last_fixed.onnx"])
@pytest.mark.parametrize("options", [{}, {"dtype": "fp16"}, {"portable": "inline"}])
def test_the_file_keeps_the_interface_and_gives_what_the_original_gives(
    name, options, files, photograph, pictures, tmp_path
):
    teacher, out = asvp_export.load(files / name), tmp_path / "p.onnx"
    result = asvp_export.export(asvp_export.protect(teacher, "auto:1"), out, images=pictures, **options)
    assert result.passed and result.nodes
    assert shapes(out) == shapes(files / name)
    assert metadata(out)["asvp.layout"] == "nhwc"
    x = photograph[None]
    found = []
    for path in (files / name, out):
        session = asvp_export.InferenceSession(str(path))
        half = session.get_inputs()[0].type == "tensor(float16)"
        found.append(np.asarray(session.run(None, {"x": x.astype(np.float16) if half else x})[0], np.float32))
    assert found[0].shape == (1, 64, 80, 3)
    np.testing.assert_allclose(*found, atol=2e-3 if "dtype" in options else 1e-4)
    assert asvp_export.check(files / name, out, images=pictures).passed
    twin = files / name.replace("last", "first")
    np.testing.assert_allclose(
        restore(out, photograph), restore(twin, photograph), atol=2e-3 if "dtype" in options else 1e-4
    )


@pytest.mark.parametrize("name", ["memory", "last.pt", "last.pt2"])
def test_a_module_is_exported_with_its_own_layout_and_free_sizes(name, files, photograph, pictures, tmp_path):
    teacher = asvp_export.load(Last() if name == "memory" else files / name)
    layer = next(layer.name for layer in survey_layers(teacher)[0] if "body" in layer.name)
    result = asvp_export.export(asvp_export.protect(teacher, layer), tmp_path / "p.onnx", images=pictures)
    assert result.passed
    (image, restored) = shapes(tmp_path / "p.onnx")
    assert image[3] == 3 and all(isinstance(size, str) for size in image[:3])
    if name == "memory":
        assert image[:3] == restored[:3] == ["batch", "height", "width"]
    part = photograph[:60, :78]
    np.testing.assert_allclose(restore(tmp_path / "p.onnx", part), restore(files / "first.onnx", part), atol=1e-4)
    assert restore(tmp_path / "p.onnx", photograph[:61, :77]).shape == (61, 77, 3)


def test_verdict_and_page_are_those_of_the_twin(files, pictures, tmp_path):
    """Padding is cropped, SSIM is computed and pictures are cut as of N,C,H,W: 65 x 81 pixels are padded for both."""
    found = []
    for name in ("first", "last"):
        protected = asvp_export.protect(
            asvp_export.load(files / f"{name}.onnx"),
            "/body/Conv",
            gain="auto",
            residual="gain",
            images=pictures,
            verify_images=pictures,
        )
        found.append(asvp_export.export(protected, tmp_path / f"{name}.onnx", images=pictures, report=tmp_path))
    first, last = found
    assert first.passed and last.passed
    (one,), (other,) = (result.nodes.values() for result in found)
    assert other.gain == pytest.approx(one.gain, rel=1e-3)
    assert last.preservation.min_psnr == pytest.approx(first.preservation.min_psnr, abs=0.05)
    assert last.preservation.min_ssim == pytest.approx(first.preservation.min_ssim, abs=1e-4)
    for one, other in zip(first.evidence.samples, last.evidence.samples, strict=True):
        assert one.original.shape == other.original.shape == (3, 65, 81)
        np.testing.assert_allclose(one.original, other.original, atol=1e-5)
    for one, other in zip(first.removal_tests, last.removal_tests, strict=True):
        assert other.min_psnr == pytest.approx(one.min_psnr, abs=0.1)


def test_tiles_are_cut_from_the_picture_not_from_its_channels(files, photograph, pictures, tmp_path):
    protected = asvp_export.protect(asvp_export.load(files / "last.onnx"), "/body/Conv", gain=2.0)
    asvp_export.export(protected, tmp_path / "p.onnx", images=pictures)
    tiling = Tiling(32, 16)
    result = asvp_export.check(files / "last.onnx", tmp_path / "p.onnx", images=pictures, tile=32, overlap=16)
    assert result.tiled and result.tiled.passed
    tiled, whole = (restore(tmp_path / "p.onnx", photograph, tiling=one) for one in (tiling, None))
    np.testing.assert_allclose(tiled, whole, atol=2e-2)


def test_attackers_see_pictures_channels_first(files, tmp_path, pictures):
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    twin = Victim(asvp_export.protect(asvp_export.load(files / "first.onnx"), "/body/Conv", gain=2.0))
    teacher = asvp_export.load(files / "last.onnx")
    protected = asvp_export.protect(teacher, "/body/Conv", gain=2.0)
    asvp_export.export(protected, tmp_path / "p.onnx", images=pictures)
    for victim in (Victim(protected), Victim.of_file(teacher, tmp_path / "p.onnx")):
        for look in ("original", "shipped"):
            seen, wanted = getattr(victim, look)(images), getattr(twin, look)(images)
            torch.testing.assert_close(seen.outputs, wanted.outputs, atol=1e-4, rtol=0)
            torch.testing.assert_close(seen["exposed"], wanted["exposed"], atol=1e-4, rtol=1e-4)


def test_a_noise_map_beside_the_image_follows_its_height_and_width(photograph, pictures, tmp_path):
    np.savez(tmp_path / "inputs.npz", x=np.random.rand(1, 64, 80, 3), noise=np.random.rand(1, 32, 40, 1))
    teacher = asvp_export.load(LastWithMap(), inputs=tmp_path / "inputs.npz")
    assert teacher.signature.channels_last
    (noise,) = teacher.signature.others
    half = Fraction(1, 2)
    assert noise.follows == ((0, "batch", Fraction(1)), (1, "height", half), (2, "width", half))
    result = asvp_export.export(asvp_export.protect(teacher, "net.body"), tmp_path / "p.onnx", images=pictures)
    assert result.passed
    maps = {"noise": np.zeros((1, 32, 40, 1), np.float32)}
    restored = restore(tmp_path / "p.onnx", photograph, others=maps)
    assert restored.shape == photograph.shape


def test_an_example_of_three_axes_follows_by_its_last_two():
    image = (1, 3, 64, 80)
    mask = following("mask", np.zeros((1, 64, 80)), image, channels_last=True)
    assert mask.fitting(2, 32, 48).shape == (2, 32, 48)
    assert following("level", np.zeros(1), image, channels_last=True).fitting(2, 32, 48).shape == (2,)


TO_FRONT = {"first": "Transpose", "perm": [0, 3, 1, 2]}


@pytest.mark.parametrize(
    "sizes, options, last, certain",
    [
        ([1, 3, 64, 3], {}, False, False),
        ([1, 4, 64, 3], {}, False, False),
        ([1, 3, 64, 80], {}, False, None),
        ([1, 3, 64, 3], {"first": "Conv"}, False, True),
        ([1, 4, 64, 3], {"first": "Conv"}, False, True),
        ([1, 64, 80, 3], {"first": "Conv"}, False, True),
        ([1, 4, 64, 3], TO_FRONT, True, True),
        ([1, 64, 80, 3], TO_FRONT, True, True),
        ([1, 64, 80, 6], TO_FRONT, True, True),
        ([1, 3, 64, 80], TO_FRONT, False, None),
        ([1, 64, 80, 3], {}, True, False),
        ([1, 64, 80, 1], {}, True, False),
        ([1, "h", "w", 4], {}, True, True),
        (["n", "c", "h", "w"], {}, False, False),
        (["n", 3, "h", "w"], {}, False, None),
    ],
    ids=str,
)
def test_odd_declared_sizes_are_no_reason_to_guess_in_silence(sizes, options, last, certain, tmp_path):
    """What the graph does first counts before sizes; where both readings work, that is said. None: nothing is told."""
    teacher = asvp_export.load(pointwise(tmp_path / "m.onnx", sizes, **options))
    assert teacher.signature.channels_last == last
    told = [one.certain for one in teacher.assumptions if one.about == "layout"]
    assert told == ([] if certain is None else [certain])


def test_a_module_that_runs_on_both_layouts_is_taken_channels_first_and_that_is_told():
    teacher = asvp_export.load(Brighter())
    assert not teacher.signature.channels_last
    (told,) = [one for one in teacher.assumptions if one.about == "layout"]
    assert not told.certain and "as well" in told.because
    assert asvp_export.load(Brighter(), layout="nhwc").signature.channels_last


def test_the_option_overrides_what_was_found(files, tmp_path, pictures):
    teacher = asvp_export.load(files / "last_fixed.onnx", layout="nchw")
    assert (
        not teacher.signature.channels_last
        and teacher.static_shape == (1, 64, 80, 3)
        and "layout" not in {one.about for one in teacher.assumptions}
    )
    with pytest.raises(asvp_export.InputError, match="nchw or nhwc was expected"):
        asvp_export.load(files / "last.onnx", layout="hwc")
    found = CliRunner().invoke(cli, ["layers", str(files / "last_fixed.onnx"), "--layout", "nchw", "--json"])
    assert found.exit_code == 0
    assert {tuple(layer["shape"]) for layer in json.loads(found.stdout)["layers"]} >= {(1, 64, 80, 3)}


def test_check_reads_the_layout_that_the_file_names(pictures, tmp_path):
    """A model that runs on both, exported with the option."""
    original = pointwise(tmp_path / "m.onnx", ["n", "a", "b", "c"])
    teacher = asvp_export.load(original, layout="nhwc")
    asvp_export.export(asvp_export.protect(teacher, "none"), tmp_path / "p.onnx", images=pictures)
    assert asvp_export.check(original, tmp_path / "p.onnx", images=pictures).passed


def test_the_layout_stands_in_the_metadata_of_these_files_alone(files, pictures, tmp_path):
    asvp_export.export(
        asvp_export.protect(asvp_export.load(files / "first.onnx"), "none"), tmp_path / "p.onnx", images=pictures
    )
    assert "asvp.layout" not in metadata(tmp_path / "p.onnx")
    model = onnx.load(tmp_path / "p.onnx")
    helper.set_model_props(model, {**metadata(tmp_path / "p.onnx"), "asvp.layout": "sideways"})
    onnx.save(model, tmp_path / "edited.onnx")
    with pytest.raises(asvp_export.InputError, match="layout sideways"):
        restore(tmp_path / "edited.onnx", np.zeros((64, 80, 3), np.float32))


def test_the_files_card_and_description_say_it(files, pictures, photograph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [
        str(files / "last.onnx"),
        "--layers",
        "/body/Conv",
        "-o",
        "p.onnx",
        "--images",
        str(pictures),
        "--model-card",
    ]
    assert CliRunner().invoke(cli, given).exit_code == 0
    assert "layout: N,H,W,C" in CliRunner().invoke(cli, ["inspect", "p.onnx"]).stdout
    card = Path("README.md").read_text()
    assert "Channels last: N,H,W,C" in card
    asvp_export.images.write_image("in.png", photograph)
    exec(card.split("```python\n")[1].split("```")[0], {})  # what the card tells users to run
    wanted = restore(files / "first.onnx", read_image("in.png"))
    np.testing.assert_allclose(read_image("out.png"), wanted.clip(0, 1), atol=0.004)


def test_videos_channels_last_are_refused_in_a_sentence(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5, "h", "w", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Sqrt", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "v.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.zeros((1, 5, 32, 48, 3), np.float32))
    with pytest.raises(asvp_export.InputError, match="video with its channels last"):
        asvp_export.load(tmp_path / "v.onnx", inputs=tmp_path / "inputs.npz")
    with pytest.raises(asvp_export.InputError, match="videos are taken as N,T,C,H,W only"):
        asvp_export.load(Brighter(), inputs=tmp_path / "inputs.npz", layout="nhwc")


def test_a_file_of_another_layout_than_its_original_is_refused(files, pictures, tmp_path):
    asvp_export.export(
        asvp_export.protect(asvp_export.load(files / "last.onnx"), "none"), tmp_path / "p.onnx", images=pictures
    )
    with pytest.raises(asvp_export.InputError, match="3 channels were expected, channels first"):
        asvp_export.check(files / "first.onnx", tmp_path / "p.onnx", images=pictures)
    assert onnxruntime.InferenceSession(tmp_path / "p.onnx").get_inputs()[0].shape[3] == 3
