import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from tmv_lib import uncertainty
from tmv_lib.uncertainty import (
    dropout_limit,
    entropy_decomposition,
    mc_dropout_probs,
    nearest_neighbour_distance,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def head(rng, n_cases=30, width=512):
    features = rng.gamma(1.0, size=(n_cases, width)).astype(np.float32)
    return features, rng.normal(0, 2 / np.sqrt(width), width), -0.3


def binary_entropy(p):
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def test_total_entropy_is_the_sum_of_its_parts(rng):
    probs = rng.beta(0.3, 0.3, size=(7, 200))
    total, expected, mutual = entropy_decomposition(probs)
    np.testing.assert_allclose(total, expected + mutual, atol=1e-14)
    assert (mutual > 0).all()
    assert (total <= np.log(2)).all()


def test_members_in_agreement_share_no_information():
    mutual = entropy_decomposition(np.tile(np.linspace(0, 1, 1001), (7, 1))).mutual_information
    np.testing.assert_allclose(mutual, 0, atol=1e-15)
    assert (mutual >= 0).all()


def test_known_entropies():
    total, expected, mutual = entropy_decomposition([[0.2, 0.0], [0.6, 1.0]])
    np.testing.assert_allclose(total, [binary_entropy(0.4), np.log(2)], rtol=1e-14)
    np.testing.assert_allclose(expected, [(binary_entropy(0.2) + binary_entropy(0.6)) / 2, 0], rtol=1e-14)
    np.testing.assert_allclose(mutual, total - expected, rtol=1e-14)


def test_order_of_members_is_immaterial(rng):
    probs = rng.random((9, 40))
    shuffled = entropy_decomposition(rng.permutation(probs, axis=0))
    np.testing.assert_allclose(shuffled, entropy_decomposition(probs), rtol=1e-12, atol=1e-14)


def test_passes_equal_torch_under_the_same_masks(rng):
    features, weight, bias = head(rng)
    rate, passes = 0.3, 5
    probs = mc_dropout_probs(features, weight, bias, rate=rate, passes=passes, generator=np.random.default_rng(4))

    kept = np.random.default_rng(4).random((passes, *features.shape), dtype=np.float32) >= rate
    linear = torch.nn.Linear(features.shape[1], 1, dtype=torch.float64)
    linear.weight.data = torch.tensor(weight)[None]
    linear.bias.data = torch.tensor([bias], dtype=torch.float64)
    masked = torch.tensor(features, dtype=torch.float64) * torch.tensor(kept) / (1 - rate)
    with torch.no_grad():
        expected = torch.sigmoid(linear(masked)[..., 0]).numpy()
    np.testing.assert_allclose(probs, expected, rtol=1e-6)


def test_masks_drop_and_scale_as_torch_dropout_does():
    width, rate = 200_000, 0.2
    features = np.ones((1, width))
    weight = np.full(width, 1 / width)
    ours = mc_dropout_probs(features, weight, 0.0, rate=rate, passes=1, generator=np.random.default_rng(1))
    torch.manual_seed(1)
    theirs = torch.dropout(torch.ones(width), rate, train=True).mean().sigmoid().item()
    standard_error = np.sqrt(rate / (1 - rate) / width) / 4
    assert abs(ours[0, 0] - expit(1.0)) < 5 * standard_error
    assert abs(theirs - expit(1.0)) < 5 * standard_error


def test_masks_do_not_depend_on_the_block_size(rng, monkeypatch):
    features, weight, bias = head(rng)
    options = {"rate": 0.5, "passes": 3}
    whole = mc_dropout_probs(features, weight, bias, generator=np.random.default_rng(2), **options)
    monkeypatch.setattr(uncertainty, "_DRAWS_AT_ONCE", 7 * features.shape[1])
    blocks = mc_dropout_probs(features, weight, bias, generator=np.random.default_rng(2), **options)
    np.testing.assert_allclose(blocks, whole, rtol=1e-6)


def test_longer_run_begins_with_the_shorter(rng):
    features, weight, bias = head(rng)
    short, long = (
        mc_dropout_probs(features, weight, bias, rate=0.2, passes=t, generator=np.random.default_rng(3)) for t in (4, 9)
    )
    np.testing.assert_array_equal(long[:4], short)


def test_no_dropout_means_no_disagreement(rng):
    features, weight, bias = head(rng)
    probs = mc_dropout_probs(features, weight, bias, rate=0.0, passes=2, generator=rng)
    limit = dropout_limit(features, weight, bias, rate=0.0)
    np.testing.assert_allclose(probs[0], expit(features @ weight + bias), rtol=1e-6)
    np.testing.assert_allclose(limit.mean_probability, probs[1], rtol=1e-6)
    np.testing.assert_allclose(limit.mutual_information, 0, atol=1e-12)


def test_sampled_figures_converge_to_the_limit(rng):
    features, weight, bias = head(rng, n_cases=20)
    limit = dropout_limit(features, weight, bias, rate=0.3)
    probs = mc_dropout_probs(features, weight, bias, rate=0.3, passes=6000, generator=rng)
    standard_error = probs.std(axis=0) / np.sqrt(len(probs))
    assert (np.abs(probs.mean(axis=0) - limit.mean_probability) < 4.5 * standard_error + 2e-3).all()

    few, many = (np.array(entropy_decomposition(probs[:t])) for t in (20, 6000))
    few_error, many_error = (np.abs(figures - np.array(limit[1:])).mean(axis=1) for figures in (few, many))
    assert (many_error < 0.004).all()
    assert (many_error < few_error / 4).all()


def test_mutual_information_of_few_passes_is_too_small(rng):
    features, weight, bias = head(rng, n_cases=20)
    probs = mc_dropout_probs(features, weight, bias, rate=0.3, passes=2000, generator=rng)
    in_tens = [entropy_decomposition(ten).mutual_information for ten in probs.reshape(200, 10, 20)]
    assert (np.mean(in_tens, axis=0) < entropy_decomposition(probs).mutual_information).all()


def test_limit_is_the_integral_over_a_normal_logit():
    features, weight, bias, rate = np.array([[1.0, 2.0, -1.0]]), np.array([2.0, -0.5, 1.5]), 0.2, 0.5
    mean = 2.0 - 1.0 - 1.5 + 0.2
    deviation = np.sqrt(rate / (1 - rate) * (2.0**2 + 1.0**2 + 1.5**2))

    def expectation(function):
        density = norm(mean, deviation).pdf
        return quad(lambda z: function(expit(z)) * density(z), mean - 30, mean + 30, epsabs=1e-12)[0]

    limit = dropout_limit(features, weight, bias, rate=rate)
    assert limit.mean_probability[0] == pytest.approx(expectation(lambda p: p), abs=1e-6)
    assert limit.expected_entropy[0] == pytest.approx(expectation(binary_entropy), abs=1e-6)
    assert limit.predictive_entropy[0] == pytest.approx(binary_entropy(limit.mean_probability[0]), abs=1e-12)


def test_distance_to_training_cases_against_brute_force(rng):
    features, reference = rng.random((15, 8)), rng.random((40, 8))
    cosine = (features @ reference.T) / np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(reference, axis=1))
    expected = np.sort(1 - cosine, axis=1)[:, :5].mean(axis=1)
    distance = nearest_neighbour_distance(features, reference, k=5)
    np.testing.assert_allclose(distance, expected, atol=1e-12)
    scaled = nearest_neighbour_distance(3 * features, reference, k=5)
    np.testing.assert_allclose(scaled, distance, atol=1e-12)


