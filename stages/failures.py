"""What kinds of mistakes are these, and what does each need?"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib import failures, figures
from tmv_lib.calibration import fit_calibrator
from tmv_lib.files import join, read_csv, read_rows, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import adjust, figure, mean
from tmv_lib.stage import run
from tmv_lib.statistics import auroc, rank_among
from tmv_lib.uncertainty import nearest_neighbour_distance, recalibrated

Share = Annotated[float, Field(ge=0, le=1)]

# What the phantom planted, in the words of the taxonomy.
PLANTED = {
    "ambiguous": "clinical ambiguity",
    "mislabelled": "annotation noise",
    "blind": "model blindness",
    "spurious": "spurious feature",
    "none": "undetermined",
}
REPAIRS = {"spurious": "spurious feature", "blind": "model blindness", "ambiguous": "clinical ambiguity"}
SCORE = Path(failures.__file__).with_name("taxonomy.json")
# Names, and what only the phantom's maker knows.
NO_SUBGROUP = {"patient_id", "split", "source", "cause", "clear_finding"}
MOST_SUBGROUPS = 20


class FailuresParams(Params):
    against: Share
    doubt: Share
    neighbours_below: Share
    unusual: Share
    neighbours: Annotated[int, Field(ge=1)]
    folds: Annotated[int, Field(ge=2, le=20)]
    components: Annotated[int, Field(ge=1)]
    gap: Share
    adjudication: str | None
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "failures", FailuresParams)
    members = list(read_members("params.yaml"))
    rng = np.random.default_rng(params.seed)
    everything = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true", "source"])
    images = np.load("data/prepare/images.npy", mmap_mode="r")
    phantom = set(everything["source"]) == {"phantom"}
    evidence, joint = gather(everything, images, members, params, rng)
    if phantom:
        evidence["cause"] = oracle(evidence, members)
    score = failures.Score(**json.loads(SCORE.read_text(encoding="utf-8")))
    rules = failures.Rules(params.against, params.doubt, params.neighbours_below, params.unusual, params.gap)
    errors = evidence[evidence["wrong"] & (evidence["split"] == "test")].reset_index(drop=True)
    errors = errors.join(failures.sort_errors(errors, score=score, rules=rules))
    errors["needs"] = errors["kind"].map(failures.NEEDS)

    metrics: dict[str, Any] = {}
    plotted = []
    for model in [*members, "ensemble"]:
        of_model = evidence[(evidence["model"] == model) & (evidence["split"] == "test")]
        metrics[model], drawn = counted(errors[errors["model"] == model], of_model, params, rng)
        plotted.append(drawn.assign(series=model))
    metrics["ensemble"]["subgroups"] = subgroups(evidence, params, rng)
    # Said, because it is the one figure for which labels of the test split are learned from.
    metrics["out_of_fold_heads"] = "fitted on val, cal and test labels of other patients"
    metrics["confident_joint"] = {f"given {i} found {j}": int(joint[i, j]) for i in (0, 1) for j in (0, 1)}
    if params.adjudication is not None:
        metrics["adjudication"] = adjudicated(errors, params.adjudication)
    result: dict[str, Any] = {"failures": metrics}
    if phantom:
        result["taxonomy"] = against_oracle(errors, params, rng)
    write_csv("data/failures/evidence.csv", evidence)
    write_csv("data/failures/errors.csv", errors)
    write_csv("plots/failures/shares.csv", pd.concat(plotted))
    draw(errors, everything, images, members)
    write_metrics("metrics/failures.json", result)


def oracle(evidence: pd.DataFrame, members: list[str]) -> np.ndarray:
    """The cause of every answer, were it wrong, by the phantom's repairs; a row of evidence each."""
    truth = read_csv("data/prepare/cases.csv", ["image_id", "cause", "y_clean"]).set_index("image_id")
    probs = {}
    for name in members:
        own = evidence[evidence["model"] == name]
        raw = own[["image_id"]].merge(read_csv(f"data/train/{name}/predictions.csv", ["image_id", "logit"]), how="left")
        repairs = read_csv(f"data/train/{name}/repairs.csv", ["image_id", "repair", "logit"])
        again = recalibrated(expit(repairs["logit"]), raw=expit(raw["logit"]), calibrated=own["y_prob"])
        probs[name] = repairs.assign(y_prob=again).pivot_table(values="y_prob", index="image_id", columns="repair")
    probs["ensemble"] = sum(probs.values()) / len(members)
    causes = []
    for model, own in evidence.groupby("model", sort=False):
        known, y_true = truth.loc[own["image_id"]], own["y_true"].to_numpy()
        answers = probs[model].reindex(index=own["image_id"], columns=list(REPAIRS)).to_numpy()
        right = ((answers > 0.5) == y_true[:, None]) & ~np.isnan(answers)
        mended = pd.DataFrame(right, columns=list(REPAIRS.values()))
        mended.insert(0, "annotation noise", known["y_clean"].to_numpy() != y_true)
        causes.append(failures.cause_of_errors(known["cause"].map(PLANTED), mended))
    return np.concatenate(causes)


