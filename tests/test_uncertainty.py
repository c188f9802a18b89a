import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import entropy, norm
from sklearn.covariance import LedoitWolf
from torch import nn

from tmv_lib.network import classifier
from tmv_lib.uncertainty.distance import mahalanobis_distance, nearest_neighbour_distance
from tmv_lib.uncertainty.entropy import dropout_limit, entropy_decomposition, mc_dropout_probs, model_share, quadrant


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


def test_entropies_are_scipys(rng):
    probs = rng.random((6, 50))
    each = entropy(np.stack([probs, 1 - probs]), axis=0)
    whole = entropy([probs.mean(0), 1 - probs.mean(0)], axis=0)
    np.testing.assert_allclose(entropy_decomposition(probs), [whole, each.mean(0), whole - each.mean(0)], atol=1e-14)


def test_order_of_members_is_immaterial(rng):
    probs = rng.random((9, 40))
    shuffled = entropy_decomposition(rng.permutation(probs, axis=0))
    np.testing.assert_allclose(shuffled, entropy_decomposition(probs), rtol=1e-12, atol=1e-14)


class SameMask(nn.Module):
    """Dropout that keeps the features it is given, the same of every case."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.kept = torch.empty(0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.kept / (1 - self.rate)


@pytest.mark.parametrize("architecture", ["resnet18", "densenet121"])
def test_passes_on_saved_features_are_full_passes_of_the_network(rng, architecture):
    torch.manual_seed(0)
    rate, passes = 0.3, 3
    model = classifier.build(architecture, weights="none", dropout=rate)
    images = rng.integers(0, 256, (4, 64, 64), dtype=np.uint8)
    features = classifier.predict(model, images, batch_size=4).features
    weight, bias = model.head.weight.detach().numpy()[0], model.head.bias.item()
    probs = mc_dropout_probs(features, weight, bias, rate=rate, passes=passes, generator=np.random.default_rng(4))

    masks = torch.from_numpy(np.random.default_rng(4).random((passes, features.shape[1])) >= rate)
    model.dropout = SameMask(rate)
    batch = model.normalise(classifier.as_levels(images, torch.device("cpu")))
    for kept, of_pass in zip(masks, probs):
        model.dropout.kept = kept
        with torch.no_grad():
            np.testing.assert_allclose(of_pass, torch.sigmoid(model(batch)).numpy(), rtol=1e-5)
    assert np.ptp(probs, axis=0).min() > 0


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


def test_what_is_drawn_for_a_case_does_not_depend_on_the_others(rng):
    features, weight, bias = head(rng)
    options = {"rate": 0.5, "passes": 3}
    everyone = mc_dropout_probs(features, weight, bias, generator=np.random.default_rng(2), **options)
    some = mc_dropout_probs(features[[7, 3]], weight, bias, generator=np.random.default_rng(2), **options)
    np.testing.assert_allclose(some, everyone[:, [7, 3]], rtol=1e-12)


def test_share_dropped_is_the_rate():
    # one feature of weight 1 a case: the logit is 0 where it was dropped, 1 / (1 - rate) where it was kept
    probs = mc_dropout_probs(np.eye(500), np.ones(500), 0.0, rate=0.3, passes=200, generator=np.random.default_rng(0))
    dropped = probs == 0.5
    np.testing.assert_allclose(probs[~dropped], expit(1 / 0.7), rtol=1e-12)
    assert dropped.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / dropped.size))


def test_longer_run_begins_with_the_shorter(rng):
    features, weight, bias = head(rng)
    short, long = (
        mc_dropout_probs(features, weight, bias, rate=0.2, passes=t, generator=np.random.default_rng(3)) for t in (4, 9)
    )
    np.testing.assert_allclose(long[:4], short, rtol=1e-13)


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


def clusters(rng, n=400):
    """Two correlated Gaussian classes and the covariance that they share."""
    covariance = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, 0.0], [0.0, 0.0, 0.25]])
    label = np.arange(n) % 2
    rows = rng.multivariate_normal(np.zeros(3), covariance, n) + 5 * label[:, None]
    return rows, label, covariance


def test_mahalanobis_distance_is_scikit_learns(rng):
    reference, label, _ = clusters(rng)
    cases = rng.normal(0, 6, (50, 3))
    means = np.stack([reference[label == c].mean(0) for c in (0, 1)])
    pooled = LedoitWolf(assume_centered=True).fit(reference - means[label])
    expected = np.sqrt(np.min([pooled.mahalanobis(cases - mean) for mean in means], axis=0))
    np.testing.assert_allclose(mahalanobis_distance(cases, reference, label), expected, rtol=1e-10)


def test_mahalanobis_distance_counts_standard_deviations(rng):
    reference, label, covariance = clusters(rng, n=40_000)
    direction = np.linalg.cholesky(covariance) @ np.array([0.6, 0.0, 0.8])  # one standard deviation away
    distance = mahalanobis_distance([-2 * direction, 5 + 3 * direction], reference, label)
    np.testing.assert_allclose(distance, [2, 3], rtol=0.02)


def test_mahalanobis_distance_survives_more_features_than_cases(rng):
    reference = rng.normal(size=(30, 100))
    distance = mahalanobis_distance(np.vstack([reference, 9 * reference]), reference, np.arange(30) % 2)
    assert distance[30:].min() > distance[:30].max()


@pytest.mark.parametrize("distance", [nearest_neighbour_distance, mahalanobis_distance])
def test_distance_of_a_case_does_not_depend_on_the_others(rng, distance):
    reference, label, _ = clusters(rng)
    option = {"k": 3} if distance is nearest_neighbour_distance else {"label": label}
    cases = rng.normal(size=(20, 3))
    np.testing.assert_allclose(
        distance(cases[::-1], reference, **option)[::-1], distance(cases, reference, **option), rtol=1e-12
    )


def test_quadrants_by_hand():
    found = quadrant([0, 1, 0, 1], [0.9, 1.0, 0.5, 0.899], confident=0.9)
    assert found.tolist() == ["confident_right", "confident_error", "doubtful_right", "doubtful_error"]


@pytest.mark.parametrize("error", [0, 1])
def test_quadrants_without_errors_and_with_nothing_else(error):
    found = quadrant(np.full(3, error), [0.6, 0.95, 1.0], confident=0.9)
    word = ("right", "error")[error]
    assert found.tolist() == [f"doubtful_{word}", f"confident_{word}", f"confident_{word}"]


def test_share_of_the_models_doubt_by_hand():
    assert model_share([0.4, 0.6, 0.0], [0.1, 0.4, 0.0]) == pytest.approx(0.5)
    weighted = model_share([0.4, 0.6], [0.1, 0.4], weights=np.array([[1, 0], [0, 1], [1, 1]]))
    np.testing.assert_allclose(weighted, [1 / 4, 2 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("member_probs", "words"),
    [
        ([0.2, 0.3], "members, cases"),
        ([[0.2, 0.3]], "at least 2"),  # one pass
        ([[0.2, 1.1], [0.2, 0.2]], "0, 1"),
        ([[0.2, np.nan], [0.2, 0.2]], "0, 1"),
        ([[], []], "found"),
    ],
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": np.ones((2, 4))}, "same d"),
        ({"features": np.full((2, 3), np.nan)}, "finite"),
        ({"label": np.ones(6)}, "both classes"),
        ({"label": np.arange(6)}, "0 and 1"),
        ({"label": [0, 1]}, "one value a case"),
        ({"reference": np.ones((6, 3))}, "vary"),
    ],
)
def test_bad_reference(rng, change, words):
    arguments = {"features": np.ones((2, 3)), "reference": rng.normal(size=(6, 3)), "label": np.arange(6) % 2} | change
    with pytest.raises(ValueError, match=words):
        mahalanobis_distance(**arguments)


@pytest.mark.parametrize(
    ("error", "confidence", "confident"),
    [([0, 2], [0.6, 0.7], 0.9), ([0], [0.6, 0.7], 0.9), ([0], [0.3], 0.9), ([0], [np.nan], 0.9), ([0], [0.6], 0.5)],
)
def test_bad_quadrant(error, confidence, confident):
    with pytest.raises(ValueError, match="must"):
        quadrant(error, confidence, confident=confident)


@pytest.mark.parametrize(
    ("predictive", "mutual"), [([0.0, 0.0], [0.0, 0.0]), ([0.1], [0.1, 0.2]), ([np.nan], [0.1]), ([-0.1], [0.1])]
)
def test_bad_share(predictive, mutual):
    with pytest.raises(ValueError, match="must"):
        model_share(predictive, mutual)


def test_members_that_agree_dispute_exactly_nothing():
    p = np.random.default_rng(0).random(1000)
    assert not entropy_decomposition(np.tile(p, (7, 1))).mutual_information.any()
