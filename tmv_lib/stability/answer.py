"""The answer to: does the reason survive a change that does not matter?"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from tmv_lib.explanations import attribution
from tmv_lib.explanations.attribution import AsTrained, Explained
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import join, read_csv, write_csv
from tmv_lib.pipeline.params import Member, Params, read
from tmv_lib.stability import similarity
from tmv_lib.stability.perturbations import Perturbation
from tmv_lib.statistics.classification import sensitivity, specificity
from tmv_lib.statistics.estimate import figure, mean
from tmv_lib.uncertainty import detection

Explain = Callable[[np.ndarray], Explained]
Panel = tuple[str, np.ndarray, np.ndarray]  # words, image, map
CALIBRATED = ("logit", "cross_fitted_logit", "y_prob")
AS_IS, UNTRAINED = "as it is", "untrained network"


class StabilityParams(Params):
    rotation: Annotated[float, Field(gt=0, le=45)]
    translation: Annotated[float, Field(gt=0, le=0.25)]
    brightness: Annotated[float, Field(gt=0, le=0.5)]
    contrast: Annotated[float, Field(gt=1, le=2)]
    noise: Annotated[float, Field(gt=0, le=0.5)]
    blur: Annotated[float, Field(gt=0, le=10)]
    moved_quantile: Annotated[float, Field(gt=0.5, lt=1)]
    batch_size: Annotated[int, Field(ge=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def write_rows(plot: str, rows: list[dict[str, Any]], **names: str) -> None:
    """Write rows of a diagram under the names of what they show; there may be none."""
    table = pd.DataFrame(rows, columns=["series", "row", "value", "low", "high"])
    write_csv(f"plots/stability/{plot}.csv", table.rename(columns=names), digits=6)


def read_cases(members: dict[str, Member]) -> tuple[pd.DataFrame, np.ndarray]:
    """The cases outside train with each member's calibrated answer, and their images."""
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    calibrated = [f"{kind}_{name}" for name in members for kind in CALIBRATED]
    cases = join(cases, read_csv("data/calibration/cases.csv", ["image_id", *calibrated]))
    kept = (cases["split"] != "train").to_numpy()
    return cases[kept].reset_index(drop=True), np.load("data/prepare/images.npy", mmap_mode="r")[kept]


def decided(cases: pd.DataFrame, name: str) -> tuple[pd.DataFrame, Explained, Explained]:
    """The cases as this member decides them, what it said and saw, and what an untrained network did.

    Columns y_prob, calibrated logit, cross_fitted_logit (on validation by other patients' fit), target and error.
    """
    said = join(cases[["image_id"]], read_csv(f"data/train/{name}/predictions.csv", ["image_id", "logit"]))
    blank = read_csv("data/explanations/cases.csv", ["image_id", f"untrained_logit_{name}"])
    blank = join(cases[["image_id"]], blank)
    kinds = {kind: cases[f"{kind}_{name}"] for kind in CALIBRATED}
    cases = cases[["image_id", "patient_id", "split", "y_true"]].assign(**kinds)
    cases["target"] = np.where(cases["y_prob"] > 0.5, 1, -1)
    cases["error"] = ((cases["y_prob"] > 0.5) != (cases["y_true"] == 1)).astype(int)
    maps = {kind: np.load(f"data/explanations/{kind}_{name}.npy") for kind in ("maps", "untrained")}
    original = Explained(said["logit"].to_numpy(), maps["maps"])
    return cases, original, Explained(blank[f"untrained_logit_{name}"].to_numpy(), maps["untrained"])


def explainer(name: str, member: Member, params: StabilityParams) -> Explain:
    """What `explanations` explained of this member."""
    chosen = read_csv("data/explanations/layers.csv", ["member", "layer", "method"]).set_index("member").loc[name]
    weights = f"data/train/{name}/weights.safetensors"
    trained, _ = attribution.trained_and_untrained(member, weights, seed=params.seed)
    return attribution.explainer(
        trained,
        layer=chosen["layer"],
        method=chosen["method"],
        batch_size=params.batch_size,
        precision=read("params.yaml", "train", AsTrained).precision,
    )


def by_change(compared: pd.DataFrame, maps: list[np.ndarray], changes: Iterable[str]) -> dict[str, Explained]:
    """What was said of all cases under each change; maps: those of the first batch under each, of the next, ..."""
    names = list(changes)
    logits = {name: part.sort_values("case")["logit"].to_numpy() for name, part in compared.groupby("perturbation")}
    return {name: Explained(logits[name], np.concatenate(maps[k :: len(names)])) for k, name in enumerate(names)}


