"""Attackers who adapt: what each of them gets of the clean features."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import asvp_export
from asvp_export.distillation.arms import Arm
from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.targets import distillation_targets
from asvp_export.distillation.victim import Activations, Victim
from asvp_export.insertion.protected import insert
from asvp_export.operator import Perturbation
from tests.helpers.audits import GAIN, LAYER, near
from tests.helpers.teachers import ROOT


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
        < near(victim.without_nodes(patches.inputs, {}).outputs, wanted) / 2
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

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reference" / "audit.md").read_text(), re.DOTALL)
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
