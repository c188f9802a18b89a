"""Where does it look, and does that depend on what it learned?"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from scipy.special import expit
from tqdm import tqdm

from tmv_lib import explanations, figures, network
from tmv_lib.calibration import decision_boundary
from tmv_lib.explanations import Explained
from tmv_lib.files import join, read_csv, write_csv, write_metrics, write_npy
from tmv_lib.params import Member, Params, read, read_members
from tmv_lib.reporting import counts, figure, mean
from tmv_lib.stability import rank_correlation
from tmv_lib.stage import run

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


class ExplanationsParams(Params):
    layers: dict[str, str]
    batch_size: Annotated[int, Field(ge=1)]
    precision: network.Precision
    border: Annotated[float, Field(gt=0, lt=0.5)]
    sanity_cases: Annotated[int, Field(ge=8)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "explanations", ExplanationsParams)
    members = read_members("params.yaml")
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    cases = join(cases, read_csv("data/calibration/cases.csv", ["image_id", *calibrated_columns(members)]))
    if strangers := set(params.layers) - set(members):
        raise ValueError(f"params.yaml: explanations.layers names {sorted(strangers)[0]}, which is no member")
    images = np.load("data/prepare/images.npy", mmap_mode="r")
    kept = (cases["split"] != "train").to_numpy()
    typical = np.median(images[~kept], axis=0).astype(np.uint8)
    cases, images = cases[kept].reset_index(drop=True), images[kept]
    masks = {
        name: np.load(path)[kept] for name in ("masks", "lungs") if (path := Path(f"data/prepare/{name}.npy")).exists()
    }

    rng = np.random.default_rng(params.seed)
    chosen = rng.permutation(np.flatnonzero(cases["split"] == "test"))[: params.sanity_cases]
    table, metrics, maps, untrained_maps, similarity, faithfulness = cases[["image_id"]], {}, {}, {}, [], []
    for name, member in members.items():
        predictions = join(cases, read_csv(f"data/train/{name}/predictions.csv", ["image_id", "logit"]))
        threshold = decision_boundary(predictions["logit"], predictions[f"logit_{name}"])
        trained = load(member, f"data/train/{name}/weights.safetensors")
        # Far from any member's seed: training must not have started from these very weights.
        torch.manual_seed(1_000_003 + params.seed)
        untrained = network.build(member.architecture, weights="none", dropout=member.dropout).to(
            network.available_device()
        )
        layer = params.layers.get(name, "auto")
        if layer == "auto":
            layer = explanations.default_layer(trained, size=images.shape[1])
        explain = partial(explanations.explainer, layer=layer, batch_size=params.batch_size, precision=params.precision)
        seen = in_batches(explain(trained), images, f"{name}: maps")
        target = np.where(cases[f"y_prob_{name}"] > 0.5, 1, -1)
        maps[name] = seen.maps * target[:, None, None]
        write_npy(f"data/explanations/maps_{name}.npy", seen.maps)

        hidden = in_batches(
            explain(trained), explanations.hide_border(images, typical, share=params.border), f"{name}: border hidden"
        )
        columns = attention(maps[name], masks, border=params.border, positive=target > 0)
        columns["border_effect"] = seen.logit - hidden.logit
        columns["border_flips"] = (seen.logit > threshold) != (hidden.logit > threshold)
        table = table.assign(**{f"{key}_{name}": value for key, value in columns.items()})

        found = {"layer": layer, "grid": seen.maps.shape[1]}
        metrics[name] = found | summary(cases, columns, masks, params, rng)
        rows = sanity(trained, untrained, explain, images[chosen], maps[name][chosen], target[chosen], rng)
        untrained_maps[name] = explain(untrained)(images[chosen]).maps * target[chosen, None, None]
        metrics[name]["sanity"], drawn = similarities(rows, cases.iloc[chosen], params, rng)
        similarity.append(drawn.assign(series=name))
        metrics[name]["faithfulness"], drawn = deletion_and_insertion(
            explain(trained),
            images[chosen],
            maps[name][chosen],
            target[chosen],
            threshold,
            cases.iloc[chosen],
            params,
            rng,
        )
        faithfulness.append(drawn.assign(series=[f"{name} {series}" for series in drawn["series"]]))
    first, second = (maps[name] for name in list(members)[:2])
    table = table.assign(map_agreement=agreement(first, second))
    metrics["map_agreement"] = figure(
        "rank_correlation",
        mean,
        table["map_agreement"].dropna().to_numpy(),
        groups=cases["patient_id"][table["map_agreement"].notna()].to_numpy(),
        n_resamples=params.resamples,
        rng=rng,
    )
    write_csv("data/explanations/cases.csv", table)
    layers = [{"member": name, "layer": metrics[name]["layer"]} for name in members]
    write_csv("data/explanations/layers.csv", pd.DataFrame(layers))
    write_csv("plots/explanations/sanity.csv", pd.concat(similarity))
    write_csv("plots/explanations/faithfulness.csv", pd.concat(faithfulness))
    figures.save(overlays(cases, images, maps, untrained_maps, chosen, members), "plots/explanations/overlays.png")
    write_metrics("metrics/explanations.json", {"explanations": metrics})


def calibrated_columns(members: dict[str, Member]) -> list[str]:
    """Logit and probability of each member in the table of the stage `calibration`."""
    return [f"{kind}_{name}" for name in members for kind in ("logit", "y_prob")]


def load(member: Member, weights: str) -> network.Classifier:
    """The trained network of a member, on the device that is there."""
    model = network.build(member.architecture, weights="none", dropout=member.dropout)
    network.load_weights(model, weights)
    return model.to(network.available_device()).to(memory_format=torch.channels_last)


def in_batches(explain: Callable[[np.ndarray], Explained], images: np.ndarray, name: str) -> Explained:
    """Explain all images under a progress bar."""
    starts = tqdm(range(0, len(images), 128), desc=name)
    parts = [explain(images[start : start + 128]) for start in starts]
    return Explained(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def attention(
    maps: np.ndarray, masks: dict[str, np.ndarray], *, border: float, positive: np.ndarray
) -> dict[str, np.ndarray]:
    """Per case: whether the map is empty, and the shares of its energy at the border, in the lungs, in the finding.

    A finding can be looked at only where there is one and the model names it: elsewhere the last are absent.
    """
    size = 1000  # a frame fine enough for any grid
    found: dict[str, np.ndarray] = {
        "empty": np.asarray((maps <= 0).all(axis=(1, 2))),
        "border": explanations.energy_inside(maps, explanations.border(size, share=border)),
    }
    if "lungs" in masks:
        found["lungs"] = explanations.energy_inside(maps, masks["lungs"])
    if "masks" in masks:
        named = masks["masks"].any(axis=(1, 2)) & positive & ~found["empty"]
        found["finding"] = np.where(named, explanations.energy_inside(maps, masks["masks"]), np.nan)
        found["pointing"] = np.where(named, explanations.pointing_game(maps, masks["masks"]), np.nan)
    return found


def summary(
    cases: pd.DataFrame,
    columns: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
    params: ExplanationsParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The same on the test split, with intervals and chance levels."""
    test = (cases["split"] == "test").to_numpy()
    groups = cases["patient_id"].to_numpy()
    found: dict[str, Any] = counts(cases["y_true"][test].to_numpy(), groups[test])
    resampled = partial(figure, n_resamples=params.resamples, rng=rng)
    for name, column in (("empty_map_rate", "empty"), ("border_flip_rate", "border_flips")):
        found |= resampled(name, mean, columns[column][test].astype(float), groups=groups[test])
    chance = {"border": float(explanations.border(1000, share=params.border).mean())}
    if "lungs" in masks:
        chance["lungs"] = float(masks["lungs"][test].mean())
    if "masks" in masks:
        with_finding = masks["masks"][test]
        chance["finding"] = chance["pointing"] = float(with_finding[with_finding.any(axis=(1, 2))].mean())
    for name, level in chance.items():
        there = test & ~np.isnan(columns[name])
        found[name] = {"chance": level, "n": int(there.sum())}
        label = "hit_rate" if name == "pointing" else "energy"
        found[name] |= resampled(label, mean, columns[name][there], groups=groups[there])
    return found


