"""What kinds of mistakes a model makes, by evidence, and what each kind needs.

Every error becomes clinical ambiguity, annotation noise, model blindness, a spurious feature, or undetermined.
The evidence is a table with one row an error and the columns of `EVIDENCE`; ranks are shares of validation cases
that lie below.
"""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.special import logit, softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from tmv_lib.detection import FEWEST
from tmv_lib.reporting import figure, mean
from tmv_lib.statistics import auroc, patient_folds

NEEDS = {
    "clinical ambiguity": "a second reader, a soft label, or deferral; relabelling does not help",
    "annotation noise": "two blinded readers; the label is never flipped automatically",
    "model blindness": "more training cases of this subtype, and a gate on unusual images until then",
    "spurious feature": "mask or crop the border, randomise markers, reweight, and measure again",
    "undetermined": "adjudication",
}
KINDS = tuple(NEEDS)
QUEUES = {  # what each kind is sent to
    "clinical ambiguity": "second_reader",
    "annotation noise": "relabel",
    "model blindness": "collect",
    "spurious feature": "shortcut",
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
PATCH, PATCH_STEP = 10, 4  # pixels of an image that is averaged down
MOST_NORMALS = 2000


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


def signals(evidence: pd.DataFrame) -> pd.DataFrame:
    """What the score reads of the evidence, a row an error: logits of the given label, ranks and shares, as floats.

    What was tried is NaN where it was not. Raises ValueError where a column of `EVIDENCE` is missing.
    """
    table = _of_label(evidence).drop(columns="y_prob")
    table = table.apply(logit).clip(-LARGEST, LARGEST).rename(columns=lambda name: name.replace("_prob", "_logit"))
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
    number = {kind: int((cause == kind).sum()) for kind in KINDS}
    if min(number.values()) < 5:
        raise ValueError(f"every kind needs at least five errors to fit a score, found {number}")
    table = signals(evidence)
    scaler = StandardScaler().fit(_by_side(table))
    weight = np.array([number[kind] ** -0.5 for kind in cause])
    # As strong as cross-validation over the phantoms that it was fitted on asked for.
    model = LogisticRegression(C=0.03, max_iter=2000)
    model.fit(scaler.transform(_by_side(table)), cause, sample_weight=weight / weight.mean())
    return Score(
        kinds=[str(kind) for kind in model.classes_],
        names=list(table.columns),
        mean=scaler.mean_.tolist(),
        scale=scaler.scale_.tolist(),
        coefficients=model.coef_.tolist(),
        intercept=model.intercept_.tolist(),
        enough=enough,
        provenance=provenance,
    )


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
    four = found[list(KINDS[:4])]
    order = np.argsort(-four.to_numpy(), axis=1, kind="stable")
    columns = found.rename(columns=lambda kind: f"p_{kind.replace(' ', '_')}")
    columns["best"], columns["runner_up"] = (np.array(KINDS[:4], dtype=object)[order[:, place]] for place in (0, 1))
    columns["kind"] = columns["best"].where(four.max(axis=1) >= score.enough, "undetermined")
    rows = evidence.assign(kind=columns["kind"], p_undetermined=columns["p_undetermined"]).itertuples()
    return columns.assign(reason=[reason(row) for row in rows])


def _by_side(table: pd.DataFrame) -> NDArray[np.float64]:
    """Signals (n, d) and each of them once more where a positive is missed, (n, 2d): a side may read them otherwise."""
    values = table.to_numpy(dtype=float)
    return np.hstack([values, values * table[["missed"]].to_numpy()])


def _of_label(evidence: pd.DataFrame) -> pd.DataFrame:
    """Every probability as one of the given label."""
    if missing := [name for name in EVIDENCE if name not in evidence]:
        raise ValueError(f"evidence column {missing[0]} is missing; it has {', '.join(evidence.columns)}")
    probs = evidence[["y_prob", "ensemble_prob", "inside_prob", "reference_prob", "out_of_fold_prob"]]
    return probs.where(evidence["y_true"] == 1, 1 - probs)


def cause_of_errors(planted: ArrayLike, mended: pd.DataFrame) -> NDArray[np.object_]:
    """The cause of each error by intervention: the repair that mends it, `undetermined` where none does, (n,).

    planted: the kind that was planted in each case (n,). mended: bool, a column a kind, whether its repair alone makes
    the answer right. Where several mend, the planted one counts, then the first in the order of the columns.
    """
    kind, flags = np.asarray(planted, dtype=object), mended.to_numpy(dtype=bool)
    kinds = mended.columns.to_numpy(dtype=object)
    first = np.where(flags.any(axis=1), kinds[flags.argmax(axis=1)], "undetermined")
    own = ((kinds[None, :] == kind[:, None]) & flags).any(axis=1)
    return np.where(own, kind, first).astype(object)


def tally(errors: pd.DataFrame) -> dict[str, Any]:
    """How many errors there are, missed positives and false alarms apart, and how many of each kind."""
    missed = errors["y_true"] == 1
    found: dict[str, Any] = {"n_errors": len(errors)}
    found |= {"false_negative": int(missed.sum()), "false_positive": int((~missed).sum())}
    for kind in KINDS:
        here = errors["kind"] == kind
        sides = {"false_negative": int((here & missed).sum()), "false_positive": int((here & ~missed).sum())}
        found[kind] = {"n": int(here.sum()), **sides}
    return found


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


def agreement(errors: pd.DataFrame, **resampling: Any) -> dict[str, Any]:
    """How far sorted errors agree with the repairs that mend them, each figure with its interval over patients.

    errors: `cause` by `cause_of_errors`, `best` and `kind` by `sort_errors`, and `patient_id`. kappa: of the kind
    that is most likely. Errors that no repair mends are counted apart: no kind is right for them.
    """
    known = errors[errors["cause"] != "undetermined"]
    decided = known[known["kind"] != "undetermined"]
    found: dict[str, Any] = {"n": len(known), "n_decided": len(decided)}
    found["mended_by_no_repair"] = len(errors) - len(known)
    for name, table, column in (("kappa", known, "best"), ("kappa_where_it_decides", decided, "kind")):
        truth, told = table["cause"].to_numpy(), table[column].to_numpy()
        found |= figure(name, kappa, truth, told, groups=table["patient_id"].to_numpy(), **resampling)
    for kind in KINDS:
        here = errors[errors["cause"] == kind]
        found[kind] = {"n": len(here)} | {f"called {other}": int((here["kind"] == other).sum()) for other in KINDS}
        if kind != "undetermined":
            hits, groups = (here["best"] == kind).to_numpy(dtype=float), here["patient_id"].to_numpy()
            found[kind] |= figure("recall", mean, hits, groups=groups, **resampling)
    return found


def confusion(errors: pd.DataFrame, column: str) -> pd.DataFrame:
    """Counts (5, 5) of errors by the repair that mends them (rows) and the kind that the column names."""
    crossed = pd.crosstab(errors["cause"], errors[column])
    return crossed.reindex(index=list(KINDS), columns=list(KINDS), fill_value=0)


def told_apart(table: pd.DataFrame, cause: ArrayLike, *, groups: np.ndarray, **resampling: Any) -> dict[str, Any]:
    """How well each signal alone tells each kind from the other three: one-vs-rest AUROC, below 0.5 where it is low.

    table: a column a signal, a row an error whose cause (n,) is one of the four; NaN where a signal is missing, and
    such an error is left out. groups: the patient of each (n,). With fewer than 20 patients of the kind, or of the
    rest, there is a value and no interval that would hold.
    """
    cause = np.asarray(cause)
    found: dict[str, Any] = {}
    for name in table:
        score = table[name].to_numpy(dtype=float)
        there = np.isfinite(score)
        found[str(name)] = {}
        for kind in KINDS[:4]:
            of_kind, patients = (cause == kind)[there], groups[there]
            fewest = min(len(np.unique(patients[of_kind])), len(np.unique(patients[~of_kind])))
            entry: dict[str, Any] = {"n": int(of_kind.sum()), "n_patients": len(np.unique(patients[of_kind]))}
            ranked = figure(
                "auroc",
                auroc,
                of_kind.astype(int),
                score[there],
                groups=patients,
                stratify=of_kind,
                interval=fewest >= FEWEST,
                **resampling,
            )
            found[str(name)][kind] = entry | ranked
    return found


def kappa(truth: ArrayLike, found: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Cohen's kappa of two codings (n,), or one a row of weights (resamples, n); 0 is what chance would reach.

    With agreement `a` and the agreement by chance `c`, that of the two marginals: `(a - c) / (1 - c)`. (Cohen 1960.)
    Raises ValueError for no case, and where both name one and the same code only.
    """
    truth, found = np.asarray(truth), np.asarray(found)
    if len(truth) == 0:
        raise ValueError("there is no such case")
    w = np.ones((1, len(truth))) if weights is None else np.atleast_2d(np.asarray(weights, dtype=float))
    w = w / w.sum(axis=1, keepdims=True)
    agreed, chance = w @ (truth == found), np.zeros(len(w))
    for code in sorted(set(truth.tolist()) | set(found.tolist())):  # words have no order of their own in a set
        chance += (w @ (truth == code)) * (w @ (found == code))
    if np.any(chance > 1 - 1e-12):
        raise ValueError("only one kind is named, by both, among all cases or in a resample of them")
    value = np.minimum((agreed - chance) / (1 - chance), 1)  # which rounding would pass
    return float(value[0]) if weights is None else value


def shuffled_kappa(
    truth: ArrayLike, found: ArrayLike, groups: ArrayLike, *, n_permutations: int = 999, rng: np.random.Generator
) -> dict[str, Any]:
    """What Cohen's kappa would be were the codes `found` those of other patients: mean, 95th percentile, and p-value.

    truth, found, groups (n,). A patient's codes stay together and go to a patient with as many, so that images of one
    patient, and one image in several models, are no proof of more. p = (1 + #{shuffled >= observed}) / (1 + B), the
    chance of so high a kappa without any agreement. Absent with its reason where there is no kappa.
    """
    truth, found = np.asarray(truth), np.asarray(found)
    try:
        observed = kappa(truth, found)
    except ValueError as reason:
        return {"absent": str(reason)}
    patient, _ = pd.factorize(np.asarray(groups))
    order = np.argsort(patient, kind="stable")
    sizes = np.bincount(patient)
    starts = np.cumsum(sizes) - sizes
    own = [
        order[starts[sizes == size][:, None] + np.arange(size)] for size in np.unique(sizes)
    ]  # (patients, size) each
    # shuffling keeps both marginals, and with them the agreement by chance
    codes = sorted(set(truth.tolist()) | set(found.tolist()))
    chance = sum(float((truth == code).mean() * (found == code).mean()) for code in codes)
    shuffled = np.empty(n_permutations)
    for k in range(n_permutations):
        agreed = sum(int((truth[rows] == found[rng.permutation(rows)]).sum()) for rows in own)
        shuffled[k] = (agreed / len(truth) - chance) / (1 - chance)
    at_least = int((shuffled >= observed - 1e-12).sum())
    return {
        "n_permutations": n_permutations,
        "mean": float(shuffled.mean()),
        "p95": float(np.quantile(shuffled, 0.95)),
        "p_value": (1 + at_least) / (1 + n_permutations),
    }


def confident_joint(y_true: ArrayLike, y_prob: ArrayLike) -> NDArray[np.int64]:
    """Counts (2, 2) of given label by the label that is confidently predicted; out-of-sample y_prob (n,) in [0, 1].

    A class is confident where its probability reaches the mean probability of the cases that bear it; of two confident
    classes the more probable counts; a case without one is left out. (Northcutt, Jiang & Chuang 2021, uncalibrated.)
    Raises ValueError where a class bears no case.
    """
    y, probs = np.asarray(y_true, dtype=int), np.column_stack([1 - np.asarray(y_prob), np.asarray(y_prob)])
    if set(np.unique(y).tolist()) != {0, 1}:
        raise ValueError(f"confident learning needs both labels, 0 and 1, found {sorted(set(y.tolist()))}")
    confident = probs >= np.array([probs[y == label, label].mean() for label in (0, 1)]) - 1e-6
    guess = np.where(confident.all(axis=1), probs.argmax(axis=1), confident.argmax(axis=1))
    counted = confident.any(axis=1)
    joint = np.zeros((2, 2), dtype=np.int64)
    np.add.at(joint, (y[counted], guess[counted]), 1)
    return joint


def out_of_fold_probs(
    features: np.ndarray, y_true: np.ndarray, *, groups: np.ndarray, n_folds: int, rng: np.random.Generator
) -> np.ndarray:
    """Probability of each case by logistic heads fitted on other patients' features, (n,).

    features: (n, d), standardised here; strongly regularised (C = 0.001), since d may exceed n.
    """
    fold = patient_folds(y_true, groups, n_folds=n_folds, rng=rng)
    probs = np.empty(len(y_true))
    for k in range(n_folds):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
        head.fit(features[fold != k], y_true[fold != k])
        probs[fold == k] = head.predict_proba(features[fold == k])[:, 1]
    return probs


def neighbour_agreement(
    features: np.ndarray, y_true: np.ndarray, reference: np.ndarray, reference_y: np.ndarray, *, k: int
) -> np.ndarray:
    """Share of the k nearest reference cases, by cosine distance, that bear a case's own label, (n,)."""
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(normalize(reference))
    nearest = search.kneighbors(normalize(features), return_distance=False)
    return (reference_y[nearest] == y_true[:, None]).mean(axis=1)


def residual_oddity(images: np.ndarray, normals: np.ndarray, *, components: int, side: int, seed: int) -> np.ndarray:
    """How odd the oddest spot of an image is against training normals, (n,): peak of a smoothed residual, squared.

    images, normals: uint8 (n, height, width). Both are averaged down to about `side` pixels, described by the
    principal components of the normals, and what these leave unexplained is averaged over 3 x 3 pixels in units of
    its spread among the normals. (Reconstruction error as novelty; Hoffmann 2007.)
    """
    step = max(1, images.shape[1] // side)
    small, reference = (_averaged(stack, step) for stack in (images, normals))
    model = PCA(min(components, len(reference) - 1), svd_solver="randomized", random_state=seed)
    model.fit(reference.reshape(len(reference), -1))

    def residual(stack: np.ndarray) -> np.ndarray:
        flat = stack.reshape(len(stack), -1)
        left = (flat - model.inverse_transform(model.transform(flat))).reshape(stack.shape)
        return uniform_filter(left, size=(0, 3, 3))

    spread = residual(reference).std(axis=0) + 1e-6
    return ((residual(small) / spread) ** 2).max(axis=(1, 2))


def patch_oddity(
    images: np.ndarray,
    normals: np.ndarray,
    *,
    side: int,
    rng: np.random.Generator,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> np.ndarray:
    """How odd the oddest spot of an image is against training normals, (n,).

    images, normals: uint8 (n, height, width). All are averaged down to about `side` pixels and freed of slow changes of
    brightness. Every patch is as odd as it is far from the nearest one of the normals at the same place, give or take a
    pixel, in units of that distance's spread among the normals themselves. (A memory of normal patches: Roth et al.
    2022, here on pixels.) Of very many normals some are drawn. progress may wrap the places (`tqdm`).
    """
    if len(normals) > MOST_NORMALS:
        normals = normals[rng.permutation(len(normals))[:MOST_NORMALS]]
    step = max(1, images.shape[1] // side)
    small, known = (_detail(_averaged(stack, step)) for stack in (images, normals))
    own = np.arange(0, len(known), 4)  # enough of them to know the spread
    worst = np.full(len(small), -np.inf)
    for y, x in progress(list(product(*(range(1, extent - PATCH, PATCH_STEP) for extent in small.shape[1:])))):
        bank = np.stack([_patches(known, y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=1)
        usual = _to_nearest(_patches(known[own], y, x), bank, leave_out=own)
        found = _to_nearest(_patches(small, y, x), bank)
        worst = np.maximum(worst, (found - usual.mean()) / (usual.std() + 1e-6))
    return worst


def _averaged(images: np.ndarray, step: int) -> np.ndarray:
    cut = images.shape[1] // step * step
    n = len(images)
    return images[:, :cut, :cut].reshape(n, cut // step, step, cut // step, step).mean(axis=(2, 4), dtype=np.float32)


def _detail(small: np.ndarray) -> np.ndarray:
    return np.asarray(small - gaussian_filter(small, (0, 6, 6)))


def _patches(stack: np.ndarray, y: int, x: int) -> np.ndarray:
    """The patch of every image at one place, flat, (n, pixels)."""
    return stack[:, y : y + PATCH, x : x + PATCH].reshape(len(stack), -1)


def _to_nearest(patches: np.ndarray, bank: np.ndarray, *, leave_out: np.ndarray | None = None) -> np.ndarray:
    """Distance (n,) of each patch (n, d) to the nearest one of the bank (images, shifts, d) of other images."""
    flat = bank.reshape(-1, bank.shape[2])
    length = (flat**2).sum(axis=1)
    nearest = np.empty(len(patches), np.float32)
    for start in range(0, len(patches), 512):
        part = patches[start : start + 512]
        squared = (part**2).sum(axis=1)[:, None] + length - 2 * part @ flat.T
        if leave_out is not None:
            rows = np.arange(len(part))
            squared.reshape(len(part), *bank.shape[:2])[rows, leave_out[start : start + 512]] = np.inf
        nearest[start : start + 512] = squared.min(axis=1)
    return np.sqrt(np.maximum(nearest, 0))
