"""The answer to: what kinds of mistakes are these, and what does each need?"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit
from tqdm import tqdm

from tmv_lib.calibration.calibrators import fit_calibrator, recalibrated
from tmv_lib.data.subgroups import adjust_gaps, find, gap, subgroup_columns
from tmv_lib.failures import agreement, taxonomy
from tmv_lib.failures.oddity import (
    confident_joint,
    neighbour_agreement,
    out_of_fold_probs,
    patch_oddity,
    residual_oddity,
)
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import join, read_csv, read_rows
from tmv_lib.pipeline.params import Params
from tmv_lib.pipeline.record import read_signals
from tmv_lib.statistics.estimate import figure, mean
from tmv_lib.statistics.ranking import rank_among
from tmv_lib.uncertainty.distance import nearest_neighbour_distance
from tmv_lib.uncertainty.entropy import entropy_decomposition

# What the phantom planted, in the words of the taxonomy.
PLANTED = {
    "ambiguous": "clinical ambiguity",
    "mislabelled": "annotation noise",
    "blind": "model blindness",
    "spurious": "spurious feature",
    "none": "undetermined",
}
REPAIRS = {"spurious": "spurious feature", "blind": "model blindness", "ambiguous": "clinical ambiguity"}
SIDE = 56  # pixels, about, to which an image is averaged down where its oddity is measured
SCORE = Path(taxonomy.__file__).with_name("taxonomy.json")
SITE = "data/site/cases.csv"
NO_SITE = f"{SITE}: no such file; the stage `site` makes it"


class FailuresParams(Params):
    neighbours: Annotated[int, Field(ge=1)]
    folds: Annotated[int, Field(ge=2, le=20)]
    components: Annotated[int, Field(ge=1)]
    adjudication: str | None
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def sorted_errors(evidence: pd.DataFrame) -> pd.DataFrame:
    """The errors of the test split with their kinds, a row a model and case."""
    score = taxonomy.Score(**json.loads(SCORE.read_text(encoding="utf-8")))
    errors = evidence[evidence["wrong"] & (evidence["split"] == "test")].reset_index(drop=True)
    errors = errors.join(taxonomy.sort_errors(errors, score=score))
    return errors.assign(needs=errors["kind"].map(taxonomy.NEEDS))


def oracle(evidence: pd.DataFrame, members: list[str]) -> np.ndarray:
    """The cause of every answer, were it wrong, by the phantom's repairs, a row of evidence each."""
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
        causes.append(taxonomy.cause_of_errors(known["cause"].map(PLANTED), mended))
    return np.concatenate(causes)


def subgroups(evidence: pd.DataFrame, params: FailuresParams, rng: np.random.Generator) -> dict[str, Any]:
    """The ensemble's error rate by every subgroup that the case table names, and its gap at the same mix of classes."""
    test = evidence[(evidence["model"] == "ensemble") & (evidence["split"] == "test")]
    table = pd.read_csv("data/prepare/cases.csv", dtype={"image_id": str}).set_index("image_id").loc[test["image_id"]]
    error, y_true = (test[name].to_numpy(dtype=float) for name in ("wrong", "y_true"))
    groups = test["patient_id"].to_numpy()
    named = find(table[subgroup_columns(table)], y_true)
    found: dict[str, Any] = {}
    for name, inside, defined_by_truth in named:
        entry: dict[str, Any] = {"n": int(inside.sum()), "n_positive": int(y_true[inside].sum())}
        entry |= {"n_errors": int(error[inside].sum()), "defined_by_truth": defined_by_truth}
        resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
        entry |= figure("error_rate", mean, error[inside], groups=groups[inside], **resampling)
        found[name] = entry | gap(error, y_true, inside, groups=groups)
    adjust_gaps(found, named, y_true)
    return found or {"absent": "not measurable: the case table has no subgroup column"}


def adjudicated(errors: pd.DataFrame, path: str) -> dict[str, Any]:
    """How far a reader's kinds, a CSV with `image_id` and `kind`, agree with those of the ensemble's errors."""
    told = read_csv(path, ["image_id", "kind"])
    ours = errors[errors["model"] == "ensemble"].set_index("image_id")["kind"]
    again = told["image_id"].duplicated()
    for row, case in enumerate(told.itertuples(), start=2):
        if again[case.Index]:
            raise ValueError(f"{path}, row {row}: {case.image_id!r} stands there more than once")
        if case.image_id not in ours.index:
            raise ValueError(f"{path}, row {row}: {case.image_id!r} is no error of the ensemble on the test split")
        if case.kind not in taxonomy.KINDS:
            raise ValueError(f"{path}, row {row}: kind is {case.kind!r}, allowed: {', '.join(taxonomy.KINDS)}")
    said, found = told["kind"].to_numpy(), ours.loc[told["image_id"]].to_numpy()
    counted: dict[str, Any] = {"n": len(told), "agree": int((said == found).sum())}
    try:
        return counted | {"kappa": agreement.kappa(said, found)}
    except ValueError as error:
        return counted | {"kappa_absent": str(error)}


def gather(
    everything: pd.DataFrame, images: np.ndarray, members: list[str], params: FailuresParams, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """All evidence of every case outside train but the answers of a model, and the confident joint."""
    per_member = {
        "explanations": ["border_effect", "border_flips", "border", *lungs_known(members)],
        "uncertainty": ["expected_entropy", "mutual_information"],
        "stability": ["instability"],
    }
    names = {stage: [f"{kind}_{name}" for kind in kinds for name in members] for stage, kinds in per_member.items()}
    tried = [f"{kind}_{name}" for kind in taxonomy.TRIED for name in [*members, "ensemble"]]
    names["explanations"] += ["map_agreement", *tried]
    cases = join(
        everything[everything["split"] != "train"].reset_index(drop=True),
        read_csv("data/calibration/cases.csv", ["image_id", *(f"logit_{name}" for name in members)]),
        read_csv("data/reference/predictions.csv", ["image_id", "logit"])[["image_id", "logit"]],
        *(read_signals(f"data/{stage}/cases.csv", columns) for stage, columns in names.items()),
    )
    y_true, val = cases["y_true"].to_numpy(), (cases["split"] == "val").to_numpy()
    train = (everything["split"] == "train").to_numpy()
    # As the witness sees them: among the members' features, a marker's neighbours are those that bear it, too.
    ids = read_csv("data/reference/predictions.csv", ["image_id"])["image_id"]
    seen = read_rows("data/reference/features.npy", image_id=ids, wanted=everything["image_id"])
    distance = nearest_neighbour_distance(seen[~train], seen[train], k=params.neighbours)
    normals = images[train & (everything["y_true"] == 0).to_numpy()]
    odd = partial(tqdm, desc="oddity")
    oddity = patch_oddity(images[~train], normals, side=SIDE, rng=np.random.default_rng(params.seed), progress=odd)
    residual = residual_oddity(images[~train], normals, components=params.components, side=SIDE, seed=params.seed)
    healthy = val & (y_true == 0)
    groups = cases["patient_id"].to_numpy()
    witness = fit_calibrator("logistic", y_true[val], cases["logit"][val], groups=groups[val])
    out_of_fold = out_of_fold_probs(seen[~train], y_true, groups=groups, n_folds=params.folds, rng=rng)
    cases = cases.assign(
        inside_prob=inside_prob(cases, members),
        reference_prob=expit(witness(cases["logit"])),
        out_of_fold_prob=out_of_fold,
        neighbour_agreement=neighbour_agreement(
            seen[~train], y_true, seen[train], everything["y_true"].to_numpy()[train], k=params.neighbours
        ),
        distance_rank=rank_among(distance, distance[val]),
        oddity_rank=rank_among(oddity, oddity[healthy]),
        residual_rank=rank_among(residual, residual[healthy]),
    )
    return cases, confident_joint(y_true, out_of_fold)


def inside_prob(cases: pd.DataFrame, members: list[str]) -> np.ndarray:
    """Mean of the members' calibrated probabilities with the border hidden, (n,)."""
    probs = []
    for name in members:
        raw = join(cases[["image_id"]], read_csv(f"data/train/{name}/predictions.csv", ["image_id", "logit"]))["logit"]
        hidden = expit(raw - cases[f"border_effect_{name}"])
        probs.append(recalibrated(hidden, raw=expit(raw), calibrated=expit(cases[f"logit_{name}"])))
    return np.asarray(np.mean(probs, axis=0))


def lungs_known(members: list[str]) -> list[str]:
    """`lungs` where `explanations` had masks of them."""
    there = pd.read_csv("data/explanations/cases.csv", nrows=0).columns
    return ["lungs"] if f"lungs_{members[0]}" in there else []


def answers(cases: pd.DataFrame, probs: np.ndarray, members: list[str]) -> pd.DataFrame:
    """The evidence of every answer, right or wrong, a row a model and case; probs (n, members) decide at 0.5.

    What a member's map or dropout tells is, for the ensemble, the mean over the members that have it; hiding the
    border flips the ensemble where it flips every member. Borders were changed for the members as shipped.
    """
    decided = probs > 0.5
    shared = cases[["image_id", "patient_id", "split", "y_true"]].assign(
        ensemble_prob=probs.mean(axis=1),
        members_disagree=decided.any(axis=1) & ~decided.all(axis=1),
        **{name: cases[name] for name in taxonomy.EVIDENCE if name in cases and name != "y_true"},
        members_mutual_information=entropy_decomposition(probs.T).mutual_information,
        map_agreement=cases["map_agreement"],
    )
    kinds = [kind for kind in taxonomy.BESIDE if f"{kind}_{members[0]}" in cases]
    own = {kind: cases[[f"{kind}_{name}" for name in members]].set_axis(members, axis=1) for kind in kinds}
    flips = cases[[f"border_flips_{name}" for name in members]].to_numpy(dtype=bool)
    said = {
        name: (probs[:, place], flips[:, place], {kind: table[name] for kind, table in own.items()})
        for place, name in enumerate(members)
    }
    together = {kind: table.mean(axis=1) for kind, table in own.items()}
    said["ensemble"] = (probs.mean(axis=1), flips.all(axis=1), together)
    y_true = cases["y_true"].to_numpy()
    rows = [
        shared.assign(
            model=model,
            y_prob=y_prob,
            border_flips=flipped,
            **{kind: cases[f"{kind}_{model}"] for kind in taxonomy.TRIED},
            **beside,
            wrong=(y_prob > 0.5) != y_true,
        )
        for model, (y_prob, flipped, beside) in said.items()
    ]
    return pd.concat(rows, ignore_index=True)


def counted(
    errors: pd.DataFrame, test: pd.DataFrame, params: FailuresParams, rng: np.random.Generator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """How many errors of each kind one model makes, what mending a kind would gain, and what is right for no reason."""
    y_true, y_prob = test["y_true"].to_numpy(), test["y_prob"].to_numpy()
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    found, drawn = taxonomy.tally(errors), []
    for kind in taxonomy.KINDS:
        of_kind = errors[errors["kind"] == kind]
        share = (errors["kind"] == kind).to_numpy(dtype=float)
        entry = found[kind] | figure("share", mean, share, groups=errors["patient_id"].to_numpy(), **resampling)
        if "share" in entry:
            ends = {end: entry[f"share_{end}"] for end in ("low", "high")}
            drawn.append({"kind": kind, "share": entry["share"], **ends})
        if len(of_kind):
            here = test["image_id"].isin(of_kind["image_id"]).to_numpy()
            entry["accuracy_gain"] = len(of_kind) / len(test)
            arrays = (y_true, y_prob, *taxonomy.mended(y_true, y_prob, here, kind=kind))
            ranked = {"groups": test["patient_id"].to_numpy(), "stratify": y_true, **resampling}
            entry |= figure("auroc_gain", taxonomy.auroc_gain, *arrays, **ranked)
        found[kind] = entry
    # Right, but not once the border is hidden, and a network that never sees the border is wrong.
    right = test[~test["wrong"]]
    leaning = right["border_flips"] & ((right["reference_prob"] > 0.5) != right["y_true"])
    values, groups = leaning.to_numpy(dtype=float), right["patient_id"].to_numpy()
    lucky = figure("share", mean, values, groups=groups, **resampling)
    found["right_for_the_wrong_reason"] = {"n": int(leaning.sum()), **lucky}
    return found, pd.DataFrame(drawn, columns=["kind", "share", "low", "high"])


def queues(errors: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The ensemble's errors by where they are sent, the likeliest of their kind first; undetermined: nearest to one."""
    own = errors[errors["model"] == "ensemble"]
    likely = own.filter(regex="^p_").drop(columns="p_undetermined").max(axis=1)
    others = errors[errors["model"] != "ensemble"].groupby("image_id")["model"].agg(" ".join)
    table = own.assign(probability=likely, members_that_err=own["image_id"].map(others).fillna("none"))
    table = table.sort_values("probability", ascending=False, kind="stable")
    kept = ["image_id", "patient_id", "y_true", "y_prob", "best", "probability", "runner_up", "members_that_err"]
    return {kind: table.loc[table["kind"] == kind, [*kept, "reason", "needs"]] for kind in taxonomy.KINDS}


def against_oracle(errors: pd.DataFrame, params: FailuresParams, rng: np.random.Generator) -> dict[str, Any]:
    """How far the taxonomy agrees with the phantom's oracle, over all models' errors."""
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    result: dict[str, Any] = {"truth": "the repair that mends the error"}
    result |= agreement.agreement(errors, **resampling)
    known = errors[errors["cause"] != "undetermined"]
    columns = (known[name].to_numpy() for name in ("cause", "best", "patient_id"))
    return result | {"kappa_of_shuffled_kinds": agreement.shuffled_kappa(*columns, rng=rng)}


def told_by_signals(evidence: pd.DataFrame, params: FailuresParams, rng: np.random.Generator) -> dict[str, Any]:
    """What each signal alone tells of the oracle's kinds, over all models' errors outside train: nothing is fitted."""
    known = evidence[evidence["wrong"] & (evidence["cause"] != "undetermined")]
    groups = known["patient_id"].to_numpy()
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    told = agreement.told_apart(taxonomy.all_signals(known), known["cause"], groups=groups, **resampling)
    return {"signals_from": "all errors outside train that a repair mends", "signals": told}


def confusion(errors: pd.DataFrame) -> pd.DataFrame:
    """Errors of all models by what mended them and what they are called, counted; no row without a truth."""
    tables = [pd.DataFrame(columns=["series", "mended_by", "called", "n"])]
    told = {"best": "most likely kind", "kind": "where it decides"} if "cause" in errors else {}
    for column, series in told.items():
        crossed = agreement.confusion(errors, column).rename(index={"undetermined": "no repair"})
        crossed = crossed.rename_axis("mended_by").reset_index()
        tables.append(crossed.melt("mended_by", var_name="called", value_name="n").assign(series=series))
    return pd.concat(tables)


def draw(errors: pd.DataFrame, everything: pd.DataFrame, images: np.ndarray, members: list[str]) -> None:
    """A sheet of case studies a kind: image, each member's map, the evidence, and what the kind needs."""
    kept = np.flatnonzero(everything["split"] != "train")
    row_of = {everything["image_id"][row]: place for place, row in enumerate(kept)}
    maps = {name: np.load(f"data/explanations/maps_{name}.npy", mmap_mode="r") for name in members}
    for kind, queue in queues(errors).items():
        chosen = queue.loc[taxonomy.spread(queue["probability"], typical=3, unsure=2)]
        rows = []
        for case in chosen.itertuples():
            place = row_of[case.image_id]
            image, sign = images[kept[place]], 1 if case.y_prob > 0.5 else -1
            panels = [(name, image, maps[name][place] * sign) for name in members]
            label = "positive" if case.y_true == 1 else "negative"
            name = case.image_id.rpartition("/")[2][-24:]
            facts = f"{name}\nlabelled {label},\nensemble says {case.y_prob:.0%} positive"
            nearest = f"{case.best} {case.probability:.0%}, next {case.runner_up}"
            rows.append((facts, image, panels, f"{capital(nearest)}.\n{capital(case.reason)}."))
        first, last = ("nearest to a kind", "farthest") if kind == "undetermined" else ("most typical", "least sure")
        shown = f" ({len(chosen)} of {len(queue)}, the {first} first, the {last} last; maps are for the answer given)"
        title = f"{capital(kind)}{shown if rows else ''}\nIt needs: {taxonomy.NEEDS[kind]}"
        sheet = Path("plots/failures/cases") / f"{kind.replace(' ', '_')}.png"
        pictures.save(pictures.case_sheet(rows, title=title), sheet)


def capital(words: str) -> str:
    """Words as the beginning of a sentence."""
    return words[0].upper() + words[1:]
