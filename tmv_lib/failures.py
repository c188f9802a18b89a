"""What kinds of mistakes a model makes, by evidence, and what each kind needs.

Every error becomes clinical ambiguity, annotation noise, model blindness, a spurious feature, or undetermined.
The evidence is a table with one row an error and the columns of `EVIDENCE`; ranks are shares of validation cases
that lie below.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import uniform_filter
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from tmv_lib.statistics import patient_folds

NEEDS = {
    "clinical ambiguity": "a second reader, a soft label, or deferral; relabelling does not help",
    "annotation noise": "two blinded readers; the label is never flipped automatically",
    "model blindness": "more training cases of this subtype, and a gate on unusual images until then",
    "spurious feature": "mask or crop the border, randomise markers, reweight, and measure again",
    "undetermined": "adjudication",
}
KINDS = tuple(NEEDS)

EVIDENCE = (
    "y_true",  # the given label
    "y_prob",  # calibrated probability of the model that errs
    "ensemble_prob",  # mean of all members' calibrated probabilities
    "members_disagree",  # not all members decide alike
    "border_mends",  # with the image's border hidden the model decides right
    "out_of_fold_prob",  # probability by heads fitted on other patients' features
    "neighbour_agreement",  # share of the nearest training cases that bear the given label
    "distance_rank",  # how far from the training features
    "oddity_rank",  # how odd the oddest spot is against training normals
)


class Rules(NamedTuple):
    """Where the evidence is enough.

    against: a probability of the given label below this contradicts it. doubt: an ensemble probability of the
    given label above this leaves the case open. neighbours: a share of agreeing neighbours below this contradicts
    the label. unusual: a rank above this makes an image unusual. All in [0, 1].
    """

    against: float
    doubt: float
    neighbours: float
    unusual: float


def sort_errors(evidence: pd.DataFrame, *, rules: Rules) -> pd.DataFrame:
    """Sort errors by ordered rules: the first whose evidence is there names the kind.

    Returns the columns `kind` and `reason`, a sentence of evidence, with the index of `evidence`. Raises ValueError
    where a column is missing.
    """
    missing = [name for name in EVIDENCE if name not in evidence]
    if missing:
        raise ValueError(f"evidence column {missing[0]} is missing; it has {', '.join(evidence.columns)}")
    rows = [_kind(row, rules) for row in evidence.itertuples()]
    return pd.DataFrame(rows, columns=["kind", "reason"], index=evidence.index)


def _kind(row: Any, rules: Rules) -> tuple[str, str]:
    given = {name: _of_label(getattr(row, name), row.y_true) for name in ("ensemble_prob", "out_of_fold_prob")}
    odd = row.oddity_rank > rules.unusual or row.distance_rank > rules.unusual
    strange = f"odder than {row.oddity_rank:.0%} and farther from training than {row.distance_rank:.0%} of validation"
    if row.border_mends:
        return "spurious feature", "with the image's border hidden the answer is right"
    if given["ensemble_prob"] > rules.doubt or row.members_disagree:
        split = ", and the members disagree" if row.members_disagree else ""
        return "clinical ambiguity", f"the ensemble gives the label {given['ensemble_prob']:.0%}{split}"
    if odd:
        return "model blindness", f"confidently wrong on an unusual image: {strange}"
    if given["out_of_fold_prob"] < rules.against and row.neighbour_agreement < rules.neighbours:
        return "annotation noise", (
            f"other patients' cases give the label {given['out_of_fold_prob']:.0%},"
            f" {row.neighbour_agreement:.0%} of the neighbours bear it, and the image is typical"
        )
    return (
        "undetermined",
        f"confidently wrong, label supported by {given['out_of_fold_prob']:.0%} out of fold; {strange}",
    )


def _of_label(prob: float, y_true: int) -> float:
    return prob if y_true == 1 else 1 - prob


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


def local_oddity(images: np.ndarray, normals: np.ndarray, *, components: int, side: int, seed: int) -> np.ndarray:
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


def _averaged(images: np.ndarray, step: int) -> np.ndarray:
    cut = images.shape[1] // step * step
    n = len(images)
    return images[:, :cut, :cut].reshape(n, cut // step, step, cut // step, step).mean(axis=(2, 4), dtype=np.float32)
