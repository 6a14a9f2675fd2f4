"""Names, attributes and defaults of the operator, defined here alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asvp_export.errors import InputError

DOMAIN = "asvp"
OP_TYPE = "AdaptiveSingularValuePerturbation"
VERSION = 1

_LEAST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_MOST = 2**31 - 1  # of rank and axis, which stand on the node as integers


@dataclass(frozen=True)
class Perturbation:
    """What a protected layer gets: the attributes of its node, and how much of the gain is left to the layer's readers.

    Values are checked when it is made.

    Raises:
        InputError: an attribute is out of its range (the message names it, the value and the range).
    """

    rank: int = 1
    """How many leading singular values may be amplified (k), at least 1."""

    gain: float = 1.1
    """The factor on those singular values (h), finite and above 0."""

    energy: float = 1.0
    """Adaptive count: stop once this share of the squared singular values is covered; in (0, 1], 1: always `rank`."""

    axis: int = 1
    """The channel axis: 1 for N,C,H,W; -1 for N,L,C and N,H,W,C. Never 0, which is the batch."""

    residual: float | None = None
    """The factor on those singular values that is left in the map that the layer's readers get (g), 1 to `gain`; an
    inverse node in front of them takes the rest back. None: `gain`, and there is no inverse."""

    def __post_init__(self) -> None:
        for name in ("gain", "energy", "residual"):  # a whole number or a NumPy scalar is as good as a float
            if isinstance(value := getattr(self, name), int | float | np.number):
                object.__setattr__(self, name, float(value))
        for name in ("rank", "axis"):
            if isinstance(value := getattr(self, name), np.integer):
                object.__setattr__(self, name, int(value))
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= _MOST:
            raise InputError(f"The rank is {self.rank!r}; it must be an integer of at least 1, and at most {_MOST}.")
        if not isinstance(self.gain, float) or not _LEAST <= self.gain <= _LARGEST:  # it stands on the node in float32
            raise InputError(f"The gain is {self.gain!r}; it must be a finite number above 0 (1 changes nothing).")
        if not isinstance(self.energy, float) or not _LEAST <= self.energy <= 1:
            raise InputError(f"The energy is {self.energy!r}; it must be in (0, 1] (1: always `rank` values).")
        if isinstance(self.axis, bool) or not isinstance(self.axis, int) or self.axis == 0 or abs(self.axis) > _MOST:
            raise InputError(
                f"The axis is {self.axis!r}; it must be the channel axis, not the batch (1, or -1 for tokens)."
            )
        if self.residual == self.gain:  # one way to say it: what is read back from a plan or a file is equal
            object.__setattr__(self, "residual", None)
        elif self.residual is not None:
            self._check_residual(self.residual)

    def _check_residual(self, residual: float) -> None:
        if not isinstance(residual, float) or not 1 <= residual <= self.gain:
            raise InputError(
                f"The residual gain is {residual!r} and the gain is {self.gain:g}; a residual from 1 to the gain was "
                "expected (equal to the gain: no inverse node)."
            )
        if self.energy < 1:
            raise InputError(
                f"The energy is {self.energy:g} and the residual gain {residual:g}; an energy below 1 needs a "
                "residual gain equal to the gain (--residual gain), because the exposed map does not show how many "
                "values were amplified."
            )

    @property
    def residual_gain(self) -> float:
        """The factor that is left for the layer's readers: the residual, or the gain where there is no inverse."""
        return self.gain if self.residual is None else self.residual

    @property
    def inverse(self) -> Perturbation | None:
        """The node in front of the readers; None where they read the exposed map.

        Amplifying keeps the order of the singular values, so a node of the same rank finds the same leading subspace in
        the exposed map, and a gain of g / h takes the amplification back to g.
        """
        return (
            None
            if self.residual_gain == self.gain
            else Perturbation(self.rank, self.residual_gain / self.gain, 1.0, self.axis)
        )

    @property
    def overload(self) -> str:
        """Which unrolled function body a node of these attributes takes (rank and axis are baked into it)."""
        suffix = "" if self.axis == 1 else "_last" if self.axis == -1 else f"_axis{self.axis}"
        return f"rank{self.rank}{suffix}"

    def attributes(self) -> dict[str, Any]:
        """Rank, gain, energy and axis by name, as they stand on the layer's node."""
        return {name: value for name, value in asdict(self).items() if name != "residual"}

    def described(self) -> dict[str, Any]:
        """The attributes of the node and the residual gain, as they stand in metadata, plans and reports."""
        return {**self.attributes(), "residual": self.residual_gain}
