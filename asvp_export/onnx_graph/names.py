"""Names of our nodes: `asvp/<layer>`, `asvp/<layer>#2` at the second call, and `asvp/<layer>/inverse`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

PREFIX = "asvp/"
_INVERSE = "/inverse"


@dataclass(frozen=True)
class NodeName:
    """What the name of an ASVP node says."""

    layer: str
    """The protected layer."""

    call: int = 1
    """Which call of the layer in a forward, from 1."""

    inverse: bool = False
    """Whether it is the inverse in front of the layer's readers, and not the node that exposes the map."""

    def __str__(self) -> str:
        call = f"#{self.call}" if self.call > 1 else ""
        return f"{PREFIX}{self.layer}{call}{_INVERSE if self.inverse else ''}"

    @property
    def exposing(self) -> NodeName:
        """The node whose amplification an inverse takes back; the name itself where it is that node's."""
        return NodeName(self.layer, self.call)


def read_name(name: str, layers: Collection[str] = ()) -> NodeName | None:
    """What a node's name says; None where it is none of ours.

    Args:
        name: of a node.
        layers: those that are known to be protected; a layer may itself have a name that ends in "#2" or "/inverse".
    """
    if not name.startswith(PREFIX):
        return None
    rest = name.removeprefix(PREFIX)
    inverse = rest not in layers and rest.endswith(_INVERSE)
    rest = rest.removesuffix(_INVERSE) if inverse else rest
    layer, _, call = rest.rpartition("#")
    if rest in layers or not (layer and call.isdecimal()):
        return NodeName(rest, 1, inverse)
    return NodeName(layer, int(call), inverse)
