"""The audit: what attackers can see, attackers who adapt, students that are trained and kept, and the results."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import asvp_export
from asvp_export.distillation import arms, data
from asvp_export.distillation.arms import Arm, with_baselines
from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.attacks.base import UnavailableError
from asvp_export.distillation.auditing import PROFILES, run_audit
from asvp_export.distillation.losses import LOSSES
from asvp_export.distillation.results import (
    NO_EFFECT,
    ONE_SEED,
    Row,
    check_requirements,
    evaluate_requirements,
    summarise,
)
from asvp_export.distillation.runner import _particulars
from asvp_export.distillation.students import Compact, student_for
from asvp_export.distillation.targets import distillation_targets
from asvp_export.distillation.victim import TAPS, Activations, Victim, _next_tensor
from asvp_export.errors import InputError
from asvp_export.images import list_images, photographs, read_image
from asvp_export.insertion.protected import insert
from asvp_export.operator import Perturbation
from asvp_export.options import AuditOptions
from asvp_export.signature import ValueRange
from tests.helpers.commands import call
from tests.helpers.teachers import ROOT, arch, example, recurrent, save_pictures, weights

TASK, LAYER, GAIN = "derain", "body.3.branch.1", 10.0
STUDENT = f"{arch(TASK)}_student"
ROWS = ["shipped/mse-1", "shipped+undo/normalised-10@node"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Small clean photographs: the middle of some."""
    folder = tmp_path_factory.mktemp("clean")
    for source in list_images(photographs("train"))[:8]:
        pixels = np.rint(read_image(source)[64:136, 64:144] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{source.stem}.png")
    return folder


@pytest.fixture(scope="module")
def protected():
    return insert(example(TASK), {LAYER: Perturbation(1, GAIN)})


@pytest.fixture(scope="module")
def victim(protected):
    return Victim(protected)


@pytest.fixture(scope="module")
def patches(protected, clean):
    return data.cut_patches(protected.teacher, data.from_folder(clean, TASK).train, 10, 0)


@pytest.fixture(scope="module")
def file(protected, tmp_path_factory) -> Path:
    return exported(protected, tmp_path_factory.mktemp("file") / "protected.onnx")


@pytest.fixture(scope="module")
def bare(protected, tmp_path_factory) -> Path:
    return exported(insert(protected.teacher, {}), tmp_path_factory.mktemp("file") / "bare.onnx")


def exported(model, path: Path) -> Path:
    pictures = save_pictures(path.parent / "pictures")
    asvp_export.export(model, path, images=pictures, min_psnr=-100.0)
    return path


def audited(model, clean, tmp_path, *, rows=ROWS, seeds=1, steps=2, jobs=1, file=None, progress=print, **options):
    asked = {"task": TASK, "data": clean, "student": STUDENT, "cache": tmp_path / "cache"} | options
    options = AuditOptions(rows=rows, seeds=seeds, steps=steps, jobs=jobs, **asked)
    return run_audit(model, file, options=options, progress=progress)


def near(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


# What attackers can see


def test_the_taps_of_the_shipped_model_are_its_own(victim, patches):
    clean, seen = victim.original(patches.inputs), victim.shipped(patches.inputs)
    assert torch.equal(seen["before"][0], clean["exposed"][0])
    exact = asvp_export.reference(clean["exposed"][0].double(), 1, GAIN)
    assert near(seen["exposed"][0].double(), exact) < 1e-5
    assert not torch.allclose(seen["next"][0], clean["next"][0])
    assert seen["next"][0].shape == clean["next"][0].shape
    assert torch.equal(clean.outputs, victim.teacher.module(patches.inputs))


def test_a_shipped_file_shows_what_the_model_in_pytorch_shows(victim, file, patches):
    """Float32 against float32: 1e-4 is what the function body promises of the operator."""
    other = Victim.of_file(victim.teacher, file)
    assert list(other.nodes) == [LAYER]
    ours, theirs = victim.shipped(patches.inputs[:4]), other.shipped(patches.inputs[:4])
    for tap in TAPS:
        assert near(theirs[tap][0], ours[tap][0]) < 1e-4, tap
    assert near(theirs.outputs, ours.outputs) < 1e-4
    assert near(other.stripped(patches.inputs[:4], {}).outputs, victim.stripped(patches.inputs[:4], {}).outputs) < 1e-4
    assert not other.notes and "not exported from these bytes" in Victim.of_file(example("lowlight"), file).notes[0]
    with pytest.raises(UnavailableError, match="ONNX"):
        attacks()["finetune"].prepare(other, patches.inputs)


def test_an_onnx_teacher_is_audited_as_it_is(bare, clean):
    teacher = asvp_export.load(bare)
    layer = next(name for name in asvp_export.layers(teacher).layers if "body/3" in name.name and "Relu" in name.name)
    victim = Victim(insert(teacher, {layer.name: Perturbation(1, GAIN)}))
    patches = data.cut_patches(teacher, data.from_folder(clean, TASK).train, 2, 0)
    seen, bare = victim.shipped(patches.inputs), victim.original(patches.inputs)
    assert near(seen["before"][0], bare["exposed"][0]) < 1e-6 and "next" in bare.features
    assert near(seen["exposed"][0], bare["exposed"][0]) > 1


def test_a_file_without_nodes_and_a_teacher_of_another_kind_are_refused(file, bare, protected):
    with pytest.raises(InputError, match="carries no ASVP node"):
        Victim.of_file(protected.teacher, bare)
    with pytest.raises(InputError, match="no layer of that name"):
        Victim.of_file(asvp_export.load(torch.nn.Conv2d(3, 3, 3, padding=1)), file)


def test_a_file_of_frozen_sizes_shows_the_same_and_another_model_is_refused(victim, file, patches, tmp_path):
    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "frozen.onnx")
    other = Victim.of_file(victim.teacher, tmp_path / "frozen.onnx")
    assert other.teacher.static_shape[0] == 3
    ours, theirs = victim.shipped(patches.inputs[:4]), other.shipped(patches.inputs[:4])
    assert near(theirs.outputs, ours.outputs) < 1e-4 and near(theirs["exposed"][0], ours["exposed"][0]) < 1e-4
    grey = asvp_export.load(torch.nn.Conv2d(1, 1, 3, padding=1))
    with pytest.raises(InputError, match=r"takes images of .*x3x"):
        Victim.of_file(grey, file)


def test_a_layer_that_is_called_again_has_a_node_at_each_call(tmp_path, patches):
    here = Victim(insert(asvp_export.load(recurrent()), {"block": Perturbation(1, GAIN)}))
    there = Victim.of_file(here.teacher, exported(here.protected, tmp_path / "recurrent.onnx"))
    assert list(there.nodes) == ["block"]
    for ours, theirs in (
        (here.shipped(patches.inputs[:2]), there.shipped(patches.inputs[:2])),
        (here.stripped(patches.inputs[:2], {"block": lambda x: 2 * x}),
         there.stripped(patches.inputs[:2], {"block": lambda x: 2 * x})),
    ):  # fmt: skip
        assert near(theirs.outputs, ours.outputs) < 1e-4
        assert near(theirs["exposed"][0], ours["exposed"][0]) < 1e-4


def test_the_next_layer_of_a_graph_reads_the_tensor_and_has_weights_however_they_are_stored():
    make = onnx.helper.make_node
    nodes = [
        make("Relu", ["x"], ["a"]), make("Cast", ["half"], ["w"], to=1), make("Conv", ["x", "w"], ["beside"]),
        make("Add", ["a", "a"], ["b"]), make("MatMul", ["b", "x"], ["product"]), make("Conv", ["product", "w"], ["next"]),
    ]  # fmt: skip
    half = onnx.numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float16), "half")
    given = onnx.helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])
    graph = onnx.helper.make_graph(nodes, "g", [given], [onnx.helper.make_tensor_value_info("next", 1, None)], [half])
    assert _next_tensor(onnx.helper.make_model(graph), "a") == "next"
    assert _next_tensor(onnx.helper.make_model(graph), "next") is None


