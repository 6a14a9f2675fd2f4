"""Which weights of a checkpoint are the architecture's: prefixes taken off, and left out what is no weight of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError, summary
from asvp_export.signature import shape_text
from asvp_export.teacher.checkpoint import MARKS, Weights, is_counter, key_options, rank, renamed_without, without_marks

_COMPUTED = re.compile(
    r"(?:.*\.)?(?:attn_mask|relative_position_index|relative_coords_table|num_batches_tracked)(?:_[A-Z\d]+)?"
)
"""Buffers that an architecture computes from its own arguments, or never reads: Swin's tables, BatchNorm's counter."""

_COMPANION = re.compile(r"(?i)loss|criteri|lpips|vgg|percept|discrim|metric|^net_?d(?![a-z])|^d$")
"""In the first part of a name: what stands beside the net in training."""


@dataclass(frozen=True)
class Part:
    """One reading of a state dict: the names under a prefix are the net's."""

    weights: Weights
    """The state dict."""

    prefix: str
    """What the net's names begin with in it, with its last dot; "" where they are the architecture's own."""

    state: dict[str, Any]
    """The net's weights, by the architecture's own names."""

    left_out: tuple[str, ...] = ()
    """What is not the net's, as groups of names: "discriminator.*", "step_counter"."""

    computed: tuple[str, ...] = ()
    """Buffers that are the architecture's own, not the file's."""

    certain: bool = True
    """Whether nothing that is left out may be the net's: counters, computed buffers, losses, a discriminator."""

    @property
    def key(self) -> str:
        """What chooses it: the state dict's key, and the prefix."""
        return f"{self.weights.key}.{self.prefix}".strip(".")


def fit(module: nn.Module, state_dicts: Sequence[Weights], path: Path) -> tuple[Assumption, ...]:
    """Load the state dict that fits into a module: every weight and every shape, half precision converted on the way.

    Args:
        module: the bare architecture; its weights are replaced.
        state_dicts: what the file holds, as `checkpoint.find` returns it.
        path: the file, for messages.

    Returns:
        What was taken and what was left out, where there was something to choose.

    Raises:
        InputError: nothing fits: missing, unexpected or ill-shaped keys, counted, the first three of each named; or
            several fit, and none is likelier than the others.
    """
    architecture = _Architecture(module)
    phrase = f"the architecture {architecture.name}"
    parts = sorted(
        (part for weights in state_dicts for part in architecture.parts(weights)), key=lambda part: rank(part.key)
    )
    if not parts:  # a module's own loading hooks may know these names
        parts = [architecture.nearest(state_dicts)]
    refuse_ties(parts, f"fit {phrase}", path)
    try:
        computed = {name: architecture.expected[name] for name in parts[0].computed}
        module.load_state_dict(computed | parts[0].state, strict=True)
    except Exception as error:  # hooks may raise anything
        raise architecture.refusal(parts[0], state_dicts, path, summary(error)) from error
    return weights_assumed(parts, state_dicts, f"these names and shapes fit {phrase}", f"fit {phrase}")


def guesses(weights: Weights, prefix: str = "") -> Iterator[Part]:
    """Readings of a state dict of unknown architecture: as it is, then without what stands before all its names.

    Besides counters, only what stands beside a net in training is left out: losses, a discriminator, or the same net
    once more.
    """
    inside = {name: value for name, value in weights.state.items() if name.startswith(prefix)}
    net = {name.removeprefix(prefix): value for name, value in inside.items() if not is_counter(name, value)}
    left_out = {name: value for name, value in weights.state.items() if name not in inside or is_counter(name, value)}
    yield Part(weights, prefix, net, _groups(left_out, prefix))
    if prefix.count(".") > 5:
        return
    below: dict[str, dict[str, str]] = {}
    for name, value in net.items():
        first, dot, rest = name.partition(".")
        if not dot:
            return
        below.setdefault(first, {})[rest] = _shape(value)
    nets = [first for first in below if len(below) == 1 or not _COMPANION.search(first)]
    if all(below[first] == below[nets[0]] for first in nets):
        for first in sorted(nets, key=rank):
            yield from guesses(weights, f"{prefix}{first}.")


def refuse_ties(parts: Sequence[Part], fitting: str, path: Path) -> None:
    """Refuse where the first of several readings, the likeliest first, is no likelier than the next."""
    tied = [part.key for part in parts if rank(part.key) == rank(parts[0].key)]
    if len(tied) > 1:
        raise InputError(
            f"{path} holds several state dicts that {fitting} ({_listed(tied)}): choose one, {key_options(tied)}."
        )


