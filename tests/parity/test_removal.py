"""What attackers lose when they take the nodes out, against the original and against clean pictures."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

import asvp_export
from asvp_export.errors import InputError
from asvp_export.images import list_images, photographs, read_image
from asvp_export.insertion.protected import insert, observed, replaced
from asvp_export.operator import Perturbation
from asvp_export.parity.cases import build_cases
from asvp_export.parity.metrics import peak_of, psnr
from asvp_export.parity.removal import DELETED, MAP, SCALAR, SHIPPED, RemovalTest, removal_tests, smallest
from asvp_export.parity.truth import clean_of, read_truth
from asvp_export.report.removal import removal_table
from asvp_export.signature import Signature, SizeRule, ValueRange
from tests.helpers.commands import call
from tests.helpers.teachers import Video, arch, example, weights

LAYER = "after_body"


def save(path, pixels):
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs to calibrate on, others to verify on, and what these were made from, twice as large."""
    root = tmp_path_factory.mktemp("removal")
    for name in ("calibrate", "verify", "clean"):
        (root / name).mkdir()
    for split, count in (("calibrate", 8), ("verify", 3)):
        for source in list_images(photographs(split))[:count]:
            clean = np.rint(read_image(source)[:122, :160] * 255) / 255
            save(root / split / f"{source.stem}.png", clean.reshape(61, 2, 80, 2, 3).mean((1, 3)))
            if split == "verify":
                save(root / "clean" / f"{source.stem}.bmp", clean)
    return root


@pytest.fixture(scope="module")
def protected(folder):
    return asvp_export.protect(
        example("sr_x2"),
        [LAYER],
        rank=1,
        gain=10.0,
        residual="gain",
        compensate="solve",
        images=folder / "calibrate",
        verify_images=folder / "verify",
    )


def cases_of(teacher, images, **options):
    rules = {"size": teacher.size, "data_range": teacher.data_range, "signature": teacher.signature}
    return build_cases(list_images(images), **rules, **options)


@pytest.fixture(scope="module")
def cases(protected, folder):
    return cases_of(protected.teacher, folder / "verify")


@pytest.fixture(scope="module")
def rows(protected, cases, folder) -> dict[str, RemovalTest]:
    truth = read_truth(folder / "clean", list_images(folder / "verify"), protected.teacher)
    before = protected(torch.from_numpy(cases[0].input))
    found = removal_tests(protected, cases, smallest(cases, "cpu"), truth)
    assert torch.equal(protected(torch.from_numpy(cases[0].input)), before), "a removal test left something behind"
    return {row.name: row for row in found}


def scores(cases, expected, got) -> tuple[float, float]:
    found = [psnr(a.numpy(), b.numpy(), peak_of(a.numpy(), 1.0)) for a, b in zip(expected, got, strict=True)]
    assert len(found) == len(cases) == 7  # three pictures at two sizes, and a batch
    return min(found), float(np.mean(found))


def test_the_nodes_are_missed_and_a_map_is_the_best_that_stands_in_for_them(rows):
    assert list(rows) == [SHIPPED, DELETED, SCALAR, MAP]
    for key in ("min_psnr", "mean_psnr"):
        values = {name: getattr(row, key) for name, row in rows.items()}
        assert values[SHIPPED] > values[DELETED] + 1 and values[SHIPPED] > values[SCALAR] + 1, values
        assert values[MAP] >= max(values[DELETED], values[SCALAR]), values
    assert rows[SCALAR].loss > rows[SHIPPED].loss + 3 and abs(rows[SHIPPED].loss) < 0.5
    assert len({row.original_truth_mean_psnr for row in rows.values()}) == 1


def test_deleting_is_the_original_with_the_shipped_weights(protected, cases, rows):
    teacher = protected.teacher
    inputs = [torch.from_numpy(case.input) for case in cases]
    with torch.inference_mode():
        original = [teacher.module(x) for x in inputs]
        bare = [torch.func.functional_call(teacher.module, dict(protected.weights), x) for x in inputs]
    assert (rows[DELETED].min_psnr, rows[DELETED].mean_psnr) == pytest.approx(scores(cases, original, bare), abs=1e-9)
    shipped = scores(cases, original, [protected(x) for x in inputs])
    assert (rows[SHIPPED].min_psnr, rows[SHIPPED].mean_psnr) == pytest.approx(shipped, abs=1e-9)