def sanity(
    trained: network.Classifier,
    untrained: network.Classifier,
    explain: Callable[..., Callable[[np.ndarray], Explained]],
    images: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Similarity of each case's map to that of networks randomised from the head down, and to a stranger's map."""
    flat = maps.reshape(len(maps), -1)
    order = rng.permutation(len(flat))
    stranger = np.empty_like(flat)
    stranger[order] = flat[np.roll(order, 1)]
    rows = {"another case": rank_correlation(flat, stranger)}
    for level, hybrid in tqdm(explanations.cascade(trained, untrained), desc="randomised from the head down"):
        seen = explain(hybrid)(images).maps * target[:, None, None]
        rows[level] = rank_correlation(flat, seen.reshape(flat.shape))
    return rows


def similarities(
    rows: dict[str, np.ndarray], cases: pd.DataFrame, params: ExplanationsParams, rng: np.random.Generator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Mean similarity a level with its interval, for the metrics and for the plot."""
    found: dict[str, Any] = {"n": len(cases)}
    drawn = []
    for level, values in rows.items():
        there = ~np.isnan(values)
        groups = cases["patient_id"].to_numpy()[there]
        found[level] = {"constant_maps": int((~there).sum())}
        found[level] |= figure("similarity", mean, values[there], groups=groups, n_resamples=params.resamples, rng=rng)
        drawn.append({"level": level} | {key: value for key, value in found[level].items() if key.startswith("sim")})
    plotted = pd.DataFrame(drawn).rename(columns={"similarity_low": "low", "similarity_high": "high"})
    return found, plotted


def deletion_and_insertion(
    explain: Callable[[np.ndarray], Explained],
    images: np.ndarray,
    maps: np.ndarray,
    target: np.ndarray,
    threshold: float,
    cases: pd.DataFrame,
    params: ExplanationsParams,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What taking away (or putting in) the cells that matter most does, against a random order of cells."""
    lottery = rng.permuted(np.broadcast_to(np.arange(maps[0].size), (len(maps), maps[0].size)), axis=1)

    def probability(levels: np.ndarray) -> np.ndarray:
        return expit((explain(levels.astype(np.float32)).logit - threshold) * target)

    found: dict[str, Any] = {"n": len(cases)}
    drawn = []
    for name, insert in (("deletion", False), ("insertion", True)):
        areas = {}
        for order, ranking in (("by map", maps), ("at random", lottery.reshape(maps.shape).astype(np.float32))):
            curve = explanations.perturbation_curve(probability, images, ranking, fractions=FRACTIONS, insert=insert)
            areas[order] = np.trapezoid(curve, FRACTIONS, axis=0)
            series = f"{name} {order}"
            drawn.append(pd.DataFrame({"series": series, "fraction": FRACTIONS, "probability": curve.mean(axis=1)}))
        found |= figure(
            f"{name}_area_minus_random",
            mean,
            areas["by map"] - areas["at random"],
            groups=cases["patient_id"].to_numpy(),
            n_resamples=params.resamples,
            rng=rng,
        )
    return found, pd.concat(drawn)


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlation of two members' maps of the same case, on the first one's grid."""
    second = explanations.resized(second, first.shape[1:])
    return rank_correlation(first.reshape(len(first), -1), second.reshape(len(first), -1))


def overlays(
    cases: pd.DataFrame,
    images: np.ndarray,
    maps: dict[str, np.ndarray],
    untrained_maps: dict[str, np.ndarray],
    chosen: np.ndarray,
    members: dict[str, Member],
) -> figures.Figure:
    """Two cases each of right and wrong, positive and negative, with every member's map and the untrained one's."""
    first = next(iter(members))
    said = (cases[f"y_prob_{first}"] > 0.5).astype(int)
    rows = []
    for truth, decision in ((1, 1), (0, 0), (1, 0), (0, 1)):
        like = [k for k, case in enumerate(chosen) if cases["y_true"][case] == truth and said[case] == decision]
        for place in like[:2]:
            case = chosen[place]
            facts = f"truth {truth}: " + ", ".join(f"{cases[f'y_prob_{name}'][case]:.2f}" for name in members)
            panels = [(name, images[case], maps[name][case]) for name in members]
            panels += [(f"{name}, untrained", images[case], untrained_maps[name][place]) for name in members]
            rows.append((facts, images[case], panels))
    return figures.case_rows(
        rows, title="Grad-CAM for the class each member names (probability of disease beside the truth)"
    )


if __name__ == "__main__":
    run(main)
