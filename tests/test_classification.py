import numpy as np
import pytest
from sklearn import metrics

from tmv_lib.classification import (
    accuracy,
    brier_score,
    confusion_counts,
    f1_score,
    negative_log_likelihood,
    operating_point,
    sensitivity,
    specificity,
)

DECISION = [accuracy, sensitivity, specificity, f1_score]


def decided_cases(rng, n=200):
    y = (rng.random(n) < 0.4).astype(int)
    return y, np.where(rng.random(n) < 0.8, y, 1 - y)


@pytest.mark.parametrize("metric", [*DECISION, brier_score, negative_log_likelihood])
def test_weights_count_rows(metric):
    rng = np.random.default_rng(0)
    y, predicted = decided_cases(rng)
    counts = rng.integers(0, 4, size=(5, y.size))
    figures = metric(y, predicted, weights=counts)
    expected = [metric(np.repeat(y, row), np.repeat(predicted, row)) for row in counts]
    np.testing.assert_allclose(figures, expected, atol=1e-12)
    assert metric(y, predicted, weights=np.ones(y.size)) == pytest.approx(metric(y, predicted), abs=1e-15)
    order = rng.permutation(y.size)
    assert metric(y[order], predicted[order]) == pytest.approx(metric(y, predicted), abs=1e-15)


def test_counts_and_figures_of_a_small_table():
    y, predicted = [0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 0, 1, 1, 1]
    assert confusion_counts(y, predicted) == (2, 1, 1, 3)
    assert accuracy(y, predicted) == 5 / 7
    assert sensitivity(y, predicted) == 3 / 4
    assert specificity(y, predicted) == 2 / 3
    assert f1_score(y, predicted) == 2 * 3 / (2 * 3 + 1 + 1)
    assert confusion_counts(y, predicted, weights=np.full(7, 0.5)) == (1, 0.5, 0.5, 1.5)


def test_agreement_with_scikit_learn():
    rng = np.random.default_rng(1)
    y, predicted = decided_cases(rng)
    weights, p = rng.exponential(size=y.size), rng.uniform(0.01, 0.99, size=y.size)
    z = np.log(p / (1 - p))
    for ours, theirs in [
        (accuracy(y, predicted, weights=weights), metrics.accuracy_score(y, predicted, sample_weight=weights)),
        (sensitivity(y, predicted, weights=weights), metrics.recall_score(y, predicted, sample_weight=weights)),
        (
            specificity(y, predicted, weights=weights),
            metrics.recall_score(y, predicted, pos_label=0, sample_weight=weights),
        ),
        (f1_score(y, predicted, weights=weights), metrics.f1_score(y, predicted, sample_weight=weights)),
        (brier_score(y, p, weights=weights), metrics.brier_score_loss(y, p, sample_weight=weights)),
        (negative_log_likelihood(y, z, weights=weights), metrics.log_loss(y, p, sample_weight=weights)),
    ]:
        assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("wanted", [0.05, 0.5, 0.55, 0.95, 1.0])
@pytest.mark.parametrize("levels", [None, 1])
def test_operating_point_is_the_largest_threshold_that_reaches_the_sensitivity(wanted, levels):
    rng = np.random.default_rng(2)
    y = np.repeat([0, 1], [30, 20])
    score = rng.normal(size=50) + y
    score = score if levels is None else np.round(score, levels)
    threshold = operating_point(y, score, sensitivity=wanted)
    assert sensitivity(y, score > threshold) >= wanted
    assert sensitivity(y, score > np.nextafter(threshold, np.inf)) < wanted


def test_operating_point_counts_cases_exactly():
    # 14 of 25 is 0.56, though 0.56 * 25 = 14.000000000000002 in floating point
    score = np.arange(25.0)
    assert (score > operating_point(np.ones(25), score, sensitivity=0.56)).sum() == 14


def test_likelihood_and_brier_of_known_cases():
    assert negative_log_likelihood([0, 1], [0.0, 0.0]) == pytest.approx(np.log(2))
    assert negative_log_likelihood([1, 0], [-800.0, -800.0]) == 400.0
    assert brier_score([0, 1], [0.5, 1.0]) == 0.125


@pytest.mark.parametrize("metric", DECISION)
@pytest.mark.parametrize(
    ("y", "predicted", "message"),
    [
        ([], [], "at least one case"),
        ([0, 1], [1], "one value a case"),
        ([0, 1], [0.2, 1], "y_pred must hold 0 and 1 only"),
        ([0, np.nan], [0, 1], "y_true must be finite"),
    ],
)
def test_decision_metrics_refuse(metric, y, predicted, message):
    with pytest.raises(ValueError, match=message):
        metric(y, predicted)


def test_shares_of_nothing_are_refused():
    with pytest.raises(ValueError, match="share of the positive cases"):
        sensitivity([0, 0], [0, 1])
    with pytest.raises(ValueError, match="share of the positive cases"):
        sensitivity([0, 1], [0, 1], weights=[[1, 1], [2, 0]])
    with pytest.raises(ValueError, match="share of the negative cases"):
        specificity([1, 1], [0, 1])
    with pytest.raises(ValueError, match="positive cases or decisions"):
        f1_score([0, 0], [0, 0])
    assert accuracy([1, 1], [0, 1]) == 0.5


def test_the_rest_refuses():
    with pytest.raises(ValueError, match="positive cases, found none"):
        operating_point([0, 0], [0.1, 0.2], sensitivity=0.9)
    with pytest.raises(ValueError, match=r"sensitivity must lie in \(0, 1\]"):
        operating_point([0, 1], [0.1, 0.2], sensitivity=0)
    with pytest.raises(ValueError, match=r"y_prob must lie in \[0, 1\]"):
        brier_score([0, 1], [0.1, 1.2])
    with pytest.raises(ValueError, match="logit must be finite"):
        negative_log_likelihood([0, 1], [0.1, np.inf])