# Attackers


def test_who_knows_rank_and_gain_has_the_clean_features(victim, patches):
    seen = attacks()["undo"].look(victim, patches.inputs)
    assert near(seen["exposed"][0], victim.original(patches.inputs)["exposed"][0]) < 1e-5


def test_rank_and_gain_can_be_estimated_where_one_component_stands_out(victim, patches):
    one = attacks()["estimate"]
    one.prepare(victim, patches.inputs)
    clean = victim.original(patches.inputs)["exposed"][0]
    exposed = victim.shipped(patches.inputs)["exposed"][0]
    assert near(one.look(victim, patches.inputs)["exposed"][0], clean) < near(exposed, clean) / 5


def test_the_best_maps_are_nearer_to_the_shipped_outputs_than_no_node_is(victim, patches):
    wanted = victim.shipped(patches.inputs).outputs
    errors = {}
    for name in ("delete", "scalar", "matrix"):
        attacks()[name].prepare(victim, patches.inputs)
        errors[name] = near(attacks()[name].look(victim, patches.inputs).outputs, wanted)
    assert errors["matrix"] < errors["scalar"] < errors["delete"]


def test_fine_tuning_without_nodes_comes_back_to_the_shipped_outputs_and_leaves_the_teacher_alone(
    victim, patches, monkeypatch
):
    monkeypatch.setattr("asvp_export.distillation.attacks.finetune._STEPS", 60)
    before = {name: weight.clone() for name, weight in victim.teacher.module.named_parameters()}
    wanted = victim.shipped(patches.inputs).outputs
    one = attacks()["finetune"]
    one.prepare(victim, patches.inputs)
    assert (
        near(one.look(victim, patches.inputs).outputs, wanted)
        < near(victim.stripped(patches.inputs, {}).outputs, wanted) / 2
    )
    assert all(torch.equal(weight, before[name]) for name, weight in victim.teacher.module.named_parameters())


