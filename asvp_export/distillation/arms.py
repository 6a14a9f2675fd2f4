"""The rows of an audit: what each student learns from, and which rows a profile runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from asvp_export.distillation.attacks import attacks
from asvp_export.distillation.losses import LOSSES
from asvp_export.distillation.victim import TAPS
from asvp_export.errors import InputError

TEACHERS = ("truth", "original", "shipped", "scaled", "noise")
"""No teacher (clean pictures); the original; the shipped model; the controls: clean features times the scalar, or with
the Gaussian noise, that changes them as much as the shipped ones are changed."""

OUTPUTS = "outputs"
FIRST = "first"

_NODE_TAPS = ("before", "readers")  # taps that only a model with nodes has
_OLD_TAPS = {"node": "exposed"}  # what older row files call it

_NAME = re.compile(
    r"(?P<teacher>\w+)(\+(?P<attack>\w+))?/(?P<loss>[a-z]+)(-(?P<weight>\d+(\.\d+)?))?"
    r"(@(?P<tap>\w+))?(?P<first>\.first)?"
)


@dataclass(frozen=True, order=True)
class Arm:
    """How one student is taught."""

    teacher: str
    """One of `TEACHERS`."""

    loss: str = OUTPUTS
    """"outputs" alone, or the feature loss beside them."""

    weight: float = 0.0
    """Of the feature loss; the outputs' mean absolute error weighs 1."""

    tap: str = TAPS[0]
    """Where the features are read, one of `TAPS`."""

    attack: str = ""
    """Name of the attacker, "" where the shipped model is used as it is."""

    first: bool = False
    """Features alone for the first half of the steps, then outputs alone; else both together."""

    def __str__(self) -> str:
        """The name of the row: shipped+undo/normalised-10@exposed.first, without the parts that are as usual."""
        if self.teacher == "truth":
            return "truth"
        attack = f"+{self.attack}" if self.attack else ""
        weight = f"-{self.weight:g}" if self.loss != OUTPUTS else ""
        tap = f"@{self.tap}" if self.tap != TAPS[0] else ""
        return f"{self.teacher}{attack}/{self.loss}{weight}{tap}{'.first' if self.first else ''}"

    @classmethod
    def parse(cls, name: str) -> Arm:
        """The row of a name.

        Raises:
            InputError: it names none.
        """
        if name == "truth":
            return cls("truth")
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise InputError(
                f"The row {name!r} cannot be read; a row such as shipped/normalised-10 or shipped+undo/mse-1 was "
                "expected."
            )
        arm = cls(
            teacher=parts["teacher"],
            loss=parts["loss"],
            weight=float(parts["weight"] or 0),
            tap=_OLD_TAPS.get(parts["tap"], parts["tap"]) or TAPS[0],
            attack=parts["attack"] or "",
            first=bool(parts["first"]),
        )
        arm._check_words(name)
        arm._check_combination(name)
        return arm

    def _check_words(self, name: str) -> None:
        for kind, word, choices in (
            ("teacher", self.teacher, TEACHERS),
            ("loss", self.loss, (OUTPUTS, *LOSSES)),
            ("tap", self.tap, TAPS),
            ("attacker", self.attack, ("", *attacks())),
        ):
            if word not in choices:
                raise InputError(
                    f"The row {name!r} names the {kind} {word!r}; {', '.join(filter(None, choices))} are known."
                )

    def _check_combination(self, name: str) -> None:
        if (self.loss == OUTPUTS) != (self.weight == 0):
            raise InputError(
                f"The row {name!r} has a wrong weight; a feature loss needs a weight over 0 (mse-1), and outputs "
                "takes none."
            )
        if self.teacher == "truth" or (self.loss == OUTPUTS and (self.first or self.tap != TAPS[0])):
            raise InputError(f"The row {name!r} names features, but its student imitates none; leave them out.")
        if self.attack and not (
            self.teacher == "shipped" or (self.teacher == "original" and attacks()[self.attack].original_too)
        ):
            raise InputError(
                f"The row {name!r} has the attacker {self.attack} on {self.teacher}; that attacker needs the shipped "
                f"model (shipped+{self.attack})."
            )
        if self.tap != TAPS[0] and (self.attack or self.teacher not in ("shipped", "original")):
            raise InputError(
                f"The row {name!r} reads features @{self.tap}, which attackers and controls do not change; leave "
                f"@{self.tap} out."
            )
        if self.tap in _NODE_TAPS and self.teacher == "original":
            raise InputError(
                f"The row {name!r} reads features @{self.tap} of a node, which the original does not have; use "
                "shipped instead."
            )

    @property
    def target_source(self) -> tuple[str, str]:
        """What makes its distillation targets: teacher and attacker."""
        return self.teacher, self.attack

    @property
    def baseline(self) -> Arm | None:
        """The row that it is compared with: the same student on the original; None for baselines themselves."""
        if self.teacher in ("truth", "original"):
            return None
        tap = TAPS[0] if self.tap in _NODE_TAPS else self.tap
        attack = self.attack if self.attack and attacks()[self.attack].original_too else ""
        return replace(self, teacher="original", tap=tap, attack=attack)


