"""Choosing layers by names and globs."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from asvp_export.errors import InputError
from asvp_export.selection.survey import Survey, survey_of
from asvp_export.teacher.model import Teacher


@dataclass(frozen=True)
class Site:
    """Where a node goes."""

    shape: tuple[int, ...]
    """Shape of the first call's output, the batch first."""

    axis: int
    """The channel axis for the node: 1 for N,C,H,W; -1 for N,L,C and N,H,W,C."""


def select(teacher: Teacher, patterns: Sequence[str]) -> dict[str, Site]:
    """Resolve names and globs to the modules that get a node.

    In a glob `*` stands for any part of one name between dots, `**` for any number of names, `?` for one character and
    `[ab]` for one of several: `body.*` takes the children of body, `body.**` everything inside it, `**.conv1` every
    conv1. A glob takes the modules that can carry the node and passes over the others; a plain name must be able to.
    Where two modules return one and the same tensor (a container and its last child, a layer and the inactive
    dropout behind it) a glob takes the first to return it, or the one that is named plainly.

    Args:
        teacher: the teacher; two forwards.
        patterns: each may hold several, split at commas; what is a layer's own name, commas and all, is not split.

    Returns:
        Name to site, in the order of the layers' first outputs in a forward.

    Raises:
        InputError: an unknown name (with the nearest), a module that cannot carry the node (with the reason), a glob
            that matches nothing or no carrier, or two plain names for one tensor.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not any(pattern.replace(",", " ").strip() for pattern in patterns):
        raise InputError(
            "No layer is named; give names or globs such as body.*, and list them with asvp-export layers."
        )
    survey = survey_of(teacher)
    words = [word for pattern in patterns for word in _words(pattern, survey.names.aliases)]
    plain: set[str] = set()
    matched: set[str] = set()
    for word in words:
        if re.search(r"[*?[]", word) and word not in survey.names.aliases:
            matched |= _match(word, survey)
        else:
            plain.add(_named(word, survey))
    names = _without_doubles([name for name in survey.axes if name in plain | matched], plain, survey)
    return {name: Site(survey.outputs[name].shapes[0], survey.axes[name]) for name in names}


def _words(pattern: str, names: Collection[str]) -> list[str]:
    """A pattern split at its commas, but for those inside a layer's name.

    The longest name wins, unless its parts are names too.
    """
    if pattern.strip() in names:
        return [pattern.strip()]
    parts, words = pattern.split(","), []
    while parts:
        for end in range(len(parts), 0, -1):
            word = ",".join(parts[:end]).strip()
            if end == 1 or (word in names and not all(part.strip() in names for part in parts[:end])):
                words += [word] if word else []
                del parts[:end]
                break
    return words


def _named(word: str, survey: Survey) -> str:
    if word not in survey.names.aliases and word in survey.names.elsewhere:
        raise InputError(f"The name {word} cannot carry the node: it {survey.names.elsewhere[word]}.")
    if word not in survey.names.aliases:
        near = difflib.get_close_matches(word, survey.names.aliases, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else _carriers_listed(survey)
        raise InputError(f"There is no layer {word!r}; {hint}.")
    name = survey.names.aliases[word]
    if name not in survey.axes:
        raise InputError(f"The layer {word} cannot carry the node: it {survey.reasons[name]}.")
    return name


def _match(glob: str, survey: Survey) -> set[str]:
    pattern = _translate(glob, survey.names.separator)
    everyone = [*survey.axes, *survey.reasons]
    meant = {
        survey.names.aliases.get(name, name) for name in (*everyone, *survey.names.aliases) if pattern.fullmatch(name)
    }
    matched = [name for name in everyone if name in meant]
    if not matched:
        near = difflib.get_close_matches(re.sub(r"[*?\[\]]", "", glob), everyone, n=3, cutoff=0.3)
        nearest = f"the nearest names are {', '.join(near)}; " if near else ""
        raise InputError(
            f"No layer matches {glob!r} (* stays inside one part of a name, ** crosses parts); "
            f"{nearest}{_carriers_listed(survey)}."
        )
    carriers = {name for name in matched if name in survey.axes}
    if not carriers:
        reasons = "; ".join(f"{name} {survey.reasons[name]}" for name in matched[:3])
        more = f"; and {len(matched) - 3} more" if len(matched) > 3 else ""
        raise InputError(f"None of the layers that match {glob!r} can carry the node: {reasons}{more}.")
    return carriers


def _carriers_listed(survey: Survey) -> str:
    """How many layers of which kinds could be named, the commonest kinds first."""
    kinds = Counter(survey.names.kinds[name] for name in survey.axes).most_common()
    shown = [f"{count} {kind}" for kind, count in kinds[:4]]
    uncommon = sum(count for _, count in kinds[4:])
    listed = ", ".join([*shown, f"{uncommon} others"] if uncommon else shown)
    return f"{len(survey.axes)} layers can carry the node ({listed}), and asvp-export layers MODEL lists them"


def _translate(glob: str, separator: str) -> re.Pattern[str]:
    """A regular expression for our globs; fnmatch will not do, since its * crosses dots (slashes in an ONNX graph)."""
    between = re.escape(separator)
    tokens = {f"**{separator}": rf"(?:.*{between})?", "**": ".*", "*": rf"[^{between}]*", "?": rf"[^{between}]"}
    out = []
    for token in re.findall(rf"\*\*{between}|\*\*|\*|\?|\[[^]]+\]|.", glob):
        if len(token) > 2 and token.startswith("["):
            inside = re.sub(r"([\\\[])", r"\\\1", token[1:-1])
            out.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
        else:
            out.append(tokens.get(token) or re.escape(token))
    try:
        return re.compile("".join(out))
    except re.error as error:
        raise InputError(f"The pattern {glob!r} cannot be read: {error}.") from error


def _without_doubles(names: list[str], plain: set[str], survey: Survey) -> list[str]:
    """Leave one module for each tensor."""
    chosen: list[str] = []
    for name in sorted(names, key=lambda name: name not in plain):  # plain names first; stable otherwise
        tensors = survey.outputs[name].tensors
        twin = next((earlier for earlier in chosen if survey.outputs[earlier].tensors & tensors), None)
        if twin is None:
            chosen.append(name)
        elif name in plain:
            raise InputError(
                f"{twin} and {name} return one and the same tensor, which would get two nodes: select one of them."
            )
    return [name for name in names if name in chosen]
