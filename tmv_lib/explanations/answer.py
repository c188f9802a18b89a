"""The answer to: where does it look, and does that depend on what it learned?"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit
from tqdm import tqdm

from tmv_lib.calibration.calibrators import decision_boundary, recalibrated
from tmv_lib.explanations import attribution, map_verdict, regions
from tmv_lib.explanations.attribution import Explained, Method
from tmv_lib.explanations.faithfulness import area, deletion_and_insertion, random_order
from tmv_lib.explanations.sanity import cascade, completeness, described, judged, random_pairs
from tmv_lib.network import classifier
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import join, read_csv, write_npy
from tmv_lib.pipeline.params import Member, Params
from tmv_lib.statistics.estimate import adjust, counts, figure, mean
from tmv_lib.statistics.ranking import rank_correlation

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
DONORS = 8  # other patients with whom a misread image changes its inside, and its frame
NOTHING_TO_LOOK_AT = "every map of the test split is empty", "no finding of the test split is named on a map"


class ExplanationsParams(Params):
    method: Method
    layers: dict[str, str]
    batch_size: Annotated[int, Field(ge=1)]
    border: Annotated[float, Field(gt=0, lt=0.5)]
    sanity_cases: Annotated[int, Field(ge=8)]
    untrained_networks: Annotated[int, Field(ge=1)]
    random_pairs: Annotated[int, Field(ge=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


class Material(NamedTuple):
    """All cases outside train, row by row, and the median image of them."""

    cases: pd.DataFrame
    images: np.ndarray
    typical: np.ndarray
    masks: dict[str, np.ndarray]


class Answer(NamedTuple):
    """What one member's maps of the logit told, (n, h, w), with the class it names, columns (n,) and rows to draw.

    untrained: maps (n, h, w) of a network that learned nothing, for the class that it names itself. interchanged: the
    calibrated probabilities once insides and frames were.
    """

    metrics: dict[str, Any]
    columns: dict[str, np.ndarray]
    maps: np.ndarray
    target: np.ndarray
    untrained: np.ndarray
    interchanged: regions.Interchanged
    sanity: pd.DataFrame
    faithfulness: pd.DataFrame


def read_material(members: dict[str, Member]) -> Material:
    """Cases with each member's raw and calibrated answers, their images, and masks where the source has them."""
    table = pd.read_csv("data/prepare/cases.csv", usecols=lambda name: name == "marker")
    marker = [name for name in table if table[name].isin([0, 1]).all()]  # words of a source's own say something else
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true", *marker])
    calibrated = [f"{kind}_{name}" for name in members for kind in ("logit", "y_prob")]
    cases = join(cases, read_csv("data/calibration/cases.csv", ["image_id", *calibrated]))
    kept = (cases["split"] != "train").to_numpy()
    images = np.load("data/prepare/images.npy", mmap_mode="r")[kept]
    paths = {name: Path(f"data/prepare/{name}.npy") for name in ("masks", "lungs")}
    masks = {name: np.load(path)[kept] for name, path in paths.items() if path.exists()}
    return Material(cases[kept].reset_index(drop=True), images, np.median(images, axis=0).astype(np.uint8), masks)


def draw_donors(cases: pd.DataFrame, members: list[str], *, seed: int) -> np.ndarray:
    """For each case that a member misreads, rows of clear cases of validation: clear to the network without border."""
    witness = join(cases[["image_id"]], read_csv("data/reference/predictions.csv", ["image_id", "logit"]))["logit"]
    y_true, probs = cases["y_true"].to_numpy(), cases[[f"y_prob_{name}" for name in members]].to_numpy()
    return regions.clear_donors(
        y_true,
        cases["patient_id"].to_numpy(),
        witness.to_numpy(),
        asked=((probs > 0.5) != (y_true == 1)[:, None]).any(axis=1),
        among=(cases["split"] == "val").to_numpy(),
        number=DONORS,
        rng=np.random.default_rng(seed),
    )


