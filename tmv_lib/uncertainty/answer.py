"""The answer to: which doubts are genuine, and which errors are confident?"""

from functools import reduce
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib.calibration.calibrators import Calibrator
from tmv_lib.pipeline.params import Params, Resamples, Seed
from tmv_lib.pipeline.record import Head
from tmv_lib.statistics.estimate import Estimate, Resampler, interval_rows, mean
from tmv_lib.statistics.ranking import rank_among
from tmv_lib.uncertainty import detection, entropy
from tmv_lib.uncertainty.distance import mahalanobis_distance, nearest_neighbour_distance

DOUBTED = 0.9  # rank among validation above which dropout is said to doubt a case
ENTROPIES = ["predictive_entropy", "expected_entropy", "mutual_information"]
DISTANCES = ["distance", "mahalanobis"]
NO_NETWORK = "not measured: of this model only the predictions are known, dropout and distances need its network"


class UncertaintyParams(Params):
    passes: Annotated[int, Field(ge=2, le=10_000)]
    neighbours: Annotated[int, Field(ge=1, le=10_000)]
    confident: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Resamples
    seed: Seed


class Network(NamedTuple):
    """What is known of a member's network beside its answers.

    features: pooled, (cases, d) outside train; reference, reference_y: (m, d) and (m,) of train. head: the linear
    outputs that are asked. rate: of dropout before them. changed: logits (changes, cases) under the mild changes of
    `stability`. foreign, foreign_features: `image_id`, `kind`, `score` and (k, d) of the spoiled images.
    """

    features: np.ndarray
    reference: np.ndarray
    reference_y: np.ndarray
    head: Head
    rate: float
    changed: np.ndarray
    foreign: pd.DataFrame
    foreign_features: np.ndarray


class Answer(NamedTuple):
    """What is known of one member's doubt.

    signals: one column per signal, rows as the cases. test: the test cases with all of it. foreign: the spoiled images
    with their distances, and whether the member is confident on them; None without a network.
    """

    metrics: dict[str, Any]
    signals: pd.DataFrame
    test: pd.DataFrame
    foreign: pd.DataFrame | None
    plots: dict[str, pd.DataFrame]


def between_members(probs: np.ndarray) -> pd.DataFrame:
    """What the members dispute, from their calibrated probabilities (members, cases); one member disputes nothing."""
    if len(probs) == 1:
        return pd.DataFrame({"disagreement": np.zeros(probs.shape[1])})
    disputed = entropy.entropy_decomposition(probs).mutual_information
    return pd.DataFrame({"disagreement": np.ptp(probs, axis=0), "members_mutual_information": disputed})


def doubt(
    cases: pd.DataFrame,
    name: str,
    between: pd.DataFrame,
    network: Network | None,
    calibrator: Calibrator,
    params: UncertaintyParams,
) -> Answer:
    """Every uncertainty of one member's cases outside train, and what it finds on test. between: `between_members`."""
    disputed = [*between] if len(between.columns) > 1 else []
    own, plots = pd.DataFrame(index=cases.index), dict[str, pd.DataFrame]()
    foreign = None
    if network is not None:
        passes = dropout_logits(network.features, network.head, network.rate, params)
        own = pd.DataFrame(entropy.entropy_decomposition(calibrator.probability(passes))._asdict())
        changed = calibrator.probability(np.vstack([cases[f"score_{name}"], network.changed]))
        augmented = entropy.entropy_decomposition(changed)
        own["augmented_predictive_entropy"] = augmented.predictive_entropy
        own["augmented_mutual_information"] = augmented.mutual_information
        own = own.join(distances(network.features, network, params))
        sure = 1 - margin(calibrator.probability(network.foreign["score"])) >= params.confident
        foreign = network.foreign.join(distances(network.foreign_features, network, params)).assign(confident=sure)
        plots["convergence"] = convergence(name, passes, network, params)
    decided = decide(cases, name, params).join([own, between])
    test = decided[decided["split"] == "test"]
    metrics, plots["detectors"] = find_errors(test, ["margin", *own, *disputed], params)
    metrics |= {"dropout": Estimate(absent=NO_NETWORK)} if network is None else {}
    metrics["quadrants"] = quadrants(decided, params)
    signals = own if network is not None else cases[[]].assign(mutual_information=np.nan, distance=np.nan)
    return Answer(metrics, signals, test, foreign, plots)


def dropout_logits(features: np.ndarray, head: Head, rate: float, params: UncertaintyParams) -> np.ndarray:
    """The question's logits (passes, cases) under Monte Carlo dropout before the head.

    Of exclusive classes every output is repeated under the same masks.
    """

    def output(k: int) -> np.ndarray:
        options: dict[str, Any] = {"passes": params.passes, "generator": np.random.default_rng(params.seed)}
        return entropy.mc_dropout_logits(features, head.weight[k], float(head.bias[k]), rate=rate, **options)

    if not head.question.others:
        return output(0)
    yes, no = (reduce(np.logaddexp, map(output, places)) for places in (head.question.positive, head.question.others))
    return np.asarray(yes - no)


