"""The pages show what attackers see at a protected layer: drawn are the tensors of the very file, and their figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import asvp_export
from asvp_export.insertion.apply import apply
from asvp_export.insertion.feature_maps import MOST_LAYERS, FeatureMapMeter, FeatureMaps
from asvp_export.insertion.plan import Plan, PlannedLayer
from asvp_export.insertion.protected import exposed_and_residual, insert
from asvp_export.operator import Perturbation
from asvp_export.parity.evidence import Evidence, VisualSample
from asvp_export.parity.result import ParityResult
from asvp_export.report.page import page
from asvp_export.report.pictures import factor_for
from tests.helpers.feature_maps import Drawn, expected, grey, maps_in_file, shown_input
from tests.helpers.graphs import legacy
from tests.helpers.reading import Page, pixels, read
from tests.helpers.teachers import recurrent, save_pictures
from tests.helpers.two_gains import tokens

NODES = {
    "embed": Perturbation(1, 6.0, residual=2.0),
    "tokens": Perturbation(1, 4.0, axis=-1, residual=1.0),
    "grid": Perturbation(1, 3.0, axis=-1),
}
TENSOR = "/head/Conv"  # of the graph


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Wide enough that a pixel is a mean."""
    return save_pictures(tmp_path_factory.mktemp("pictures"), 1, 48, 220)


@pytest.fixture(scope="module")
def teacher() -> asvp_export.Teacher:
    return asvp_export.load(tokens())


@pytest.fixture(scope="module")
def result(teacher, pictures, tmp_path_factory) -> ParityResult:
    folder = tmp_path_factory.mktemp("exported")
    options = {"images": pictures, "sizes": [(48, 220)], "min_psnr": -50.0}
    return asvp_export.export(insert(teacher, NODES), folder / "p.onnx", report=folder / "report", **options)


@pytest.fixture(scope="module")
def checked(teacher, pictures, result, tmp_path_factory) -> ParityResult:
    options = {"images": pictures, "sizes": [(48, 220)], "min_psnr": -50.0}
    return asvp_export.check(teacher, result.output, report=tmp_path_factory.mktemp("checked"), **options)


@pytest.fixture(scope="module")
def graph(pictures, tmp_path_factory) -> ParityResult:
    folder = tmp_path_factory.mktemp("graph")
    legacy(folder / "theirs.onnx", recurrent())
    protected = asvp_export.protect(asvp_export.load(folder / "theirs.onnx"), TENSOR, gain=7.0)
    return asvp_export.export(protected, folder / "p.onnx", images=pictures, min_psnr=40.0, report=folder / "report")


def laid_out(x: np.ndarray, image: torch.Tensor) -> np.ndarray:
    """The first sample as [C, H, W]: the net's first map has its channels in front, the others behind."""
    return (
        x[0]
        if x.ndim == 4 and x.shape[2:] == image.shape[2:]
        else x[0].reshape(*image.shape[2:], -1).transpose(2, 0, 1)
    )


def near(found: FeatureMaps, wanted: Drawn) -> None:
    """PyTorch's maps and onnxruntime's are both float32, some layers deep; fidelity allows 80 dB, 1e-4."""
    assert found.channel == wanted.channel
    shown = [one for one in (found.clean, found.exposed, found.readers) if one is not None]
    for one, other in zip(shown, wanted.maps, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())
    figures = found.exposed_change, found.readers_change, found.strength, found.factor
    np.testing.assert_allclose(
        figures, (wanted.changes[0], wanted.changes[-1], wanted.strength, wanted.factor), rtol=1e-4, atol=1e-5
    )


def drawn_near(seen: Page, layer: str, maps: FeatureMaps, wanted: Drawn) -> None:
    """The pictures of a layer, a step of grey at most from those of the file's tensors."""
    drawn = {
        str(one["alt"]).split(": ")[0].split(", ")[2].split(" \N{MULTIPLICATION SIGN}")[0]: pixels(one["src"])
        for one in seen.all("img")
        if str(one["alt"]).startswith(f"{layer}, channel {wanted.channel} of {maps.channels}, ")
    }
    ranged = dict(zip(("clean", "exposed", "readers"), wanted.maps, strict=False))
    assert list(drawn) == [*ranged, "left over"]
    for name, values in ranged.items():
        assert np.abs(drawn[name] - grey(values, values.min(), values.max())[..., None]).max() <= 1
    left = np.abs(wanted.factor * wanted.maps[1] - wanted.maps[0]) / np.ptp(wanted.maps[0])
    times = factor_for(left)
    assert np.abs(drawn["left over"] - grey(left * times, 0, 1)[..., None]).max() <= 1
    assert f"Left over \N{MULTIPLICATION SIGN} {times}" in seen.text("b")


@pytest.mark.parametrize("fixture", ["result", "checked"])
def test_drawn_are_the_tensors_of_the_file(fixture, pictures, teacher, request):
    result = request.getfixturevalue(fixture)
    x = shown_input(result, pictures, teacher)
    assert x.shape[3] > 128
    seen, maps = read(page(result)), result.evidence.feature_maps
    assert list(maps) == list(NODES)
    for layer, tensors in maps_in_file(result.output, x).items():
        wanted = expected([laid_out(one, x) for one in tensors], 2)
        near(maps[layer], wanted)
        drawn_near(seen, layer, maps[layer], wanted)
    assert seen.text("figcaption").count("the readers get this map too") == 1
    assert "each pixel the mean of 2 x 2 values" in seen.text("span")


