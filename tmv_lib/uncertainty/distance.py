"""How unlike the training cases a case is, by the network's pooled features."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from tmv_lib.statistics.arrays import as_binary


def nearest_neighbour_distance(features: ArrayLike, reference: ArrayLike, *, k: int) -> NDArray[np.float64]:
    """How unlike the training images a case is: mean cosine distance to its k nearest training cases.

    Sun et al. 2022 (arXiv 2204.06507) found that neighbours tell foreign images only after each feature
    vector is scaled to unit length, and took the k-th Euclidean distance; half its square is the cosine
    distance, whose mean over the k is less jumpy with few training cases.

    features: (cases, d) pooled features of the cases to judge.
    reference: (training cases, d). A case that is itself among them finds itself at distance 0.
    k: neighbours, from 1 to the number of training cases.

    Returns (cases,) in [0, 2]. Raises ValueError if shapes disagree, a value is not finite, a row is all zero
    (it has no direction), or `k` is out of range.
    """
    features, reference = _checked_features(features, reference)
    if not 1 <= k <= len(reference):
        raise ValueError(f"k must lie in 1 to {len(reference)} (the training cases), found {k}")
    if not (features.any(axis=1).all() and reference.any(axis=1).all()):
        raise ValueError("features and reference must have a direction, found a row of zeros")

    # |a - b|^2 / 2 = 1 - cos(a, b) for unit vectors
    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="sqeuclidean")
    squared, _ = search.fit(normalize(reference)).kneighbors(normalize(features))
    return squared.mean(axis=1, dtype=float) / 2


def mahalanobis_distance(features: ArrayLike, reference: ArrayLike, label: ArrayLike) -> NDArray[np.float64]:
    """How unlike the training images a case is: distance to the nearer class mean, in standard deviations.

    Lee et al. 2018 (arXiv 1807.03888): one Gaussian a class with a covariance that the classes share. Theirs is
    the empirical one; with about as many features as training cases it has no inverse, so it is shrunk towards a
    multiple of the identity (Ledoit & Wolf 2004).

    features: (cases, d) pooled features of the cases to judge.
    reference, label: (training cases, d), and the class of each in {0, 1}, both of them present.

    Returns (cases,), at least 0. Raises ValueError if shapes disagree, a value is not finite, a class is missing,
    or the reference does not vary.
    """
    features, reference = _checked_features(features, reference)
    y = as_binary(label, name="label", n=len(reference)).astype(int)
    if len(np.unique(y)) < 2:
        raise ValueError("label must hold both classes, found one class only")

    # M(x) = min_c sqrt((x - mu_c)' S^-1 (x - mu_c)),  S = L L',  so M(x) = min_c |L^-1 (x - mu_c)|
    means = np.stack([reference[y == c].mean(axis=0) for c in (0, 1)])
    covariance, _ = ledoit_wolf(reference - means[y], assume_centered=True)
    try:
        lower = cholesky(covariance, lower=True)
    except LinAlgError:
        raise ValueError("reference must vary within its classes, found rows that are all alike") from None
    whitened, centres = (solve_triangular(lower, rows.T, lower=True).T for rows in (features, means))
    return np.min([np.linalg.norm(whitened - centre, axis=1) for centre in centres], axis=0)


def _checked_features(features: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    features, reference = np.asarray(features, dtype=float), np.asarray(reference, dtype=float)
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features and reference must be (cases, d) with the same d, found {features.shape} and {reference.shape}"
        )
    if not (np.isfinite(features).all() and np.isfinite(reference).all()):
        raise ValueError("features and reference must be finite")
    return features, reference
