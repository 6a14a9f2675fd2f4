"""What an export or a check found: the gates, the nodes, and the report made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from asvp_export.assumptions import Assumption
from asvp_export.environment import environment, tool_version
from asvp_export.insertion.strength import NodeEffect
from asvp_export.operator import Perturbation, native
from asvp_export.parity.evidence import Evidence
from asvp_export.parity.verify import GateResult

if TYPE_CHECKING:
    from asvp_export.insertion.plan import Plan
    from asvp_export.parity.choice import Comparison
    from asvp_export.parity.removal import RemovalTest

FIDELITY_DB = {"fp32": 80.0, "fp16": 50.0}  # the export is right, up to the type's rounding


@dataclass(frozen=True)
class ParityResult:
    """What was verified, and the verdict."""

    passed: bool
    """Whether every gate that was measured passed."""

    model: str
    """File name of the original."""

    source_sha256: str
    """Of the original's bytes."""

    output: Path | None
    """The verified file; None when it was not published."""

    output_sha256: str
    """Of the verified bytes."""

    nodes: dict[str, Perturbation]
    """Layer name to the attributes of its node and the residual gain."""

    effects: dict[str, NodeEffect]
    """What each node does to its feature map; empty when the protected model could not be run in PyTorch."""

    fidelity: GateResult | None
    """The file against the protected model in PyTorch; None when there was none to compare with."""

    preservation: GateResult
    """The file against the original teacher."""

    latency_ms: tuple[float, float]
    """Milliseconds of the original and of the protected model in onnxruntime, on the first input."""

    notes: tuple[str, ...] = ()
    """What a reader of the verdict has to know."""

    tiled: GateResult | None = None
    """The file run tile by tile against the original teacher on the whole image; None when it was not asked for."""

    evidence: Evidence | None = None
    """What can be looked at, for the page; None when it was not asked for."""

    removal_tests: tuple[RemovalTest, ...] = ()
    """What the graph is worth with its nodes taken out; empty when that was not tested."""

    plan: Plan | None = None
    """How the nodes and the weights behind them were chosen; None where they were given."""

    comparison: Comparison | None = None
    """Which inputs were compared, and why these."""

    assumptions: tuple[Assumption, ...] = ()
    """What was concluded of the original when it was loaded."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """What was written beside the ONNX file, by what it is."""

    unwritten: tuple[str, ...] = ()
    """What could not be written beside it, a sentence each. The verdict, and a file that was published, stand all
    the same."""

    @property
    def gates(self) -> dict[str, GateResult]:
        """The gates that were measured, by name."""
        gates = {"fidelity": self.fidelity, "preservation": self.preservation, "tiled": self.tiled}
        return {name: gate for name, gate in gates.items() if gate}

    @property
    def execution_paths(self) -> tuple[str, ...]:
        """What ran the nodes in the gates, the fastest last: by that the latency is."""
        return tuple(dict.fromkeys(score.execution_path for score in self.preservation.per_image))

    @property
    def fitting_gain(self) -> float | None:
        """About the gain that would have passed; None where a gate was not missed by one common gain alone.

        Without inverses the change at the output is nearly linear in gain - 1, so a miss of x dB asks for 10^(-x/20) of
        it. With residuals of 1 only rounding is left, which grows with the gain itself. Half a dB is kept in hand.
        """
        gains = {(node.gain, node.inverse is not None and node.residual_gain == 1) for node in self.nodes.values()}
        gates = [gate for gate in (self.fidelity, self.preservation) if gate]
        if len(gains) != 1 or any(node.inverse and node.residual_gain != 1 for node in self.nodes.values()):
            return None
        ((gain, taken_back),) = gains
        missing = max(gate.threshold - gate.min_psnr for gate in (gates if taken_back else [self.preservation]))
        if not 0 < missing < 100:
            return None
        factor = 10 ** (-(missing + 0.5) / 20)
        if taken_back:
            return math.floor(gain * factor * 1000) / 1000 if gain * factor > 1 else None
        change = (gain - 1) * factor
        rounded = math.floor(abs(change) * 1000) / 1000
        return 1 + math.copysign(rounded, change) if rounded else None

    def as_dict(self) -> dict[str, object]:
        """The report: strict JSON types, dB rounded down."""
        original, protected = self.latency_ms
        return {
            "passed": self.passed,
            "tool_version": tool_version(),
            "model": self.model,
            "source_sha256": self.source_sha256,
            "output": self.output.name if self.output else None,
            "output_sha256": self.output_sha256,
            "layers": [
                {"name": name, **node.described(), **(asdict(self.effects[name]) if name in self.effects else {})}
                for name, node in self.nodes.items()
            ],
            **({"plan": self.plan.as_dict()} if self.plan else {}),
            **({"assumptions": [assumption.as_dict() for assumption in self.assumptions]} if self.assumptions else {}),
            **({"compared": self.comparison.as_dict()} if self.comparison else {}),
            "fidelity": self.fidelity.as_dict() if self.fidelity else None,
            "preservation": self.preservation.as_dict(),
            **({"tiled": self.tiled.as_dict()} if self.tiled else {}),
            "latency": {
                "original": round(original, 3),
                "protected": round(protected, 3),
                "ratio": round(protected / original, 4),
                "way": self.execution_paths[-1],  # the key that readers of reports know
                "unit": "milliseconds",
            },
            # "strips": the key of reports; the term is removal test
            **({"strips": [test.as_dict() for test in self.removal_tests]} if self.removal_tests else {}),
            "notes": list(self.notes),
            "environment": {**environment(), "native": native.kernels()},
        }


def frozen_notes(height: int | None, width: int | None) -> tuple[str, ...]:
    """What a reader has to know of a file with fixed sizes."""
    if height is None or width is None:
        return ()
    return (f"The file takes only inputs of {height}x{width}; other sizes were not verified.",)
