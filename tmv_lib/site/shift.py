"""Whether the cases of a site look like those of the source, and in which way they do not.

Every test asks the same: could the labels "site" and "source" have been dealt out to these patients by lot? The
p-value comes from dealing them out again, whole patients at a time. A difference that is shown is one of looks: whether
it does harm, labels alone can say. The source's cases must be new to the network: beside its training images, whose
features lie further apart by class, even a new patient of the same hospital looks like another site.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA

from tmv_lib.statistics.arrays import FloatArray, IntArray, as_binary, as_finite
from tmv_lib.statistics.logistic import fit_logistic
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.resampling import patient_folds

RIDGE = 1.0  # on standardised features: a Normal prior of standard deviation 1
LEVEL = 0.05  # a test rejects where its p-value, after Holm, is below this
FEWEST_PERMUTATIONS = 9_999  # with 999 a p-value of 0.005 is 0.001 to 0.010 from one seed to the next
CELLS = 2**16  # (deals, patients) of one batch: 512 KiB, which stay in the cache
DEALT = 2000  # patients that are dealt out one by one; of more, blocks of them are
LEVELS = 128  # of the values of more patients, at their quantiles

# What may look different, by the tests that reject.
NAMES = ("none", "prevalence", "both_classes", "negative_class", "positive_class", "unnamed")


class Shift(NamedTuple):
    """A measure of difference, and the share of deals by lot that differ as much: the p-value."""

    observed: float
    p_value: float


def or_absent(test: Callable[..., Shift], *arrays: ArrayLike, **options: Any) -> dict[str, Any]:
    """A test's measure and p-value, or the reason why there is none."""
    try:
        return test(*arrays, **options)._asdict()
    except ValueError as error:
        return {"absent": str(error)}


def feature_space(train: ArrayLike, *, n_components: int) -> Callable[[ArrayLike], FloatArray]:
    """The way from features (n, d) to the principal components, at most so many, of the standardised features of train.

    Returns a function to (n, components).
    """
    known = np.asarray(train)
    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread[spread == 0] = 1
    space = PCA(min(n_components, *known.shape), svd_solver="full").fit((known - mean) / spread)
    return lambda features: np.asarray(space.transform((np.asarray(features) - mean) / spread))