def answer(
    name: str,
    member: Member,
    material: Material,
    donors: np.ndarray,
    chosen: np.ndarray,
    params: ExplanationsParams,
    precision: classifier.Precision,
    rng: np.random.Generator,
) -> Answer:
    """Every map of one member, what its answers hang on, and what the checks on the `chosen` cases say of the maps.

    donors: rows (n, k) of the cases with which each one changes its inside and its frame, -1 for none.
    """
    cases, images = material.cases, material.images
    predictions = join(cases, read_csv(f"data/train/{name}/predictions.csv", ["image_id", "logit"]))
    threshold = decision_boundary(predictions["logit"], predictions[f"logit_{name}"])
    target = np.where(cases[f"y_prob_{name}"] > 0.5, 1, -1)
    weights = f"data/train/{name}/weights.safetensors"
    trained, untrained = attribution.trained_and_untrained(member, weights, seed=params.seed)
    layer = attribution.target_layer(trained, size=images.shape[1], wished=params.layers.get(name, "auto"))
    explain = partial(
        attribution.explainer,
        layer=layer,
        batch_size=params.batch_size,
        precision=precision,
        method=params.method,
    )
    read_logits = partial(attribution.reader, trained, batch_size=params.batch_size, precision=precision)

    seen: Explained = explain(trained, progress=partial(tqdm, desc=f"{name}: maps"))(images)
    write_npy(f"data/explanations/maps_{name}.npy", seen.maps)
    maps = seen.maps * target[:, None, None]
    hidden = read_logits(progress=partial(tqdm, desc=f"{name}: border hidden"))(
        regions.hide_border(images, material.typical, share=params.border)
    )
    interchanged = regions.interchange(
        lambda mixed: recalibrated(
            expit(read_logits()(mixed)), raw=expit(predictions["logit"]), calibrated=predictions[f"y_prob_{name}"]
        ),
        images,
        donors,
        share=params.border,
        progress=partial(tqdm, desc=f"{name}: borders interchanged"),
    )
    columns = regions.shares(maps, material.masks, share=params.border, positive=target > 0) | {
        "border_effect": seen.logit - hidden,
        "border_flips": (seen.logit > threshold) != (hidden > threshold),
        **regions.border_to_blame(interchanged, cases["y_true"].to_numpy()),
    }

    def probability(levels: np.ndarray) -> np.ndarray:
        return expit((read_logits()(levels) - threshold) * target[chosen])

    metrics: dict[str, Any] = {"method": params.method, "layer": layer, "grid": seen.maps.shape[1]}
    metrics |= where_it_looks(columns, material, seen.maps.shape[1:], params, rng)
    if "marker" in cases:
        metrics.setdefault("border", {}).update(by_marker(columns, cases, target > 0, params, rng))
    metrics |= completeness(trained, images, seen.logit, seen.maps, layer=layer, method=params.method)
    similarity: dict[str, list[np.ndarray]] = {}
    like = seen.maps[chosen].reshape(len(chosen), -1)
    for draw in range(params.untrained_networks):
        _, fresh = attribution.trained_and_untrained(member, weights, seed=params.seed + draw)
        for level, hybrid in tqdm(cascade(trained, fresh), desc=f"{name}: randomised, draw {draw + 1}"):
            other = explain(hybrid)(images[chosen]).maps.reshape(like.shape)
            similarity.setdefault(level, []).append(rank_correlation(like, other))
    metrics["sanity"], levels = sanity_check(similarity, seen.maps[chosen], cases.iloc[chosen], params, rng)
    orders = {"by map": maps[chosen], "at random": random_order(maps[chosen], rng=rng)}
    curves = deletion_and_insertion(probability, images[chosen], orders, fractions=FRACTIONS)
    metrics["faithfulness"], drawn = faithfulness_check(curves, cases.iloc[chosen], params, rng)
    blank: Explained = explain(untrained, progress=partial(tqdm, desc=f"{name}: untrained maps"))(images)
    write_npy(f"data/explanations/untrained_{name}.npy", blank.maps)
    columns["untrained_logit"] = blank.logit
    return Answer(
        {"verdict": map_verdict.judge(metrics["sanity"], metrics["faithfulness"])} | metrics,
        columns,
        seen.maps,
        target,
        blank.maps * np.where(blank.logit > 0, 1, -1)[:, None, None],
        interchanged,
        levels.assign(series=name),
        drawn.assign(series=[f"{name} {series}" for series in drawn["series"]]),
    )


def on_test(
    name: str, values: np.ndarray, cases: pd.DataFrame, params: ExplanationsParams, rng: np.random.Generator
) -> dict[str, Any]:
    """A mean over the test cases that have a value, with its interval and their number."""
    there = (cases["split"] == "test").to_numpy() & ~np.isnan(values)
    groups = cases["patient_id"].to_numpy()[there]
    return {"n": int(there.sum())} | figure(
        name, mean, values[there], groups=groups, n_resamples=params.resamples, rng=rng
    )


