"""What models are called with and give, other than one colour picture for another: found, exported, verified."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

import asvp_export
from asvp_export.cli import cli
from asvp_export.errors import InputError
from asvp_export.images import read_image, write_image
from asvp_export.signature import Signature, SizeRule, ValueRange, following
from asvp_export.teacher.model import named_outputs
from tests.helpers.teachers import Video, save_pictures


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Body(nn.Module):
    """A residual net from some channels to three or as many, with one layer `body` to protect."""

    def __init__(self, channels: int = 3, out: int = 3, width: int = 8) -> None:
        super().__init__()
        self.head, self.body, self.tail = conv(channels, width), conv(width, width), conv(width, out)

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : self.tail.out_channels] + 0.1 * self.tail(torch.relu(self.body(torch.relu(self.head(x)))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.restored(x)


class NoiseMap(Body):
    """An image and a noise map of half its size, as FFDNet has it."""

    def __init__(self) -> None:
        super().__init__(channels=4)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.restored(torch.cat([x, functional.interpolate(noise, scale_factor=2.0)], 1))


class NoiseLevel(Body):
    """A level for each image comes first; the image second."""

    def forward(self, sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.restored(x) * (1 + sigma.view(-1, 1, 1, 1))


class OneLevel(Body):
    """One level for the whole batch: a vector of one element that must not grow with the batch."""

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.restored(x) * (1 + sigma.reshape(()))


class Pair(NamedTuple):
    restored: torch.Tensor
    curve: torch.Tensor


class Several(Body):
    """A dictionary with the picture second, a small map, a mean of no image's rank and a count of no floating type."""

    def forward(self, x: torch.Tensor):
        y = self.restored(x)
        return {"mean": y.mean((2, 3)), "restored": y, "coarse": functional.avg_pool2d(y, 2), "count": x[:, 0] > 0.5}


class Tuple(Body):
    def forward(self, x: torch.Tensor):
        y = self.restored(x)
        return Pair(y, torch.tanh(y))


class Recurrence(nn.Module):
    """A hidden state runs through the frames of a video; one frame comes out at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.tail = conv(11, 8), conv(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros_like(x[:, 0, :1]).repeat(1, 8, 1, 1)
        frames = []
        for t in range(5):
            state = torch.tanh(self.cell(torch.cat([x[:, t], state], 1)))
            frames.append(x[:, t] + 0.1 * self.tail(state))
        return torch.stack(frames, 1)


class Unpadded(Body):
    """Convolutions without padding: a border of 4 pixels is lost."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.restored(x)[:, :, 2:-2, 2:-2]


