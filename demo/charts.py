"""Diagrams as SVG text, for the app and for static pages alike. Series differ in colour and in dashes."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

WIDTH, HEIGHT = 420, 300
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
REFERENCES = ("random", "chance", "oracle", "limit", "nobody", "all called")
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 46
LETTER = 6.6  # mean width in pixels of a letter of the labels, 12 pixels high


class Axis(NamedTuple):
    """The ends of what is shown, and where marks stand."""

    low: float
    high: float
    ticks: list[float]

    def at(self, value: float, start: float, end: float) -> float:
        """The pixel of a value between the pixels of both ends."""
        return start + (end - start) * (value - self.low) / (self.high - self.low)


def axis(values: np.ndarray) -> Axis:
    """An axis with four to eight round marks that holds all finite values.

    >>> axis(np.array([0.0, 0.93])).ticks
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    ticks = [float(round(k * step, 10)) for k in np.arange(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks)


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    x_label: str,
    y_label: str,
    ink: str = "currentColor",
    diagonal: bool = False,
    steps: bool = False,
    band: bool = False,
    mark: tuple[float, float] | None = None,
) -> str:
    """Curves by the column `series`, joined in file order; `low` to `high` as a band; a cross at `mark`."""
    ends = [table[x].to_numpy(dtype=float), table[y].to_numpy(dtype=float)]
    if diagonal:
        ends = [np.array([0.0, 1.0]), np.array([0.0, 1.0])]
    elif band:
        ends[1] = np.concatenate([ends[1], table["low"].to_numpy(dtype=float), table["high"].to_numpy(dtype=float)])
    if mark is not None:
        ends = [np.append(values, value) for values, value in zip(ends, mark, strict=True)]
    across, up = axis(ends[0]), axis(ends[1])
    series = list(dict.fromkeys(table["series"]))
    parts = _frame(across, up, x_label, y_label, ink)
    if diagonal:
        parts.append(_path([(0, 0), (1, 1)], across, up, stroke=ink, dash="3 3", width=1))
    colour = iter(range(len(series)))
    legend = []
    for name in series:
        own = table[table["series"] == name]
        points = list(zip(own[x].astype(float), own[y].astype(float), strict=True))
        reference = any(wordlike in str(name) for wordlike in REFERENCES)
        place = None if reference else next(colour)
        stroke = ink if place is None else COLOURS[place % len(COLOURS)]
        dash = "1 4" if place is None else DASHES[place % len(DASHES)]
        if band:
            edge = list(zip(own[x].astype(float), own["low"].astype(float), strict=True))
            edge += list(zip(own[x].astype(float), own["high"].astype(float), strict=True))[::-1]
            parts.append(_path(edge, across, up, stroke="none", fill=stroke))
        parts.append(_path(_stepped(points) if steps else points, across, up, stroke=stroke, dash=dash))
        legend.append((str(name), stroke, dash))
    if mark is not None:
        px, py = _pixel(mark, across, up)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="6" fill="none" stroke="{ink}" stroke-width="2.5"/>')
    return _svg(parts, legend if len(series) > 1 else [], ink, HEIGHT)


def rows(table: pd.DataFrame, *, x: str, y: str, x_label: str, ink: str = "currentColor") -> str:
    """One row a category in file order: the value x with its interval, a line of its own for each series."""
    categories = list(dict.fromkeys(table[y].astype(str)))
    series = list(dict.fromkeys(table["series"])) if "series" in table else [""]
    values = np.concatenate([table[name].to_numpy(dtype=float) for name in (x, "low", "high")])
    across = axis(values)
    # A phone has no room beside the bars: each category's name stands above them.
    height = len(categories) * (18 + 12 * len(series)) + BOTTOM + TOP
    left, right, top, bottom = 14, WIDTH - RIGHT, TOP, height - BOTTOM
    parts = _across(across, left, right, top, bottom, x_label, ink)
    down = top + 12
    for category in categories:
        parts.append(_text(category.replace("_", " "), left, down, ink))
        for place, name in enumerate(series):
            own = table[(table[y].astype(str) == category) & ((table["series"] == name) if "series" in table else True)]
            for _, row in own.iterrows():
                at, colour = down + 9 + 12 * place, COLOURS[place % len(COLOURS)]
                if np.isfinite(row["low"]) and np.isfinite(row["high"]):
                    ends = [across.at(float(row[end]), left, right) for end in ("low", "high")]
                    parts.append(
                        f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{at}" y2="{at}" stroke="{colour}"'
                        f' stroke-width="2" stroke-dasharray="{DASHES[place % len(DASHES)]}"/>'
                    )
                parts.append(
                    f'<circle cx="{across.at(float(row[x]), left, right):.1f}" cy="{at}" r="4" fill="{colour}"/>'
                )
        down += 18 + 12 * len(series)
    legend = [(str(name), COLOURS[k % len(COLOURS)], DASHES[k % len(DASHES)]) for k, name in enumerate(series)]
    return _svg(parts, legend if len(series) > 1 else [], ink, height)