def test_the_replacements_are_the_least_squares_of_the_shipped_graph(protected, cases, rows):
    """Solved here once more, by a decomposition of all positions at once in place of normal equations."""
    seen = []
    with observed(protected, lambda layer, clean, exposed, residual: seen.append((clean, residual))):
        for inputs in smallest(cases, "cpu"):
            protected(*inputs)
    clean, exposed = (
        torch.cat([one.movedim(1, -1).flatten(0, 2).double() / one[0, 0].numel() ** 0.5 for one in maps])
        for maps in zip(*seen, strict=True)
    )
    factor = (clean * exposed).sum() / (clean * clean).sum()
    matrix = torch.linalg.lstsq(clean, exposed).solution
    inputs = [torch.from_numpy(case.input) for case in cases]
    original = [protected.teacher.module(x) for x in inputs]
    for name, instead in (
        (SCALAR, lambda x: x * float(factor)),
        (MAP, lambda x: torch.einsum("nchw,cd->ndhw", x, matrix.float())),
    ):
        with replaced(protected, {LAYER: instead}):
            wanted = scores(cases, original, [protected(x) for x in inputs])
        assert (rows[name].min_psnr, rows[name].mean_psnr) == pytest.approx(wanted, abs=0.01)


def test_ground_truth_is_what_a_viewer_sees(protected, cases, folder):
    whole = cases[0]
    with torch.inference_mode():
        restored = protected.teacher.module(torch.from_numpy(whole.input))[0].permute(1, 2, 0).numpy().clip(0, 1)
    clean = read_image(folder / "clean" / whole.name.replace(".png", ".bmp"))
    truth = read_truth(folder / "clean", list_images(folder / "verify"), protected.teacher)
    shipped, *_ = removal_tests(protected, [whole], smallest([whole], "cpu"), truth)
    wanted = -10 * np.log10(np.mean((restored.astype(np.float64) - clean) ** 2))
    assert shipped.original_truth_min_psnr == pytest.approx(wanted, abs=1e-6) and 15 < wanted < 50


