"""How unsure a model is, and which kind of doubt it is. All entropies are in nats, in [0, ln 2]."""

from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.special import entr, expit
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from tmv_lib.statistics import as_binary, as_finite, as_weights

QUADRANTS = ("confident_right", "confident_error", "doubtful_right", "doubtful_error")
ROUNDING = 1e-12  # nats
_HERMITE_NODES = 100  # entropies within 1e-6 up to a logit standard deviation of 4


class EntropyDecomposition(NamedTuple):
    """Total doubt = doubt of each member (aleatoric) + disagreement of the members (epistemic)."""

    predictive_entropy: NDArray[np.float64]
    expected_entropy: NDArray[np.float64]
    mutual_information: NDArray[np.float64]


class DropoutLimit(NamedTuple):
    """What infinitely many dropout passes would say of each case."""

    mean_probability: NDArray[np.float64]
    predictive_entropy: NDArray[np.float64]
    expected_entropy: NDArray[np.float64]
    mutual_information: NDArray[np.float64]


def entropy_decomposition(member_probs: ArrayLike) -> EntropyDecomposition:
    """Split the entropy of the mean probability into what each member doubts and what they dispute.

    Depeweg et al. 2018 (arXiv 1710.07283). With few members the mutual information is biased downwards.

    member_probs: (members, cases) probability of the positive class, in [0, 1]; a member is a network, a dropout
    pass, or a changed copy of the image.

    Returns three arrays (cases,); mutual information is clamped at 0, where rounding would make it negative.
    Raises ValueError if the shape is not (members, cases) with at least 2 members, since one disputes nothing,
    or a value lies outside [0, 1].

    >>> agree, dispute = entropy_decomposition([[0.5, 0.0], [0.5, 1.0]]).mutual_information
    >>> round(float(agree), 4), round(float(dispute), 4)
    (0.0, 0.6931)
    """
    member_probs = np.asarray(member_probs, dtype=float)
    if member_probs.ndim != 2 or len(member_probs) < 2 or not member_probs.size:
        raise ValueError(f"member_probs must be (members, cases), members at least 2, found {member_probs.shape}")
    if not np.all((member_probs >= 0) & (member_probs <= 1)):
        raise ValueError("member_probs must lie in [0, 1], found a value outside or not a number")

    # h(pbar) = mean_t h(p_t) + MI,  h(p) = -p ln p - (1 - p) ln(1 - p)
    predictive = _binary_entropy(member_probs.mean(axis=0))
    expected = _binary_entropy(member_probs).mean(axis=0)
    # members that say the same differ by rounding alone, and dispute nothing
    dispute = predictive - expected
    return EntropyDecomposition(predictive, expected, np.where(dispute > ROUNDING, dispute, 0))