def test_normalised_and_whitened_features_are_what_they_say(victim, patches):
    flat = attacks()["normalise"].look(victim, patches.inputs)["exposed"][0].flatten(2)
    alive = flat.var(2, correction=0) > 0.5
    assert alive.any() and torch.allclose(flat.mean(2)[alive], torch.zeros(()), atol=1e-4)
    assert torch.allclose(flat.var(2, correction=0)[alive], torch.ones(()), atol=1e-3)
    rows = attacks()["whiten"].look(victim, patches.inputs)["exposed"][0].flatten(2).double()
    values = torch.linalg.eigvalsh(rows @ rows.mT / rows.shape[2])
    assert values.max() < 1 + 1e-3 and (values[:, -4:] > 0.4).all()  # the floor halves a direction of its own size


def test_the_controls_change_the_features_as_much_as_the_shipped_model_does(victim, patches):
    clean, shipped = (
        distillation_targets(victim, patches, who, "", ["exposed"]).features["exposed"][0]
        for who in ("original", "shipped")
    )
    change = np.linalg.norm(shipped - clean)
    for who in ("scaled", "noise"):
        control = distillation_targets(victim, patches, who, "", ["exposed"])
        assert np.linalg.norm(control.features["exposed"][0] - clean) == pytest.approx(change, rel=1e-4)
        assert np.array_equal(control.outputs, distillation_targets(victim, patches, "shipped", "", []).outputs)
    scaled = distillation_targets(victim, patches, "scaled", "", ["exposed"]).features["exposed"][0]
    assert np.allclose(scaled / np.where(clean, clean, 1), np.where(clean, scaled.max() / clean.max(), 0), rtol=1e-5)


def test_an_attacker_is_one_file_as_the_page_shows_it(tmp_path, monkeypatch, victim, patches):
    import asvp_export.distillation.attacks as package

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "audit.md").read_text(), re.DOTALL)
    (tmp_path / "project.py").write_text(code)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    attacks.cache_clear()
    try:
        assert {"project", "undo"} < set(attacks())
        assert Arm.parse("shipped+project/mse-1").baseline == Arm.parse("original/mse-1")
        left = attacks()["project"].look(victim, patches.inputs)["exposed"][0]
        removed = asvp_export.reference(victim.original(patches.inputs)["exposed"][0], 1, 1e-6)
        assert near(left, removed) < 1e-3
    finally:
        monkeypatch.undo()
        attacks.cache_clear()


