"""Diagrams as SVG that stands inside a page: its text stays text, the same rows give the same bytes, no date."""

import re
from collections.abc import Callable, Mapping
from io import StringIO

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe & Ito: told apart by colour-blind readers
GREY, PALE = "#767676", "#dcdcdc"
# Points at 4.5 inches: as wide as a phone shows it, on paper as on a screen.
SIZE = (4.5, 3.1)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.family": ["DejaVu Sans"],  # wider than what browsers put in its place
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#222",
    "axes.grid": True,
    "grid.color": "#eee",
    "grid.linewidth": 0.8,
    "xtick.color": "#444",
    "ytick.color": "#444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}
Look = Mapping[str, object]  # options of a line
BY_LOT: Look = {"color": GREY, "linestyle": ":", "label": "handed over by lot"}
POLICY: Look = {"color": COLOURS[0], "label": "this policy"}
UNSAID = {"Date": None, "Creator": None, "Format": None, "Type": None}


def draw(paint: Callable[[Axes], None], *, x: str, y: str, height: float = SIZE[1]) -> str:
    """One diagram as an SVG element. paint: draws on the axes; what it labels is told below them. height: in inches."""
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set(xlabel=x, ylabel=y)
        axes.set_axisbelow(True)
        paint(axes)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower left", ncols=2, columnspacing=1.4, handlelength=1.8)
        text = StringIO()
        figure.savefig(text, format="svg", metadata=UNSAID)
    element = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(r'<g id="[^"]*"', "<g", element)  # the same in every diagram of a page


def steps(axes: Axes, rows: pd.DataFrame, x: str, y: str, **look: object) -> None:
    """A line through rows as they stand, of columns x and y."""
    axes.plot(rows[x].to_numpy(), rows[y].to_numpy(), **look)  # type: ignore[arg-type]


def curves(axes: Axes, rows: pd.DataFrame, x: str, y: str, looks: Mapping[str, Look], **look: object) -> None:
    """A line per series that `looks` names, as it says; look: of all of them."""
    for name, own in looks.items():
        steps(axes, rows[rows["series"] == name], x, y, **look, **own)


def intervals(rows: pd.DataFrame, value: str, label: str, *, at: float, x: str) -> str:
    """One row per name in `label`: a dot per series with its interval, `low` to `high`; a line at no effect."""

    def paint(axes: Axes) -> None:
        names, series = list(dict.fromkeys(rows[label])), list(dict.fromkeys(rows["series"]))
        axes.axvline(at, color=GREY, linewidth=1)
        for k, one in enumerate(series):
            own = rows[rows["series"] == one]
            place = [names.index(name) + 0.16 * (k - (len(series) - 1) / 2) for name in own[label]]
            colour = COLOURS[k % len(COLOURS)]
            axes.hlines(place, own["low"], own["high"], color=colour, linewidth=1.4)
            axes.plot(own[value], place, "o", color=colour, markersize=4.5, label=one)
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)

    lines = rows[label].nunique() * max(1.0, 0.4 * rows["series"].nunique())
    return draw(paint, x=x, y="", height=min(4.5, 1.1 + 0.3 * lines + 0.1 * rows["series"].nunique()))
