"""How unsure a model is, and which kind of doubt it is. All entropies are in nats, in [0, ln 2]."""

from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, expit

from tmv_lib.statistics.arrays import as_binary, as_finite, as_weights

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


def mc_dropout_logits(
    features: ArrayLike,
    weight: ArrayLike,
    bias: float,
    *,
    rate: float,
    passes: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Logits of repeated passes with dropout in front of the linear head.

    Monte Carlo dropout (Gal & Ghahramani 2016). Only the head is repeated: under the same masks this equals
    full passes of the network, whose body is the same in each. A pass is one thinned network that reads every
    case (consistent masks, Kirsch et al. 2019, arXiv 1906.08158), where torch draws a mask a case: the law of
    each case's passes is the same, what is drawn for a case does not depend on the others, and all passes are
    one product of matrices. The first passes of a longer run with the same seed are those of a shorter one.

    features: (cases, d) input of the head in evaluation mode.
    weight, bias: (d,) and a number, the head.
    rate: share of features dropped, in [0, 1); the kept ones are divided by 1 - rate.
    passes: number of passes, at least 1.

    Returns (passes, cases). Raises ValueError if shapes disagree, a
    value is not finite, or `rate` or `passes` is out of range.
    """
    features, weight = _checked_head(features, weight, bias, rate)
    if passes < 1:
        raise ValueError(f"passes must be at least 1, found {passes}")

    # z_t = sum_j m_tj w_j x_j / (1 - rate) + bias,  m_tj ~ Bernoulli(1 - rate)
    kept = generator.random((passes, weight.size)) >= rate
    return np.asarray((kept * weight / (1 - rate)) @ features.T + bias)


def mc_dropout_probs(features: ArrayLike, weight: ArrayLike, bias: float, **options: Any) -> NDArray[np.float64]:
    """`mc_dropout_logits` as probabilities of the positive class, (passes, cases)."""
    return np.asarray(expit(mc_dropout_logits(features, weight, bias, **options)))


def dropout_limit(features: ArrayLike, weight: ArrayLike, bias: float, *, rate: float) -> DropoutLimit:
    """What `mc_dropout_probs` converges to as the passes grow, without sampling.

    The dropped logit is a sum of d independent terms, taken as Normal (Wang & Manning 2013, fast dropout):
    accurate where many features share the weight, not where one feature carries it.

    Arguments as in `mc_dropout_logits`. Returns four arrays (cases,). Raises ValueError if shapes disagree, a
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

    Both (n,) in nats; weights as in `tmv_lib.statistics.arrays`. Raises ValueError where nothing is doubted at all.
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
