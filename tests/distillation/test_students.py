"""Students: where they are taught, that they learn, and those that cannot."""

from __future__ import annotations

import hashlib
import inspect

import pytest

from asvp_export.distillation.students import Compact, student_for
from asvp_export.errors import InputError
from tests.helpers.audits import LAYER, STUDENT, TASK, audited
from tests.helpers.teachers import example


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


def test_a_student_that_puts_out_no_numbers_is_said_to_have_diverged(protected, clean, tmp_path):
    (tmp_path / "lost.py").write_text(
        "import torch\n\n\nclass Lost(torch.nn.Conv2d):\n    def forward(self, x):\n"
        "        return super().forward(x) * float('nan')\n\n\ndef net():\n"
        "    return torch.nn.Sequential(Lost(3, 3, 3, padding=1))\n"
    )
    found = audited(protected, clean, tmp_path, rows=["shipped/outputs"], student=f"{tmp_path / 'lost.py'}:net")
    assert all(row.diverged == 1 for row in found.rows)
    assert "1 of 1 diverged" in found.by_name["shipped/outputs"].effect


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
