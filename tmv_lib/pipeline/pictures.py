"""Pictures. They draw what they are given and compute nothing that a metric reports."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tmv_lib.pipeline.files import whole
from tmv_lib.pipeline.grey import luminance

matplotlib.use("agg")

ATTRIBUTION = "viridis"  # uniform in lightness, and safe for the colour-blind
MAP_NOTE = "The map shows where the network looked, not where disease is."


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG whose bytes depend on the picture alone."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})
    plt.close(figure)


def save_all(figures: Iterable[tuple[str, Figure]], folder: str | Path) -> None:
    """Write named pictures into a folder, which is there even where there is none to show."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, figure in figures:
        save(figure, Path(folder) / f"{name}.png")


def montage(images: np.ndarray, titles: Sequence[str], *, columns: int, title: str) -> Figure:
    """Images (n, h, w) or (n, h, w, 3) in rows, each with its title."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.7 * columns, 1.87 * rows + 0.4), squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.axis("off")
        if place < len(images):
            plain(axis, images[place], titles[place])
    figure.suptitle(title, fontsize=11, y=0.995)
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    return figure


def plain(axis: Axes, image: np.ndarray, title: str) -> None:
    """One image of levels 0 to 255, its range fixed so that brightness can be compared."""
    if image.ndim == 3:
        axis.imshow(np.clip(image, 0, 255).astype(np.uint8))
    else:
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=8.5, pad=3)
    axis.set(xticks=[], yticks=[])


def overlay(axis: Axes, image: np.ndarray, attribution: np.ndarray, title: str) -> None:
    """An image (h, w[, 3]) under the positive part of a signed map (any grid), scaled to the map's own maximum.

    Colour is shown as grey there: a hue under a map would be read as a part of it.
    """
    if image.ndim == 3:
        image = luminance(np.clip(image, 0, 255).astype(np.uint8)[None])[0]
    plain(axis, image, title)
    positive = np.maximum(attribution, 0)
    if positive.max() <= 0:
        axis.text(0.5, 0.03, "empty map", color="white", ha="center", transform=axis.transAxes, fontsize=8.5)
        return
    height, width = image.shape
    scaled = Image.fromarray((positive / positive.max()).astype(np.float32))
    shown = np.asarray(scaled.resize((width, height), Image.Resampling.BILINEAR))
    axis.imshow(shown, cmap=ATTRIBUTION, vmin=0, vmax=1, alpha=0.65 * np.clip(shown * 1.5, 0, 1))


def case_rows(
    rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray, np.ndarray]]]], *, title: str
) -> Figure:
    """One row a case: its facts and plain image, then panels of (title, image, map), under one colour bar."""
    rows = [
        (_wrapped(facts), image, [(_wrapped(name), seen, attribution) for name, seen, attribution in panels])
        for facts, image, panels in rows
    ]
    words = [text for facts, _, panels in rows for text in (facts, *(name for name, _, _ in panels))]
    figure, axes = _grid(len(rows), 1 + max(len(panels) for _, _, panels in rows), words)
    for (facts, image, panels), line in zip(rows, axes, strict=True):
        plain(line[0], image, facts)
        for axis, (name, seen, attribution) in zip(line[1:], panels, strict=False):
            overlay(axis, seen, attribution, name)
    return _with_bar(figure, title)


def case_columns(
    facts: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray, np.ndarray]]]], *, title: str
) -> Figure:
    """One column a case under its facts, one named row a view of them: panels of (title, image, map)."""
    figure, axes = _grid(len(rows), len(facts), [name for _, panels in rows for name, _, _ in panels])
    for (view, panels), line in zip(rows, axes, strict=True):
        for axis, (name, seen, attribution) in zip(line, panels, strict=True):
            overlay(axis, seen, attribution, name)
        line[0].text(-0.05, 0.5, view, rotation=90, ha="right", va="center", fontsize=10, transform=line[0].transAxes)
    for axis, words in zip(axes[0], facts, strict=True):
        axis.set_title(f"{words}\n{axis.get_title()}", fontsize=8.5, pad=3)
    return _with_bar(figure, title)


def _wrapped(words: str) -> str:
    """Lines no wider than a panel: an id may be longer than its image is wide."""
    return "\n".join(fill(line, 28) for line in words.split("\n"))


def _grid(rows: int, columns: int, words: Sequence[str]) -> tuple[Figure, np.ndarray]:
    """Room for rows of images, each under the longest of these words."""
    height = 2.12 + 0.17 * max(text.count("\n") for text in words)
    figure, axes = plt.subplots(rows, columns, figsize=(1.95 * columns + 0.8, height * rows + 0.7), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def _with_bar(figure: Figure, title: str) -> Figure:
    """The title (of any number of lines), the note and the colour bar of every sheet of maps, measured in inches."""
    figure.set_figheight(figure.get_figheight() + 0.18 * title.count("\n"))
    width, height = figure.get_size_inches()
    head = figure.suptitle(title, fontsize=10.5, x=0.1 / width, ha="left", y=1 - 0.08 / height, va="top")
    head.set_in_layout(False)  # its room is kept below, once
    figure.text(0.1 / width, 0.08 / height, MAP_NOTE, fontsize=9)
    figure.tight_layout(
        rect=(0, 0.25 / height, 1 - 0.75 / width, 1 - (0.35 + 0.18 * title.count("\n")) / height), pad=0.4, h_pad=0.9
    )
    bar = figure.add_axes((1 - 0.7 / width, 0.5 - 1.2 / height, 0.12 / width, 2.4 / height))
    scale = plt.cm.ScalarMappable(cmap=ATTRIBUTION)
    figure.colorbar(scale, cax=bar).set_label("attribution / its maximum in the map", fontsize=8.5)
    bar.tick_params(labelsize=8)
    return figure


def case_sheet(
    rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray, np.ndarray]], str]], *, title: str
) -> Figure:
    """Case studies: facts and plain image, maps as in `case_rows`, and beside them sentences, one a line of words."""
    columns = 1 + max(len(panels) for _, _, panels, _ in rows)
    height = 2.12 + 0.17 * max(facts.count("\n") for facts, _, _, _ in rows)
    figure, axes = plt.subplots(
        len(rows),
        columns + 1,
        figsize=(1.95 * columns + 3.9, height * len(rows) + 0.7),
        width_ratios=[1.0] * columns + [1.6],
        squeeze=False,
    )
    for (facts, image, panels, words), line in zip(rows, axes, strict=True):
        for axis in line:
            axis.axis("off")
        plain(line[0], image, facts)
        for axis, (name, seen, attribution) in zip(line[1:-1], panels, strict=False):
            overlay(axis, seen, attribution, name)
        text = "\n\n".join(fill(sentence, 46) for sentence in words.split("\n"))
        line[-1].text(0, 0.5, text, va="center", fontsize=9, linespacing=1.3, transform=line[-1].transAxes)
    return _with_bar(figure, title)
