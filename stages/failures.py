"""What kinds of mistakes are these, and what does each need?"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.metrics import cohen_kappa_score

from tmv_lib import failures, figures
from tmv_lib.files import join, read_csv, read_rows, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import figure, mean
from tmv_lib.stage import run
from tmv_lib.statistics import rank_among

Share = Annotated[float, Field(ge=0, le=1)]

# What the phantom planted, in the words of the taxonomy.
PLANTED = {
    "ambiguous": "clinical ambiguity",
    "mislabelled": "annotation noise",
    "blind": "model blindness",
    "spurious": "spurious feature",
    "none": "undetermined",
}


class FailuresParams(Params):
    against: Share
    doubt: Share
    neighbours_below: Share
    unusual: Share
    neighbours: Annotated[int, Field(ge=1)]
    folds: Annotated[int, Field(ge=2, le=20)]
    components: Annotated[int, Field(ge=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "failures", FailuresParams)
    members = list(read_members("params.yaml"))
    rng = np.random.default_rng(params.seed)
    everything = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true", "source"])
    images = np.load("data/prepare/images.npy", mmap_mode="r")
    cases = join(
        everything[everything["split"] != "train"].reset_index(drop=True),
        read_csv("data/calibration/cases.csv", ["image_id", *(f"y_prob_{name}" for name in members)]),
        read_csv("data/uncertainty/cases.csv", ["image_id", *(f"distance_{name}" for name in members)]),
        read_csv("data/explanations/cases.csv", ["image_id", *(f"border_flips_{name}" for name in members)]),
    )
    evidence = gather(everything, cases, images, members, params, rng)
    cases["y_prob_ensemble"] = cases[[f"y_prob_{name}" for name in members]].mean(axis=1)
    rules = failures.Rules(params.against, params.doubt, params.neighbours_below, params.unusual)
    rows = []
    for model in [*members, "ensemble"]:
        wrong = ((cases["y_prob_" + model] > 0.5) != cases["y_true"]) & (cases["split"] == "test")
        judged = members if model == "ensemble" else [model]
        hidden = np.stack([(cases[f"y_prob_{name}"] > 0.5) ^ cases[f"border_flips_{name}"] for name in judged])
        mends = (hidden == cases["y_true"].to_numpy()).all(axis=0)
        shown = evidence[wrong].assign(y_prob=cases[f"y_prob_{model}"][wrong], border_mends=mends[wrong])
        kinds = failures.sort_errors(shown, rules=rules)
        rows.append(
            pd.concat([cases[["image_id", "patient_id"]].loc[kinds.index].assign(model=model), shown, kinds], axis=1)
        )
    errors = pd.concat(rows, ignore_index=True)
    errors["needs"] = errors["kind"].map(failures.NEEDS)

    metrics: dict[str, Any] = {}
    plotted = []
    for model in [*members, "ensemble"]:
        metrics[model], drawn = counted(errors[errors["model"] == model], params, rng)
        plotted.append(drawn.assign(series=model))
    # Said, because it is the one figure for which labels of the test split are learned from.
    metrics["out_of_fold_heads"] = "fitted on val, cal and test labels of other patients"
    result: dict[str, Any] = {"failures": metrics}
    if set(everything["source"]) == {"phantom"}:
        causes = read_csv("data/prepare/cases.csv", ["image_id", "cause"])
        truth = errors[["image_id"]].merge(causes, on="image_id", how="left")["cause"].map(PLANTED)
        result["taxonomy"] = against_planted(errors.assign(planted=truth), params, rng)
    write_csv("data/failures/errors.csv", errors)
    write_csv("plots/failures/shares.csv", pd.concat(plotted))
    draw(errors, everything, images, members)
    write_metrics("metrics/failures.json", result)


def read_features(member: str, wanted: pd.Series) -> np.ndarray:
    """Pooled features of a member in the order of the wanted images."""
    ids = read_csv(f"data/train/{member}/predictions.csv", ["image_id"])["image_id"]
    return read_rows(f"data/train/{member}/features.npy", image_id=ids, wanted=wanted)


def gather(
    everything: pd.DataFrame,
    cases: pd.DataFrame,
    images: np.ndarray,
    members: list[str],
    params: FailuresParams,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The evidence that does not depend on which model errs, one row a case outside train."""
    train = (everything["split"] == "train").to_numpy()
    features = np.hstack([read_features(name, everything["image_id"]) for name in members])
    y_true, val = cases["y_true"].to_numpy(), (cases["split"] == "val").to_numpy()
    probs = cases[[f"y_prob_{name}" for name in members]].to_numpy()
    normals = images[train & (everything["y_true"] == 0).to_numpy()]
    oddity = failures.local_oddity(images[~train], normals, components=params.components, side=56, seed=params.seed)
    distance = cases[[f"distance_{name}" for name in members]].to_numpy()
    ranks = np.stack([rank_among(values, values[val]) for values in distance.T])
    return pd.DataFrame(
        {
            "y_true": y_true,
            "ensemble_prob": probs.mean(axis=1),
            "members_disagree": (probs > 0.5).any(axis=1) & (probs <= 0.5).any(axis=1),
            "out_of_fold_prob": failures.out_of_fold_probs(
                features[~train], y_true, groups=cases["patient_id"].to_numpy(), n_folds=params.folds, rng=rng
            ),
            "neighbour_agreement": failures.neighbour_agreement(
                features[~train], y_true, features[train], everything["y_true"].to_numpy()[train], k=params.neighbours
            ),
            "distance_rank": ranks.mean(axis=0),
            "oddity_rank": rank_among(oddity, oddity[val & (y_true == 0)]),
        }
    )


