import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit
from sklearn import metrics

from tmv_lib.statistics.classification import (
    accuracy,
    brier_score,
    confusion_counts,
    f1_score,
    logistic_miscalibration,
    negative_log_likelihood,
    negative_predictive_value,
    operating_point,
    per_patient,
    precision,
    sensitivity,
    specificity,
)

DECISION = [accuracy, sensitivity, specificity, precision, negative_predictive_value, f1_score]


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
    assert precision(y, predicted) == 3 / 4
    assert negative_predictive_value(y, predicted) == 2 / 3
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
        (precision(y, predicted, weights=weights), metrics.precision_score(y, predicted, sample_weight=weights)),
        (
            negative_predictive_value(y, predicted, weights=weights),
            metrics.precision_score(y, predicted, pos_label=0, sample_weight=weights),
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
    with pytest.raises(ValueError, match="share of the decisions for positive"):
        precision([0, 1], [0, 0])
    with pytest.raises(ValueError, match="share of the decisions for negative"):
        negative_predictive_value([0, 1], [1, 1])
    with pytest.raises(ValueError, match="positive cases or decisions"):
        f1_score([0, 0], [0, 0])
    assert accuracy([1, 1], [0, 1]) == 0.5


def test_a_patient_is_the_mean_logit_and_positive_if_any_image_is():
    found = per_patient([0, 1, 0, 0, 1], [1.0, 4.0, -2.0, 3.0, 5.0], ["z", "a", "z", "a", "m"])
    assert found.patient_id.tolist() == ["z", "a", "m"]  # first appearance, not the alphabet
    assert found.y_true.tolist() == [0, 1, 1]  # a is mixed
    assert found.logit.tolist() == [-0.5, 3.5, 5.0]


def test_one_image_a_patient_changes_nothing_and_copies_of_images_neither():
    rng = np.random.default_rng(3)
    y, z = rng.integers(0, 2, size=30), rng.normal(size=30)
    for repeats in (1, 4):
        found = per_patient(np.tile(y, repeats), np.tile(z, repeats), np.tile(np.arange(30), repeats))
        np.testing.assert_array_equal(found.y_true, y)
        np.testing.assert_allclose(found.logit, z, atol=1e-15)


def test_per_patient_agrees_with_pandas():
    rng = np.random.default_rng(4)
    cases = pd.DataFrame({"y": rng.integers(0, 2, 200), "z": rng.normal(size=200), "p": rng.integers(0, 80, 200)})
    expected = cases.groupby("p", sort=False).agg({"y": "max", "z": "mean"})
    found = per_patient(cases["y"], cases["z"], cases["p"])
    np.testing.assert_array_equal(found.patient_id, expected.index)
    np.testing.assert_array_equal(found.y_true, expected["y"])
    np.testing.assert_allclose(found.logit, expected["z"], atol=1e-14)


def overconfident(rng, n=500):
    """Labels that follow logit a + b z with a = -0.5 and b = 0.6, and z."""
    z = 2 * rng.normal(size=n)
    return (rng.random(n) < expit(0.6 * z - 0.5)).astype(int), z


def test_miscalibration_is_what_the_best_line_saves():
    y, z = overconfident(np.random.default_rng(5))
    best = sm.Logit(y, sm.add_constant(z)).fit(disp=0)
    found = logistic_miscalibration(y, z)
    assert found == pytest.approx(negative_log_likelihood(y, z) + best.llf / y.size, abs=1e-8)  # the ridge costs 1e-10
    mended = best.predict(sm.add_constant(z), which="linear")
    assert logistic_miscalibration(y, mended) == pytest.approx(0, abs=1e-9)
    assert logistic_miscalibration(y, 3 * mended) > found / 2


def test_miscalibration_of_resamples_is_that_of_repeated_rows():
    rng = np.random.default_rng(6)
    y, z = overconfident(rng, n=120)
    counts = rng.integers(0, 4, size=(4, y.size))
    expected = [logistic_miscalibration(np.repeat(y, row), np.repeat(z, row)) for row in counts]
    np.testing.assert_allclose(logistic_miscalibration(y, z, weights=counts), expected, atol=1e-10)
    assert logistic_miscalibration(y, z, weights=counts[0]) == pytest.approx(expected[0], abs=1e-10)


def test_miscalibration_of_a_true_model_is_one_nat_in_n():
    # n NLL(z) - n NLL(best) is half a chi-squared of two degrees of freedom: mean 1
    rng = np.random.default_rng(7)
    z = 1.5 * rng.normal(size=(400, 300))
    y = rng.random(z.shape) < expit(z)
    found = [300 * logistic_miscalibration(*case) for case in zip(y.astype(int), z, strict=True)]
    assert np.mean(found) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("logit", [[0.0] * 4, [-900.0, -800.0, 800.0, 900.0], [900.0, -800.0, 800.0, -900.0]])
def test_miscalibration_of_constant_separating_and_hopeless_logits_is_finite(logit):
    y = [0, 0, 1, 1]
    assert 0 <= logistic_miscalibration(y, logit) <= negative_log_likelihood(y, logit)


@pytest.mark.parametrize("metric", [brier_score, negative_log_likelihood, logistic_miscalibration])
@pytest.mark.parametrize(
    ("y", "predicted", "message"),
    [
        ([], [], "at least one case"),
        ([0, 1], [1], "one value a case"),
        ([0, 2], [0, 1], "y_true must hold 0 and 1 only"),
        ([0, 1], [0.5, np.nan], "must be finite, found nan"),
    ],
)
def test_probability_metrics_refuse(metric, y, predicted, message):
    with pytest.raises(ValueError, match=message):
        metric(y, predicted)


@pytest.mark.parametrize(
    ("y", "logit", "patient", "message"),
    [
        ([], [], [], "at least one case"),
        ([0, 1], [1.0], ["a", "b"], "one value a case"),
        ([0, 1], [1.0, np.nan], ["a", "b"], "logit must be finite"),
        ([0, 3], [1.0, 2.0], ["a", "b"], "0 and 1 only"),
        ([0, 1], [1.0, 2.0], ["a"], r"patient of every case \(2\), found 1"),
        ([0, 1], [1.0, 2.0], ["a", None], r"patient of every case \(2\), found 1"),
    ],
)
def test_per_patient_refuses(y, logit, patient, message):
    with pytest.raises(ValueError, match=message):
        per_patient(y, logit, patient)


def test_one_patient_or_one_class_is_a_patient_still():
    assert per_patient([0, 0], [1.0, 3.0], ["a", "a"])[:2] == (np.array([0]), np.array([2.0]))


def test_the_rest_refuses():
    with pytest.raises(ValueError, match="one class only"):
        logistic_miscalibration([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="score must be finite"):
        operating_point([0, 1], [0.1, np.nan], sensitivity=0.9)
    with pytest.raises(ValueError, match="one value a case"):
        operating_point([0, 1], [0.1], sensitivity=0.9)
    with pytest.raises(ValueError, match="one value a case"):
        confusion_counts([0, 1], [1])
    with pytest.raises(ValueError, match="positive cases, found none"):
        operating_point([0, 0], [0.1, 0.2], sensitivity=0.9)
    with pytest.raises(ValueError, match=r"sensitivity must lie in \(0, 1\]"):
        operating_point([0, 1], [0.1, 0.2], sensitivity=0)
    with pytest.raises(ValueError, match=r"y_prob must lie in \[0, 1\]"):
        brier_score([0, 1], [0.1, 1.2])
    with pytest.raises(ValueError, match="logit must be finite"):
        negative_log_likelihood([0, 1], [0.1, np.inf])