class Shrinking(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(self.restored(x), 2)


class Tanh(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.restored(x))


class MeanShift(Body):
    """Trained for 0..255, as EDSR: the mean goes off and comes back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.9 * (x - 117.0) + 117.0 + self.tail(torch.relu(self.body(self.head(x - 117.0))))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"), height=48, width=64)


def made(kind: type[nn.Module], *arguments: int) -> nn.Module:
    torch.manual_seed(3)
    return kind(*arguments)


def loaded(module: nn.Module, folder: Path, **inputs: np.ndarray) -> asvp_export.Teacher:
    if not inputs:
        return asvp_export.load(module)
    np.savez(folder / "inputs.npz", **inputs)
    return asvp_export.load(module, inputs=folder / "inputs.npz")


X = np.random.default_rng(0).random((1, 3, 32, 48), np.float32)
NOISE = np.full((1, 1, 16, 24), 0.1, np.float32)
CASES = {
    "a noise map": (NoiseMap, (), {"x": X, "noise": NOISE}, ("x", "noise"), ("output",)),
    "a noise level, first": (NoiseLevel, (), {"sigma": NOISE[:, 0, 0, 0], "x": X}, ("sigma", "x"), ("output",)),
    "a level for the batch": (OneLevel, (), {"x": X, "sigma": NOISE[0, 0, 0, :1]}, ("x", "sigma"), ("output",)),
    "a dictionary": (Several, (), {}, ("input",), ("mean", "restored", "coarse")),
    "a named tuple": (Tuple, (), {}, ("input",), ("restored", "curve")),
    "grey": (Body, (1, 1), {}, ("input",), ("output",)),
    "packed Bayer": (Body, (4, 3), {}, ("input",), ("output",)),
    "six channels": (Body, (6, 3), {"x": X.repeat(2, axis=1)}, ("input",), ("output",)),
    "a video": (Video, (), {}, ("input",), ("output",)),
    "a recurrent video": (Recurrence, (), {}, ("input",), ("output",)),
    "a border lost": (Unpadded, (), {}, ("input",), ("output",)),
    "half the size": (Shrinking, (), {}, ("input",), ("output",)),
    "values -1..1": (Tanh, (), {}, ("input",), ("output",)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signature_goes_the_whole_road(case: str, tmp_path: Path, pictures: Path) -> None:
    kind, arguments, given, names, outputs = CASES[case]
    module = made(kind, *arguments)
    teacher = loaded(module, tmp_path, **given)
    assert teacher.signature.compared == outputs
    layer = "cell" if kind is Recurrence else "body"
    protected = asvp_export.protect(teacher, layer, gain=1.01)
    result = asvp_export.export(protected, tmp_path / "out.onnx", images=pictures, min_psnr=30)
    assert result.passed, result.gates
    assert {one.output for one in result.preservation.per_image} == set(outputs)
    opened = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    assert tuple(one.name for one in opened.get_inputs()) == names
    image = teacher.example(40, 56, batch=2)
    feeds = dict(zip(teacher.signature.names, (x.numpy() for x in teacher.inputs(image)), strict=True))
    wanted = [y for y in named_outputs(protected(image)).values() if y.is_floating_point()]
    found = opened.run(list(outputs), feeds)
    for expected, got in zip(wanted, found, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), atol=2e-5)


def test_what_the_probe_finds(tmp_path: Path) -> None:
    assert loaded(made(Unpadded), tmp_path).size == SizeRule(5, 1)
    half = loaded(made(Shrinking), tmp_path)
    assert (half.scale, half.size) == (Fraction(1, 2), SizeRule(2, 2))
    video = loaded(made(Video), tmp_path)
    assert (video.signature.frames, video.example().shape) == (5, (1, 5, 3, 64, 96))
    assert loaded(made(Body, 1, 1), tmp_path).channels == 1
    assert loaded(made(Several), tmp_path).signature.main == 1
    level = loaded(made(NoiseLevel), tmp_path, sigma=NOISE[:, 0, 0, 0], x=X)
    assert level.inputs(level.example(batch=3))[0].shape == (3,)
    one = loaded(made(OneLevel), tmp_path, x=X, sigma=NOISE[0, 0, 0, :1])
    assert one.static_shape[0] is None and one.inputs(one.example(batch=3))[1].shape == (1,)
    noisy = loaded(made(NoiseMap), tmp_path, x=X, noise=NOISE)
    assert noisy.inputs(noisy.example(64, 80, batch=2))[1].shape == (2, 1, 32, 40)


@pytest.mark.parametrize(("kind", "values"), [(Tanh, "-1..1"), (MeanShift, "0..255"), (Body, "0..1")])
def test_the_range_of_values_is_detected_and_can_be_overridden(kind: type[nn.Module], values: str) -> None:
    assert str(asvp_export.load(made(kind)).data_range) == values
    assert str(asvp_export.load(made(kind), data_range="0..255").data_range) == "0..255"


@pytest.mark.parametrize(
    ("given", "low", "high"), [("0..255", 0, 255), ("-1,1", -1, 1), ((-1, 1), -1, 1), (255, 0, 255), ("1", 0, 1)]
)
def test_ranges_are_read_as_people_write_them(given: object, low: float, high: float) -> None:
    assert ValueRange.read(given) == ValueRange(low, high)
    picture = np.linspace(0, 1, 7, dtype=np.float32)
    values = ValueRange(low, high).of(picture)
    assert (values[0], values[-1]) == (low, high)
    np.testing.assert_allclose(ValueRange(low, high).to_unit(values), picture, atol=1e-6)


def test_inputs_follow_the_image_where_they_did_in_the_example() -> None:
    image = (2, 3, 32, 48)
    assert following("map", np.zeros((2, 1, 32, 48)), image).fitting(3, 40, 56).shape == (3, 1, 40, 56)
    assert following("half", np.zeros((2, 1, 16, 24)), image).fitting(3, 40, 56).shape == (3, 1, 20, 28)
    assert following("level", np.zeros((2,)), image).fitting(5, 40, 56).shape == (5,)
    assert following("kernel", np.zeros((1, 1, 15, 15)), image).fitting(3, 40, 56).shape == (1, 1, 15, 15)
    assert following("state", np.arange(2.0), image).fitting(4, 8, 8).tolist() == [0, 1, 0, 1]
    assert Signature(frames=7).image_shape(1, 2, 3) == (1, 7, 3, 2, 3)


def test_a_video_node_works_a_frame_at_a_time_and_says_its_axis(tmp_path: Path) -> None:
    found = {layer.name: layer for layer in asvp_export.layers(loaded(made(Video), tmp_path)).layers}
    assert (found["body"].shape, found["body"].axis) == ((5, 8, 64, 96), 1)
    cells = {layer.name: layer for layer in asvp_export.layers(loaded(made(Recurrence), tmp_path)).layers}
    assert cells["cell"].calls == 5


def test_a_multi_input_file_is_checked_again_with_the_same_inputs(tmp_path: Path, pictures: Path) -> None:
    teacher = loaded(made(NoiseMap), tmp_path, x=X, noise=NOISE)
    path = tmp_path / "two.onnx"
    protected = asvp_export.protect(teacher, "body", gain=1.01)
    asvp_export.export(protected, path, images=pictures, min_psnr=30)
    result = asvp_export.check(teacher, path, images=pictures, min_psnr=30)
    assert result.passed and result.fidelity is not None
    plain = asvp_export.load(made(Body))
    with pytest.raises(asvp_export.InputError, match=r"takes x tensor.*noise.*that all inputs were given"):
        asvp_export.check(plain, path, images=pictures)

    write_image(tmp_path / "in.png", X[0].transpose(1, 2, 0))
    np.savez(tmp_path / "noise.npz", noise=NOISE, unused=1.0)
    command = [str(path), str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png")]
    assert cli.main(["run", *command, "--inputs", str(tmp_path / "noise.npz")], standalone_mode=False) == 0
    picture = read_image(tmp_path / "in.png")
    expected = (
        protected(torch.from_numpy(picture).permute(2, 0, 1)[None], torch.from_numpy(NOISE))[0].permute(1, 2, 0).numpy()
    )
    assert np.abs(read_image(tmp_path / "out.png") - expected.clip(0, 1)).max() < 0.51 / 255 + 1e-5  # rounded to 8 bits
    np.savez(tmp_path / "other.npz", sigma=1.0)
    with pytest.raises(asvp_export.InputError, match="noise was not given"):
        cli.main(["run", *command, "--inputs", str(tmp_path / "other.npz"), "--force"], standalone_mode=False)


def test_no_node_is_a_verified_export(tmp_path: Path, pictures: Path) -> None:
    teacher = loaded(made(Body), tmp_path)
    result = asvp_export.export(asvp_export.protect(teacher, "none"), tmp_path / "plain.onnx", images=pictures)
    assert result.passed and not result.nodes and result.preservation.min_psnr > 100
    model = onnx.load(tmp_path / "plain.onnx")
    assert not model.functions and {o.domain for o in model.opset_import} == {""}
    assert asvp_export.check(teacher, tmp_path / "plain.onnx", images=pictures).passed


def saved(folder: Path, name: str, content: object) -> Path:
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"x": torch.rand(1, 3, 32, 48)}, r"takes none of the sizes.*'noise'"),
        ({"x": torch.rand(1, 3, 32, 48), "depth": torch.rand(1)}, r"no input 'depth'; its inputs are x, noise"),
        ({"noise": torch.rand(1, 1, 16, 24)}, "lack 'x', which NoiseMap takes before 'noise'"),
        ([torch.rand(3), torch.rand(2)], "a float image batch N,C,H,W .* was expected"),
        ("text", "holds str; expected the model's inputs"),
        ({"x": "text"}, "x is str; expected"),
    ],
)
def test_inputs_that_do_not_do_are_refused(content: object, match: str, tmp_path: Path) -> None:
    with pytest.raises(asvp_export.InputError, match=match):
        asvp_export.load(made(NoiseMap), inputs=saved(tmp_path, "inputs.pt", content))


def test_files_of_inputs_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    for name, match in (
        ("bad.npz", "as an .npz of numbers"),
        ("objects.npz", "as an .npz of numbers"),
        ("no.pt", "does not exist"),
    ):
        with pytest.raises(asvp_export.InputError, match=match):
            asvp_export.load(made(NoiseMap), inputs=tmp_path / name)
    np.savez(tmp_path / "plain.npz", X, NOISE)
    assert asvp_export.load(made(NoiseMap), inputs=tmp_path / "plain.npz").signature.names == ("x", "noise")


@pytest.mark.parametrize("kind", ["module", "script", "graph"])
def test_a_model_of_several_inputs_says_what_to_type(kind: str, tmp_path: Path) -> None:
    """And what it says to type works."""
    model: nn.Module | Path = made(NoiseMap)
    if kind == "script":
        model = torch.jit.script(model)
    if kind == "graph":
        model = tmp_path / "noise.onnx"
        names, shapes = ["x", "noise"], (torch.rand(1, 3, 64, 64), torch.rand(1, 1, 32, 32))
        torch.onnx.export(made(NoiseMap), shapes, str(model), dynamo=False, input_names=names)
    with pytest.raises(InputError, match=r"takes 2 inputs \(x 1x3x64x64, noise.*--inputs inputs\.npz") as refused:
        asvp_export.load(model)
    (code,) = re.findall('python -c "(.*?)"', str(refused.value))
    code = code.replace("ITS_SHAPE", "(1, 1, 32, 32)").replace("inputs.npz", str(tmp_path / "inputs.npz"))
    subprocess.run([sys.executable, "-c", code], check=True)
    assert asvp_export.load(model, inputs=tmp_path / "inputs.npz").signature.names == ("x", "noise")