def distances(features: np.ndarray, network: Network, params: UncertaintyParams) -> pd.DataFrame:
    """Both distances to the training features."""
    near = nearest_neighbour_distance(features, network.reference, k=params.neighbours)
    return pd.DataFrame(
        {"distance": near, "mahalanobis": mahalanobis_distance(features, network.reference, network.reference_y)}
    )


def convergence(name: str, logits: np.ndarray, network: Network, params: UncertaintyParams) -> pd.DataFrame:
    """How the mean mutual information of dropout settles with the number of passes, as rows to draw.

    For a question about one output beside its limit, which is known; of exclusive classes it is only sampled.
    """
    passes = np.unique(np.geomspace(2, params.passes, 12).round().astype(int))
    probs = expit(logits)
    series: dict[str, Any] = {
        name: [entropy.entropy_decomposition(probs[:t]).mutual_information.mean() for t in passes]
    }
    if len(network.head.weight) == 1:
        (weight,), (bias,) = network.head.weight, network.head.bias
        limit = entropy.dropout_limit(network.features, weight, float(bias), rate=network.rate)
        series[f"{name}, limit"] = limit.mutual_information.mean()
    return pd.concat([pd.DataFrame({"passes": passes, "value": v, "series": s}) for s, v in series.items()])


def decide(cases: pd.DataFrame, name: str, params: UncertaintyParams) -> pd.DataFrame:
    """The cases as this member decides them: y_prob, margin, error, quadrant."""
    y_prob = cases[f"y_prob_{name}"]
    error = ((y_prob > 0.5) != cases["y_true"]).astype(int)
    quadrant = entropy.quadrant(error, 1 - margin(y_prob), confident=params.confident)
    return cases.assign(y_prob=y_prob, margin=margin(y_prob), error=error, quadrant=quadrant)


def margin(y_prob: Any) -> Any:
    """1 - max(p, 1 - p), the doubt that needs no other signal, in [0, 0.5]."""
    return np.minimum(y_prob, 1 - y_prob)


def find_errors(
    test: pd.DataFrame, signals: list[str], params: UncertaintyParams
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Each uncertainty as a detector of errors among cases called alike, and its gain over the plain margin."""
    error, rival = (test[column].to_numpy() for column in ("error", "margin"))
    called = (test["y_prob"] > 0.5).to_numpy(dtype=float)
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    scores = {signal: test[signal].to_numpy() for signal in signals}
    figures = {
        name: detection.detector(
            error, score, called=called, resampler=resampler, rival=None if name == "margin" else rival
        )
        for name, score in scores.items()
    }
    detection.answer(figures, scores, margin=rival)
    rows = [
        row
        for signal, entry in figures.items()
        for name in detection.NAMED
        for row in interval_rows(
            entry[name]["error_auroc"], value="auroc", signal=signal, series=f", {name.replace('_', ' ')}"
        )
    ]
    counts = resampler.counts(error)
    counts["n_errors"] = counts.pop("n_positive")
    return counts | figures, pd.DataFrame(rows, columns=["signal", "auroc", "low", "high", "series"])


def quadrants(cases: pd.DataFrame, params: UncertaintyParams) -> dict[str, Any]:
    """Confidence against correctness on the test split: how many, and whose doubt it is, the image's or the model's."""
    val = (cases["split"] == "val").to_numpy()
    measured = "mutual_information" in cases
    if measured:
        information = cases["mutual_information"].to_numpy()
        cases = cases.assign(doubted=rank_among(information, information[val]) > DOUBTED)
    test = cases[cases["split"] == "test"]
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    figures: dict[str, Any] = {}
    for quadrant in entropy.QUADRANTS:
        inside = (test["quadrant"] == quadrant).to_numpy()
        figures[quadrant] = {"n": int(inside.sum())}
        if measured:
            figures[quadrant]["doubted_by_dropout"] = int((inside & test["doubted"]).sum())
        figures[quadrant]["share"] = resampler.estimate(mean, inside.astype(float))
    if measured:
        doubtful = test["quadrant"].str.startswith("doubtful").to_numpy()
        entropies = (test.loc[doubtful, name].to_numpy() for name in ("predictive_entropy", "mutual_information"))
        share = resampler.among(doubtful).estimate(entropy.model_share, *entropies)
        figures["doubt_of_the_model"] = {"share": share}
    return figures


def worst_first(cases: pd.DataFrame) -> pd.DataFrame:
    """One row per test case and member, mistakes before right answers, the most confident first."""
    order = np.lexsort((cases["margin"], -cases["error"]))
    columns = ["image_id", "member", "y_true", "y_prob", "quadrant", *ENTROPIES, *DISTANCES]
    return cases.iloc[order].reindex(columns=columns)