def counted(
    errors: pd.DataFrame, params: FailuresParams, rng: np.random.Generator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """How many errors of each kind one model makes, false negatives and false positives apart."""
    n = len(errors)
    missed = errors["y_true"] == 1
    found: dict[str, Any] = {"n_errors": n, "false_negative": int(missed.sum()), "false_positive": int((~missed).sum())}
    drawn = []
    for kind in failures.KINDS:
        of_kind = errors["kind"] == kind
        entry = {"n": int(of_kind.sum()), "false_negative": int((of_kind & missed).sum())}
        values, groups = of_kind.to_numpy(dtype=float), errors["patient_id"].to_numpy()
        found[kind] = entry | figure("share", mean, values, groups=groups, n_resamples=params.resamples, rng=rng)
        if "share" in found[kind]:
            ends = {end: found[kind][f"share_{end}"] for end in ("low", "high")}
            drawn.append({"kind": kind, "share": found[kind]["share"], **ends})
    return found, pd.DataFrame(drawn, columns=["kind", "share", "low", "high"])


def against_planted(errors: pd.DataFrame, params: FailuresParams, rng: np.random.Generator) -> dict[str, Any]:
    """How far the taxonomy agrees with what the phantom planted, over the errors of all models."""
    codes = {kind: code for code, kind in enumerate(failures.KINDS)}
    truth, found = (errors[name].map(codes).to_numpy() for name in ("planted", "kind"))

    def kappa(truth: np.ndarray, found: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
        if weights is None:
            return cohen_kappa_score(truth, found)
        return np.array([cohen_kappa_score(truth, found, sample_weight=row) for row in weights])

    result: dict[str, Any] = {"truth": "the planted cause of each case", "n": len(errors)}
    groups = errors["patient_id"].to_numpy()
    result |= figure("kappa", kappa, truth, found, groups=groups, n_resamples=params.resamples, rng=rng)
    for kind, code in codes.items():
        here = truth == code
        result[kind] = {"n": int(here.sum())} | {
            f"called {other}": int((here & (found == other_code)).sum()) for other, other_code in codes.items()
        }
        hits = (found[here] == code).astype(float)
        result[kind] |= figure("recall", mean, hits, groups=groups[here], n_resamples=params.resamples, rng=rng)
    return result


def draw(errors: pd.DataFrame, everything: pd.DataFrame, images: np.ndarray, members: list[str]) -> None:
    """A sheet of case studies a kind: image, each member's map, the evidence, and what the kind needs."""
    kept = np.flatnonzero(everything["split"] != "train")
    row_of = {everything["image_id"][row]: place for place, row in enumerate(kept)}
    maps = {name: np.load(f"data/explanations/maps_{name}.npy", mmap_mode="r") for name in members}
    for kind in failures.KINDS:
        part = errors[(errors["kind"] == kind) & (errors["model"] == "ensemble")].head(5)
        sheet = Path("plots/failures/cases") / f"{kind.replace(' ', '_')}.png"
        rows = []
        for case in part.itertuples():
            place = row_of[case.image_id]
            image, sign = images[kept[place]], 1 if case.y_prob > 0.5 else -1
            panels = [(name, image, maps[name][place] * sign) for name in members]
            facts = f"truth {case.y_true}, ensemble {case.y_prob:.2f}"
            rows.append((facts, image, panels, case.reason))
        figures.save(figures.case_sheet(rows, title=f"{kind}: needs {failures.NEEDS[kind]}"), sheet)


if __name__ == "__main__":
    run(main)