def where_it_looks(
    columns: dict[str, np.ndarray],
    material: Material,
    grid: tuple[int, ...],
    params: ExplanationsParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Shares of the maps on the test split, with intervals, beside chance, and for the finding beside the ceiling."""
    cases, test = material.cases, (material.cases["split"] == "test").to_numpy()
    found: dict[str, Any] = {}
    for name, column in (("empty_map_rate", "empty"), ("border_flip_rate", "border_flips")):
        found |= on_test(name, columns[column].astype(float), cases, params, rng)
    found |= counts(cases["y_true"][test].to_numpy(), cases["patient_id"][test].to_numpy())
    for name, levels in regions.chance(material.masks, share=params.border, n=len(cases)).items():
        there = test & ~np.isnan(columns[name])
        if not there.any():
            found[f"{name}_absent"] = NOTHING_TO_LOOK_AT[name in ("finding", "pointing")]
            continue
        found[name] = {"chance": float(levels[there].mean())}
        if name == "finding":
            found[name]["ceiling"] = float(regions.ceiling(material.masks["masks"][there], grid).mean())
        label = "hit_rate" if name == "pointing" else "energy"
        found[name] |= on_test(label, columns[name], cases, params, rng)
    return found


def by_marker(
    columns: dict[str, np.ndarray],
    cases: pd.DataFrame,
    positive: np.ndarray,
    params: ExplanationsParams,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Among test cases that are named positive, with and without a marker: border energy and border flips."""
    found: dict[str, Any] = {}
    for kind, marked in (("with_marker", 1), ("without_marker", 0)):
        here = positive & (cases["marker"] == marked).to_numpy()
        found[kind] = {}
        for name, column in (("energy", "border"), ("flip_rate", "border_flips")):
            found[kind] |= on_test(name, np.where(here, columns[column], np.nan), cases, params, rng)
    return found


def sanity_check(
    similarity: dict[str, list[np.ndarray]],
    maps: np.ndarray,
    cases: pd.DataFrame,
    params: ExplanationsParams,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Each level of the cascade, a row a draw, against random pairs of the raw maps, for the metrics and the plot."""
    groups = cases["patient_id"].to_numpy()
    reference = random_pairs(maps, groups=groups, pairs=params.random_pairs, rng=rng)
    resampling = {"groups": groups, "n_resamples": params.resamples, "rng": rng}
    levels = {"random pairs": described(reference, **resampling)}
    levels |= {level: judged(np.stack(values), reference, **resampling) for level, values in similarity.items()}
    drawn = [{"level": level} | entry for level, entry in levels.items() if "similarity" in entry]
    ends = {"similarity": "similarity", "similarity_low": "low", "similarity_high": "high"}
    counted = {"untrained_networks": params.untrained_networks, "pairs_per_case": params.random_pairs}
    found = {"n": len(cases), **counted, **levels}
    return found, pd.DataFrame(drawn, columns=["level", *ends]).rename(columns=ends)


def faithfulness_check(
    curves: dict[tuple[str, str], np.ndarray],
    cases: pd.DataFrame,
    params: ExplanationsParams,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Areas under deletion and insertion by map minus those at random, with intervals, and the mean curves."""
    found: dict[str, Any] = {"n": len(cases)}
    for kind in ("deletion", "insertion"):
        by_map, at_random = (area(curves[kind, order], FRACTIONS) for order in ("by map", "at random"))
        found |= figure(
            f"{kind}_area_minus_random",
            mean,
            by_map - at_random,
            null=0.0,
            groups=cases["patient_id"].to_numpy(),
            n_resamples=params.resamples,
            rng=rng,
        )
    adjust(found)
    drawn = [
        pd.DataFrame({"series": f"{kind} {order}", "fraction": FRACTIONS, "probability": curve.mean(axis=1)})
        for (kind, order), curve in curves.items()
    ]
    return found, pd.concat(drawn)


def most_confident(cases: pd.DataFrame, name: str) -> np.ndarray:
    """Rows of the two test cases each, right and wrong, positive and negative, of which a member is surest."""
    test, y_prob = cases["split"] == "test", cases[f"y_prob_{name}"]
    surest = (y_prob - 0.5).abs().sort_values(ascending=False, kind="stable").index
    right = (y_prob > 0.5) == (cases["y_true"] == 1)
    kinds = [test & (right == answer) & (cases["y_true"] == truth) for answer in (True, False) for truth in (1, 0)]
    return np.concatenate([[row for row in surest if kind[row]][:2] for kind in kinds]).astype(int)


def overlays(
    material: Material, answers: dict[str, Answer], shown: np.ndarray, params: ExplanationsParams
) -> pictures.Figure:
    """The cases that the first member is surest of, every member's map and an untrained network's beside it."""
    cases, first = material.cases, next(iter(answers))
    rows = []
    for case in shown:
        image, truth = material.images[case], cases["y_true"][case]
        right = (cases[f"y_prob_{first}"][case] > 0.5) == (truth == 1)
        panels = []
        for name, found in answers.items():
            border = found.columns["border"][case]
            facts = f"P(disease) {cases[f'y_prob_{name}'][case]:.2f}"
            facts += "" if np.isnan(border) else f", border {border:.0%}"
            panels += [
                (f"{name}\n{facts}", image, found.maps[case] * found.target[case]),
                (f"{name}, untrained,\nfor the class it names", image, found.untrained[case]),
            ]
        rows.append((f"{'right' if right else 'wrong'}, truth {truth}\n{cases['image_id'][case]}", image, panels))
    title = f"Where each network looks for the class it names ({params.method}): the surest answers of {first}"
    title = "\n".join(
        [title, *(f"{name}: {map_verdict.sentence(a.metrics['verdict'])}" for name, a in answers.items())]
    )
    return pictures.case_rows(rows, title=title)