def test_drawn_are_the_tensors_of_a_graph_that_somebody_else_wrote(graph, pictures):
    x = shown_input(graph, pictures, asvp_export.load(recurrent()))
    (maps,) = graph.evidence.feature_maps.values()
    ((layer, tensors),) = maps_in_file(graph.output, x).items()
    wanted = expected([one[0] for one in tensors], maps.step)
    near(maps, wanted)
    drawn_near(read(page(graph)), layer, maps, wanted)


def test_a_check_with_a_plan_shows_the_maps_that_the_plans_weights_make(pictures, tmp_path):
    teacher = asvp_export.load(tokens())
    weights = {"tokens.weight": 1.5 * teacher.module.state_dict()["tokens.weight"]}
    layers = tuple(PlannedLayer(name, node, None, None, "given") for name, node in NODES.items())
    plan = Plan(teacher.sha256, layers, -50.0, "solve", None, None, None, weights=weights)
    options = {"images": pictures, "sizes": [(40, 56)], "min_psnr": -50.0}
    asvp_export.export(apply(teacher, plan), tmp_path / "p.onnx", **options)
    checked = asvp_export.check(teacher, tmp_path / "p.onnx", plan=plan, report=tmp_path, **options)
    x = shown_input(checked, pictures, teacher)
    assert checked.evidence
    for layer, tensors in maps_in_file(tmp_path / "p.onnx", x).items():
        maps = checked.evidence.feature_maps[layer]
        assert maps
        near(maps, expected([laid_out(one, x) for one in tensors], maps.step))
    before = checked.evidence.singular_values["tokens"].before
    tensors = maps_in_file(tmp_path / "p.onnx", x)["tokens"]
    np.testing.assert_allclose(before[0], np.linalg.svd(tensors[0][0], compute_uv=False)[0], rtol=1e-4)


def noise(count: int, *shape: int) -> dict[str, FeatureMaps | None]:
    nodes = {f"layer {i}": Perturbation(1, 5.0, residual=2.0) for i in range(count)}
    meter, generator = FeatureMapMeter(nodes, (8, 8), 1), torch.Generator().manual_seed(0)
    for name, node in nodes.items():
        clean = torch.randn(1, *shape, generator=generator)
        meter(name, clean, *exposed_and_residual(clean, node))
    return meter.by_layer


def test_the_page_stays_small_and_its_other_pictures_stay(result):
    """Noise, which nothing compresses: six inputs of three colours, and as many layers as are kept."""
    generator = np.random.default_rng(0)
    original, protected = generator.random((2, 3, 216, 216), np.float32)
    sample = VisualSample(result.preservation.per_image[0], original, protected, 1.0, (216, 216), (0, 0))
    maps = noise(MOST_LAYERS, 4, 128, 128)
    nodes = {f"layer {i}": NODES["embed"] for i in range(MOST_LAYERS + 2)}
    changed = replace(result, nodes=nodes, effects={}, evidence=Evidence((sample,) * 6, {}, "", maps))
    seen = read(page(changed))
    alts = [str(one["alt"]) for one in seen.all("img")]
    shown = sum(", clean:" in one for one in alts)
    assert 4 < shown < MOST_LAYERS and len(alts) == 24 + 4 * shown
    assert f"{MOST_LAYERS + 2 - shown} more layers are not drawn" in seen.text("p")
    alone = read(page(replace(changed, evidence=Evidence((), {}, "", maps))))
    assert len(alone.all("img")) == 4 * MOST_LAYERS and "2 more layers are not drawn" in alone.text("p")


def test_maps_without_a_grid_are_named_and_an_older_result_has_a_page(result):
    windows = replace(result, evidence=replace(result.evidence, feature_maps={"embed": None, "tokens": None}))
    assert "Not drawn: embed, tokens. These maps do not lie on a grid" in read(page(windows)).text("p")
    before = Evidence(result.evidence.samples, result.evidence.singular_values, result.evidence.singular_values_of)
    assert "Feature maps" not in read(page(replace(result, evidence=before))).text("h2")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_maps_without_figures_have_pictures(value, result):
    (maps,) = noise(1, 4, 6, 5).values()
    flat = np.full((6, 5), value)
    part = flat.copy()
    part[0, 0] = 1.0
    broken = {"exposed_change": np.nan, "readers_change": np.nan, "strength": np.nan, "factor": np.nan}
    assert maps
    maps = replace(maps, clean=flat, exposed=part, readers=flat, **broken)
    seen = read(page(replace(result, evidence=Evidence((), {}, "", {"embed": maps}))))
    assert "change no number" in seen.text("figcaption") and len(seen.all("img")) == 3
    clean, exposed = (pixels(one["src"]) for one in seen.all("img")[:2])
    colour = (0, 0, 0) if value == 0 else (255, 0, 255)
    assert tuple(clean[3, 3]) == tuple(exposed[3, 3]) == colour
    assert ("magenta" in seen.text("figcaption")) == (value != 0)


def test_a_layers_name_is_text(result):
    hostile = '"><script>alert(1)</script>{{ 7 * 7 }}'
    (maps,) = noise(1, 4, 6, 5).values()
    seen = read(page(replace(result, evidence=Evidence((), {}, "", {hostile: maps, f"{hostile}2": None}))))
    assert len(seen.all("script")) == 1 and len(seen.all("img")) == 4
    assert hostile in "".join(seen.texts["h3"]) and f"{hostile}2" in "".join(seen.texts["p"])