def test_training_case_finds_itself_and_an_opposite_one_is_farthest():
    reference = np.eye(3)
    np.testing.assert_allclose(nearest_neighbour_distance(np.eye(3), reference, k=1), 0, atol=1e-12)
    np.testing.assert_allclose(nearest_neighbour_distance([[-1.0, 0, 0]], reference[:1], k=1), 2)


@pytest.mark.parametrize(
    ("member_probs", "words"),
    [([0.2, 0.3], "members, cases"), ([[0.2, 1.1]], "0, 1"), ([[0.2, np.nan]], "0, 1"), ([[]], "shape")],
)
def test_bad_member_probs(member_probs, words):
    with pytest.raises(ValueError, match=words):
        entropy_decomposition(member_probs)


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.ones(3)},
        {"weight": np.ones(2)},
        {"features": np.full((2, 3), np.nan)},
        {"bias": np.inf},
        {"rate": 1.0},
        {"rate": -0.1},
        {"passes": 0},
    ],
)
def test_bad_head(rng, change):
    arguments = {"features": np.ones((2, 3)), "weight": np.ones(3), "bias": 0.0, "rate": 0.5} | change
    passes = arguments.pop("passes", 2)
    with pytest.raises(ValueError, match="must"):
        mc_dropout_probs(**arguments, passes=passes, generator=rng)
    if "passes" not in change:
        with pytest.raises(ValueError, match="must"):
            dropout_limit(**arguments)


@pytest.mark.parametrize(
    ("features", "reference", "k"),
    [
        (np.ones((2, 3)), np.ones((4, 2)), 1),
        (np.ones((2, 3)), np.ones((4, 3)), 5),
        (np.ones((2, 3)), np.ones((4, 3)), 0),
        (np.zeros((2, 3)), np.ones((4, 3)), 1),
        (np.full((2, 3), np.nan), np.ones((4, 3)), 1),
    ],
)
def test_bad_features(features, reference, k):
    with pytest.raises(ValueError, match="must"):
        nearest_neighbour_distance(features, reference, k=k)
