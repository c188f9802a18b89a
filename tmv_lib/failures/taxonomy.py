"""What kinds of mistakes a model makes, by evidence, and what each kind needs.

Every error becomes clinical ambiguity, annotation noise, model blindness, a spurious feature, the site's, or
undetermined. The evidence is a table with one row an error and the columns of `EVIDENCE`; ranks are shares of
validation cases that lie below. From it a frozen score tells four kinds; the site's is told by what its labels mend.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tmv_lib.statistics.ranking import auroc

NEEDS = {
    "clinical ambiguity": "a second reader, a soft label, or deferral; relabelling does not help",
    "annotation noise": "two blinded readers; the label is never flipped automatically",
    "model blindness": "more training cases of this subtype, and a gate on unusual images until then",
    "spurious feature": "mask or crop the border, randomise markers, reweight, and measure again",
    "site": "labels of the site: calibrate there, and judge again",
    "undetermined": "adjudication",
}
KINDS = tuple(NEEDS)
REPAIRABLE = tuple(kind for kind in KINDS if kind != "undetermined")
SCORED = tuple(kind for kind in REPAIRABLE if kind != "site")  # that the score tells apart
QUEUES = {  # what each kind is sent to
    "clinical ambiguity": "second_reader",
    "annotation noise": "relabel",
    "model blindness": "collect",
    "spurious feature": "shortcut",
    "site": "recalibrate",
    "undetermined": "adjudicate",
}

EVIDENCE = (
    "y_true",  # the given label
    "y_prob",  # calibrated probability of the model that errs
    "ensemble_prob",  # mean of all members' calibrated probabilities
    "members_disagree",  # not all members decide alike
    "border_flips",  # with the image's border hidden the model decides otherwise
    "border_misleads",  # share of others' clear cases of the label that the model misreads in this border
    "border_mends",  # share of their borders in which it reads this image rightly
    "inside_prob",  # mean of the members' calibrated probabilities with the image's border hidden
    "reference_prob",  # calibrated probability of a network that never sees the border, the witness
    "out_of_fold_prob",  # probability by heads fitted on the witness's features of other patients
    "neighbour_agreement",  # share of the nearest training cases, as the witness sees them, that bear the given label
    "distance_rank",  # how far from the training cases, as the witness sees them
    "oddity_rank",  # how far the oddest spot is from any training normal's in that place
    "residual_rank",  # how far it is from what the components of training normals can make
)
TRIED = ("border_misleads", "border_mends")  # on cases that a member misreads alone
BESIDE = (  # more that is known, where it is: NaN where it is not; the score reads none of it
    "expected_entropy",  # doubt of the image, by dropout in the head, nats
    "mutual_information",  # doubt of the model, by the same, nats
    "members_mutual_information",  # what the members dispute, nats
    "instability",  # 1 - rank correlation of the map under mild changes
    "border",  # share of the map's energy in the image's frame
    "lungs",  # share of the map's energy in the lungs, where they are known
    "map_agreement",  # rank correlation of the first two members' maps
)
LARGEST = 6.0  # a logit beyond this counts as this


def reason(row: Any) -> str:
    """The sentence of evidence for one error; row has the columns of `EVIDENCE`, `kind` and `p_undetermined`."""

    def given(prob: float) -> str:
        return f"{prob if row.y_true == 1 else 1 - prob:.0%}"

    tried = (
        f"; in this border {row.border_misleads:.0%} of others' clear cases are misread, in their borders this one is"
        f" read rightly in {row.border_mends:.0%}"
    )
    odd = f"odder than {row.oddity_rank:.0%} and farther from training than {row.distance_rank:.0%} of validation"
    said = {
        "spurious feature": f"a network that never sees the border gives the label {given(row.reference_prob)}, this"
        f" one {given(row.y_prob)}; hiding the border {'flips' if row.border_flips else 'does not flip'} the answer"
        + ("" if np.isnan(row.border_misleads) else tried),
        "clinical ambiguity": f"the ensemble gives the label {given(row.ensemble_prob)}, and its members"
        f" {'disagree' if row.members_disagree else 'agree'}",
        "model blindness": f"the model gives the label {given(row.y_prob)} on an image {odd}",
        "annotation noise": f"other patients' cases give the label {given(row.out_of_fold_prob)},"
        f" and {row.neighbour_agreement:.0%} of the neighbours bear it",
        "undetermined": f"no kind reaches its evidence, a plain mistake has {row.p_undetermined:.0%}; out of fold the"
        f" label has {given(row.out_of_fold_prob)}; {odd}",
    }
    return said[row.kind]


class Score(NamedTuple):
    """A frozen multinomial logistic model of what would mend an error.

    kinds: (k,). names: (d,) of the signals. mean, scale: (2d,) of the inputs x, which are the signals and each signal
    once more where the error is a missed positive. coefficients: (k, 2d). intercept: (k,). The probabilities are
    `softmax(intercept + coefficients (x - mean) / scale)`. enough: the one that the best kind must reach. provenance:
    what it was fitted on.
    """

    kinds: list[str]
    names: list[str]
    mean: list[float]
    scale: list[float]
    coefficients: list[list[float]]
    intercept: list[float]
    enough: float
    provenance: dict[str, Any]


def frozen_score() -> Score:
    """The score that lies beside this module."""
    return Score(**json.loads(Path(__file__).with_name("taxonomy.json").read_text(encoding="utf-8")))


def signals(evidence: pd.DataFrame) -> pd.DataFrame:
    """What the score reads of the evidence, a row an error: logits of the given label, ranks and shares, as floats.

    What was tried is NaN where it was not. Raises ValueError where a column of `EVIDENCE` is missing.
    """
    if missing := [name for name in EVIDENCE if name not in evidence]:
        raise ValueError(f"evidence column {missing[0]} is missing; it has {', '.join(evidence.columns)}")
    probs = evidence[["ensemble_prob", "inside_prob", "reference_prob", "out_of_fold_prob"]]
    table = logit(probs.where(evidence["y_true"] == 1, 1 - probs)).clip(-LARGEST, LARGEST)
    table = table.rename(columns=lambda name: name.replace("_prob", "_logit"))
    table["neighbour_agreement"] = evidence["neighbour_agreement"].astype(float)
    for name in ("distance_rank", "oddity_rank", "residual_rank"):
        table[name] = -np.log(1.01 - evidence[name])  # the unusual images are in the last hundredths of a rank
    return table.join(evidence[list(TRIED)].astype(float)).assign(missed=evidence["y_true"].astype(float))


def all_signals(evidence: pd.DataFrame) -> pd.DataFrame:
    """The signals that the score reads, and what else is there and is not read."""
    others = [name for name in ("border_flips", "members_disagree", *BESIDE) if name in evidence]
    return signals(evidence).join(evidence[others].astype(float))


def fit_score(evidence: pd.DataFrame, cause: ArrayLike, *, enough: float, provenance: dict[str, Any]) -> Score:
    """Fit the score to errors whose cause (n,) is known, `undetermined` where no repair mends them: plain mistakes.

    A kind weighs as the root of its frequency, so that the rare ones are seen. Raises ValueError where one of the five
    has fewer than five errors.
    """
    cause = np.asarray(cause)
    number = {kind: int((cause == kind).sum()) for kind in (*SCORED, "undetermined")}
    if min(number.values()) < 5:
        raise ValueError(f"every kind needs at least five errors to fit a score, found {number}")
    table = signals(evidence)
    scaler = StandardScaler().fit(_by_side(table))
    weight = np.array([number[kind] ** -0.5 for kind in cause])
    # As strong as cross-validation over the phantoms that it was fitted on asked for.
    model = LogisticRegression(C=0.03, max_iter=2000)
    model.fit(scaler.transform(_by_side(table)), cause, sample_weight=weight / weight.mean())
    arrays = (scaler.mean_, scaler.scale_, model.coef_, model.intercept_)
    mean, scale, coefficients, intercept = (values.tolist() for values in arrays)
    kinds = [str(kind) for kind in model.classes_]
    return Score(kinds, list(table.columns), mean, scale, coefficients, intercept, enough, provenance)


def sort_errors(evidence: pd.DataFrame, *, score: Score) -> pd.DataFrame:
    """Sort errors by the score.

    Returns, with the index of `evidence`: five columns `p_<kind>` that sum to 1, `p_undetermined` that of an error
    which nothing would mend; `best` and `runner_up` of the four kinds; `kind`, the best where it reaches
    `score.enough` and otherwise undetermined; `reason`, a sentence.
    Raises ValueError where a column of `EVIDENCE` is missing, and where the score was fitted to other signals.
    """
    table = signals(evidence)
    if list(table.columns) != score.names:
        raise ValueError(f"the score was fitted to other signals: {sorted(set(table.columns) ^ set(score.names))}")
    usual = dict(zip(score.names, score.mean))
    table = table.fillna({name: usual[name] for name in TRIED})  # what was not tried counts for nothing
    standard = (_by_side(table) - score.mean) / score.scale
    probs = softmax(standard @ np.transpose(score.coefficients) + score.intercept, axis=1)
    found = pd.DataFrame(probs, columns=score.kinds, index=evidence.index)
    four = found[list(SCORED)]
    order = np.argsort(-four.to_numpy(), axis=1, kind="stable")
    columns = found.rename(columns=lambda kind: f"p_{kind.replace(' ', '_')}")
    columns["best"], columns["runner_up"] = (np.array(SCORED, dtype=object)[order[:, place]] for place in (0, 1))
    columns["kind"] = columns["best"].where(four.max(axis=1) >= score.enough, "undetermined")
    rows = evidence.assign(kind=columns["kind"], p_undetermined=columns["p_undetermined"]).itertuples()
    return columns.assign(reason=[reason(row) for row in rows])


def name_site(errors: pd.DataFrame) -> pd.DataFrame:
    """Sorted errors, those of kind `site` among them: plain mistakes at home that calibration at the site mends.

    errors: as `sort_errors` has them, with `y_true`, `y_prob` and `site_prob`, the probability of the positive class
    once the members whom the site makes wrong are calibrated there; NaN where none is. An error for which the score
    finds none of the four likelier than a plain mistake is most likely the site's (`best`) where calibration there
    moves the answer towards the label, and is of that `kind` where it makes the answer right.
    """
    given, there = (errors[name].where(errors["y_true"] == 1, 1 - errors[name]) for name in ("y_prob", "site_prob"))
    likely = errors[[f"p_{kind.replace(' ', '_')}" for kind in SCORED]].max(axis=1)
    likeliest = (errors["p_undetermined"] > likely) & (there > given)  # not where there is NaN
    ours = likeliest & ((errors["site_prob"] > 0.5) == (errors["y_true"] == 1))
    told = [
        f"as shipped the label has {before:.0%}, calibrated at the site by other patients {after:.0%}; of the other"
        f" kinds {best} is the likeliest, {p:.0%}"
        for before, after, best, p in zip(given, there, errors["best"], likely, strict=True)
    ]
    return errors.assign(
        kind=errors["kind"].mask(ours, "site"),
        best=errors["best"].mask(likeliest, "site"),
        runner_up=errors["runner_up"].mask(likeliest, errors["best"]),
        reason=errors["reason"].mask(ours, pd.Series(told, index=errors.index, dtype=object)),
    )


def _by_side(table: pd.DataFrame) -> NDArray[np.float64]:
    """Signals (n, d) and each of them once more where a positive is missed, (n, 2d): a side may read them otherwise."""
    values = table.to_numpy(dtype=float)
    return np.hstack([values, values * table[["missed"]].to_numpy()])


def cause_of_errors(planted: ArrayLike, mended: pd.DataFrame) -> NDArray[np.object_]:
    """The cause of each error by intervention: the repair that mends it, `undetermined` where none does, (n,).

    planted: the kind that was planted in each case (n,). mended: bool, a column a kind, whether its repair alone makes
    the answer right. Where several mend, the planted one counts, then the first in the order of the columns.
    """
    kind, flags = np.asarray(planted, dtype=object), mended.to_numpy(dtype=bool)
    kinds = mended.columns.to_numpy(dtype=object)
    own = ((kinds == kind[:, None]) & flags).any(axis=1)
    return np.select([own, flags.any(axis=1)], [kind, kinds[flags.argmax(axis=1)]], "undetermined")


def tally(errors: pd.DataFrame) -> dict[str, Any]:
    """How many errors there are, missed positives and false alarms apart, and how many of each kind."""

    def counted(name: str, here: pd.DataFrame) -> dict[str, Any]:
        missed = int((here["y_true"] == 1).sum())
        return {name: len(here), "false_negative": missed, "false_positive": len(here) - missed}

    kinds = {kind: counted("n", errors[errors["kind"] == kind]) for kind in KINDS}
    return counted("n_errors", errors) | kinds


def mended(y_true: np.ndarray, y_prob: np.ndarray, of_kind: np.ndarray, *, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities (n,) once the errors of a kind, of_kind (n,) boolean, are repaired.

    Annotation noise is repaired in the label, 1 - y; every other kind in the answer, which is turned round: 1 - p.
    """
    if kind == "annotation noise":
        return np.where(of_kind, 1 - y_true, y_true), y_prob
    return y_true, np.where(of_kind, 1 - y_prob, y_prob)


def auroc_gain(
    y_true: np.ndarray, y_prob: np.ndarray, y_mended: np.ndarray, p_mended: np.ndarray, *, weights: Any = None
) -> Any:
    """AUROC once mended less AUROC before, of labels and probabilities (n,)."""
    return auroc(y_mended, p_mended, weights=weights) - auroc(y_true, y_prob, weights=weights)


def spread(likely: pd.Series, *, typical: int, unsure: int) -> list[Any]:
    """The index of the cases to show, by falling probability of their kind: the most typical, then the least sure."""
    order = likely.sort_values(ascending=False, kind="stable").index.tolist()
    return order if len(order) <= typical + unsure else order[:typical] + order[-unsure:]