def mc_dropout_probs(
    features: ArrayLike,
    weight: ArrayLike,
    bias: float,
    *,
    rate: float,
    passes: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Probabilities of repeated passes with dropout in front of the linear head.

    Monte Carlo dropout (Gal & Ghahramani 2016). Only the head is repeated: under the same masks this equals
    full passes of the network, whose body is the same in each. A pass is one thinned network that reads every
    case (consistent masks, Kirsch et al. 2019, arXiv 1906.08158), where torch draws a mask a case: the law of
    each case's passes is the same, what is drawn for a case does not depend on the others, and all passes are
    one product of matrices. The first passes of a longer run with the same seed are those of a shorter one.

    features: (cases, d) input of the head in evaluation mode.
    weight, bias: (d,) and a number, the head.
    rate: share of features dropped, in [0, 1); the kept ones are divided by 1 - rate.
    passes: number of passes, at least 1.

    Returns (passes, cases), the probability of the positive class. Raises ValueError if shapes disagree, a
    value is not finite, or `rate` or `passes` is out of range.
    """
    features, weight = _checked_head(features, weight, bias, rate)
    if passes < 1:
        raise ValueError(f"passes must be at least 1, found {passes}")

    # p_t = sigmoid(sum_j m_tj w_j x_j / (1 - rate) + bias),  m_tj ~ Bernoulli(1 - rate)
    kept = generator.random((passes, weight.size)) >= rate
    return expit((kept * weight / (1 - rate)) @ features.T + bias)


def dropout_limit(features: ArrayLike, weight: ArrayLike, bias: float, *, rate: float) -> DropoutLimit:
    """What `mc_dropout_probs` converges to as the passes grow, without sampling.

    The dropped logit is a sum of d independent terms, taken as Normal (Wang & Manning 2013, fast dropout):
    accurate where many features share the weight, not where one feature carries it.

    Arguments as in `mc_dropout_probs`. Returns four arrays (cases,). Raises ValueError if shapes disagree, a
    value is not finite, or `rate` is out of range.
    """
    features, weight = _checked_head(features, weight, bias, rate)

    # logit ~ Normal(z, s^2),  z = w.x + bias,  s^2 = rate / (1 - rate) sum_j w_j^2 x_j^2
    mean = features @ weight + bias
    deviation = np.sqrt(rate / (1 - rate) * np.einsum("nd,nd,d->n", features, features, weight**2))

    # E f(logit) ~ sum_i v_i f(z + s u_i), Gauss-Hermite nodes u_i, weights v_i that sum to 1
    nodes, node_weights = hermegauss(_HERMITE_NODES)
    node_weights /= node_weights.sum()
    probs = expit(mean + np.outer(nodes, deviation))
    mean_probability = node_weights @ probs
    predictive = _binary_entropy(mean_probability)
    expected = node_weights @ _binary_entropy(probs)
    return DropoutLimit(mean_probability, predictive, expected, np.maximum(predictive - expected, 0))


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


def recalibrated(y_prob: ArrayLike, *, raw: ArrayLike, calibrated: ArrayLike) -> NDArray[np.float64]:
    """What the calibrator would make of a probability, read off cases (n,) that have both a raw and a calibrated one.

    Calibrators do not reverse a ranking: between two cases the map is drawn straight, beyond the outermost flat.

    y_prob: any shape, in [0, 1]. Returns the same shape. Raises ValueError outside [0, 1] and for lengths that differ.

    >>> recalibrated([[0.25, 1.0]], raw=[0, 0.5], calibrated=[0.25, 0.75]).tolist()
    [[0.5, 0.75]]
    """
    probs = as_finite(np.ravel(y_prob), name="y_prob", low=0, high=1)
    known, first = np.unique(as_finite(raw, name="raw", low=0, high=1), return_index=True)
    target = as_finite(calibrated, name="calibrated", n=np.size(raw), low=0, high=1)
    return np.interp(probs, known, target[first]).reshape(np.shape(y_prob))


def quadrant(error: ArrayLike, confidence: ArrayLike, *, confident: float) -> NDArray[np.str_]:
    """Confidence against correctness, one of QUADRANTS a case: genuine doubt, and confident mistakes.

    error: (n,) in {0, 1}. confidence: (n,) max(p, 1 - p), in [0.5, 1]. confident: the confidence from which a case
    counts as confident, in (0.5, 1). Raises ValueError for anything else.

    >>> quadrant([0, 1], [0.9, 0.6], confident=0.9).tolist()
    ['confident_right', 'doubtful_error']
    """
    wrong = as_binary(error, name="error")
    doubtful = as_finite(confidence, name="confidence", n=wrong.size, low=0.5, high=1) < confident
    if not 0.5 < confident < 1:
        raise ValueError(f"confident must lie in (0.5, 1), found {confident}")
    return np.array(QUADRANTS)[(2 * doubtful + wrong).astype(int)]


def model_share(
    predictive_entropy: ArrayLike, mutual_information: ArrayLike, *, weights: ArrayLike | None = None
) -> Any:
    """Share of all doubt that is the model's (mutual information), in [0, 1]; the rest is the image's.

    Both (n,) in nats; weights as in `tmv_lib.statistics`. Raises ValueError where nothing is doubted at all.
    """
    total = as_finite(predictive_entropy, name="predictive_entropy", low=0)
    of_model = as_finite(mutual_information, name="mutual_information", n=total.size, low=0)
    w = as_weights(weights, n=total.size)
    if not (w @ total > 0).all():
        raise ValueError("predictive_entropy must be above 0 somewhere, found no doubt at all")
    return w @ of_model / (w @ total)


def _binary_entropy(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    return entr(probs) + entr(1 - probs)


def _checked_head(
    features: ArrayLike, weight: ArrayLike, bias: float, rate: float
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    features, weight = np.asarray(features, dtype=float), np.asarray(weight, dtype=float)
    if features.ndim != 2 or weight.shape != features.shape[1:]:
        raise ValueError(f"features must be (cases, d) and weight (d,), found {features.shape} and {weight.shape}")
    if not (np.isfinite(features).all() and np.isfinite(weight).all() and np.isfinite(bias)):
        raise ValueError("features, weight and bias must be finite")
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), found {rate}")
    return features, weight


def _checked_features(features: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    features, reference = np.asarray(features, dtype=float), np.asarray(reference, dtype=float)
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features and reference must be (cases, d) with the same d, found {features.shape} and {reference.shape}"
        )
    if not (np.isfinite(features).all() and np.isfinite(reference).all()):
        raise ValueError("features and reference must be finite")
    return features, reference