def weights_assumed(
    parts: Sequence[Part], state_dicts: Sequence[Weights], because: str, fitting: str
) -> tuple[Assumption, ...]:
    """What was concluded in taking the first of the readings that fit; nothing where there was nothing to choose.

    Args:
        parts: the readings that fit, the one that was taken first.
        state_dicts: what the file holds.
        because: why it was taken where it alone fits.
        fitting: what the others do as well, "fit the architecture Net".
    """
    best, others = parts[0], parts[1:]
    passed = [weights.key or f"{next(iter(weights.state))}" for weights in state_dicts if weights is not best.weights]
    left_out = [*best.left_out, *passed]
    computed = sorted({name.rpartition(".")[2] for name in best.computed} - {"num_batches_tracked"})
    if not (best.prefix or left_out or computed):
        return ()
    concluded = best.weights.key or "the names as they are"
    if best.prefix:
        concluded = f"{best.prefix}* of {best.weights.key or 'the file'}"
    if left_out:
        concluded += f"; {_listed(left_out)} {'is' if len(left_out) == 1 else 'are'} left out"
    if computed:
        concluded += f"; {_listed(computed)} as the architecture computes {'it' if len(computed) == 1 else 'them'}"
    keys = [part.key for part in others if part.key]
    if others:
        averaged = rank(best.key)[0] < rank(others[0].key)[0]
        because = "it holds the averaged weights" if averaged else "its name is the likelier one"
        because += f", though {_listed(keys) or 'the names as they are'} would {fitting} too"
    option = key_options(keys[:1]) or ("--weights-key NAME" if best.prefix or passed else "")
    return (Assumption("weights", concluded, because, best.certain and not others, option),)