def per_perturbation(
    compared: pd.DataFrame, cases: pd.DataFrame, params: StabilityParams, rng: np.random.Generator
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Mean similarities on the test split a perturbation, with intervals, the floor, and how often the answer flips."""
    compared = compared.join(cases[["split", "patient_id"]], on="case")
    found: dict[str, Any] = {}
    rows = []
    for name, part in compared[compared["split"] == "test"].groupby("perturbation", sort=False):
        constant, empty = (int(part[measure].isna().sum()) for measure in ("rank_correlation", "centre_shift"))
        entry: dict[str, Any] = {"constant_maps": constant, "empty_maps": empty}
        floors = [f"{measure}_floor" for measure in similarity.MEASURES if part[f"{measure}_floor"].notna().any()]
        for measure in (*similarity.MEASURES, *floors, "flipped"):
            there = part[part[measure].notna()]
            values, groups = there[measure].to_numpy(dtype=float), there["patient_id"].to_numpy()
            entry |= figure(measure, mean, values, groups=groups, n_resamples=params.resamples, rng=rng)
        found[str(name)] = entry
        rows += [drawn(entry, "rank_correlation", series="", row=name)]
        rows += [drawn(entry, "rank_correlation_floor", series=", interpolation alone", row=name)]
    return found, [row for row in rows if row]


def drawn(found: dict[str, Any], name: str, **labels: Any) -> dict[str, Any]:
    """One row of a diagram of figures with their intervals; nothing where the figure is absent."""
    if name not in found:
        return {}
    return {**labels, "value": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"]}


def flipped_and_moved(
    cases: pd.DataFrame, params: StabilityParams, rng: np.random.Generator
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Answer flipped x reason moved on the test split: how many, and how many of them wrong, before any change.

    A reason has moved when it is less stable than `moved_quantile` of validation.
    """
    known = cases["instability"].notna()
    val, test = (cases[known & (cases["split"] == split)] for split in ("val", "test"))
    found: dict[str, Any] = {"n": len(test), "constant_maps": int((cases["split"] == "test").sum()) - len(test)}
    if val.empty or test.empty:
        return found | {"moved_above_absent": "validation or test holds no map that is not constant"}, []
    found["moved_above"] = float(val["instability"].quantile(params.moved_quantile))
    moved, flipped, error = test["instability"] > found["moved_above"], test["flipped"], test["error"]

    def rate(name: str, here: pd.Series, of: pd.Series) -> dict[str, Any]:
        values, groups = of[here].to_numpy(dtype=float), test["patient_id"][here].to_numpy()
        return figure(name, mean, values, groups=groups, n_resamples=params.resamples, rng=rng)

    rows = []
    for answer, there in (("kept", ~flipped), ("flipped", flipped)):
        for reason, cell in (("kept", there & ~moved), ("moved", there & moved)):
            entry = {"n": int(cell.sum())} | rate("share", moved | True, of=cell) | rate("error_rate", cell, of=error)
            found[f"answer_{answer}_reason_{reason}"] = entry
            rows.append(drawn(entry, "error_rate", row=f"answer {answer}, reason {reason}"))
        found |= rate(f"moved_rate_where_answer_{answer}", there, of=moved)
    found |= figure(
        "moved_rate_flipped_minus_kept",
        rate_difference,
        flipped.to_numpy(),
        moved.to_numpy(),
        groups=test["patient_id"].to_numpy(),
        stratify=flipped.to_numpy(),
        n_resamples=params.resamples,
        rng=rng,
    )
    for words, there in (("right", error == 0), ("wrong", error == 1)):
        found |= rate(f"moved_rate_where_{words}", there, of=moved)
    return found, [row for row in rows if row]


def rate_difference(here: np.ndarray, what: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
    """P(what | here) - P(what | not here)."""
    return sensitivity(here, what, weights=weights) + specificity(here, what, weights=weights) - 1


def errors_found(
    cases: pd.DataFrame, params: StabilityParams, rng: np.random.Generator
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Do unstable explanations go with errors among cases called alike: by each measure, and against the margin?"""
    val, test = ((cases["split"] == split).to_numpy() for split in ("val", "test"))
    error, groups = cases["error"].to_numpy(), cases["patient_id"].to_numpy()
    called = (cases["target"] == 1).to_numpy(dtype=float)
    signals = {key: 1 - cases[key] for key in similarity.SIMILARITIES} | {"centre_shift": cases["centre_shift"]}
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    # What is added to the confidence is learned on validation, whose own labels have fitted its calibrated logits.
    logit = cases["cross_fitted_logit"]
    found = detection.judge(error, logit, signals, called=called, fit=val, test=test, groups=groups, **resampling)
    doubt = -cases["logit"].abs().to_numpy()[test]
    plain = detection.detector(error[test], doubt, called=called[test], groups=groups[test], **resampling)
    rows = [row for key, entry in {"margin": plain, **found}.items() for row in by_named_class(entry, key)]
    return {"claim": claim(found), "margin": plain, **found}, rows


def by_named_class(entry: dict[str, Any], measure: str) -> list[dict[str, Any]]:
    """The rows that draw one detector: its AUROC in each named class that has one."""
    rows = [
        drawn(entry[name], "error_auroc", series=f", {name.replace('_', ' ')}", row=measure)
        for name in detection.NAMED
        if name in entry
    ]
    return [row for row in rows if row]


def claim(found: dict[str, Any], *, measure: str = "rank_correlation") -> dict[str, str]:
    """ "Unstable explanations often precede errors", answered by the measure that was named before any result."""
    entry = found[measure]
    answers = {"answer": "finds_errors", "over_margin": "over_margin", "given_confidence": "adds_to_confidence"}
    told = {"measure": measure} | {name: entry[key] for name, key in answers.items()}
    reasons = {"reason": "adjusted_error_auroc_absent", "given_confidence_reason": "given_confidence_absent"}
    return told | {name: entry[key] for name, key in reasons.items() if key in entry}


def gallery(
    images: np.ndarray,
    cases: pd.DataFrame,
    compared: pd.DataFrame,
    changes: dict[str, Perturbation],
    said: dict[str, Explained],
    name: str,
) -> dict[str, pictures.Figure]:
    """The most and the least stable right and wrong test cases: beside an untrained network, and under each change.

    said: logits and maps of all cases, of the unchanged images (AS_IS), by an untrained network (UNTRAINED), and of
    the images under each of the changes.
    """
    titles = f"{name}: the most and the least stable maps", f"{name}: the same images and maps under each mild change"
    chosen = most_and_least_stable(cases)
    if chosen.empty:
        return {
            "cases": pictures.case_rows([], title=titles[0]),
            "changes": pictures.case_columns([], [], title=titles[1]),
        }
    levels = images[chosen.index].astype(np.float32) / 255.0
    flips = set(compared.loc[compared["flipped"], ["perturbation", "case"]].itertuples(index=False, name=None))
    panels: dict[str, list[Panel]] = {}
    for label, (logit, maps) in said.items():
        words = [f"logit {logit[case]:+.2f}{', flipped' if (label, case) in flips else ''}" for case in chosen.index]
        seen = changes[label].apply(levels) if label in changes else levels
        sign = np.where(logit > 0, 1, -1)[chosen.index] if label == UNTRAINED else chosen["target"].to_numpy()
        panels[label] = list(zip(words, seen * 255, maps[chosen.index] * sign[:, None, None], strict=True))
    moved = compared[compared["case"].isin(chosen.index)].dropna(subset="rank_correlation")
    worst = moved.loc[moved.groupby("case")["rank_correlation"].idxmin()].set_index("case")
    rows = []
    for place, (case, facts) in enumerate(chosen["facts"].items()):
        shown = {"its map": AS_IS, f"{UNTRAINED},\nfor the class it names": UNTRAINED}
        label, like = worst.loc[case, ["perturbation", "rank_correlation"]]
        shown |= {f"{label}:\nrank correlation {like:.2f}": label}
        rows.append((facts, images[case], [(words, *panels[label][place][1:]) for words, label in shown.items()]))
    first = [place for place, again in enumerate(chosen["kind"].duplicated()) if not again]
    columns = [(label, [row[place] for place in first]) for label, row in panels.items()]
    return {
        "cases": pictures.case_rows(rows, title=titles[0]),
        "changes": pictures.case_columns(list(chosen["facts"].iloc[first]), columns, title=titles[1]),
    }


def most_and_least_stable(cases: pd.DataFrame) -> pd.DataFrame:
    """Up to two test cases of each kind, the extreme one first, with their kind and their facts in words."""
    there = cases[(cases["split"] == "test") & cases["instability"].notna()].sort_values("instability", kind="stable")
    parts = []
    for words, part in (("right", there[there["error"] == 0]), ("wrong", there[there["error"] == 1])):
        half = (len(part) + 1) // 2
        parts += [
            part[:half][:2].assign(kind=f"stable, {words}"),
            part[half:][::-1][:2].assign(kind=f"unstable, {words}"),
        ]
    chosen = pd.concat(parts)
    facts = [
        f"{row.kind}\n{row.image_id.rpartition('/')[2][-24:]}\n"
        f"truth {row.y_true}, says {int(row.y_prob > 0.5)} (P {row.y_prob:.2f})\ninstability {row.instability:.2f}"
        for row in chosen.itertuples()
    ]
    return chosen.assign(facts=facts)
