"""The rows of an audit: their names, their losses, how many there are."""

from __future__ import annotations

import pytest
import torch

from asvp_export.distillation import arms
from asvp_export.distillation.arms import Arm, with_baselines
from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.auditing import PROFILES
from asvp_export.distillation.losses import LOSSES
from asvp_export.errors import InputError


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
        ("shipped/outputs.first", "its student imitates none"),
        ("truth/mse-1", "its student imitates none"),
        ("original+undo/mse-1", "needs the shipped model"),
        ("scaled+whiten/mse-1", "needs the shipped model"),
        ("shipped+undo/mse-1@next", "do not change"),
        ("original/mse-1@before", "does not have"),
        ("original/mse-1@readers", "does not have"),
    ],
)
def test_a_row_that_is_none_is_refused(name, sentence):
    with pytest.raises(InputError, match=sentence):
        Arm.parse(name)


def test_screening_and_quick_stay_as_large_as_they_are_said_to_be():
    assert 20 <= len(with_baselines(arms.quick_arms())) <= 40
    assert len(with_baselines(arms.screen_arms())) > 80
