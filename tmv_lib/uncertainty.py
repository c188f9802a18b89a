"""How unsure a model is, and which kind of doubt it is. All entropies are in nats, in [0, ln 2]."""

from typing import NamedTuple

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, expit
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

_DRAWS_AT_ONCE = 2**20  # bounds the memory of one block of dropout masks; changes no figure
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

    member_probs: (members, cases) probability of the positive class, in [0, 1].

    Returns three arrays (cases,); mutual information is clamped at 0, where rounding would make it negative.
    Raises ValueError if the shape is not (members, cases) or a value lies outside [0, 1].

    >>> agree, dispute = entropy_decomposition([[0.5, 0.0], [0.5, 1.0]]).mutual_information
    >>> round(float(agree), 4), round(float(dispute), 4)
    (0.0, 0.6931)
    """
    member_probs = np.asarray(member_probs, dtype=float)
    if member_probs.ndim != 2 or not member_probs.size:
        raise ValueError(f"member_probs must be (members, cases), found shape {member_probs.shape}")
    if not np.all((member_probs >= 0) & (member_probs <= 1)):
        raise ValueError("member_probs must lie in [0, 1], found a value outside or not a number")

    # h(pbar) = mean_t h(p_t) + MI,  h(p) = -p ln p - (1 - p) ln(1 - p)
    predictive = _binary_entropy(member_probs.mean(axis=0))
    expected = _binary_entropy(member_probs).mean(axis=0)
    return EntropyDecomposition(predictive, expected, np.maximum(predictive - expected, 0))


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
    full passes of the network, whose body is the same in each. The first passes of a longer run with the
    same seed are the passes of a shorter one.

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
    n_cases, width = features.shape
    rows = max(1, _DRAWS_AT_ONCE // width)

    # p_t = sigmoid(sum_j m_tj w_j x_j / (1 - rate) + bias),  m_tj ~ Bernoulli(1 - rate)
    logits = np.empty((passes, n_cases))
    for one_pass in logits:
        for start in range(0, n_cases, rows):
            block = features[start : start + rows]
            kept = generator.random(block.shape, dtype=np.float32) >= rate
            one_pass[start : start + rows] = (block * kept) @ weight
    return expit(logits / (1 - rate) + bias)


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
    features, reference = np.asarray(features), np.asarray(reference)
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features and reference must be (cases, d) with the same d, found {features.shape} and {reference.shape}"
        )
    if not 1 <= k <= len(reference):
        raise ValueError(f"k must lie in 1 to {len(reference)} (the training cases), found {k}")
    for name, rows in (("features", features), ("reference", reference)):
        if not np.isfinite(rows).all() or not rows.any(axis=1).all():
            raise ValueError(f"{name} must be finite with no all-zero row")

    # |a - b|^2 / 2 = 1 - cos(a, b) for unit vectors
    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="sqeuclidean")
    squared, _ = search.fit(normalize(reference)).kneighbors(normalize(features))
    return squared.mean(axis=1, dtype=float) / 2


def _binary_entropy(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    return entr(probs) + entr(1 - probs)


def _checked_head(
    features: ArrayLike, weight: ArrayLike, bias: float, rate: float
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    features, weight = np.asarray(features), np.asarray(weight, dtype=float)
    if features.ndim != 2 or weight.shape != features.shape[1:]:
        raise ValueError(f"features must be (cases, d) and weight (d,), found {features.shape} and {weight.shape}")
    if not (np.isfinite(features).all() and np.isfinite(weight).all() and np.isfinite(bias)):
        raise ValueError("features, weight and bias must be finite")
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), found {rate}")
    return features, weight
