"""Which part of the image a map points at: shares of its energy, and what the image's frame is worth."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from tmv_lib.pipeline.files import Images

MOST_TYPICAL = 2000  # images that the median is taken over
MIDLINE = 0.2  # width of the strip that spine and mediastinum fill in a frontal film, share of the side


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the positive attribution that lies inside each mask, (n,); NaN where the map has none.

    maps: (n, h, w), already of the sign that is asked about. masks: (n, height, width) or (height, width), a
    share of each cell in [0, 1] or boolean, averaged down to the grid. Chance is the mask's share of the image.
    """
    positive = np.maximum(maps, 0)
    cells = _on_grid(np.reshape(masks, (-1, *np.shape(masks)[-2:])), maps.shape[1:])
    total = positive.sum((1, 2))
    return np.divide((positive * cells).sum((1, 2)), total, out=np.full(len(maps), np.nan), where=total > 0)


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether the centre of each map's highest cell lies in its mask, (n,) boolean (Zhang et al. 2018)."""
    n, h, w = maps.shape
    height, width = masks.shape[1:]
    row, column = np.divmod(maps.reshape(n, -1).argmax(1), w)
    return masks[np.arange(n), ((row + 0.5) * height / h).astype(int), ((column + 0.5) * width / w).astype(int)]


def empty(maps: np.ndarray) -> np.ndarray:
    """Whether nothing in each map (n, h, w) speaks for the class: no positive cell, (n,) boolean."""
    return np.asarray((maps <= 0).all(axis=(1, 2)))


def border(side: int, *, share: float) -> np.ndarray:
    """Boolean (side, side): the frame whose width is `share` of the side."""
    width = round(side * share)
    frame = np.ones((side, side), dtype=bool)
    frame[width : side - width, width : side - width] = False
    return frame


def by_rule(side: int, *, share: float) -> dict[str, np.ndarray]:
    """Three regions (side, side) that tile any frontal chest film, where no mask tells what is what.

    A rule, not anatomy: `border` is the frame of width `share`; `midline` the middle fifth of the rest, where spine
    and mediastinum lie and no lung does; `fields` what remains, about where the lungs are.
    """
    frame = border(side, share=share)
    strip = np.abs(np.arange(side) + 0.5 - side / 2) < MIDLINE * side / 2
    return {"border": frame, "midline": ~frame & strip, "fields": ~frame & ~strip}


