"""Do maps deserve belief? What must change when weights are lost, add up to the logit, and agree between networks."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tmv_lib.explanations.attribution import Method, logit_at_the_start
from tmv_lib.network.classifier import Classifier, blocks
from tmv_lib.pipeline.files import Images
from tmv_lib.statistics.estimate import Estimate, Resampler, mean
from tmv_lib.statistics.ranking import rank_correlation


def cascade(trained: Classifier, untrained: Classifier) -> Iterator[tuple[str, Classifier]]:
    """Networks randomised from the head down (Adebayo et al. 2018): the head, then one more block at each step.

    Yields the name of the block that was added, `untrained` for the last, and a network that has the weights of
    `untrained` in all blocks so far and those of `trained` elsewhere. It is one network that changes: use it before
    the next step.
    """
    fresh, hybrid = untrained.state_dict(), copy.deepcopy(trained)
    with_weights = [name for name in blocks(trained) if list(trained.get_submodule(name).parameters())]
    # What lies behind the blocks (hidden layers of a classifier, the head itself) goes first, as one level.
    # What is the body's own (a transformer's class token and places) stands before them, and goes last.
    before = [key for key in fresh if key.rpartition(".")[0] == "body"]
    inside = tuple(f"{name}." for name in with_weights)
    behind = [key for key in fresh if not key.startswith(inside) and key not in before]
    levels = {name: [key for key in fresh if key.startswith(f"{name}.")] for name in reversed(with_weights)}
    levels[with_weights[0]] += before
    for name, keys in {"head": behind, **levels}.items():
        hybrid.load_state_dict({key: fresh[key] for key in keys}, strict=False)
        yield "untrained" if name == with_weights[0] else name.rpartition(".")[2], hybrid


def random_pairs(maps: np.ndarray, *, groups: np.ndarray, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Rank correlations of each case's map (n, h, w) with those of `pairs` cases of other patients, (pairs, n).

    What maps of one network have in common whatever the case (Arun et al. 2021): the level to fall below. Hand in raw
    maps of the logit, as the cascade compares them: signed by the named class, pairs would hang on the answers. groups:
    the patient of each case, (n,). NaN where either map is constant, or where there are fewer other patients' cases.
    """
    flat, groups = maps.reshape(len(maps), -1), np.asarray(groups)
    drawn = np.full((pairs, len(flat)), np.nan)
    for case in range(len(flat)):
        others = rng.permutation(np.flatnonzero(groups != groups[case]))[:pairs]
        drawn[: len(others), case] = rank_correlation(np.repeat(flat[[case]], len(others), axis=0), flat[others])
    return drawn


def describe(similarity: np.ndarray, resampler: Resampler) -> dict[str, Any]:
    """Mean similarity (n,) or (draws, n) with its interval, and how many maps are constant and have none (NaN).

    A case's similarity is the mean over its draws.
    """
    similarity = _over_draws(similarity)
    there = ~np.isnan(similarity)
    estimate = resampler.among(there).estimate(mean, similarity[there])
    return {"constant_maps": int((~there).sum()), "similarity": estimate}


def compare_level(similarity: np.ndarray, reference: np.ndarray, resampler: Resampler) -> dict[str, Any]:
    """One level of the cascade, described, and whether it `passes`: is its similarity below that of random pairs?

    similarity: rank correlations (draws, n) with the maps of each untrained draw, or (n,) for one. reference:
    (pairs, n) of `random_pairs`. NaN for constant maps. `yes` where the 95 % interval of the difference of a case's
    means lies below 0; `no` where it lies above, or where no map changed at all; `no, mirrored` where the size of the
    correlations, whatever their sign, lies above that of the case's random pairs (the map still shows the image, with
    hot and cold exchanged); `undecided` otherwise, absent where it cannot be told. `similarity_spread` is the largest
    mean of one draw minus the smallest.
    """
    figures = describe(similarity, resampler)
    draws = np.atleast_2d(similarity)
    above = _over_draws(draws) - _over_draws(reference)
    larger = _over_draws(np.abs(draws)) - _over_draws(np.abs(reference))
    there = ~np.isnan(above)
    comparable = resampler.among(there)
    # null=0: a difference that no case knows is no proportion.
    difference = replace(comparable.estimate(mean, above[there], null=0.0), p_value=None)
    if difference.low is None or difference.high is None:
        return figures | {"above_random_pairs": difference}
    means = _over_draws(draws.T)
    unchanged = np.isclose(draws[~np.isnan(draws)], 1).all()
    mirrored = comparable.estimate(mean, larger[there], null=0.0).low
    if unchanged or difference.low > 0:
        passes = "no"
    elif mirrored is not None and mirrored > 0:
        passes = "no, mirrored"
    else:
        passes = "yes" if difference.high < 0 else "undecided"
    spread = float(np.nanmax(means) - np.nanmin(means))
    return figures | {"similarity_spread": spread, "above_random_pairs": difference, "passes": passes}


def _over_draws(values: np.ndarray) -> np.ndarray:
    """Mean of each column of (draws, n), or (n,) as it is, over what is defined; NaN where nothing is."""
    values = np.atleast_2d(values)
    there = ~np.isnan(values)
    return np.divide(np.nansum(values, 0), there.sum(0), out=np.full(values.shape[1], np.nan), where=there.any(0))


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlation of two networks' maps of the same cases, (n, h, w) each, on the coarser grid; symmetric.

    Hand in raw maps of the logit: both speak of disease then, whatever either network decided.
    """
    grid = min(first.shape[1], second.shape[1]), min(first.shape[2], second.shape[2])
    return rank_correlation(*(pooled(maps, grid).reshape(len(maps), -1) for maps in (first, second)))


def pooled(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Maps (n, h, w) averaged down to a grid of no more cells."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps))[:, None]
    return nn.functional.adaptive_avg_pool2d(tensor, grid)[:, 0].numpy()


def completeness(
    model: Classifier, images: Images, logit: np.ndarray, maps: np.ndarray, *, layer: str, method: Method
) -> dict[str, float] | Estimate:
    """How far signed maps (n, h, w) are from adding up to what they explain, where the method promises it.

    `largest_gap` |sum of the map - (logit - start)| over the cases, and `mean_effect`, the mean |logit - start| to hold
    it against. Absent with the reason elsewhere.
    """
    try:
        start = logit_at_the_start(model, images, layer=layer, method=method)
    except ValueError as error:
        return Estimate(absent=str(error))
    effect = logit - start
    gap = np.abs(maps.sum((1, 2), dtype=np.float64) - effect)
    return {"largest_gap": float(gap.max()), "mean_effect": float(np.abs(effect).mean())}
