"""Do maps deserve belief? What must change when weights are lost, add up to the logit, and agree between networks."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from tmv_lib.explanations import Method, logit_at_the_start
from tmv_lib.network import Classifier, blocks
from tmv_lib.reporting import figure, mean
from tmv_lib.stability import rank_correlation


def cascade(trained: Classifier, untrained: Classifier) -> Iterator[tuple[str, Classifier]]:
    """Networks randomised from the head down (Adebayo et al. 2018): the head, then one more block at each step.

    Yields the name of the block that was added, `untrained` for the last, and a network that has the weights of
    `untrained` in all blocks so far and those of `trained` elsewhere. It is one network that changes: use it before
    the next step.
    """
    fresh, hybrid = untrained.state_dict(), copy.deepcopy(trained)
    with_weights = [name for name in blocks(trained) if list(trained.get_submodule(name).parameters())]
    # What lies behind the blocks (hidden layers of a classifier, the head itself) goes first, as one level.
    behind = [key for key in fresh if not key.startswith(tuple(f"{name}." for name in with_weights))]
    levels = {name: [key for key in fresh if key.startswith(f"{name}.")] for name in reversed(with_weights)}
    for name, keys in {"head": behind, **levels}.items():
        hybrid.load_state_dict({key: fresh[key] for key in keys}, strict=False)
        yield "untrained" if name == with_weights[0] else name.rpartition(".")[2], hybrid


def random_pairs(maps: np.ndarray, *, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Mean rank correlation of each case's map (n, h, w) with those of `pairs` other cases, (n,).

    What maps of one network have in common whatever the case (Arun et al. 2021): the level to fall below. NaN where
    the map, or each of the others', is constant.
    """
    flat = maps.reshape(len(maps), -1)
    order = rng.permutation(len(flat))
    drawn = np.full((min(pairs, len(flat) - 1), len(flat)), np.nan)
    for step, row in enumerate(drawn, start=1):
        row[order] = rank_correlation(flat[order], flat[np.roll(order, step)])
    there = ~np.isnan(drawn)
    return np.divide(np.nansum(drawn, 0), there.sum(0), out=np.full(len(flat), np.nan), where=there.any(0))


def described(similarity: np.ndarray, **resampling: Any) -> dict[str, Any]:
    """Mean similarity (n,) to the trained maps with its interval, and how many maps are constant and have none (NaN).

    resampling: of `tmv_lib.reporting.figure`.
    """
    there = ~np.isnan(similarity)
    resampling["groups"] = resampling["groups"][there]
    return {"constant_maps": int((~there).sum())} | figure("similarity", mean, similarity[there], **resampling)


def judged(similarity: np.ndarray, reference: np.ndarray, **resampling: Any) -> dict[str, Any]:
    """One level of the cascade, described, and whether it `passes`: is its similarity below that of random pairs?

    similarity, reference: (n,) a case, NaN for constant maps. `yes` where the 95 % interval of the paired difference
    lies below 0; `no` where it lies above; `no, mirrored` where the map turned over is more similar than random pairs
    (it still shows the image, not what was learned); `undecided` otherwise, absent where it cannot be told.
    """
    found = described(similarity, **resampling)
    there = ~np.isnan(similarity) & ~np.isnan(reference)
    resampling["groups"] = resampling["groups"][there]
    similarity, reference = similarity[there], reference[there]
    above: dict[str, Any] = figure("above_random_pairs", mean, similarity - reference, **resampling)
    if "above_random_pairs" not in above:
        return found | above
    low, high = (above[f"above_random_pairs_{end}"] for end in ("low", "high"))
    turned: dict[str, Any] = figure("above", mean, -similarity - np.abs(reference.mean()), **resampling)
    mirrored = turned["above_low"] > 0
    passes = "no" if low > 0 else "no, mirrored" if mirrored else "yes" if high < 0 else "undecided"
    return found | above | {"passes": passes}


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlation of two networks' maps of the same cases, (n, h, w) each, on the first one's grid."""
    second = resized(second, first.shape[1:])
    return rank_correlation(first.reshape(len(first), -1), second.reshape(len(first), -1))


def resized(maps: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Maps (n, h, w) brought bilinearly to another grid."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps))[:, None]
    return nn.functional.interpolate(tensor, size=grid, mode="bilinear", align_corners=False)[:, 0].numpy()


def completeness(
    model: Classifier, images: np.ndarray, logit: np.ndarray, maps: np.ndarray, *, layer: str, method: Method
) -> dict[str, Any]:
    """How far signed maps (n, h, w) are from adding up to what they explain, where the method promises it.

    `completeness`: the largest |sum of the map - (logit - start)| over the cases, and `mean_effect`, the mean
    |logit - start| to hold it against. Elsewhere `completeness_absent`, with the reason.
    """
    try:
        start = logit_at_the_start(model, images, layer=layer, method=method)
    except ValueError as error:
        return {"completeness_absent": str(error)}
    effect = logit - start
    gap = np.abs(maps.sum((1, 2), dtype=np.float64) - effect)
    return {"completeness": {"largest_gap": float(gap.max()), "mean_effect": float(np.abs(effect).mean())}}