class _Architecture:
    """What a module expects of a state dict."""

    def __init__(self, module: nn.Module) -> None:
        self.name = type(module).__name__
        self.expected = module.state_dict()
        self.full = {without_marks(name, MARKS): name for name in self.expected}
        buffers = {without_marks(name, MARKS) for name, _ in module.named_buffers(remove_duplicate=False)}
        self.computed = {name for name in self.full if name in buffers and _COMPUTED.fullmatch(name)}
        self.unsaved = buffers - self.full.keys()
        self.firsts = {name.partition(".")[0] for name in self.full}
        self.depth = max((name.count(".") + 1 for name in self.full), default=0)
        self.marks = {"module"} - {part for name in self.full for part in name.split(".")}

    def parts(self, weights: Weights) -> Iterator[Part]:
        """The readings in which each weight is found, with its shape, and none of the net's is left out."""
        state = renamed_without(weights.state, self.marks)
        for prefix, count in self._prefixes(state).items():
            if count >= len(self.full) - len(self.computed) and (part := self._part(weights, state, prefix)):
                yield part

    def nearest(self, state_dicts: Sequence[Weights]) -> Part:
        """The reading in which most names are found; what is not the net's stays in its state."""
        counted = [
            (count, weights, prefix)
            for weights in state_dicts
            for prefix, count in self._prefixes(renamed_without(weights.state, self.marks)).items()
        ]
        _, weights, prefix = max(counted, key=lambda item: item[0])
        inside, outside = self._split(renamed_without(weights.state, self.marks), prefix)
        state = {self.full.get(name, name): value for name, value in inside.items()}
        return Part(weights, prefix, outside | state, _groups(outside, prefix))

    def refusal(self, part: Part, state_dicts: Sequence[Weights], path: Path, problem: str) -> InputError:
        """Why this reading does not fit, counted; `problem` is what loading it raised."""
        inside, _ = self._split(renamed_without(part.weights.state, self.marks), part.prefix)
        ill = [name for name in self.full if name in inside and not self._same_shape(name, inside[name])]
        wrong = [
            f"{self.full[name]} ({_shape(inside[name])} in the file, {_shape(self.expected[self.full[name]])} in the "
            f"architecture)"
            for name in ill
        ]
        missing = [full for name, full in self.full.items() if name not in inside]
        counts = [
            _count("missing", missing),
            _count("unexpected", [name for name in inside if name not in self.full]),
            _count("ill-shaped", wrong),
        ]
        counted = "; ".join(part for part in counts if part)
        phrase = f"the architecture {self.name}"
        if not counted and part.left_out:
            return InputError(
                f"{path} holds more than {phrase}: {part.prefix}* fits, but {_listed(part.left_out)} would be left "
                f"out; if that is meant, give {key_options([part.key])}."
            )
        nearest = (
            f"under {part.key}, which comes nearest, " if part.key and (part.prefix or len(state_dicts) > 1) else ""
        )
        misfit = f"{path} does not fit {phrase}: "
        if len(state_dicts) > 1:
            names = _listed([weights.key or next(iter(weights.state)) for weights in state_dicts], 6)
            misfit = f"{path} holds several state dicts ({names}), none of which fits {phrase}: "
        return InputError(f"{misfit}{nearest}{counted or problem}. Check --arch and --arch-args.")

    def _part(self, weights: Weights, state: dict[str, Any], prefix: str) -> Part | None:
        inside, outside = self._split(state, prefix)
        matched = {name: value for name, value in inside.items() if name in self.full and self._same_shape(name, value)}
        lacking = self.full.keys() - matched.keys()
        if not self.full or not lacking <= self.computed:
            return None
        unmatched = {name: value for name, value in inside.items() if name not in matched}
        doubtful = {name.partition(".")[0] for name, value in unmatched.items() if not self._is_no_weight(name, value)}
        if any(first in self.firsts or not _COMPANION.search(first) for first in doubtful):
            return None
        other_weights = [name for name, value in outside.items() if not self._is_no_weight(name, value)]
        if other_weights and any(part.isdigit() for part in prefix.split(".")):
            return None  # an element of a list: the others are layers of the same net
        left_out = {prefix + name: value for name, value in unmatched.items() if name not in self.computed} | outside
        return Part(
            weights,
            prefix,
            {self.full[name]: value for name, value in matched.items()},
            _groups(left_out, prefix),
            tuple(self.full[name] for name in lacking),
            all(_COMPANION.search(_branch(name, prefix)[-1]) for name in other_weights),
        )

    def _is_no_weight(self, name: str, value: Any) -> bool:
        return is_counter(name, value) or name in self.unsaved or bool(_COMPUTED.fullmatch(name))

    def _same_shape(self, name: str, value: Any) -> bool:
        return _shape(self.expected[self.full[name]]) in ("", _shape(value))

    def _split(self, state: dict[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is under a prefix, without it, and the rest."""
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        return inside, {name: value for name, value in state.items() if not name.startswith(prefix)}

    def _prefixes(self, state: dict[str, Any]) -> Counter[str]:
        """How many of the expected names there are under each prefix; "" is always there, and first."""
        counted = Counter({"": 0})
        for name in state:
            parts = name.split(".")
            for start in range(max(0, len(parts) - self.depth), len(parts)):
                if ".".join(parts[start:]) in self.full:
                    counted["".join(f"{part}." for part in parts[:start])] += 1
        return counted


def _groups(left_out: dict[str, Any], prefix: str) -> tuple[str, ...]:
    """Names of a state dict in groups: counters by their last part, weights by where they part from the prefix."""
    groups: list[str] = []
    for name, value in left_out.items():
        above, _, last = name.rpartition(".")
        branch = ".".join(_branch(name, prefix))
        if above and (is_counter(name, value) or _COMPUTED.fullmatch(name)):
            groups.append(f"*.{last}")
        else:
            groups.append(branch if branch == name else f"{branch}.*")
    return tuple(dict.fromkeys(groups))


def _branch(name: str, prefix: str) -> list[str]:
    """The parts of a name that it shares with a prefix, and one more."""
    parts, prefix_parts = name.split("."), prefix.split(".")
    shared = next((index for index, pair in enumerate(zip(parts, prefix_parts, strict=False)) if pair[0] != pair[1]), 0)
    return parts[: shared + 1]


def _listed(names: Sequence[str], most: int = 3) -> str:
    """Names as part of a sentence, `most` of them at the most."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shape(value: Any) -> str:
    try:
        return shape_text(value.shape) or "scalar" if isinstance(value, torch.Tensor) else ""
    except RuntimeError:  # a lazy module's weights have no shape yet
        return ""


def _count(kind: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = ", ..." if len(keys) > 3 else ""
    return f"{len(keys)} {kind} key{'s' if len(keys) > 1 else ''} ({', '.join(keys[:3])}{more})"
