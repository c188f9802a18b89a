"""Whether the cases of a site look like those of the source, and in which way they do not.

Every test asks the same: could the labels "site" and "source" have been dealt out to these patients by lot? The
p-value comes from dealing them out again, whole patients at a time, and doing everything that follows from the
labels once more: images of one patient resemble each other, and no formula has to know how much.

The source's cases must be new to the network. A network has seen its training images many times; their features lie
further apart by class than those of any other patient, so that even a new patient of the same hospital looks like
another site beside them. `val` and `cal` are the source's patients that training has not seen.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.decomposition import PCA

from tmv_lib.logistic import fit_logistic
from tmv_lib.statistics import FloatArray, IntArray, as_binary, as_finite, patient_folds

RIDGE = 1.0  # on standardised features: a Normal prior of standard deviation 1
LEVEL = 0.05

WORDS = {
    "none": "No shift was found: at this number of patients the site looks like the source. That is no proof of it.",
    "prevalence": "The share of positives differs, and within each class no difference was found: prevalence shift.",
    "both_classes": "Positives and negatives both look different here: the images have changed, as with another "
    "exposure, noise, device or patient group. A change of prevalence cannot explain it.",
    "negative_class": "Negatives look different here, positives do not: the shift is within one class. Nothing that "
    "corrects both classes alike can mend it, nor anything that only knows the prevalence.",
    "positive_class": "Positives look different here, negatives do not: the shift is within one class. Nothing that "
    "corrects both classes alike can mend it, nor anything that only knows the prevalence.",
    "unnamed": "The site differs from the source, but neither the prevalence nor one class could be shown to: more "
    "cases are needed to say how.",
}


class Shift(NamedTuple):
    """A measure of difference, its 95th percentile when the domains are dealt by lot, and the p-value of so much."""

    observed: float
    chance_p95: float
    p_value: float


def feature_space(train: ArrayLike, *, n_components: int) -> Callable[[ArrayLike], FloatArray]:
    """The way from features (n, d) to the principal components, at most so many, of the standardised features of train.

    Returns a function to (n, components).
    """
    known = np.asarray(train)
    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread[spread == 0] = 1
    space = PCA(min(n_components, *known.shape), svd_solver="full").fit((known - mean) / spread)
    return lambda features: np.asarray(space.transform((np.asarray(features) - mean) / spread))


def domain_auc(
    features: ArrayLike,
    site: ArrayLike,
    groups: ArrayLike,
    *,
    n_folds: int,
    n_permutations: int,
    rng: np.random.Generator,
    n_foldings: int = 1,
) -> Shift:
    """How well a classifier tells site from source on patients it has not seen: AUC in [0, 1], 0.5 being not at all.

    Logistic regression with a weak ridge on standardised features, out of fold by patient (Lopez-Paz & Oquab 2017;
    Rabanser et al. 2019); every permutation fits anew. The folds know nothing of the domains, or dealing these by lot
    would not be fair. Scores are compared within a fold only: those of different fits have different levels, and
    across folds even a blind classifier comes out below 0.5. n_foldings: ways to cut the folds, of which the mean
    counts, so that the verdict does not hang on one of them.

    features (n, d); site (n,) 1 for the site and 0 for the source, the same for all images of a patient; groups (n,).
    Raises ValueError for a patient in both, and for fewer patients of either than folds.
    """
    x = np.asarray(features, dtype=float)
    patient, domain = _patients(site, groups)
    if x.ndim != 2 or len(x) != patient.size or not np.isfinite(x).all():
        raise ValueError(f"features must be finite, (n, d) with a row a case ({patient.size}), found {x.shape}")
    if not x.shape[1]:
        raise ValueError("not measured: the cases have no features")
    fewest = int(min(domain.sum(), (1 - domain).sum()))
    if fewest < n_folds:
        raise ValueError(f"the shift test needs {n_folds} patients of each place, one a fold, found {fewest}")
    spread = x.std(axis=0)
    kept = spread > 1e-9 * np.abs(x).max(initial=0)
    design = np.column_stack([np.ones(len(x)), (x[:, kept] - x[:, kept].mean(axis=0)) / spread[kept]])
    if n_foldings < 1:
        raise ValueError(f"n_foldings must be at least 1, found {n_foldings}")
    folds = [patient_folds(np.zeros(patient.size), patient, n_folds=n_folds, rng=rng) for _ in range(n_foldings)]
    dealt = _dealt(domain, n_permutations, rng)[:, patient]
    return _judged(np.mean([_auc_across_folds(design, dealt, fold) for fold in folds], axis=0))


def _auc_across_folds(design: FloatArray, dealt: FloatArray, fold: IntArray) -> FloatArray:
    """AUC (deals,) of telling the domains (deals, n) apart out of fold, pairs of one fold only."""
    wins, pairs = np.zeros(len(dealt)), np.zeros(len(dealt))
    centre = np.zeros(design.shape[1])
    for k in np.unique(fold):
        out = fold == k
        weights = np.ones(int((~out).sum()))
        beta = fit_logistic(design[~out], dealt[:, ~out], weights=weights, ridge=RIDGE, centre=centre)
        rank = rankdata(beta @ design[out].T, axis=1)
        n_site = dealt[:, out].sum(axis=1)
        # U = sum of the site's ranks - n1 (n1 + 1) / 2
        wins += (rank * dealt[:, out]).sum(axis=1) - n_site * (n_site + 1) / 2
        pairs += n_site * (out.sum() - n_site)
    if not pairs.all():
        raise ValueError("too few patients to compare: no fold holds patients of both places")
    return wins / pairs


def kolmogorov_smirnov(
    values: ArrayLike, site: ArrayLike, groups: ArrayLike, *, n_permutations: int, rng: np.random.Generator
) -> Shift:
    """Largest distance in [0, 1] of the distribution functions of `values` (n,) at site and source.

    The statistic of the two-sample Kolmogorov-Smirnov test; the p-value is by permuting patients. Arguments as in
    `domain_auc`.
    """
    patient, domain = _patients(site, groups)
    v = as_finite(values, name="values", n=patient.size)
    order = np.argsort(v, kind="stable")
    dealt = _dealt(domain, n_permutations, rng)[:, patient[order]]
    last_of_ties = np.append(np.flatnonzero(np.diff(v[order])), v.size - 1)
    above = np.cumsum(dealt, axis=1)[:, last_of_ties] / dealt.sum(axis=1, keepdims=True)
    below = np.cumsum(1 - dealt, axis=1)[:, last_of_ties] / (1 - dealt).sum(axis=1, keepdims=True)
    return _judged(np.abs(above - below).max(axis=1))


def prevalence_difference(
    y_true: ArrayLike, site: ArrayLike, groups: ArrayLike, *, n_permutations: int, rng: np.random.Generator
) -> Shift:
    """Distance in [0, 1] of the shares of positive images at site and source, p by permuting patients."""
    patient, domain = _patients(site, groups)
    y = as_binary(y_true, n=patient.size)
    dealt = _dealt(domain, n_permutations, rng)[:, patient]
    shares = (dealt @ y / dealt.sum(axis=1)) - ((1 - dealt) @ y / (1 - dealt).sum(axis=1))
    return _judged(np.abs(shares))


def share_distance(
    values: ArrayLike, site: ArrayLike, groups: ArrayLike, *, n_permutations: int, rng: np.random.Generator
) -> Shift:
    """Distance in [0, 1] of the shares that each of the `values` (n,), words, has at site and source.

    Total variation, sum_v |p(v) - q(v)| / 2: the share of the site's images that would need another value. p by
    permuting patients, arguments as in `domain_auc`.
    """
    patient, domain = _patients(site, groups)
    words, code = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    if code.size != patient.size:
        raise ValueError(f"values must be as many as the cases ({patient.size}), found {code.size}")
    dealt = _dealt(domain, n_permutations, rng)[:, patient]
    is_value = (code[:, None] == np.arange(len(words))).astype(float)
    here, there = (part @ is_value / part.sum(axis=1, keepdims=True) for part in (dealt, 1 - dealt))
    return _judged(np.abs(here - there).sum(axis=1) / 2)


def name_shift(*, negative: ArrayLike, positive: ArrayLike, prevalence: float, pooled: ArrayLike) -> str:
    """Which of `WORDS` these p-values speak for, all of them adjusted for their number together.

    negative, positive: of the tests within one class; pooled: of those that look at both classes at once, which
    also see a change of prevalence; prevalence: of `prevalence_difference`. A test rejects at 5 %:

    - within both classes: `both_classes`; within one: `negative_class` or `positive_class`;
    - within none, but the prevalence: `prevalence`; only pooled: `unnamed`; nothing: `none`.

    That a class is not named says that nothing was found in it, and depends on how many patients were looked at.

    >>> name_shift(negative=[0.01, 0.3], positive=[0.2], prevalence=0.6, pooled=[0.01])
    'negative_class'
    """
    found = [bool(np.min(p_values) <= LEVEL) for p_values in (negative, positive, [prevalence], pooled)]
    in_negative, in_positive, in_prevalence, in_pooled = found
    if in_negative or in_positive:
        return "both_classes" if in_negative and in_positive else "negative_class" if in_negative else "positive_class"
    return "prevalence" if in_prevalence else "unnamed" if in_pooled else "none"


def _patients(site: ArrayLike, groups: ArrayLike) -> tuple[IntArray, FloatArray]:
    """The patient of each case (n,), and whether each patient (patients,) belongs to the site."""
    names, patient = np.unique(np.asarray(groups), return_inverse=True)
    label = as_binary(site, name="site", n=patient.size)
    n_site = np.bincount(patient, weights=label)
    both = np.flatnonzero((n_site > 0) & (n_site < np.bincount(patient)))
    if both.size:
        raise ValueError(f"patient {names[both[0]]} belongs to the site and to the source")
    domain = (n_site > 0).astype(float)
    if domain.all() or not domain.any():
        raise ValueError("cases of the site and of the source are needed, found those of one alone")
    return patient, domain


def _dealt(domain: FloatArray, n_permutations: int, rng: np.random.Generator) -> FloatArray:
    """The patients' domains (1 + n_permutations, patients): as they are, and dealt out anew."""
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be at least 1, found {n_permutations}")
    return np.vstack([domain, rng.permuted(np.tile(domain, (n_permutations, 1)), axis=1)])


def _judged(statistic: FloatArray) -> Shift:
    observed, chance = statistic[0], statistic[1:]
    as_large = (chance >= observed - 1e-12).sum()  # equal sums in another order differ in the last digits
    return Shift(float(observed), float(np.quantile(chance, 0.95)), float((1 + as_large) / (1 + chance.size)))
