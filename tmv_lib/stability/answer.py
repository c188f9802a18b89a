"""The answer to: does the reason survive a change that does not matter?"""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from tqdm import tqdm

from tmv_lib.calibration.calibrators import Calibrator
from tmv_lib.explanations.attribution import Explained
from tmv_lib.pipeline.files import Images
from tmv_lib.pipeline.params import Params, Resamples, Seed
from tmv_lib.stability.perturbations import Perturbation
from tmv_lib.stability.similarity import MEASURES, SIMILARITIES, Explain, per_case, stability
from tmv_lib.statistics.classification import sensitivity, specificity
from tmv_lib.statistics.estimate import Estimate, Resampler, interval_rows, mean
from tmv_lib.uncertainty import detection

AS_IS, UNTRAINED = "as it is", "untrained network"
KEPT = ["instability", *MEASURES[1:], "flipped", "n_undefined"]
# What a row of each diagram is, and its figure.
PLOTS = {
    "similarity": ("perturbation", "similarity"),
    "flipped_and_moved": ("cell", "error_rate"),
    "detectors": ("measure", "auroc"),
}


class StabilityParams(Params):
    rotation: Annotated[float, Field(gt=0, le=45)]
    translation: Annotated[float, Field(gt=0, le=0.25)]
    brightness: Annotated[float, Field(gt=0, le=0.5)]
    contrast: Annotated[float, Field(gt=1, le=2)]
    noise: Annotated[float, Field(gt=0, le=0.5)]
    blur: Annotated[float, Field(gt=0, le=10)]
    moved_quantile: Annotated[float, Field(gt=0.5, lt=1)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    resamples: Resamples
    seed: Seed


class Answer(NamedTuple):
    """What one member's maps do under mild changes.

    cases: the cases with what the member decides and how stable each is. compared: a row per case and change.
    explained: logits and maps of all cases by the name of what was shown: AS_IS, UNTRAINED, and each change.
    """

    metrics: dict[str, Any]
    cases: pd.DataFrame
    compared: pd.DataFrame
    explained: dict[str, Explained]
    plots: dict[str, pd.DataFrame]


def decide(cases: pd.DataFrame, name: str) -> pd.DataFrame:
    """The cases as this member decides them: y_prob, calibrated logit, cross_fitted_logit, target (+1, -1), error."""
    kinds = {kind: cases[f"{kind}_{name}"] for kind in ("logit", "cross_fitted_logit", "y_prob")}
    cases = cases[["image_id", "patient_id", "split", "y_true"]].assign(**kinds)
    cases["target"] = np.where(cases["y_prob"] > 0.5, 1, -1)
    cases["error"] = ((cases["y_prob"] > 0.5) != (cases["y_true"] == 1)).astype(int)
    return cases


def compare(
    name: str,
    cases: pd.DataFrame,
    images: Images,
    explain: Explain,
    original: Explained,
    untrained: Explained,
    calibrator: Calibrator,
    changes: dict[str, Perturbation],
    params: StabilityParams,
) -> Answer:
    """One member's maps of uint8 images (n, side, side) under each change, and whether instability finds errors.

    cases: as `decide` gives them. original, untrained: what it and a network that learned nothing say of the images.
    """
    maps: list[np.ndarray] = []

    def kept(levels: np.ndarray) -> Explained:
        explained = explain(levels)
        maps.append(explained.maps)
        return explained

    compared = stability(
        kept,
        images,
        changes,
        target=cases["target"].to_numpy(),
        threshold=calibrator.boundary(),
        original=original,
        batch_size=params.batch_size,
        progress=partial(tqdm, desc=f"{name}: perturbed", leave=False),
    )
    explained = {AS_IS: original, UNTRAINED: untrained} | by_change(compared, maps, changes)
    cases = cases.join(per_case(compared))
    cases["instability"] = 1 - cases["rank_correlation"]
    test = cases[cases["split"] == "test"]
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    metrics: dict[str, Any] = resampler.counts(test["y_true"].to_numpy())
    metrics["perturbations"], similarity = per_perturbation(compared, cases, params)
    metrics["flipped_and_moved"], crossed = flipped_and_moved(cases, params)
    metrics["errors"], detectors = find_errors(cases, params)
    rows = {
        "similarity": [row | {"series": f"{name}{row['series']}"} for row in similarity],
        "flipped_and_moved": [row | {"series": name} for row in crossed],
        "detectors": [row | {"series": f"{name}{row['series']}"} for row in detectors],
    }
    return Answer(metrics, cases, compared, explained, {plot: pd.DataFrame(of) for plot, of in rows.items()})


def by_change(compared: pd.DataFrame, maps: list[np.ndarray], changes: Iterable[str]) -> dict[str, Explained]:
    """Logits and maps of all cases under each change; maps: those of the first batch under each, of the next, ..."""
    names = list(changes)
    logits = {name: part.sort_values("case")["logit"].to_numpy() for name, part in compared.groupby("perturbation")}
    return {name: Explained(logits[name], np.concatenate(maps[k :: len(names)])) for k, name in enumerate(names)}


def instability(explain: Explain, images: np.ndarray, own: Explained, changes: dict[str, Perturbation]) -> np.ndarray:
    """1 - mean rank correlation of each image's map (n,) with its maps under the changes; what `compare` finds.

    The sign of the maps and where the answer flips play no part in it.
    """
    compared = stability(explain, images, changes, target=np.ones(len(images), int), original=own)
    return np.asarray(1 - per_case(compared)["rank_correlation"])


def per_perturbation(
    compared: pd.DataFrame, cases: pd.DataFrame, params: StabilityParams
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Mean similarities on the test split per change, with intervals, the floor, and how often the answer flips."""
    compared = compared.join(cases[["split", "patient_id"]], on="case")
    figures: dict[str, Any] = {}
    rows = []
    for name, part in compared[compared["split"] == "test"].groupby("perturbation", sort=False):
        constant, empty = (int(part[measure].isna().sum()) for measure in ("rank_correlation", "centre_shift"))
        entry: dict[str, Any] = {"constant_maps": constant, "empty_maps": empty}
        floors = [f"{measure}_floor" for measure in MEASURES if part[f"{measure}_floor"].notna().any()]
        for measure in (*MEASURES, *floors, "flipped"):
            there = part[part[measure].notna()]
            resampler = Resampler(there["patient_id"].to_numpy(), params.resamples, params.seed)
            entry[measure] = resampler.estimate(mean, there[measure].to_numpy(dtype=float))
        figures[str(name)] = entry
        for measure, series in (("rank_correlation", ""), ("rank_correlation_floor", ", interpolation alone")):
            labels = {"value": "similarity", "series": series, "perturbation": name}
            rows += interval_rows(entry.get(measure, Estimate()), **labels)
    return figures, rows


def flipped_and_moved(cases: pd.DataFrame, params: StabilityParams) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Answer flipped x reason moved on the test split: how many, and how many of them wrong, before any change.

    A reason has moved when it is less stable than `moved_quantile` of validation.
    """
    known = cases["instability"].notna()
    val, test = (cases[known & (cases["split"] == split)] for split in ("val", "test"))
    figures: dict[str, Any] = {"n": len(test), "constant_maps": int((cases["split"] == "test").sum()) - len(test)}
    if val.empty or test.empty:
        absent = Estimate(absent="validation or test holds no map that is not constant")
        return figures | {"moved_above": absent}, []
    figures["moved_above"] = float(val["instability"].quantile(params.moved_quantile))
    moved = (test["instability"] > figures["moved_above"]).to_numpy()
    flipped, error = test["flipped"].to_numpy(dtype=bool), test["error"].to_numpy()
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)

    def rate(here: np.ndarray, of: np.ndarray) -> Estimate:
        return resampler.among(here).estimate(mean, of[here].astype(float))

    rows = []
    for answer, there in (("kept", ~flipped), ("flipped", flipped)):
        for reason, cell in (("kept", there & ~moved), ("moved", there & moved)):
            share = rate(np.ones(len(cell), dtype=bool), of=cell)
            entry: dict[str, Any] = {"n": int(cell.sum()), "share": share, "error_rate": rate(cell, of=error)}
            figures[f"answer_{answer}_reason_{reason}"] = entry
            labels = {"value": "error_rate", "cell": f"answer {answer}, reason {reason}"}
            rows += interval_rows(entry["error_rate"], **labels)
        figures[f"moved_rate_where_answer_{answer}"] = rate(there, of=moved)
    figures["moved_rate_flipped_minus_kept"] = resampler.estimate(rate_difference, flipped, moved, stratify=flipped)
    for words, there in (("right", error == 0), ("wrong", error == 1)):
        figures[f"moved_rate_where_{words}"] = rate(there, of=moved)
    return figures, rows


def rate_difference(here: np.ndarray, what: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
    """P(what | here) - P(what | not here)."""
    return sensitivity(here, what, weights=weights) + specificity(here, what, weights=weights) - 1


def find_errors(cases: pd.DataFrame, params: StabilityParams) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Do unstable explanations go with errors among cases called alike: by each measure, and against the margin?"""
    val, test = ((cases["split"] == split).to_numpy() for split in ("val", "test"))
    error, called = cases["error"].to_numpy(), (cases["target"] == 1).to_numpy(dtype=float)
    signals = {key: 1 - cases[key] for key in SIMILARITIES} | {"centre_shift": cases["centre_shift"]}
    resampler = Resampler(cases["patient_id"].to_numpy(), params.resamples, params.seed)
    # What is added to the confidence is learned on validation, whose own labels have fitted its calibrated logits.
    figures = detection.detectors(
        error, cases["cross_fitted_logit"], signals, called=called, fit=val, test=test, resampler=resampler
    )
    doubt = -cases["logit"].abs().to_numpy()[test]
    plain = detection.detector(error[test], doubt, called=called[test], resampler=resampler.among(test))
    rows = [
        row
        for measure, entry in {"margin": plain, **figures}.items()
        for name in detection.NAMED
        if name in entry
        for row in interval_rows(
            entry[name]["error_auroc"], value="auroc", series=f", {name.replace('_', ' ')}", measure=measure
        )
    ]
    return {"claim": claim(figures), "margin": plain, **figures}, rows


def claim(figures: dict[str, Any], *, measure: str = "rank_correlation") -> dict[str, str]:
    """ "Unstable explanations often precede errors", answered by the measure that was named before any result."""
    entry = figures[measure]
    answers = {"answer": "finds_errors", "over_margin": "over_margin", "given_confidence": "adds_to_confidence"}
    return {"measure": measure, **{name: entry[key] for name, key in answers.items()}}