class Unlike(torch.nn.Module):
    """What real nets do: an in-place sum behind a layer, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.again = (torch.nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.again.weight = self.body.weight
        self.tail = torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.head(x))
        y = self.body(features)
        y += features
        return x + 0.1 * self.tail(self.again(y))


@pytest.fixture(scope="module")
def unlike():
    torch.manual_seed(0)
    return asvp_export.load(Unlike())


def test_what_flows_on_may_be_written_into(unlike, patches):
    victim = Victim(insert(unlike, {"body": Perturbation(1, GAIN)}))
    clean, seen = victim.original(patches.inputs), victim.shipped(patches.inputs)
    assert torch.equal(seen["before"][0], clean["exposed"][0]) and (clean["exposed"][0] < 0).any()
    assert near(attacks()["undo"].look(victim, patches.inputs)["exposed"][0], clean["exposed"][0]) < 1e-5


def test_fine_tuning_leaves_tied_weights_of_the_teacher_alone(unlike, patches, monkeypatch):
    monkeypatch.setattr("asvp_export.distillation.attacks.finetune._STEPS", 2)
    before = unlike.module.body.weight.clone()
    attacks()["finetune"].prepare(Victim(insert(unlike, {"body": Perturbation(1, GAIN)})), patches.inputs)
    assert torch.equal(unlike.module.body.weight, before)


def test_who_undoes_finds_how_many_were_amplified_where_the_energy_decides(victim, patches):
    several = Victim(insert(victim.teacher, {LAYER: Perturbation(6, GAIN, 0.8)}))
    seen = attacks()["undo"].look(several, patches.inputs)
    assert near(seen["exposed"][0], victim.original(patches.inputs)["exposed"][0]) < 1e-5


def test_channels_that_are_always_zero_do_not_mislead_who_estimates():
    torch.manual_seed(0)
    rows = torch.randn(3, 3) @ torch.diag(torch.tensor([30.0, 1.0, 0.7])) @ torch.randn(3, 400)
    features = torch.cat([rows, torch.zeros(29, 400)]).view(1, 32, 20, 20)
    exposed = asvp_export.reference(features, 1, 10.0)

    class Shows:
        nodes = {LAYER: Perturbation(1, 10.0)}  # noqa: RUF012

        def shipped(self, images):
            return Activations(images, {"exposed": [exposed]})

    one = attacks()["estimate"]
    one.prepare(Shows(), exposed)
    ((rank, gain),) = one._estimates.values()
    assert rank == 1 and 3 < gain < 1000


def test_whitening_does_not_take_what_the_gain_left_for_noise(victim, patches):
    one, loud = attacks()["whiten"], Victim(insert(victim.teacher, {LAYER: Perturbation(1, 100.0)}))
    clean = one.clean(loud, patches.inputs)["exposed"][0]
    assert near(one.look(loud, patches.inputs)["exposed"][0], clean) < 0.3


# Losses


def test_what_each_feature_loss_is_blind_to():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 6, 20, 20, generator=generator) for _ in range(2))
    for name, loss in LOSSES.items():
        assert float(loss(a, a)) == pytest.approx(0, abs=1e-6), name
        assert float(loss(a, b)) > 0.01, name
        blind = float(loss(a, b)) == pytest.approx(float(loss(a, 30 * b)), rel=1e-4)
        assert blind == (name != "mse"), name
    mixed = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    turned = torch.einsum("dc,nchw->ndhw", mixed, b)  # neither energies nor cosines change when channels are rotated
    for name in ("attention", "affinity"):
        assert float(LOSSES[name](a, b)) == pytest.approx(float(LOSSES[name](a, turned)), rel=1e-3), name


# Rows


@pytest.mark.parametrize("profile", PROFILES)
def test_every_row_has_a_name_that_is_read_back(profile):
    rows = with_baselines(PROFILES[profile].rows)
    assert [Arm.parse(str(arm)) for arm in rows] == rows and len(set(rows)) == len(rows)
    assert all(arm.baseline in rows for arm in rows if arm.baseline)
    if profile == "full":
        assert len({(arm.teacher == "truth", arm.loss, arm.weight) for arm in rows}) == 8 and len(rows) == 15
    else:
        assert {arm.attack for arm in rows} - {""} == set(attacks())
    if profile == "screen":
        asked = {(one.teacher, one.loss, one.weight) for one in rows}
        assert all(
            (t, n, w) in asked for t in ("original", "shipped", "scaled", "noise") for n in LOSSES for w in (1, 10, 100)
        )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("anything", "cannot be read"),
        ("stranger/mse-1", "names the teacher 'stranger'"),
        ("shipped/hinge-1", "names the loss 'hinge'"),
        ("shipped+magic/mse-1", "names the attacker 'magic'"),
        ("shipped/mse-1@roof", "names the tap 'roof'"),
        ("shipped/mse", "needs a weight"),
        ("shipped/outputs-3", "needs a weight"),
        ("shipped/mse-1..2", "cannot be read"),
        ("shipped/outputs.first", "where none are imitated"),
        ("truth/mse-1", "where none are imitated"),
        ("original+undo/mse-1", "attacks what is shipped"),
        ("scaled+whiten/mse-1", "attacks what is shipped"),
        ("shipped+undo/mse-1@next", "change none"),
        ("original/mse-1@before", "does not have"),
        ("original/mse-1@readers", "does not have"),
    ],
)
def test_a_row_that_is_none_is_refused(name, sentence):
    with pytest.raises(InputError, match=sentence):
        Arm.parse(name)


# Pictures and students


def test_no_scene_is_in_two_parts_and_pairs_are_read_as_they_are(clean, tmp_path):
    ours = data.project_pictures(TASK)
    names = [{pair.name.rpartition("_")[0] for pair in part} for part in (ours.train, ours.select, ours.test)]
    assert all(names) and not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    found = data.from_folder(clean, TASK)
    parts = [{pair.name for pair in part} for part in (found.train, found.select, found.test)]
    assert sum(map(len, parts)) == 8 and len(set.union(*parts)) == 8
    for part, some in (("train", list_images(clean)[:6]), ("test", list_images(clean)[6:])):
        for kind in ("input", "truth"):
            (tmp_path / part / kind).mkdir(parents=True)
            for path in some:
                shutil.copy(path, tmp_path / part / kind)
    pairs = data.from_folder(tmp_path, None)
    assert np.array_equal(pairs.test[0].degraded, pairs.test[0].clean) and len(pairs.test) == 2
    (tmp_path / "test" / "truth" / f"{pairs.test[0].name}.png").unlink()
    with pytest.raises(InputError, match="needs a clean picture of its name"):
        data.from_folder(tmp_path, None)


def test_patches_are_aligned_with_their_clean_pictures():
    teacher = example("sr_x2")
    patches = data.cut_patches(teacher, data.project_pictures("sr_x2").train[:2], 4, 0)
    assert patches.inputs.shape == (4, 3, 32, 32) and patches.clean.shape == (4, 3, 64, 64)
    small = torch.nn.functional.interpolate(patches.clean, scale_factor=0.5, mode="bicubic", antialias=True)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))  # the patch has another border than the picture
    assert float((small[inner] - patches.inputs[inner]).abs().max()) < 2 / 255


def test_clean_pictures_of_odd_sizes_and_scales_that_are_no_whole_numbers_fit(clean, tmp_path):
    for path in list_images(clean):
        with Image.open(path) as picture:
            picture.crop((0, 0, 79, 71)).save(tmp_path / path.name)
    found = data.from_folder(tmp_path, "sr_x2")
    teacher = example("sr_x2")
    assert data.cut_patches(teacher, found.train, 2, 0).clean.shape[2:] == (64, 64)
    pair = data.centre_crop(teacher, found.test[0])
    assert pair.degraded.shape == (35, 39, 3) and pair.clean.shape == (70, 78, 3)
    wide = replace(teacher, scale=Fraction(7, 4))
    pair = data.centre_crop(wide, data.Pair("a", np.zeros((160, 152, 3)), np.zeros((280, 266, 3))))
    assert pair.degraded.shape == (144, 144, 3) and pair.clean.shape == (252, 252, 3)
    assert data.fitting(wide, 37) == (40, 40)


def test_of_many_and_large_pictures_some_and_their_middle_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MOST", 5)
    monkeypatch.setattr(data, "_KEPT", 40)
    rng = np.random.default_rng(0)
    for part in ("input", "truth"):
        (tmp_path / part).mkdir()
    for i in range(10):
        small = rng.integers(0, 256, (30, 35, 3), dtype=np.uint8)
        Image.fromarray(small).save(tmp_path / "input" / f"{i}.png")
        Image.fromarray(small.repeat(2, 0).repeat(2, 1)).save(tmp_path / "truth" / f"{i}.png")
    pairs = data._read(tmp_path, None)
    assert [pair.name for pair in pairs] == ["0", "2", "4", "6", "8"]
    assert all(np.array_equal(p.degraded.repeat(2, 0).repeat(2, 1), p.clean) for p in pairs)
    assert {pair.clean.shape for pair in pairs} == {(40, 40, 3)}
    (twin,) = data._degraded("derain", [tmp_path / "truth" / "0.png"])
    assert twin.clean.shape == (40, 40, 3)


def test_a_student_is_taught_at_the_same_name_or_the_same_depth():
    teacher = example(TASK)
    assert student_for(teacher, [LAYER], STUDENT).taught == (LAYER,)
    early, late = student_for(teacher, ["head", "after_body"]).taught
    assert early in ("head", "body.0.0") and late in ("body.5.2", "tail")
    with pytest.raises(InputError, match="name another student"):
        student_for(teacher, [LAYER], STUDENT.replace(TASK, "sr_x2"))


def test_a_change_of_our_own_student_retrains_it():
    """The keys of the cache hold `_COMPACT_SOURCE` for it: change that, then this, when `Compact` changes."""
    assert hashlib.sha256(inspect.getsource(Compact).encode()).hexdigest() == (
        "e1c12321e8b054e9bb34fe55790bfffb8697307948c9493de37ca354b2f2167c"
    )


def test_pictures_that_do_not_fit_are_refused(protected, clean, tmp_path):
    with pytest.raises(InputError, match="--task has to say"):
        data.from_folder(clean, None)
    with pytest.raises(InputError, match="are known"):
        data.from_folder(clean, "fog")
    with pytest.raises(InputError, match="Give pairs, or a task, that fit the model"):
        audited(protected, clean, tmp_path, task="sr_x2")
    few = tmp_path / "few"
    few.mkdir()
    for path in list_images(clean)[:4]:
        shutil.copy(path, few)
    with pytest.raises(InputError, match="at least 4 and 1"):
        data.from_folder(few, TASK)
    shutil.copytree(clean, tmp_path / "both" / "train")
    (tmp_path / "both" / "test").mkdir()
    shutil.copy(list_images(clean)[2], tmp_path / "both" / "test" / "again.png")
    with pytest.raises(InputError, match=f"{list_images(clean)[2].stem}, to train with, and again, to test with"):
        data.from_folder(tmp_path / "both", TASK)


# Runs


def test_a_student_is_the_same_whoever_trains_it_and_is_trained_once(protected, clean, tmp_path, monkeypatch):
    one = audited(protected, clean, tmp_path / "one")
    two = audited(protected, clean, tmp_path / "two", jobs=2)
    assert [row.by_seed for row in one.rows] == [row.by_seed for row in two.rows]
    assert one.pictures == two.pictures
    assert {str(row.arm) for row in one.rows} == {
        "truth", "original/outputs", "original/mse-1", "shipped/mse-1", "original/normalised-10", "shipped+undo/normalised-10"
    }  # fmt: skip
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "one" / "cache").iterdir()}
    lost = sorted(kept)[0].with_suffix(".json")
    content = json.loads(lost.read_text())
    lost.unlink()  # as if it had been killed before this one was done
    again = audited(protected, clean, tmp_path / "one")
    assert [row.by_seed for row in again.rows] == [row.by_seed for row in one.rows]
    untouched = [path for path in kept if path.stem != lost.stem]
    assert all(path.stat().st_mtime_ns == kept[path] for path in untouched)
    assert json.loads(lost.read_text()) | {"seconds": 0} == content | {"seconds": 0}


def test_another_gain_is_another_audit(protected, clean, tmp_path):
    audited(protected, clean, tmp_path, rows=["shipped/outputs"])
    count = len(list((tmp_path / "cache").glob("*.json")))
    audited(insert(protected.teacher, {LAYER: Perturbation(1, 2.0)}), clean, tmp_path, rows=["shipped/outputs"])
    assert count == 3 and len(list((tmp_path / "cache").glob("*.json"))) == count + 1  # the original is what it was


@pytest.mark.slow  # Ray takes longer to start than the students to be trained
def test_ray_trains_the_same_students(protected, clean, tmp_path):
    pytest.importorskip("ray")
    here = audited(protected, clean, tmp_path / "here", rows=["shipped/mse-1"])
    there = audited(protected, clean, tmp_path / "there", rows=["shipped/mse-1"], backend="ray")
    import ray

    ray.shutdown()
    assert [row.by_seed for row in here.rows] == [row.by_seed for row in there.rows]


def test_the_same_weights_of_another_range_are_another_teacher(protected):
    plain = list(_particulars(protected.teacher))
    assert list(_particulars(replace(protected.teacher, data_range=ValueRange(0, 255)))) != plain
    other = replace(protected.teacher, module=example("sr_x2").module)  # as if the same weights fitted another class
    assert list(_particulars(other)) != plain


def test_a_student_that_puts_out_no_numbers_is_said_to_have_diverged(protected, clean, tmp_path):
    (tmp_path / "lost.py").write_text(
        "import torch\n\n\nclass Lost(torch.nn.Conv2d):\n    def forward(self, x):\n"
        "        return super().forward(x) * float('nan')\n\n\ndef net():\n"
        "    return torch.nn.Sequential(Lost(3, 3, 3, padding=1))\n"
    )
    found = audited(protected, clean, tmp_path, rows=["shipped/outputs"], student=f"{tmp_path / 'lost.py'}:net")
    assert all(row.diverged == 1 for row in found.rows)
    assert "1 of 1 diverged" in found.by_name["shipped/outputs"].effect


def test_ten_steps_and_a_requirement_that_no_row_answers(protected, clean, tmp_path):
    assert audited(protected, clean, tmp_path, rows=["truth"], steps=10).by_name["truth"].curve[-1][0] == 10
    for bar, sentence in (("feature_kd_drop>=1", "is not run"), ("original/outputs>=1", "has no loss")):
        with pytest.raises(InputError, match=sentence):
            audited(protected, clean, tmp_path, rows=["shipped/outputs"], require=[bar])
    assert evaluate_requirements({"shipped/mse-1": 2.0}, ["shipped/mse-1@node>=1"])[0].passed


def test_a_student_is_asked_about_every_size_before_it_is_trained(protected, clean, tmp_path):
    (tmp_path / "picky.py").write_text(
        "import torch\n\n\nclass Picky(torch.nn.Conv2d):\n    def forward(self, x):\n"
        "        assert x.shape[3] == 64, 'no'\n"
        "        return super().forward(x)\n\n\ndef net():\n    return torch.nn.Sequential(Picky(3, 3, 3, padding=1))\n"
    )
    with pytest.raises(InputError, match="cannot be run on an image of"):
        audited(protected, clean, tmp_path, student=f"{tmp_path / 'picky.py'}:net")


def test_a_student_learns(protected, clean, tmp_path):
    """Against ground truth, on pictures it never saw: sixty steps bring several dB."""
    result = audited(protected, clean, tmp_path, rows=["truth"], steps=60)
    row = result.by_name["truth"]
    assert row.curve[-1][1] > row.curve[0][1] + 1


# The verdict


def found(**scores: list[float]):
    """Findings in which each row scored the same on all pictures."""
    from asvp_export.distillation.runner import Findings, ModelScores

    made = {
        Arm.parse(name): [
            {"psnr": one, "ssim": 0.9, "to_teacher": one, "select": one, "curve": [[1, one]], "diverged": one < 10}
            for one in values
        ]
        for name, values in scores.items()
    }
    return Findings(made, {}, ModelScores(30.0, 0.9, 29.95, 0.9, 48.5, 50.0))


def rows_of(**scores: list[float]) -> dict[str, Row]:
    return {str(row.arm): row for row in summarise(found(**scores))}


def test_a_loss_within_the_spread_of_the_seeds_is_no_effect():
    base = [30.0, 30.2, 29.8]
    rows = rows_of(
        **{"original/mse-1": base, "shipped/mse-1": [29.9, 30.1, 29.7], "shipped+undo/mse-1": [26.0, 26.2, 25.8]}
    )
    assert rows["shipped/mse-1"].effect == NO_EFFECT and rows["shipped/mse-1"].loss == pytest.approx(0.1)
    assert (
        rows["shipped+undo/mse-1"].effect == "loses 4.00 dB" and rows["shipped+undo/mse-1"].baseline == "original/mse-1"
    )
    better = rows_of(**{"original/mse-1": base, "shipped/mse-1": [one + 1 for one in base]})["shipped/mse-1"]
    assert better.effect == "gains 1.00 dB"
    noisy = rows_of(**{"original/mse-1": base, "shipped/mse-1": [28.9, 30.1, 28.2]})["shipped/mse-1"]
    assert noisy.p == pytest.approx(1 - 2.1167 / (2.1167**2 + 2) ** 0.5, abs=1e-4)  # t of two degrees of freedom
    assert rows_of(**{"original/mse-1": [30.0], "shipped/mse-1": [20.0]})["shipped/mse-1"].effect == ONE_SEED
    lost = rows_of(**{"original/mse-1": base, "shipped/mse-1": [29.0, 6.0, 29.0]})["shipped/mse-1"]
    assert lost.effect.endswith("; 1 of 3 diverged")


def test_requirements_are_held_against_the_numbers():
    metrics = {"feature_kd_drop": 1.4, "shipped/mse-10": 0.2, "best_attacker_drop": None}
    held = evaluate_requirements(metrics, ["feature_kd_drop>=1.0", "shipped/mse-10 > 0.5", "best_attacker_drop>=0"])
    assert [each.passed for each in held] == [True, False, False] and held[2].value is None
    for text, sentence in (
        ("feature_kd_drop", "cannot be read"),
        ("speed>=1", "is known"),
        ("shipped/zzz>=1", "cannot|names"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_requirements([text])


def test_the_verdict_follows_the_numbers(protected, clean, tmp_path):
    result = audited(protected, clean, tmp_path, rows=["shipped/outputs", "shipped/mse-1", "scaled/mse-1"], seeds=2)
    rows = [
        replace(row, loss=4.2, effect="loses 4.20 dB") if str(row.arm) == "shipped/mse-1" else row
        for row in result.rows
    ]
    rows = [replace(row, loss=0.01, effect=NO_EFFECT) if str(row.arm) == "shipped/outputs" else row for row in rows]
    rows = [replace(row, loss=4.1, effect="loses 4.10 dB") if str(row.arm) == "scaled/mse-1" else row for row in rows]
    told = " ".join(replace(result, rows=tuple(rows)).sentences())
    assert "outputs alone loses nothing beyond the spread" in told
    assert "(MSE, weight 1) loses 4.20 dB" in told and "the control, costs one that imitates them so 4.10 dB" in told
    best = max((row for row in rows if row.arm.teacher in ("truth", "shipped")), key=lambda row: row.select)
    assert result.best["shipped"].arm == best.arm
    assert json.loads(json.dumps(result.as_dict()))["budget"]["steps"] == 2


# The command


def command(clean, tmp_path, *arguments):
    return call(
        "audit", weights(TASK), *arguments, "--arch", arch(TASK), "--task", TASK, "--data", clean, "--student", STUDENT,
        "--rows", "shipped/mse-1, shipped/outputs", "--seeds", 1, "--steps", 2, "--cache", tmp_path / "cache", "--report", tmp_path / "report",
    )  # fmt: skip


def test_the_command_audits_a_file_and_fails_where_a_requirement_is_not_met(file, clean, tmp_path):
    done = command(clean, tmp_path, file, "--json", "--require", "own_loss<=100")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["file"] == "protected.onnx" and [layer["name"] for layer in data["layers"]] == [LAYER]
    assert {row["name"] for row in data["rows"]} >= {"truth", "shipped/mse-1"} and data["bars"][0]["passed"]
    written = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert written == ["protected.audit.html", "protected.audit.json"]
    assert json.loads((tmp_path / "report" / "protected.audit.json").read_text()) == data
    failed = command(clean, tmp_path, file, "--quiet", "--require", "feature_kd_drop>=100")
    assert failed.code == 1 and "The requirement feature_kd_drop>=100 is not met" in failed.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "what is shipped?"),
        (["--layers", LAYER, "--plan", "x.json"], "what is shipped?"),
        (["--layers", LAYER, "--gain", "3", "--require", "speed>=1"], "is known"),
        (["--layers", LAYER, "--gain", "3", "--rows", "shipped/mse"], "needs a weight"),
        (["--layers", LAYER, "--gain", "3", "--student", "nowhere.py:net"], "is not there"),
        (["--layers", LAYER, "--gain", "3", "--seeds", "0"], "at least 1 of each"),
        (["--layers", "none", "--gain", "3"], "nothing to audit"),
        (["missing.onnx"], "missing.onnx"),
        (["missing.onnx", "--max-gain", "3"], "--max-gain was given, and missing.onnx says what is shipped"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence, tmp_path, clean):
    answer = call(
        "audit", weights(TASK), "--arch", arch(TASK), "--task", TASK, "--data", clean, "--cache", tmp_path / "c",
        "--report", tmp_path / "r", *arguments,
    )  # fmt: skip
    assert answer.code == 2 and sentence in answer.err and "Traceback" not in answer.err, answer.err
    assert not (tmp_path / "r").exists()


def test_an_audit_of_nothing_says_what_is_missing(clean):
    answer = call("audit", weights(TASK), "--arch", arch(TASK), "--layers", LAYER)
    assert answer.code == 2 and "No pictures were named" in answer.err


def test_screening_and_quick_stay_as_large_as_they_are_said_to_be():
    assert 20 <= len(with_baselines(arms.quick())) <= 40
    assert len(with_baselines(arms.screen())) > 80
