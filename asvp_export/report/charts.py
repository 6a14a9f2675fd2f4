"""Small charts as inline SVG: told apart without colour, legible on a phone, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

# Text keeps its size in pixels where the chart is as wide as a phone's column.
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 28, 40
_MOST_POINTS = 160


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    """For the legend."""

    kind: str
    """Its class in the style sheet: colour and dashes."""

    x: Sequence[float]
    """Ascending."""

    y: Sequence[float]
    """As many; what is not finite, or not positive on a logarithmic axis, is left out."""

    marks: str = ""
    """"circle", "square", or none."""


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    most_x: float | None = 1.0,
    decades: float = 9,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Lines, over a logarithmic y axis where no range is given.

    Args:
        series: what to draw, the first at the back.
        title: what a screen reader says.
        x_label: of the x axis, with its unit.
        y_label: of the y axis.
        most_x: where a linear x axis ends; it begins at 0. None: a logarithmic one, as far as there are points.
        decades: how far the y axis goes down at most, below its top.
        y_range: where a linear y axis begins and ends; what lies outside stands at its end.

    Returns:
        An <svg> element, or nothing where there is no point to draw.
    """
    lines = [(curve, _thinned(_drawable(curve, log_x=most_x is None, log_y=y_range is None))) for curve in series]
    points = [point for _, line in lines for point in line]
    if not points:
        return Markup("")
    across = _Log(*_around(x for x, _ in points)) if most_x is None else _Linear(0.0, most_x)
    up = _Linear(*y_range) if y_range else _decades((y for _, y in points), decades)
    parts = [*_grid(across, up), *_labels(x_label, y_label), *_legend([curve for curve, line in lines if line])]
    for curve, line in lines:
        placed = [(_x(across, x), _y(up, min(max(y, up.low), up.high))) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="line {escape(curve.kind)}" points="{path}"/>')
        parts += [_mark(curve, *point) for point in placed if curve.marks]
    body = "".join(parts)
    name = escape(title)
    return Markup(f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{body}</svg>')


def dot_plot(rows: Sequence[tuple[str, Sequence[float], float]], *, title: str, unit: str) -> Markup:
    """A row of dots each: every score, and a line at what it had to reach.

    Args:
        rows: name, scores and the least that was allowed; a score that is not finite is drawn at the far left.
        title: what a screen reader says.
        unit: of the scores.
    """
    values = [_within(value) for _, scores, needed in rows for value in (*scores, needed) if math.isfinite(value)]
    step = next(step for step in (2, 5, 10, 20, 50) if (max(values) - min(values)) / step <= 6)
    low, high = step * math.floor(min(values) / step - 0.1), step * math.ceil(max(values) / step + 0.1)
    scale, left, line = _Linear(low, high), 8, 46
    height = line * len(rows) + 26

    def at(value: float) -> float:
        return left + (_WIDTH - 2 * left) * scale(_within(value) if math.isfinite(value) else low)

    parts = []
    for tick in range(low, high + 1, step):
        x = at(tick)
        anchor = "start" if tick == low else "end" if tick == high else "middle"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 22}"/>')
        text = f"{tick} {unit}" if tick == high else f"{tick}"
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{text}</text>')
    for row, (name, scores, needed) in enumerate(rows):
        base = row * line + 30
        x = at(needed)
        parts.append(f'<text class="name" x="{left}" y="{base - 14}">{escape(name)}</text>')
        parts.append(f'<rect class="short" x="{left}" y="{base - 9}" width="{x - left:.1f}" height="18"/>')
        parts += [
            f'<circle class="dot{"" if value >= needed else " bad"}" cx="{at(value):.1f}" cy="{base}" r="4"/>'
            for value in scores
        ]
        parts.append(f'<line class="needed" x1="{x:.1f}" x2="{x:.1f}" y1="{base - 11}" y2="{base + 11}"/>')
    body = "".join(parts)
    return Markup(
        f'<svg class="chart dots" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def difference_plot(
    rows: Sequence[tuple[str, Sequence[float], float]], *, ends: tuple[float, float], title: str, unit: str
) -> Markup:
    """Differences around zero, a row of dots each: a line at their mean, a band as wide as chance.

    Args:
        rows: name, differences, and how far from zero a mean may lie by chance; what is not finite is not drawn.
        ends: of the axis; what lies outside stands at its end.
        title: what a screen reader says.
        unit: of the differences.
    """
    scale, left, line = _Linear(*ends), 8, 42
    height = line * len(rows) + 26

    def at(value: float) -> float:
        return left + (_WIDTH - 2 * left) * scale(min(max(value, scale.low), scale.high))

    parts = []
    for value, text in scale.ticks():
        x = at(value)
        anchor = "start" if x < left + 8 else "end" if x > _WIDTH - left - 8 else "middle"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 22}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{text}</text>')
    for row, (name, values, chance) in enumerate(rows):
        finite = [value for value in values if math.isfinite(value)]
        base = row * line + 29
        parts.append(f'<text class="name" x="{left}" y="{base - 14}">{escape(name)}</text>')
        if chance > 0:
            width = at(chance) - at(-chance)
            parts.append(f'<rect class="chance" x="{at(-chance):.1f}" y="{base - 8}" width="{width:.1f}" height="16"/>')
        parts += [f'<circle class="dot" cx="{at(value):.1f}" cy="{base}" r="4"/>' for value in finite]
        if finite:
            mean = sum(finite) / len(finite)
            x = at(mean)
            parts.append(f'<line class="needed" x1="{x:.1f}" x2="{x:.1f}" y1="{base - 9}" y2="{base + 9}"/>')
            text = f"{mean:z.2f} {unit}"
            parts.append(f'<text x="{_WIDTH - left}" y="{base - 14}" text-anchor="end">{text}</text>')
    zero = f'<line class="zero" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="0" y2="{height - 22}"/>'
    body = "".join((zero, *parts))
    return Markup(
        f'<svg class="chart dots" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def round_range(values: Iterable[float]) -> tuple[float, float]:
    """The least range with round ends that holds all finite values, wider than a point; 0 to 1 where there is none."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    step = _step(max(finite) - min(finite)) if max(finite) > min(finite) else 1.0
    low, high = step * math.floor(min(finite) / step), step * math.ceil(max(finite) / step)
    return (low, high) if low < high else (low - step, high + step)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten: at most five of them fit into the span."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-6) / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5 + 1e-9)


def _within(decibels: float) -> float:
    """What lies outside of -50 to 200 stands at the end of the axis."""
    return min(max(decibels, -50.0), 200.0)


@dataclass(frozen=True)
class _Linear:
    low: float
    high: float

    def __call__(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        step = _step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, f"{round(i * step, 9):g}") for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Log:
    low: float
    high: float

    def __call__(self, value: float) -> float:
        return math.log10(value / self.low) / math.log10(self.high / self.low)

    def ticks(self) -> list[tuple[float, str]]:
        first, last = round(math.log10(self.low), 6), round(math.log10(self.high), 6)
        step = max(1, math.ceil((last - first) / 6))
        return [(10.0**e, _power(e)) for e in range(math.ceil(first), math.floor(last) + 1, step)]


def _decades(values: Iterable[float], most: float) -> _Log:
    """Whole powers of ten around the values, at most so many below the top."""
    numbers = list(values)
    top = math.ceil(math.log10(max(numbers)) - 1e-9)
    bottom = max(math.floor(math.log10(min(numbers)) + 1e-9), math.floor(top - most))
    return _Log(10.0 ** min(bottom, top - 1), 10.0**top)


def _power(exponent: int) -> str:
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{10.0**exponent:g}" if -3 < exponent < 5 else f"10{raised}"


def _around(values: Iterable[float]) -> tuple[float, float]:
    numbers = list(values)
    return min(numbers), max(max(numbers), min(numbers) * 2)


def _drawable(curve: Series, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    pairs = zip(curve.x, curve.y, strict=True)
    return [(x, y) for x, y in pairs if math.isfinite(y) and (y > 0 or not log_y) and (x > 0 or not log_x)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most some 160 points: all of the first 60, then at equal ratios."""
    if len(points) <= _MOST_POINTS:
        return points
    ratio = (len(points) / 60) ** (1 / 99)
    indices = {*range(60), *(min(len(points) - 1, round(60 * ratio**i)) for i in range(100))}
    return [points[i] for i in sorted(indices)]


def _x(scale: _Linear | _Log, value: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * scale(value)


def _y(scale: _Linear | _Log, value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * scale(value)


def _grid(across: _Linear | _Log, up: _Linear | _Log) -> Iterable[str]:
    for value, text in up.ticks():
        y = _y(up, value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    ticks = across.ticks() if isinstance(across, _Linear) else [(v, f"{v:g}") for v in _counts(across)]
    for value, text in ticks:
        x = _x(across, value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        anchor = "middle" if x + 3.4 * len(text) < _WIDTH else "end"
        yield f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="{anchor}">{text}</text>'


def _counts(across: _Log) -> list[float]:
    """1, 2, 4, 8, ... within the axis."""
    return [2.0**e for e in range(0, 30) if across.low <= 2.0**e <= across.high * 1.0001]


def _labels(x_label: str, y_label: str) -> Iterable[str]:
    yield f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{escape(x_label)}</text>'
    yield f'<text x="2" y="14">{escape(y_label)}</text>'


def _legend(series: Sequence[Series]) -> Iterable[str]:
    x = float(_WIDTH - _RIGHT)
    for curve in reversed(series):
        x -= 6.2 * len(curve.name)
        yield f'<text x="{x:.0f}" y="14">{escape(curve.name)}</text>'
        yield f'<polyline class="line {escape(curve.kind)}" points="{x - 28:.0f},10 {x - 6:.0f},10"/>'
        if curve.marks:
            yield _mark(curve, x - 17, 10)
        x -= 38


def _mark(curve: Series, x: float, y: float) -> str:
    if curve.marks == "circle":
        return f'<circle class="mark {escape(curve.kind)}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<rect class="mark {escape(curve.kind)}" x="{x - 2.2:.1f}" y="{y - 2.2:.1f}" width="4.4" height="4.4"/>'