class Halves(nn.Module):
    """Its map has one channel on the left half and a weaker one on the right: the first direction leads."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.map = nn.Identity()
        self.scale = nn.Parameter(torch.tensor([1.0, 1.0]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = (torch.arange(x.shape[3]) < x.shape[3] // 2).float()
        features = torch.stack([(4 + x[:, 0]) * left, (1 + x[:, 1]) * (1 - left)], dim=self.axis)
        scale = self.scale.reshape(2, 1, 1) if self.axis == 1 else self.scale
        a, b = (self.map(features) * scale).unbind(self.axis)
        return torch.stack([a - 4 * left, b - (1 - left), x[:, 2]], dim=1)


@pytest.mark.parametrize("axis", [1, -1])
def test_where_the_projector_is_constant_a_map_takes_the_nodes_place(axis, folder):
    teacher = asvp_export.load(Halves(axis))
    nodes = {"map": Perturbation(1, 10.0, axis=axis)}
    protected = insert(teacher, nodes, {"scale": torch.tensor([0.1, 1.0])})
    cases = cases_of(teacher, folder / "verify")
    shipped, deleted, scalar, linear = removal_tests(protected, cases, smallest(cases, "cpu"))
    assert min(shipped.min_psnr, linear.min_psnr) > 100 and max(deleted.min_psnr, scalar.min_psnr) < 15
    assert shipped.loss is None and shipped.as_dict()["truth_min_psnr"] is None
    assert removal_tests(insert(teacher, {}), cases, []) == ()


def test_replacements_end_with_their_block(protected, cases):
    x = torch.from_numpy(cases[0].input)
    before = protected(x)
    with pytest.raises(ZeroDivisionError), replaced(protected, {LAYER: lambda x: 1 / 0}):
        protected(x)
    assert torch.equal(protected(x), before)
    with replaced(protected, {"another": lambda x: 1 / 0}):
        assert torch.equal(protected(x), before)


@pytest.mark.parametrize("options", [{}, {"sizes": [(32, 48), (33, 47)]}, {"fixed": (2, None, 40, None)}])
def test_clean_pictures_are_cut_where_the_inputs_are(tmp_path, options):
    rng = np.random.default_rng(0)
    pictures = {
        name: rng.integers(0, 256, size, np.uint8)
        for name, size in {"a": (61, 80, 3), "b": (70, 51, 3), "c": (50, 50, 3)}.items()
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    truth = {name: np.kron(pixels, np.ones((2, 2, 1))) / 255 for name, pixels in pictures.items()}
    for images in (list_images(tmp_path), list_images(tmp_path)[:1]):  # one alone makes a batch with its mirror image
        found = build_cases(images, size=SizeRule(4, 4), data_range=ValueRange(), signature=Signature(), **options)
        assert max(case.batch for case in found) == 2
        for case in found:
            image = case.input[:, :, : case.height, : case.width].transpose(0, 2, 3, 1)
            assert np.abs(clean_of(case, truth, 2) - image.repeat(2, 1).repeat(2, 2)).max() < 1e-6, case.name


def test_ground_truth_that_does_not_fit_is_refused_in_a_sentence(protected, folder, tmp_path):
    images, teacher = list_images(folder / "verify"), protected.teacher
    first = images[0]
    with pytest.raises(InputError, match=r"does not exist"):
        read_truth(tmp_path / "nowhere", images, teacher)
    with pytest.raises(
        InputError, match=rf"{images[0].name} needs one clean picture .*: none is called {first.stem}; add it"
    ):
        read_truth(folder / "calibrate", images, teacher)
    with pytest.raises(InputError, match=r"is 61x80 .* of 61x80 times the scale 2 makes 122x160\."):
        read_truth(folder / "verify", images, teacher)
    for suffix in ("png", "bmp"):
        save(tmp_path / f"{first.stem}.{suffix}", read_image(folder / "clean" / f"{first.stem}.bmp"))
    with pytest.raises(InputError, match=rf"{first.stem}\.bmp and {first.stem}\.png are both there; keep one"):
        read_truth(tmp_path, images, teacher)
    with pytest.raises(InputError, match="restores videos"):
        read_truth(folder / "clean", images, asvp_export.load(Video()))


def test_an_export_tells_what_the_nodes_are_worth(folder, tmp_path):
    options = ["--arch", arch("sr_x2"), f"--layers={LAYER}", "--rank=1", "--gain=1.5", "--residual=gain"]
    export = [
        weights("sr_x2"),
        *options,
        f"--images={folder / 'verify'}",
        "--min-psnr=20",
        "-o",
        tmp_path / "p.onnx",
        f"--report={tmp_path}",
        "--model-card",
    ]
    answer = call(*export, f"--ground-truth={folder / 'calibrate'}")
    assert answer.code == 2 and "needs one clean picture" in answer.err and not list(tmp_path.iterdir())
    answer = call(*export, f"--ground-truth={folder / 'clean'}")
    assert answer.code == 0, answer.err
    rows = json.loads((tmp_path / "p.report.json").read_text())["strips"]
    assert [row["name"] for row in rows] == [SHIPPED, DELETED, SCALAR, MAP]
    assert rows[1]["min_psnr"] == 200, "without compensation the graph without nodes is the original"
    assert rows[1]["truth_min_psnr"] == rows[1]["original_truth_min_psnr"]
    texts = answer.out, (tmp_path / "report.html").read_text(), (tmp_path / "README.md").read_text()
    for row in rows:
        assert all(f"{row['min_psnr']:.2f} dB" in text for text in texts), row["name"]
    assert "moves the output by no more" not in texts[2]


def test_the_page_shows_the_original_beside_the_rows(rows):
    shown = removal_table(list(rows.values()))
    assert [row[0] for row in shown.rows] == ["the original", *rows]
    assert all(len(row) == len(shown.columns) for row in shown.rows)
    assert "\N{EN DASH}" in shown.cells[0][1] and shown.cells[2][-1][1] == f"{rows[DELETED].loss:.2f} dB"


def test_the_nodes_of_a_graph_are_replaced_too(folder, tmp_path):
    rng = np.random.default_rng(0)
    kernels = [rng.standard_normal(shape).astype(np.float32) / 5 for shape in ((8, 3, 3, 3), (3, 8, 3, 3))]
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["map"], pads=[1] * 4),
        helper.make_node("Conv", ["map", "k1"], ["y"], pads=[1] * 4),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in "xy"]
    stored = [numpy_helper.from_array(kernel, f"k{i}") for i, kernel in enumerate(kernels)]
    graph = helper.make_graph(nodes, "convolutions", [ends[0]], [ends[1]], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "g.onnx")
    teacher = asvp_export.load(tmp_path / "g.onnx")
    protected = asvp_export.protect(teacher, ["map"], rank=1, gain=4.0, residual="gain")
    cases = cases_of(teacher, folder / "verify")
    shipped, deleted, scalar, linear = removal_tests(protected, cases, smallest(cases, "cpu"))
    assert deleted.min_psnr > 100, "without compensation the graph without nodes is the original"
    assert shipped.min_psnr < 40 and scalar.min_psnr < 40 and linear.min_psnr < 40
