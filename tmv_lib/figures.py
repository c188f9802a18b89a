"""Pictures. They draw what they are given and compute nothing that a metric reports."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tmv_lib.files import whole

ATTRIBUTION = "viridis"  # uniform in lightness, and safe for the colour-blind
MAP_NOTE = "The map shows where the network looked, not where disease is."


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG whose bytes depend on the picture alone."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})
    plt.close(figure)


def montage(images: np.ndarray, titles: Sequence[str], *, columns: int, title: str) -> Figure:
    """Grey images (n, h, w) in rows, each with its title."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.7 * columns, 1.87 * rows + 0.4), squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.axis("off")
        if place < len(images):
            grey(axis, images[place], titles[place])
    figure.suptitle(title, fontsize=11, y=0.995)
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    return figure


def grey(axis: Axes, image: np.ndarray, title: str) -> None:
    """One grey image, its range fixed so that brightness can be compared."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=7.5, pad=3)
    axis.set(xticks=[], yticks=[])


def overlay(axis: Axes, image: np.ndarray, attribution: np.ndarray, title: str) -> None:
    """An image (h, w) under the positive part of a signed map (any grid), scaled to the map's own maximum."""
    grey(axis, image, title)
    positive = np.maximum(attribution, 0)
    if positive.max() <= 0:
        axis.text(0.5, 0.03, "empty map", color="white", ha="center", transform=axis.transAxes, fontsize=7.5)
        return
    height, width = image.shape
    scaled = Image.fromarray((positive / positive.max()).astype(np.float32))
    shown = np.asarray(scaled.resize((width, height), Image.Resampling.BILINEAR))
    axis.imshow(shown, cmap=ATTRIBUTION, vmin=0, vmax=1, alpha=0.65 * np.clip(shown * 1.5, 0, 1))


def case_rows(
    rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray, np.ndarray]]]], *, title: str
) -> Figure:
    """One row a case: its facts and plain image, then panels of (title, image, map), under one colour bar."""
    columns = 1 + max(len(panels) for _, _, panels in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.75 * columns + 0.9, 1.98 * len(rows) + 0.7), squeeze=False
    )
    for (facts, image, panels), line in zip(rows, axes, strict=True):
        for axis in line:
            axis.axis("off")
        grey(line[0], image, facts)
        for axis, (name, seen, attribution) in zip(line[1:], panels, strict=False):
            overlay(axis, seen, attribution, name)
    figure.suptitle(title, fontsize=11, y=0.995)
    figure.text(0.5, 0.004, MAP_NOTE, ha="center", fontsize=8)
    figure.tight_layout(rect=(0, 0.02, 0.93, 0.985), pad=0.5)
    bar = figure.add_axes((0.945, 0.3, 0.012, 0.4))
    scale = plt.cm.ScalarMappable(cmap=ATTRIBUTION)
    figure.colorbar(scale, cax=bar).set_label("attribution / its maximum in the case", fontsize=7.5)
    bar.tick_params(labelsize=7)
    return figure


def case_sheet(
    rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray, np.ndarray]], str]], *, title: str
) -> Figure:
    """Case studies: facts and plain image, maps as in `case_rows`, and a sentence of evidence beside them."""
    if not rows:
        figure = plt.figure(figsize=(7, 1))
        figure.text(0.02, 0.45, f"{title}\nno such error", fontsize=10)
        return figure
    columns = 1 + max(len(panels) for _, _, panels, _ in rows)
    figure, axes = plt.subplots(
        len(rows),
        columns + 1,
        figsize=(2.1 * columns + 4.2, 2.35 * len(rows) + 0.9),
        width_ratios=[1.0] * columns + [1.9],
        squeeze=False,
    )
    for (facts, image, panels, sentence), line in zip(rows, axes, strict=True):
        for axis in line:
            axis.axis("off")
        grey(line[0], image, facts)
        for axis, (name, seen, attribution) in zip(line[1:-1], panels, strict=False):
            overlay(axis, seen, attribution, name)
        line[-1].text(0, 0.5, fill(sentence, 44), va="center", fontsize=9, transform=line[-1].transAxes)
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left", y=0.995)
    figure.text(0.01, 0.006, MAP_NOTE, fontsize=8)
    figure.tight_layout(rect=(0, 0.02, 1, 0.985), pad=0.5)
    return figure


def trust_card(answers: Sequence[tuple[str, str]], sweep: pd.DataFrame) -> Figure:
    """One page for the clinician: questions with their answers, and what each threshold costs."""
    figure = plt.figure(figsize=(8.3, 10.2))
    figure.text(0.06, 0.955, "Trust card", fontsize=20, weight="bold")
    figure.text(0.06, 0.935, "what was measured on the test split, and no more", fontsize=10, color="0.35")
    height = 0.895
    for question, answer in answers:
        figure.text(0.06, height, question, fontsize=12, weight="bold")
        lines = fill(answer, 98)
        figure.text(0.06, height - 0.012, lines, fontsize=10, va="top", linespacing=1.35)
        height -= 0.043 + 0.0195 * (lines.count("\n") + 1)
    cost, share = figure.add_axes((0.09, 0.07, 0.38, height - 0.12)), figure.add_axes((0.58, 0.07, 0.38, height - 0.12))
    styles = (("C0", "--"), ("C0", "-"), ("0.45", "-."), ("0.45", ":"))
    for (name, part), (colour, dashes) in zip(sweep.groupby("series", sort=False), styles, strict=True):
        cost.plot(part["threshold"], part["failure_cost"], dashes, color=colour, label=name)
    cost.set(xlabel="threshold", ylabel="failure cost a case", ylim=(0, None))
    cost.legend(frameon=False, fontsize=8)
    policy = sweep[sweep["series"] == "test"]
    share.plot(policy["threshold"], 100 * policy["deferral_rate"], color="C1", label="goes to a doctor")
    share.plot(policy["threshold"], 100 * policy["selective_risk"], color="C3", label="wrong among the decided")
    share.set(xlabel="threshold", ylabel="of 100 cases", ylim=(0, 100))
    share.legend(frameon=False, fontsize=8)
    for axis in (cost, share):
        axis.spines[["top", "right"]].set_visible(False)
    return figure