def typical_image(images: Images) -> np.ndarray:
    """The median image (side, side) of uint8 images (n, side, side), evenly chosen ones where there are very many."""
    chosen = images[:: -(-len(images) // MOST_TYPICAL)]
    return np.median(chosen, axis=0).astype(np.uint8)


def hide_border(images: np.ndarray, typical: np.ndarray, *, share: float) -> np.ndarray:
    """Images (n, side, side[, 3]) whose frame is replaced by that of a typical image (side, side[, 3]), same type."""
    return np.where(_frame_of(images, share), typical, images)


def change_inside(images: np.ndarray, insides: np.ndarray, *, share: float) -> np.ndarray:
    """Images (n, side, side[, 3]) that keep their frame and have all else from `insides`, of same shape and type."""
    return np.where(_frame_of(images, share), images, insides)


def _frame_of(images: np.ndarray, share: float) -> np.ndarray:
    """The frame in the shape of one image, whose channels share it."""
    frame = border(images.shape[1], share=share)
    return frame if images.ndim == 3 else frame[..., None]


def clear_donors(
    y_true: np.ndarray,
    groups: np.ndarray,
    witness: np.ndarray,
    *,
    asked: np.ndarray,
    among: np.ndarray,
    number: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """For the cases `asked` about the rows of `number` clear ones of the same label and other patients, (n, number).

    Clear is the half of the cases `among`, label by label, for whose label the `witness` (n,) speaks most: the logit of
    a network that never sees the frame. asked, among: boolean (n,). -1 where there are fewer, or nobody asked.
    """
    found = np.full((len(y_true), number), -1)
    clear = {}
    for label in (0, 1):
        rows = np.flatnonzero(among & (y_true == label))
        surest = rows[np.argsort(witness[rows] * (1 - 2 * label), kind="stable")]
        clear[label] = surest[: -(-len(rows) // 2)]
    for case in np.flatnonzero(asked):
        donors = clear[int(y_true[case])]
        drawn = rng.permutation(donors[groups[donors] != groups[case]])[:number]
        found[case, : len(drawn)] = drawn
    return found


class Interchanged(NamedTuple):
    """What is said of images whose insides and frames were interchanged with donors', each (n, k), NaN without a donor.

    inside: of the donor's inside in this image's frame. frame: of this image's inside in the donor's frame.
    """

    inside: np.ndarray
    frame: np.ndarray


def interchange(
    read: Callable[[np.ndarray], np.ndarray],
    images: Images,
    donors: np.ndarray,
    *,
    share: float,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Interchanged:
    """Interchange insides and frames of images (n, side, side[, 3]) with those of their donors, one after the other.

    read: such images to a number each, (m,). donors: rows (n, k) of the images, -1 for none.
    """
    said = Interchanged(*(np.full(donors.shape, np.nan) for _ in Interchanged._fields))
    for place, donor in enumerate(progress(list(donors.T))):
        there = donor >= 0
        if there.any():
            own, other = images[there], images[donor[there]]
            said.inside[there, place] = read(change_inside(own, other, share=share))
            said.frame[there, place] = read(change_inside(other, own, share=share))
    return said


def border_to_blame(said: Interchanged, y_true: np.ndarray) -> dict[str, np.ndarray]:
    """How far an image's frame makes a network wrong, by probabilities of interchanged images; shares (n,), or NaN.

    y_true (n,): the label of each image, and of its donors. border_misleads: share of the donors' insides that are
    misread in this frame. border_mends: share of the donors' frames in which this inside is read rightly.
    """
    right = [np.where(np.isnan(probs), np.nan, (probs > 0.5) == (y_true == 1)[:, None]) for probs in said]
    number = (~np.isnan(said.inside)).sum(axis=1)
    kept, mends = (
        np.divide(np.nansum(of, axis=1), number, out=np.full(len(y_true), np.nan), where=number > 0) for of in right
    )
    return {"border_misleads": 1 - kept, "border_mends": mends}


def shares(
    maps: np.ndarray, masks: dict[str, np.ndarray], *, share: float, positive: np.ndarray
) -> dict[str, np.ndarray]:
    """Per case (n,): whether the map is empty, and the shares of its energy in regions by rule, lungs and finding.

    maps: (n, h, w) of the class that the model names, `positive` where that is disease. masks: `lungs` and
    `masks` (of the finding), (n, height, width), where they are known. The finding can be looked at only where there
    is one and the model names it: elsewhere `finding` and `pointing` (a hit of the pointing game) are NaN.
    """
    found = {"empty": empty(maps)}
    # 1000 pixels: a frame fine enough for any grid
    found |= {name: energy_inside(maps, region) for name, region in by_rule(1000, share=share).items()}
    if "lungs" in masks:
        found["lungs"] = energy_inside(maps, masks["lungs"])
    if "masks" in masks:
        named = masks["masks"].any(axis=(1, 2)) & positive & ~found["empty"]
        found["finding"] = np.where(named, energy_inside(maps, masks["masks"]), np.nan)
        found["pointing"] = np.where(named, pointing_game(maps, masks["masks"]), np.nan)
    return found


def chance(masks: dict[str, np.ndarray], *, share: float, n: int) -> dict[str, np.ndarray]:
    """What a map that knows nothing would score in each region of `shares`, (n,): the region's part of the image.

    Average it over the cases whose share is averaged, and no others.
    """
    levels = {name: np.full(n, region.mean()) for name, region in by_rule(1000, share=share).items()}
    if "lungs" in masks:
        levels["lungs"] = masks["lungs"].mean((1, 2))
    if "masks" in masks:
        levels["finding"] = levels["pointing"] = masks["masks"].mean((1, 2))
    return levels


def ceiling(masks: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """The most energy that a map on a grid can have inside each mask (n, height, width), (n,): its best cell."""
    return _on_grid(masks, grid).max((1, 2))


def _on_grid(masks: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Mean of each mask over the pixels of every cell, (n, h, w)."""
    edges = [np.linspace(0, side, cells + 1).round().astype(int)[:-1] for side, cells in zip(masks.shape[1:], grid)]
    sums = np.add.reduceat(np.add.reduceat(masks.astype(np.float32), edges[0], axis=1), edges[1], axis=2)
    ones = np.ones((1, *masks.shape[1:]), dtype=np.float32)
    return sums / np.add.reduceat(np.add.reduceat(ones, edges[0], axis=1), edges[1], axis=2)