def domain_test(
    features: ArrayLike,
    site: ArrayLike,
    groups: ArrayLike,
    *,
    n_folds: int,
    n_foldings: int,
    n_permutations: int,
    rng: np.random.Generator,
) -> Shift:
    """How well a linear classifier tells site from source (AUC), and whether the patients' mean features differ (p).

    The p-value is that of a ridge form of Hotelling's T^2 over the patients' mean features x, standardised:

        T^2 = u' (C + 4 RIDGE / n I)^-1 u,  u = sum of x over the site's patients,  C = x'x / n

    which no permutation has to fit anew, since C is the same however the n patients are dealt. It grows with how well
    a linear discriminant fits the domains, and finds what a cross-validated AUC finds, with more power (Rosenblatt et
    al. 2021, "Better-than-chance classification for signal detection"). A difference that leaves all means as they are
    is not seen.

    observed, the effect size, is the AUC in [0, 1] of a logistic regression (ridge RIDGE) on patients that it has not
    seen (Lopez-Paz & Oquab 2017; Rabanser et al. 2019), the mean over `n_foldings` ways to cut the folds; 0.5 is not
    at all. Scores are compared within a fold only: those of different fits have different levels, and across folds
    even a blind classifier comes out below 0.5.

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
    label = domain[patient]
    folds = [patient_folds(np.zeros(patient.size), patient, n_folds=n_folds, rng=rng) for _ in range(n_foldings)]
    auc = float(np.mean([_auc_across_folds(_standardised(x), label, fold) for fold in folds]))

    n = domain.size
    sums = np.zeros((n, x.shape[1]))
    np.add.at(sums, patient, x)
    means = _standardised(sums / np.bincount(patient)[:, None])
    root = np.linalg.cholesky(means.T @ means / n + 4 * RIDGE / n * np.eye(means.shape[1]))
    white = np.linalg.solve(root, means.T).T
    if n > DEALT:
        block, domain = _blocks(domain, rng)
        white = np.stack([np.bincount(block, weights=column) for column in white.T], axis=1)
    return Shift(auc, _p_value(lambda dealt: ((dealt @ white) ** 2).sum(axis=1), domain, n_permutations, rng)[1])


def _standardised(x: FloatArray) -> FloatArray:
    """Columns with mean 0 and standard deviation 1; constant ones are 0."""
    spread = x.std(axis=0)
    varies = spread > 1e-9 * np.abs(x).max(initial=0)
    return np.where(varies, (x - x.mean(axis=0)) / np.where(varies, spread, 1), 0)


def _auc_across_folds(x: FloatArray, site: FloatArray, fold: IntArray) -> float:
    """AUC of telling the domains (n,) apart out of fold, pairs of one fold only."""
    design = np.column_stack([np.ones(len(x)), x])
    wins = pairs = 0.0
    for k in np.unique(fold):
        out = fold == k
        n_pairs = site[out].sum() * (1 - site[out]).sum()
        if not n_pairs:
            continue
        weights = np.ones(int((~out).sum()))
        beta = fit_logistic(design[~out], site[~out], weights=weights, ridge=RIDGE, centre=np.zeros(design.shape[1]))
        wins += n_pairs * float(auroc(site[out], design[out] @ beta[0]))
        pairs += n_pairs
    if not pairs:
        raise ValueError("too few patients to compare: no fold holds patients of both places")
    return wins / pairs


def kolmogorov_smirnov(
    values: ArrayLike, site: ArrayLike, groups: ArrayLike, *, n_permutations: int, rng: np.random.Generator
) -> Shift:
    """Largest distance in [0, 1] of the distribution functions of `values` (n,) at site and source.

    The statistic of the two-sample Kolmogorov-Smirnov test; the p-value is by permuting patients. Arguments as in
    `domain_test`. Of more than 2,000 patients it is looked for at 128 quantiles of all values alone: a difference that
    lies between two of them is at most 1 / 128 larger.
    """
    patient, domain = _patients(site, groups)
    v = as_finite(values, name="values", n=patient.size)
    if domain.size > DEALT:
        block, domain = _blocks(domain, rng)
        edges = np.unique(np.quantile(v, np.arange(1, LEVELS + 1) / LEVELS, method="inverted_cdf"))
        cell = block[patient] * edges.size + np.searchsorted(edges, v)
        counts = np.bincount(cell, minlength=domain.size * edges.size).reshape(domain.size, edges.size)
        below = counts.cumsum(axis=1).astype(float)
        return Shift(*_p_value(lambda dealt: _farthest(dealt @ below, below.sum(axis=0)), domain, n_permutations, rng))
    order = np.argsort(v, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(v[order])), v.size - 1)

    def distance(dealt: FloatArray) -> FloatArray:
        return _farthest(np.cumsum(dealt[:, patient[order]], axis=1)[:, last_of_ties], last_of_ties + 1)

    return Shift(*_p_value(distance, domain, n_permutations, rng))


def _farthest(up_to: FloatArray, of_both: ArrayLike) -> FloatArray:
    """Distance (deals,) of distribution functions, from the site's cases (deals, levels) and all up to each level."""
    n_site, counted = up_to[:, -1:], np.asarray(of_both)
    return np.asarray(np.abs(up_to / n_site - (counted - up_to) / (counted[-1] - n_site)).max(axis=1))


def share_distance(
    values: ArrayLike, site: ArrayLike, groups: ArrayLike, *, n_permutations: int, rng: np.random.Generator
) -> Shift:
    """Distance in [0, 1] of the shares that each of the `values` (n,), words or classes, has at site and source.

    Total variation, sum_v |p(v) - q(v)| / 2: the share of the site's images that would need another value; of two
    classes the difference of prevalences. p by permuting patients, arguments as in `domain_test`.
    """
    patient, domain = _patients(site, groups)
    words, code = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    if code.size != patient.size:
        raise ValueError(f"values must be as many as the cases ({patient.size}), found {code.size}")
    if domain.size > DEALT:
        block, domain = _blocks(domain, rng)
        patient = block[patient]
    occurs = np.zeros((domain.size, len(words)))
    np.add.at(occurs, (patient, code), 1)

    def distance(dealt: FloatArray) -> FloatArray:
        here = dealt @ occurs
        there = occurs.sum(axis=0) - here
        shares = (part / part.sum(axis=1, keepdims=True) for part in (here, there))
        return np.asarray(np.abs(np.subtract(*shares)).sum(axis=1) / 2)

    return Shift(*_p_value(distance, domain, n_permutations, rng))