def _rows(*names: str) -> list[Arm]:
    return [Arm.parse(name) for name in names]


_HEADS = ("truth", "original/outputs", "shipped/outputs")
_WITH_CONTROLS = ("original", "shipped", "scaled", "noise")
_LOSSES = ("mse-0.1", "mse-1", "normalised-1", "normalised-10", "attention-10", "affinity-1")

FULL = tuple(_rows(*_HEADS, *(f"{teacher}/{loss}" for loss in _LOSSES for teacher in ("original", "shipped"))))
"""Eight kinds of student for many seeds, each of the original and of the shipped model."""


def quick_arms() -> list[Arm]:
    """The rows of the quick profile: each question once."""
    return _rows(
        *_HEADS,
        *(f"{teacher}/mse-1" for teacher in _WITH_CONTROLS),
        *(f"{teacher}/normalised-10" for teacher in _WITH_CONTROLS),
        "original/mse-1.first",
        "shipped/mse-1.first",
        "original/attention-10",
        "shipped/attention-10",
        "original/affinity-1",
        "shipped/affinity-1",
        "shipped/normalised-10@before",
        "shipped/normalised-10@readers",
        "original/normalised-10@next",
        "shipped/normalised-10@next",
    ) + _adaptive("normalised", 10)


def screen_arms() -> list[Arm]:
    """Everything: each loss at each weight with the controls, all taps, features first, attackers with two losses."""
    arms = _rows(*_HEADS)
    for loss in LOSSES:
        for weight in (1, 10, 100):
            arms += [Arm(teacher, loss, weight) for teacher in _WITH_CONTROLS]
        arms += [Arm(teacher, loss, 10, first=True) for teacher in ("original", "shipped")]
        arms += [Arm("shipped", loss, 10, tap) for tap in _NODE_TAPS]
        arms += [Arm(teacher, loss, 10, "next") for teacher in ("original", "shipped")]
    for weight in (0.01, 0.1):  # larger features are imitated with a smaller weight
        arms += [Arm(teacher, "mse", weight) for teacher in ("original", "shipped", "scaled")]
    return arms + _adaptive("mse", 1) + _adaptive("normalised", 10)


def _adaptive(loss: str, weight: float) -> list[Arm]:
    on_original = [name for name, attack in attacks().items() if attack.original_too]
    return [
        *(Arm("shipped", loss, weight, attack=name) for name in attacks()),
        *(Arm("original", loss, weight, attack=name) for name in on_original),
    ]


def with_baselines(arms: Sequence[Arm]) -> list[Arm]:
    """The rows, and those that they are compared with, each once."""
    ordered: dict[Arm, None] = dict.fromkeys(_rows("truth", "original/outputs"))
    for arm in arms:
        if arm.baseline:
            ordered[arm.baseline] = None
        ordered[arm] = None
    return list(ordered)