def subgroups(evidence: pd.DataFrame, params: FailuresParams, rng: np.random.Generator) -> dict[str, Any]:
    """The ensemble's error rate by every subgroup there is a column for, against the rest, with Holm's correction."""
    test = evidence[(evidence["model"] == "ensemble") & (evidence["split"] == "test")]
    named = pd.read_csv("data/prepare/cases.csv", dtype={"image_id": str}).set_index("image_id").loc[test["image_id"]]
    error, groups = test["wrong"].to_numpy(dtype=float), test["patient_id"].to_numpy()
    columns = [
        name
        for name in named.select_dtypes(["object", "string"])
        if name not in NO_SUBGROUP and 2 <= named[name].nunique() <= MOST_SUBGROUPS
    ]
    if not columns:
        return {"absent": "not measurable: the case table has no subgroup column"}

    def gap(error: np.ndarray, inside: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
        w = np.ones(len(error)) if weights is None else weights
        return (w * inside) @ error / (w * inside).sum(axis=-1) - (w * ~inside) @ error / (w * ~inside).sum(axis=-1)

    found: dict[str, Any] = {}
    for name in columns:
        for value in sorted(named[name].dropna().unique()):
            inside = (named[name] == value).to_numpy()
            resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
            entry: dict[str, Any] = {"n": int(inside.sum()), "n_errors": int(error[inside].sum())}
            entry |= figure("error_rate", mean, error[inside], groups=groups[inside], **resampling)
            entry |= figure("above_the_rest", gap, error, inside, groups=groups, null=0.0, **resampling)
            found[f"{name}: {value}"] = entry
    adjust(found)
    return found


def adjudicated(errors: pd.DataFrame, path: str) -> dict[str, Any]:
    """How far a reader's kinds, a CSV with `image_id` and `kind`, agree with those of the ensemble's errors."""
    told = read_csv(path, ["image_id", "kind"])
    ours = errors[errors["model"] == "ensemble"].set_index("image_id")["kind"]
    for row, case in enumerate(told.itertuples(), start=2):
        if case.image_id not in ours.index:
            raise ValueError(f"{path}, row {row}: {case.image_id!r} is no error of the ensemble on the test split")
        if case.kind not in failures.KINDS:
            raise ValueError(f"{path}, row {row}: kind is {case.kind!r}, allowed: {', '.join(failures.KINDS)}")
    said, found = told["kind"].to_numpy(), ours.loc[told["image_id"]].to_numpy()
    counted: dict[str, Any] = {"n": len(told), "agree": int((said == found).sum())}
    try:
        return counted | {"kappa": failures.kappa(said, found)}
    except ValueError as error:
        return counted | {"kappa_absent": str(error)}


def read_features(member: str, wanted: pd.Series) -> np.ndarray:
    """Pooled features of a member in the order of the wanted images."""
    ids = read_csv(f"data/train/{member}/predictions.csv", ["image_id"])["image_id"]
    return read_rows(f"data/train/{member}/features.npy", image_id=ids, wanted=wanted)


def gather(
    everything: pd.DataFrame, images: np.ndarray, members: list[str], params: FailuresParams, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """The evidence of every answer outside train, right or wrong, a row a model and case; and the confident joint."""
    cases = join(
        everything[everything["split"] != "train"].reset_index(drop=True),
        read_csv("data/calibration/cases.csv", ["image_id", *(f"y_prob_{name}" for name in members)]),
        read_csv("data/explanations/cases.csv", ["image_id", *(f"border_flips_{name}" for name in members)]),
        read_csv("data/reference/predictions.csv", ["image_id", "logit"])[["image_id", "logit"]],
    )
    y_true, val = cases["y_true"].to_numpy(), (cases["split"] == "val").to_numpy()
    train = (everything["split"] == "train").to_numpy()
    features = {name: read_features(name, everything["image_id"]) for name in members}
    both = np.hstack(list(features.values()))
    probs = cases[[f"y_prob_{name}" for name in members]].to_numpy()
    ranks = []
    for own in features.values():
        distance = nearest_neighbour_distance(own[~train], own[train], k=params.neighbours)
        ranks.append(rank_among(distance, distance[val]))
    normals = images[train & (everything["y_true"] == 0).to_numpy()]
    oddity = failures.local_oddity(images[~train], normals, components=params.components, side=56, seed=params.seed)
    groups = cases["patient_id"].to_numpy()
    out_of_fold = failures.out_of_fold_probs(both[~train], y_true, groups=groups, n_folds=params.folds, rng=rng)
    shared = cases[["image_id", "patient_id", "split", "y_true"]].assign(
        ensemble_prob=probs.mean(axis=1),
        members_disagree=(probs > 0.5).any(axis=1) & (probs <= 0.5).any(axis=1),
        reference_prob=expit(fit_calibrator("platt", y_true[val], cases["logit"][val])(cases["logit"])),
        out_of_fold_prob=out_of_fold,
        neighbour_agreement=failures.neighbour_agreement(
            both[~train], y_true, both[train], everything["y_true"].to_numpy()[train], k=params.neighbours
        ),
        distance_rank=np.mean(ranks, axis=0),
        oddity_rank=rank_among(oddity, oddity[val & (y_true == 0)]),
    )
    flips = cases[[f"border_flips_{name}" for name in members]].to_numpy(dtype=bool)
    answers = {name: (probs[:, place], flips[:, place]) for place, name in enumerate(members)}
    answers["ensemble"] = (probs.mean(axis=1), flips.all(axis=1))
    rows = [
        shared.assign(model=model, y_prob=y_prob, border_flips=flipped, wrong=(y_prob > 0.5) != y_true)
        for model, (y_prob, flipped) in answers.items()
    ]
    return pd.concat(rows, ignore_index=True), failures.confident_joint(y_true, out_of_fold)


def counted(
    errors: pd.DataFrame, test: pd.DataFrame, params: FailuresParams, rng: np.random.Generator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """How many errors of each kind one model makes, what mending a kind would gain, and what is right for no reason.

    The answers of a kind that is mended are turned round: p becomes 1 - p.
    """
    n = len(errors)
    missed = errors["y_true"] == 1
    found: dict[str, Any] = {"n_errors": n, "false_negative": int(missed.sum()), "false_positive": int((~missed).sum())}
    drawn = []
    for kind in failures.KINDS:
        of_kind = errors["kind"] == kind
        entry: dict[str, Any] = {"n": int(of_kind.sum()), "false_negative": int((of_kind & missed).sum())}
        entry["accuracy_gain"] = entry["n"] / len(test)
        turned = test["image_id"].isin(errors.loc[of_kind, "image_id"])
        mended = test["y_prob"].mask(turned, 1 - test["y_prob"])
        entry["auroc_gain"] = auroc(test["y_true"], mended) - auroc(test["y_true"], test["y_prob"])
        values, groups = of_kind.to_numpy(dtype=float), errors["patient_id"].to_numpy()
        found[kind] = entry | figure("share", mean, values, groups=groups, n_resamples=params.resamples, rng=rng)
        if "share" in found[kind]:
            ends = {end: found[kind][f"share_{end}"] for end in ("low", "high")}
            drawn.append({"kind": kind, "share": found[kind]["share"], **ends})
    # Right, but not once the border is hidden, and a network that never sees the border is wrong.
    right = test[~test["wrong"]]
    leaning = right["border_flips"] & ((right["reference_prob"] > 0.5) != right["y_true"])
    values, groups = leaning.to_numpy(dtype=float), right["patient_id"].to_numpy()
    lucky = figure("share", mean, values, groups=groups, n_resamples=params.resamples, rng=rng)
    found["right_for_the_wrong_reason"] = {"n": int(leaning.sum()), **lucky}
    return found, pd.DataFrame(drawn, columns=["kind", "share", "low", "high"])


def against_oracle(errors: pd.DataFrame, params: FailuresParams, rng: np.random.Generator) -> dict[str, Any]:
    """How far the taxonomy agrees with the phantom's oracle, the repair that mends an error, over all models' errors.

    kappa: of the kind that is most likely. Errors that no repair mends are counted apart: no kind is right for them.
    """
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    known = errors[errors["cause"] != "undetermined"]
    decided = known[known["kind"] != "undetermined"]
    result: dict[str, Any] = {"truth": "the repair that mends the error", "n": len(known), "n_decided": len(decided)}
    result["mended_by_no_repair"] = len(errors) - len(known)
    codes = {kind: code for code, kind in enumerate(failures.KINDS)}
    for name, table, column in (
        ("kappa", known, "best"),
        ("kappa_where_it_decides", decided, "kind"),
        ("kappa_of_the_rules", known, "rule"),
        ("kappa_of_shuffled_kinds", known.assign(best=rng.permutation(known["best"])), "best"),
    ):
        truth, found = (table[key].map(codes).to_numpy() for key in ("cause", column))
        result |= figure(name, failures.kappa, truth, found, groups=table["patient_id"].to_numpy(), **resampling)
    for kind in failures.KINDS:
        here = errors[errors["cause"] == kind]
        result[kind] = {"n": len(here)} | {f"called {other}": int((here["kind"] == other).sum()) for other in codes}
        if kind != "undetermined":
            hits, groups = (here["best"] == kind).to_numpy(dtype=float), here["patient_id"].to_numpy()
            result[kind] |= figure("recall", mean, hits, groups=groups, **resampling)
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
        figures.save(figures.case_sheet(rows, title=f"{kind}\nneeds {failures.NEEDS[kind]}"), sheet)


if __name__ == "__main__":
    run(main)