def grid(table: pd.DataFrame, *, x: str, y: str, x_label: str, y_label: str, ink: str = "currentColor") -> str:
    """Counts `n` of y (rows) by x (columns) in file order, shaded by their share of the row; a letter a kind."""
    kinds = list(dict.fromkeys([*table[y].astype(str), *table[x].astype(str)]))
    letters = dict(zip(kinds, "abcdefghijklmnopqrstuvwxyz", strict=False))
    columns, rows_ = list(dict.fromkeys(table[x].astype(str))), list(dict.fromkeys(table[y].astype(str)))
    left, top, high = 160, 48, 28
    wide = (WIDTH - RIGHT - left) / len(columns)
    parts = [_text(f"columns: {x_label}", 4, 14, ink), _text(f"rows: {y_label}", 4, 32, ink)]
    parts += [
        _text(letters[name], left + wide * (k + 0.5), top - 4, ink, anchor="middle") for k, name in enumerate(columns)
    ]
    for place, kind in enumerate(rows_):
        own = table[table[y].astype(str) == kind].set_index(table[x].astype(str)[table[y].astype(str) == kind])["n"]
        parts.append(_text(f"{letters[kind]}  {kind}", 4, top + high * place + 19, ink))
        for k, name in enumerate(columns):
            share = own.get(name, 0) / own.sum() if own.sum() else 0
            at = left + wide * k
            parts.append(
                f'<rect x="{at:.1f}" y="{top + high * place}" width="{wide - 2:.1f}" height="{high - 2}"'
                f' fill="{COLOURS[0]}" fill-opacity="{0.45 * share:.2f}" stroke="{ink}" stroke-opacity="0.25"/>'
            )
            parts.append(_text(f"{own.get(name, 0)}", at + wide / 2, top + high * place + 19, ink, anchor="middle"))
    return _svg(parts, [], ink, top + high * len(rows_) + 8)


def _stepped(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points with a corner before each: the value holds until the next."""
    return [
        points[0],
        *(corner for before, point in pairwise(points) for corner in ((before[0], point[1]), point)),
    ]


def _pixel(point: tuple[float, float], across: Axis, up: Axis) -> tuple[float, float]:
    return across.at(point[0], LEFT, WIDTH - RIGHT), up.at(point[1], HEIGHT - BOTTOM, TOP)


def _path(
    points: Sequence[tuple[float, float]],
    across: Axis,
    up: Axis,
    *,
    stroke: str,
    dash: str = "",
    width: float = 2,
    fill: str = "none",
) -> str:
    finite = [point for point in points if np.isfinite(point).all()]
    drawn = " ".join("{:.1f},{:.1f}".format(*_pixel(point, across, up)) for point in finite)
    shape, opacity = ("polyline", "") if fill == "none" else ("polygon", ' fill-opacity="0.18"')
    return (
        f'<{shape} points="{drawn}" fill="{fill}"{opacity} stroke="{stroke}" stroke-width="{width}"'
        f' stroke-dasharray="{dash}" stroke-linejoin="round"/>'
    )


def _text(words: str, x: float, y: float, ink: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{ink}" text-anchor="{anchor}" {more}>{escape(words)}</text>'


def _across(across: Axis, left: float, right: float, top: float, bottom: float, x_label: str, ink: str) -> list[str]:
    """The lines and marks of a horizontal axis, and its label."""
    parts = []
    for tick in across.ticks:
        at = across.at(tick, left, right)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}" stroke="{ink}" stroke-opacity="0.18"/>'
        )
        parts.append(_text(f"{tick:g}", at, bottom + 16, ink, anchor="middle"))
    return [*parts, _text(x_label, (left + right) / 2, bottom + 36, ink, anchor="middle")]


def _frame(across: Axis, up: Axis, x_label: str, y_label: str, ink: str) -> list[str]:
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    parts = _across(across, left, right, top, bottom, x_label, ink)
    for tick in up.ticks:
        at = up.at(tick, bottom, top)
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="{ink}" stroke-opacity="0.18"/>'
        )
        parts.append(_text(f"{tick:g}", left - 6, at + 4, ink, anchor="end"))
    middle = (top + bottom) / 2
    parts.append(_text(y_label, 14, middle, ink, anchor="middle", more=f'transform="rotate(-90 14 {middle:.0f})"'))
    return parts


def _svg(parts: list[str], legend: list[tuple[str, str, str]], ink: str, height: int) -> str:
    """The whole picture, with a legend below, as many entries a line as there is room for."""
    x, y = 10.0, height + 10.0
    for name, stroke, dash in legend:
        words = name.replace("_", " ")
        room = 32 + LETTER * len(words) + 12
        if x > 10 and x + room > WIDTH:
            x, y = 10.0, y + 20
        parts.append(
            f'<line x1="{x:.0f}" x2="{x + 24:.0f}" y1="{y - 4:.0f}" y2="{y - 4:.0f}" stroke="{stroke}"'
            f' stroke-width="2.5" stroke-dasharray="{dash}"/>'
        )
        parts.append(_text(words, x + 30, y, ink))
        x += room
    total = height + (24 + y - height - 10 if legend else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total:.0f}" width="{WIDTH}"'
        f' height="{total:.0f}" font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )
