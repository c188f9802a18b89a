"""The answer to: which doubts are genuine, and which errors are confident?"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from safetensors import safe_open
from scipy.special import expit

from tmv_lib.pipeline.files import join, read_csv, read_rows, write_csv
from tmv_lib.pipeline.params import Params
from tmv_lib.statistics.estimate import counts, figure, mean
from tmv_lib.statistics.ranking import rank_among
from tmv_lib.uncertainty import detection, distance, entropy, out_of_distribution

DOUBTED = 0.9  # rank among validation above which dropout is said to doubt a case
ENTROPIES = ["predictive_entropy", "expected_entropy", "mutual_information"]
DISTANCES = ["distance", "mahalanobis"]
DETECTORS = ["distance"]  # of these, the ones that may refuse an image
DRAWN = ["signal", "auroc", "low", "high"]

NO_NETWORK = "not measured: of this model only the predictions are known, dropout and distances need its network"

Calibrate = Callable[[np.ndarray], np.ndarray]


class UncertaintyParams(Params):
    passes: Annotated[int, Field(ge=2, le=10_000)]
    neighbours: Annotated[int, Field(ge=1)]
    confident: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def read_cases(members: list[str]) -> pd.DataFrame:
    """All cases with each member's raw logit and calibrated probability, and the cause that the phantom planted."""
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true", "source"])
    if set(cases["source"]) == {"phantom"}:
        cases = join(cases, read_csv("data/prepare/cases.csv", ["image_id", "cause"]))
    for name in members:
        predictions = read_csv(f"data/train/{name}/predictions.csv", ["image_id", "logit"])
        cases = join(cases, predictions.rename(columns={"logit": f"raw_{name}"}))
    return join(cases, read_csv("data/calibration/cases.csv", ["image_id", *(f"y_prob_{name}" for name in members)]))


def between_members(member_probs: np.ndarray) -> pd.DataFrame:
    """What the members dispute, from their calibrated probabilities (members, cases); one member disputes nothing."""
    if len(member_probs) == 1:
        return pd.DataFrame({"disagreement": np.zeros(member_probs.shape[1])})
    disputed = entropy.entropy_decomposition(member_probs).mutual_information
    return pd.DataFrame({"disagreement": np.ptp(member_probs, axis=0), "members_mutual_information": disputed})


def read_features(name: str, wanted: pd.Series) -> np.ndarray:
    """Pooled features of a member in the order of the wanted images."""
    ids = read_csv(f"data/train/{name}/predictions.csv", ["image_id"])["image_id"]
    return read_rows(f"data/train/{name}/features.npy", image_id=ids, wanted=wanted)


def head_dropout(
    name: str, cases: pd.DataFrame, rate: float, params: UncertaintyParams
) -> tuple[np.ndarray, pd.DataFrame]:
    """Raw probabilities (passes, cases) of dropout before the head, and how its mean information nears the limit."""
    features = read_features(name, cases["image_id"])
    with safe_open(f"data/train/{name}/weights.safetensors", framework="numpy") as stored:
        weight, bias = stored.get_tensor("head.weight")[0], float(stored.get_tensor("head.bias")[0])
    probs = entropy.mc_dropout_probs(
        features, weight, bias, rate=rate, passes=params.passes, generator=np.random.default_rng(params.seed)
    )
    limit = entropy.dropout_limit(features, weight, bias, rate=rate).mutual_information.mean()
    passes = np.unique(np.geomspace(2, params.passes, 12).round().astype(int))
    means = [entropy.entropy_decomposition(probs[:t]).mutual_information.mean() for t in passes]
    drawn = {name: means, f"{name}, limit": limit}
    return probs, pd.concat([pd.DataFrame({"passes": passes, "value": v, "series": s}) for s, v in drawn.items()])


def augmented(name: str, cases: pd.DataFrame) -> np.ndarray:
    """Raw probabilities (1 + changes, cases) of the image as it is and under each mild change that `stability` made."""
    table = read_csv("data/stability/logits.csv", ["image_id", "member", "perturbation", "logit"])
    changed = table[table["member"] == name].pivot_table(index="perturbation", columns="image_id", values="logit")
    return expit(np.vstack([cases[f"raw_{name}"], changed[cases["image_id"]].to_numpy()]))


def doubts(dropped: np.ndarray, changed: np.ndarray, *, calibrate: Calibrate) -> pd.DataFrame:
    """Entropies a case from raw probabilities (passes, cases) of dropout in the head, and (1 + changes, cases).

    All speak of the calibrated model, because that is the one that decides.
    """
    found = pd.DataFrame(entropy.entropy_decomposition(calibrate(dropped))._asdict())
    entropies = entropy.entropy_decomposition(calibrate(changed))
    return found.assign(
        augmented_predictive_entropy=entropies.predictive_entropy,
        augmented_mutual_information=entropies.mutual_information,
    )


def away_from_training(
    name: str, everything: pd.DataFrame, params: UncertaintyParams
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both distances to the training features, of the cases outside train and of the foreign images."""
    features, train = read_features(name, everything["image_id"]), (everything["split"] == "train").to_numpy()
    foreign = read_csv(f"data/train/{name}/foreign.csv", ["image_id", "kind", "logit"])
    strange = np.load(f"data/train/{name}/foreign.npy")
    if len(strange) != len(foreign):
        raise ValueError(f"data/train/{name}/foreign.npy: {len(strange)} rows for {len(foreign)} images")
    judged, reference = np.vstack([features[~train], strange]), features[train]
    near = distance.nearest_neighbour_distance(judged, reference, k=params.neighbours)
    far = distance.mahalanobis_distance(judged, reference, everything["y_true"][train])
    both = pd.DataFrame({"distance": near, "mahalanobis": far})
    n = int((~train).sum())
    return both[:n], foreign.join(both[n:].reset_index(drop=True))


def decided(cases: pd.DataFrame, name: str, params: UncertaintyParams) -> pd.DataFrame:
    """The cases as this member decides them: y_prob, margin, error, quadrant."""
    y_prob = cases[f"y_prob_{name}"]
    error = ((y_prob > 0.5) != cases["y_true"]).astype(int)
    quadrant = entropy.quadrant(error, 1 - margin(y_prob), confident=params.confident)
    return cases.assign(y_prob=y_prob, margin=margin(y_prob), error=error, quadrant=quadrant)


def margin(y_prob: Any) -> Any:
    """1 - max(p, 1 - p), the doubt that needs no other signal, in [0, 0.5]."""
    return np.minimum(y_prob, 1 - y_prob)


def judge(
    test: pd.DataFrame, signals: list[str], params: UncertaintyParams, rng: np.random.Generator
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Each uncertainty as a detector of errors among cases called alike, and its gain over the plain margin."""
    groups, error, rival = (test[column].to_numpy() for column in ("patient_id", "error", "margin"))
    called = (test["y_prob"] > 0.5).to_numpy(dtype=float)
    judged = partial(detection.detector, error, called=called, groups=groups, n_resamples=params.resamples, rng=rng)
    scores = {signal: test[signal].to_numpy() for signal in signals}
    found = {name: judged(score, rival=None if name == "margin" else rival) for name, score in scores.items()}
    detection.answer(found, scores, margin=rival)
    rows = [
        drawn(entry[name], "error_auroc", signal=signal, series=f", {name.replace('_', ' ')}")
        for signal, entry in found.items()
        for name in detection.NAMED
    ]
    counted = counts(error, groups)
    counted["n_errors"] = counted.pop("n_positive")
    return counted | found, pd.DataFrame([row for row in rows if row], columns=[*DRAWN, "series"])


def drawn(found: dict[str, Any], name: str, **labels: str) -> dict[str, Any]:
    """One row of a diagram of AUROCs with intervals; nothing where the figure is absent."""
    if name not in found:
        return {}
    return {**labels, "auroc": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"]}


def quadrants(cases: pd.DataFrame, params: UncertaintyParams, rng: np.random.Generator) -> dict[str, Any]:
    """Confidence against correctness on the test split: how many, and whose doubt it is, the image's or the model's."""
    val = (cases["split"] == "val").to_numpy()
    measured = "mutual_information" in cases
    if measured:
        information = cases["mutual_information"].to_numpy()
        cases = cases.assign(doubted=rank_among(information, information[val]) > DOUBTED)
    test = cases[cases["split"] == "test"]

    def resampled(name: str, metric: Any, part: pd.DataFrame, *columns: str) -> dict[str, Any]:
        arrays = [part[column].to_numpy(dtype=float) for column in columns]
        groups = part["patient_id"].to_numpy()
        return figure(name, metric, *arrays, groups=groups, n_resamples=params.resamples, rng=rng)

    found: dict[str, Any] = {}
    for quadrant in entropy.QUADRANTS:
        inside = test["quadrant"] == quadrant
        found[quadrant] = {"n": int(inside.sum())}
        if measured:
            found[quadrant]["doubted_by_dropout"] = int((inside & test["doubted"]).sum())
        found[quadrant] |= resampled("share", mean, test.assign(inside=inside), "inside")
    if not measured:
        return found
    doubtful = test[test["quadrant"].str.startswith("doubtful")]
    found["doubt_of_the_model"] = resampled(
        "share", entropy.model_share, doubtful, "predictive_entropy", "mutual_information"
    )
    return found


def worst_first(cases: pd.DataFrame) -> pd.DataFrame:
    """One row a test case and member, mistakes before right answers, the most confident first."""
    order = np.lexsort((cases["margin"], -cases["error"]))
    columns = ["image_id", "member", "y_true", "y_prob", "quadrant", *ENTROPIES, *DISTANCES]
    return cases.iloc[order].reindex(columns=columns)


def out_of_training(
    everything: pd.DataFrame, signals: pd.DataFrame, foreign: dict[str, pd.DataFrame], params: UncertaintyParams
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Whether each case outside train is unlike the training images, and what becomes of images that surely are.

    signals: of the cases outside train. foreign: a member's distances to the images that `prepare` spoiled, and whether
    it is confident on them. Leaves on disk what new images are asked by: the pixel detectors, and what every detector
    says of validation.
    """
    later = everything[everything["split"] != "train"].reset_index(drop=True)
    if not foreign:
        unknown = later[[]].assign(oddity=np.nan, out_of_distribution=0)
        return unknown, {"absent": NO_NETWORK}
    images = np.load("data/prepare/images.npy", mmap_mode="r")
    train, val = (everything["split"] == "train").to_numpy(), (later["split"] == "val").to_numpy()
    out_of_distribution.require(int(val.sum()), where="data/prepare/cases.csv")
    fitted = out_of_distribution.fit_pixel_detectors(images[train])
    out_of_distribution.write_pixel_detectors("data/uncertainty/pixels.npz", fitted)

    def detected(shown: np.ndarray, distances: pd.DataFrame) -> pd.DataFrame:
        seen = pd.DataFrame(out_of_distribution.pixel_oddity(shown, fitted), columns=[*out_of_distribution.PIXELS])
        return seen.join(distances)

    columns = [f"{kind}_{name}" for name in foreign for kind in DETECTORS]
    cases = detected(images[~train], signals[columns])
    away = pd.concat([of[DETECTORS].add_suffix(f"_{name}") for name, of in foreign.items()], axis=1)
    strange = detected(np.load("data/prepare/foreign.npy"), away)
    usual = cases[val]
    write_csv("data/uncertainty/usual.csv", usual)

    judged = later.join(refusals(cases, usual))
    judged.loc[val, "oddity"] = out_of_distribution.usual_p_value(usual)
    judged["out_of_distribution"] = (judged["oddity"] <= out_of_distribution.REFUSED).astype(int)
    labels = next(iter(foreign.values()))[["image_id", "kind"]]
    spoiled = labels.merge(everything[["image_id", "patient_id"]], how="left").join(refusals(strange, usual))
    spoiled["out_of_distribution"] = (spoiled["oddity"] <= out_of_distribution.REFUSED).astype(int)
    sure = {f"confident_{name}": of["confident"] for name, of in foreign.items()}
    unlike = cases[[*out_of_distribution.PIXELS]].join(judged[["oddity", "out_of_distribution"]])
    return unlike, {
        "n_validation": int(val.sum()),
        "detectors": cases.shape[1],
        "usual": of_usual(judged, params),
        "foreign": of_foreign(spoiled.assign(**sure), judged, params),
    }


def refusals(detected: pd.DataFrame, usual: pd.DataFrame) -> pd.DataFrame:
    """The joint p-value of each image, and whether each detector alone would refuse it, `alone_<detector>`."""
    by_itself = out_of_distribution.alone(detected, usual) <= out_of_distribution.REFUSED
    told = pd.DataFrame(by_itself, columns=detected.columns, index=detected.index).add_prefix("alone_")
    return told.assign(oddity=out_of_distribution.joint_p_value(detected, usual))


def of_usual(judged: pd.DataFrame, params: UncertaintyParams) -> dict[str, Any]:
    """The share of each split that is refused, of all and by class: of validation and whatever is like it, 5 %."""
    found: dict[str, Any] = {}
    for split, rows in judged.groupby("split", sort=False):
        classes = {("negative", "positive")[label]: share_refused(of, params) for label, of in rows.groupby("y_true")}
        found[str(split)] = share_refused(rows, params) | classes
    return found


def of_foreign(spoiled: pd.DataFrame, judged: pd.DataFrame, params: UncertaintyParams) -> dict[str, Any]:
    """The same of the foreign images by kind, and the share on which each member is confident all the same.

    On the phantom also of the test images with a finding that training never shows.
    """
    found: dict[str, Any] = {}
    for kind, rows in spoiled.groupby("kind", sort=False):
        found[str(kind)] = share_refused(rows, params) | rows.filter(like="confident_").mean().to_dict()
    if "cause" in judged and len(unseen := judged[(judged["split"] == "test") & (judged["cause"] == "blind")]):
        found["unseen_finding"] = share_refused(unseen, params)
    return found


def share_refused(rows: pd.DataFrame, params: UncertaintyParams) -> dict[str, Any]:
    """How many, the share refused with its interval, and the share that each detector alone would refuse."""
    values, groups = (rows[name].to_numpy() for name in ("out_of_distribution", "patient_id"))
    rng = np.random.default_rng(params.seed)
    share = figure("refused", mean, values.astype(float), groups=groups, n_resamples=params.resamples, rng=rng)
    return {"n": len(rows), **share, **rows.filter(like="alone_").mean().to_dict()}


def refused(strangers: dict[str, Any]) -> pd.DataFrame:
    """The shares refused as rows of a diagram, usual images first."""
    rows = [
        {"kind": kind, "share": of["refused"], "low": of["refused_low"], "high": of["refused_high"], "series": what}
        for what in ("usual", "foreign")
        for kind, of in strangers.get(what, {}).items()
        if "refused" in of
    ]
    return pd.DataFrame(rows, columns=["kind", "share", "low", "high", "series"])