def name_shift(*, negative: ArrayLike, positive: ArrayLike, prevalence: float, pooled: ArrayLike) -> str:
    """Which of `NAMES` these p-values speak for, all of them adjusted for their number together.

    negative, positive: of the tests within one class; pooled: of those that look at both classes at once, which
    also see a change of prevalence; prevalence: of `share_distance` of the classes. A test rejects where p < 0.05:

    - within both classes: `both_classes`; within one: `negative_class` or `positive_class`;
    - within none, but the prevalence: `prevalence`; only pooled: `unnamed`; nothing: `none`.

    The name describes what looks different and says nothing about harm. That a class is not named says that no
    difference was shown in it, and depends on how many patients were looked at.

    >>> name_shift(negative=[0.01, 0.3], positive=[0.2], prevalence=0.6, pooled=[0.01])
    'negative_class'
    """
    rejects = [bool(np.min(p_values) < LEVEL) for p_values in (negative, positive, prevalence, pooled)]
    in_negative, in_positive, *_ = rejects
    names = ("negative_class", "positive_class", "prevalence", "unnamed")
    if in_negative and in_positive:
        return "both_classes"
    return next((name for name, rejected in zip(names, rejects, strict=True) if rejected), "none")


def _patients(site: ArrayLike, groups: ArrayLike) -> tuple[IntArray, FloatArray]:
    """The patient of each case (n,), and whether each patient (patients,) belongs to the site."""
    patient, names = pd.factorize(np.asarray(groups), sort=True)
    label = as_binary(site, name="site", n=patient.size)
    n_site = np.bincount(patient, weights=label)
    both = np.flatnonzero((n_site > 0) & (n_site < np.bincount(patient)))
    if both.size:
        raise ValueError(f"patient {names[both[0]]} belongs to the site and to the source")
    domain = (n_site > 0).astype(float)
    if domain.all() or not domain.any():
        raise ValueError("cases of the site and of the source are needed, found those of one alone")
    return patient, domain


def _blocks(domain: FloatArray, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
    """The block of each patient, ceil(patients / 2,000) of one place by lot making one, and the place of each block.

    To deal out blocks is to deal out patients in some of the ways only, and as valid, but for the last block of a
    place, which may be smaller. What is lost is power, as of a t-test with a thousand degrees of freedom beside one
    with more.
    """
    size = -(-domain.size // DEALT)
    lot = rng.permutation(domain.size)
    dealt = lot[np.argsort(domain[lot], kind="stable")]
    n_source = int((domain == 0).sum())
    n_blocks = -(-n_source // size)
    number = np.concatenate([np.arange(n_source) // size, n_blocks + np.arange(domain.size - n_source) // size])
    block = np.empty(domain.size, dtype=np.intp)
    block[dealt] = number
    return block, (np.arange(number[-1] + 1) >= n_blocks).astype(float)


def _p_value(
    statistic: Callable[[FloatArray], FloatArray], domain: FloatArray, n_permutations: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The statistic, (deals, patients) to (deals,), of the domains as they are, and (1 + as large) / (1 + deals)."""
    observed = float(statistic(domain[None])[0])
    least = observed - 1e-9 * max(1, abs(observed))  # equal sums in another order differ in the last digits
    as_large, batch = 0, max(1, CELLS // domain.size)
    for start in range(0, n_permutations, batch):
        dealt = np.tile(domain, (min(batch, n_permutations - start), 1))
        as_large += int((statistic(rng.permuted(dealt, axis=1)) >= least).sum())
    return observed, (1 + as_large) / (1 + n_permutations)
