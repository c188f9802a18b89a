import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import relplot
import statsmodels.api as sm
import torch
import yaml
from model_diagnostics.scoring import SquaredError, decompose
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binom
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from torchmetrics.functional.classification import binary_calibration_error

from stages import calibration as stage
from tmv_lib.calibration import calibrators
from tmv_lib.calibration.answer import (
    CalibrationParams,
    calibrate,
    gain_of_procedure,
    measure,
    measure_elsewhere,
    measure_patients,
    require_usable,
    thin,
)
from tmv_lib.calibration.calibrators import (
    CALIBRATORS,
    PRIOR_SD,
    Calibrator,
    choose_calibrator,
    cross_fitted,
    fit_calibrator,
    nested_choice,
    read_calibrators,
    write_calibrators,
)
from tmv_lib.calibration.corp import corp_curve, corp_decomposition
from tmv_lib.calibration.errors import (
    LEVELS,
    calibration_noise_floor,
    calibration_test,
    debiased_calibration_error,
    expected_calibration_error,
    reliability_curve,
    smooth_calibration_error,
    top_label,
)
from tmv_lib.calibration.prevalence import at_prevalence, prevalence_weights
from tmv_lib.calibration.slope import calibration_in_the_large, calibration_slope, fit_temperature
from tmv_lib.deferral import evaluation
from tmv_lib.statistics.classification import brier_score, negative_log_likelihood
from tmv_lib.statistics.estimate import Resampler
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.tests import wilson_interval

STRATEGIES = ["uniform", "quantile"]
OF_PROBABILITIES = [
    reliability_curve,
    expected_calibration_error,
    debiased_calibration_error,
    smooth_calibration_error,
    corp_decomposition,
    top_label,
]
BINNED = OF_PROBABILITIES[:3]
OF_LOGITS = [calibration_slope, calibration_in_the_large, fit_temperature]


def calibrated_cases(rng, n):
    """Labels and the logits that they were drawn from."""
    logit = 2.5 * rng.normal(size=n) + 0.5
    return (rng.random(n) < expit(logit)).astype(int), logit


def tied_cases(rng, n=400):
    """Overconfident probabilities in steps of 0.05: many ties, values on bin edges, 0 and 1 among them."""
    y, logit = calibrated_cases(rng, n)
    return y, np.round(expit(1.7 * logit) * 20) / 20


# Binned errors


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_reliability_curve_agrees_with_scikit_learn(strategy, n_bins):
    y, p = tied_cases(np.random.default_rng(0))
    curve = reliability_curve(y, p, n_bins=n_bins, strategy=strategy)
    accuracy, confidence = calibration_curve(y, p, n_bins=n_bins, strategy=strategy)
    np.testing.assert_allclose(curve.accuracy, accuracy, atol=1e-12)
    np.testing.assert_allclose(curve.confidence, confidence, atol=1e-12)
    assert curve.n.sum() == y.size
    np.testing.assert_array_equal((curve.low, curve.high), wilson_interval(curve.accuracy * curve.n, curve.n))


def test_bins_are_right_closed_and_hold_both_ends():
    curve = reliability_curve([0, 0, 1, 1], [0.0, 0.5, 0.75, 1.0], n_bins=2)
    assert curve.n.tolist() == [2, 2]
    assert curve.confidence.tolist() == [0.25, 0.875]


def test_errors_of_a_small_example():
    # bins (0, 1/2] and (1/2, 1]: shares 1/2 and 1, mean probabilities 0.3 and 0.7, two and two cases
    y, p = [0, 1, 1, 1], [0.2, 0.4, 0.6, 0.8]
    assert expected_calibration_error(y, p, n_bins=2) == pytest.approx((0.2 + 0.3) / 2)
    # 1/2 (0.2^2 - 0.5 * 0.5 / 1) + 1/2 (0.3^2 - 0) is negative, so the floor holds; bins of one case have no variance
    assert debiased_calibration_error(y, p, n_bins=2) == 0
    with pytest.raises(ValueError, match="at least 2 cases"):
        debiased_calibration_error([0, 1], [0.2, 0.8], n_bins=2)
    # eight cases at 0.5, all positive: (1/2)^2 - 0
    assert debiased_calibration_error(np.ones(8), np.full(8, 0.5)) == 0.5


def test_expected_error_agrees_with_torchmetrics():
    rng = np.random.default_rng(1)
    y, logit = calibrated_cases(rng, 500)
    p = expit(2 * logit).astype(np.float32)  # off the edges, where the two would differ
    theirs = binary_calibration_error(torch.tensor(p), torch.tensor(y), n_bins=15, norm="l1")
    assert expected_calibration_error(y, p) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_expected_error_is_the_curve_averaged_by_cases(strategy):
    y, p = tied_cases(np.random.default_rng(2))
    curve = reliability_curve(y, p, strategy=strategy)
    expected = curve.n @ np.abs(curve.accuracy - curve.confidence) / y.size
    assert expected_calibration_error(y, p, strategy=strategy) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [*OF_PROBABILITIES[1:-1], calibration_slope, calibration_in_the_large])
def test_weights_count_rows(metric):
    rng = np.random.default_rng(3)
    y, p = tied_cases(rng)
    if metric not in OF_PROBABILITIES:
        p = 4 * p - 2
    counts = rng.integers(0, 4, size=(4, y.size)) * (rng.random((4, 1)) < p)  # bins and levels without weight
    expected = [metric(np.repeat(y, row), np.repeat(p, row)) for row in counts]
    np.testing.assert_allclose(np.transpose(metric(y, p, weights=counts)), expected, atol=1e-9)
    assert metric(y, p, weights=counts[0]) == pytest.approx(expected[0], abs=1e-9)
    assert metric(y, p, weights=np.ones(y.size)) == pytest.approx(metric(y, p), abs=1e-12)


@pytest.mark.parametrize("metric", [*OF_PROBABILITIES[:-1], *OF_LOGITS])
def test_order_of_rows_changes_nothing(metric):
    rng = np.random.default_rng(4)
    y, p = tied_cases(rng)
    values = p if metric in OF_PROBABILITIES else 4 * p - 2
    order = rng.permutation(y.size)
    np.testing.assert_allclose(np.asarray(metric(y[order], values[order])), np.asarray(metric(y, values)), atol=1e-9)


def test_top_label_turns_both_sides_to_the_decision():
    correct, confidence = top_label([0, 0, 1, 1], [0.25, 0.75, 0.5, 1.0])
    assert correct.tolist() == [1, 0, 0, 1]  # p = 0.5 is decided negative
    assert confidence.tolist() == [0.75, 0.75, 0.5, 1.0]


# Noise floor


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_perfect_model_exceeds_the_noise_floor_one_time_in_twenty(strategy):
    rng = np.random.default_rng(5)
    _, logit = calibrated_cases(rng, 624)
    p = expit(logit)
    floor = calibration_noise_floor(p, strategy=strategy, n_draws=2000, rng=rng)
    errors = [expected_calibration_error(rng.random(p.size) < p, p, strategy=strategy) for _ in range(400)]
    assert np.mean(np.array(errors) > floor.p95) == pytest.approx(0.05, abs=0.03)
    assert np.mean(errors) == pytest.approx(floor.mean, rel=0.05)
    assert 0.02 < floor.mean < floor.p95 < 0.06
    assert floor.p_value(0) == 1
    assert floor.p_value(0.5) == 1 / 2001
    assert floor.p_value(floor.p95) == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_probabilities_merge_into_the_same_noise_floor(strategy, monkeypatch):
    p = expit(calibrated_cases(np.random.default_rng(23), 1500)[1])
    each = calibration_noise_floor(p, strategy=strategy, n_draws=3000, rng=np.random.default_rng(25))
    monkeypatch.setattr("tmv_lib.calibration.errors.LEVELS", 4)  # cells wider than bins, which they must not bridge
    merged = calibration_noise_floor(p, strategy=strategy, n_draws=3000, rng=np.random.default_rng(24))
    assert merged.mean == pytest.approx(each.mean, rel=0.02)
    assert merged.p95 == pytest.approx(each.p95, rel=0.03)


def test_noise_floor_of_one_bin_is_known():
    # |Binomial(n, 1/2) - n / 2| / n has mean sqrt(1 / (2 pi n)) as n grows; certain cases have no noise
    floor = calibration_noise_floor(np.full(10_000, 0.5), n_draws=20_000, rng=np.random.default_rng(26))
    assert floor.mean == pytest.approx(np.sqrt(1 / (2 * np.pi * 10_000)), rel=0.02)
    assert calibration_noise_floor(np.repeat([0.0, 1.0], 9), rng=np.random.default_rng(0)).samples.max() == 0


def test_calibration_test_joins_the_error_and_its_floor():
    y, p = tied_cases(np.random.default_rng(27))
    found = calibration_test(y, p, n_bins=10, n_draws=500, rng=np.random.default_rng(28))
    floor = calibration_noise_floor(p, n_bins=10, n_draws=500, rng=np.random.default_rng(28))
    ece = expected_calibration_error(y, p, n_bins=10)
    assert found == (ece, floor.mean, floor.p95, floor.p_value(ece))


def test_debiasing_takes_off_the_noise_of_a_perfect_model():
    rng = np.random.default_rng(6)
    y, logit = calibrated_cases(rng, 100_000)
    assert debiased_calibration_error(y, expit(logit)) < 0.005
    # at p = 1/2 for a truth of 0.7 the error is 0.2, whatever the bins
    y = rng.random(100_000) < 0.7
    assert debiased_calibration_error(y, np.full(y.size, 0.5)) == pytest.approx(0.2, abs=0.005)


# Smooth error


def smooth_error_by_pairs(y, p, width):
    """The definition, O(n * grid): the kernel's mirror images summed one by one."""
    grid = (np.arange(8000) + 0.5) / 8000
    smoothed = np.zeros(grid.size)
    for shift in range(-4, 5):
        for image in (p + 2 * shift, -p + 2 * shift):
            distance = (grid[:, None] - image) / width
            smoothed += np.exp(-(distance**2) / 2) @ (y - p) / (width * np.sqrt(2 * np.pi) * y.size)
    return np.abs(smoothed).mean()


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_smooth_error_agrees_with_its_definition(sharpness):
    rng = np.random.default_rng(7)
    y, logit = calibrated_cases(rng, 60)
    p = expit(sharpness * logit)
    value = smooth_calibration_error(y, p)
    # smECE_s falls in s, so the fixed point lies within this distance
    assert smooth_error_by_pairs(y, p, value) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("sharpness", [0.3, 1.0])  # beyond, relplot drops half of the cases that it rounds to 0 or 1
def test_smooth_error_agrees_with_relplot(sharpness):
    y, logit = calibrated_cases(np.random.default_rng(29), 400)
    p = expit(sharpness * logit)
    value = smooth_calibration_error(y, p)
    assert relplot.metrics.smECE_sigma(p, y, sigma=value) == pytest.approx(value, abs=3e-4)
    assert relplot.smECE(p, y) == pytest.approx(value, abs=1e-3)  # its width is found by halving ten times


def test_smooth_error_of_one_probability_is_its_gap():
    y = np.repeat([0, 1], [20, 80])
    assert smooth_calibration_error(y, np.full(100, 0.5)) == pytest.approx(0.3, abs=1e-6)
    assert smooth_calibration_error(y, np.full(100, 0.8)) == pytest.approx(0, abs=1e-6)
    assert smooth_calibration_error(y, y) == 0
    assert smooth_calibration_error(np.ones(3), np.zeros(3)) == pytest.approx(1, abs=1e-6)


# CORP


def test_corp_adds_up_to_the_brier_score():
    for seed in range(20):
        y, p = tied_cases(np.random.default_rng(seed), 50)
        miscalibration, discrimination, uncertainty = corp_decomposition(y, p)
        assert miscalibration - discrimination + uncertainty == pytest.approx(brier_score(y, p), abs=1e-15)
        assert min(miscalibration, discrimination) >= 0


def test_corp_agrees_with_model_diagnostics():
    for seed in range(3):
        y, p = tied_cases(np.random.default_rng(seed), 300)
        theirs = decompose(y, p, scoring_function=SquaredError()).row(0, named=True)
        expected = [theirs[name] for name in ("miscalibration", "discrimination", "uncertainty")]
        np.testing.assert_allclose(corp_decomposition(y, p), expected, atol=1e-12)


def test_corp_of_known_cases():
    y = np.array([0, 0, 1, 1])
    assert corp_decomposition(y, np.full(4, 0.5)) == (0, 0, 0.25)
    assert corp_decomposition(y, y) == (0, 0.25, 0.25)
    assert corp_decomposition(y, 1 - y) == (0.75, 0, 0.25)
    assert corp_decomposition([1, 1], [0.5, 0.5]) == (0.25, 0, 0)


def test_corp_curve_agrees_with_scikit_learn():
    y, p = tied_cases(np.random.default_rng(30))
    curve = corp_curve(y, p, n_draws=2, rng=np.random.default_rng(0))
    level, n = np.unique(p, return_counts=True)
    np.testing.assert_allclose(curve.y_prob, level, atol=1e-12)
    np.testing.assert_array_equal(curve.n, n)
    np.testing.assert_allclose(curve.recalibrated, IsotonicRegression().fit(p, y).predict(level), atol=1e-12)
    # what the decomposition calls discrimination is the spread of this curve
    discrimination = n @ (curve.recalibrated - y.mean()) ** 2 / y.size
    assert corp_decomposition(y, p).discrimination == pytest.approx(discrimination, abs=1e-12)


def test_the_consistency_band_holds_perfect_models_and_not_others():
    rng = np.random.default_rng(31)
    logit = calibrated_cases(rng, 400)[1]
    p = expit(logit)
    inside = []
    for _ in range(30):
        curve = corp_curve(rng.random(p.size) < p, p, n_draws=200, rng=rng)
        inside.append((curve.low <= curve.recalibrated) & (curve.recalibrated <= curve.high))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)
    assert (np.diff(curve.low) >= 0).all()
    assert (np.diff(curve.high) >= 0).all()
    wrong = corp_curve(rng.random(p.size) < expit(logit / 3), p, n_draws=400, rng=rng)
    assert np.mean((wrong.low <= wrong.recalibrated) & (wrong.recalibrated <= wrong.high)) < 0.5


def test_the_consistency_band_of_one_probability_is_a_binomial():
    curve = corp_curve(np.repeat([0, 1], 50), np.full(100, 0.3), n_draws=5_000, rng=np.random.default_rng(32))
    assert (curve.y_prob.tolist(), curve.recalibrated.tolist(), curve.n.tolist()) == ([0.3], [0.5], [100])
    np.testing.assert_allclose([curve.low[0], curve.high[0]], np.array([21, 39]) / 100, atol=0.011)  # Bin(100, 0.3)


def test_many_probabilities_are_merged_in_the_corp_curve():
    y, logit = calibrated_cases(np.random.default_rng(33), 30_000)
    p = expit(logit)
    curve = corp_curve(y, p, n_draws=2, rng=np.random.default_rng(0))
    assert curve.y_prob.size <= LEVELS
    assert curve.n.sum() == p.size
    exact = IsotonicRegression().fit(p, y).predict(curve.y_prob)
    assert curve.n @ np.abs(curve.recalibrated - exact) / p.size < 1e-3


# Slope, intercept, temperature


def test_slope_and_intercept_agree_with_statsmodels():
    rng = np.random.default_rng(9)
    y, logit = calibrated_cases(rng, 300)
    z = 1.6 * logit - 0.7
    slope = sm.GLM(y, sm.add_constant(z), family=sm.families.Binomial()).fit(tol=1e-12).params[1]
    intercept = sm.GLM(y, np.ones(y.size), family=sm.families.Binomial(), offset=z).fit(tol=1e-12).params[0]
    assert calibration_slope(y, z) == pytest.approx(slope, abs=1e-8)
    assert calibration_in_the_large(y, z) == pytest.approx(intercept, abs=1e-8)


def test_slope_and_intercept_move_with_the_logit():
    y, z = calibrated_cases(np.random.default_rng(10), 300)
    assert calibration_slope(y, 100 * z + 3) == pytest.approx(calibration_slope(y, z) / 100, rel=1e-9)
    assert calibration_in_the_large(y, z + 3) == pytest.approx(calibration_in_the_large(y, z) - 3, abs=1e-9)
    # wrong and utterly sure: an undamped Newton step leaves the real line here
    assert calibration_in_the_large([0, 1], [500.0, 500.0]) == pytest.approx(-500)


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_temperature_recovers_the_truth(truth):
    y, logit = calibrated_cases(np.random.default_rng(11), 20_000)
    assert fit_temperature(y, truth * logit) == pytest.approx(truth, rel=0.04)


def test_temperature_is_the_best_one_and_leaves_the_ranking():
    y, logit = calibrated_cases(np.random.default_rng(12), 500)
    temperature = fit_temperature(y, 3 * logit)
    best = negative_log_likelihood(y, 3 * logit / temperature)
    assert all(best < negative_log_likelihood(y, 3 * logit / temperature / f) for f in (0.999, 1.001))
    assert auroc(y, 3 * logit / temperature) == auroc(y, logit)


def test_temperature_stays_in_its_bounds():
    assert fit_temperature([0, 0, 1, 1], [-2, -1, 1, 2]) == 0.01
    assert fit_temperature([0, 0, 1, 1], [2, 1, -1, -2]) == 100


# Calibrators

RICHER = ["beta", "isotonic"]


def fitted(name, y, z, groups=None):
    """One image a patient, where nothing else is said."""
    return fit_calibrator(name, y, z, groups=np.arange(len(y)) if groups is None else groups)


def choice_of(y, z, groups=None, seed=0):
    groups = np.arange(len(y)) if groups is None else groups
    return choose_calibrator(y, z, groups=groups, n_folds=5, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_leave_a_calibrated_model_alone(name):
    calibrator = fitted(name, *calibrated_cases(np.random.default_rng(13), 20_000))
    z = np.linspace(-6, 6, 50)
    assert np.abs(expit(calibrator(z)) - expit(z)).max() < 0.04
    assert calibrator.name == name


@pytest.mark.parametrize("name", ["logistic", *RICHER])
def test_calibrators_mend_an_overconfident_model(name):
    y, logit = calibrated_cases(np.random.default_rng(14), 5000)
    calibrated = fitted(name, y, 3 * logit)(3 * logit)
    assert expected_calibration_error(y, expit(3 * logit)) > 0.08
    assert expected_calibration_error(y, expit(calibrated)) < 0.03
    assert negative_log_likelihood(y, calibrated) < negative_log_likelihood(y, 3 * logit) - 0.1


@pytest.mark.parametrize("images", [1, 3])
def test_logistic_is_the_best_line_under_its_prior(images):
    y, logit = calibrated_cases(np.random.default_rng(15), 120)
    z = 1.5 * logit + 1
    parameters = fitted("logistic", np.repeat(y, images), np.repeat(z, images), np.repeat(np.arange(120), images))
    found = np.array([parameters.parameters["intercept"], parameters.parameters["slope"]])

    def penalised(theta):
        return np.logaddexp(0, (1 - 2 * y) * (theta[0] + theta[1] * z)).sum() + ((theta - [0, 1]) ** 2).sum() / (
            2 * PRIOR_SD**2
        )

    best = minimize(penalised, [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    np.testing.assert_allclose(found, best, atol=1e-6)  # whatever the copies of each patient


def test_with_many_patients_the_prior_is_forgotten():
    y, logit = calibrated_cases(np.random.default_rng(15), 40_000)
    z = 1.5 * logit + 1
    plain = sm.GLM(y, sm.add_constant(z), family=sm.families.Binomial()).fit().params
    np.testing.assert_allclose(list(fitted("logistic", y, z).parameters.values()), plain, atol=2e-3)
    p = expit(z)
    design = np.column_stack([np.log(p), -np.log1p(-p), np.ones(z.size)])
    plain = sm.GLM(y, design, family=sm.families.Binomial()).fit().params
    np.testing.assert_allclose(list(fitted("beta", y, z).parameters.values()), plain, atol=0.02)


def test_shrinking_beats_leaving_alone_and_plain_platt_at_110_patients():
    """The slope and the intercept that were found of the default networks: 0.79 and -0.5."""
    rng = np.random.default_rng(16)
    z = rng.normal(0, 3, 20_000)
    p = expit(-0.5 + 0.79 * z)

    def expected(logit):
        return (p * np.logaddexp(0, -logit) + (1 - p) * np.logaddexp(0, logit)).mean()

    shrunk, plain = [], []
    for _ in range(100):
        rows = rng.integers(z.size, size=110)
        y = rng.random(110) < p[rows]
        shrunk.append(expected(fitted("logistic", y, z[rows])(z)))
        a, b = sm.GLM(y, sm.add_constant(z[rows]), family=sm.families.Binomial()).fit().params
        plain.append(expected(a + b * z))
    assert np.mean(shrunk) < np.mean(plain) < expected(z)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_many_cases_are_merged_without_harm(name, monkeypatch):
    y, logit = calibrated_cases(np.random.default_rng(34), 20_000)
    z = np.linspace(-6, 6, 200)
    exact = fitted(name, y, 2 * logit)(z)
    monkeypatch.setattr("tmv_lib.calibration.calibrators.MERGED_FROM", 100)
    merged = fitted(name, y, 2 * logit)(z)
    bound = 0.02 if name == "isotonic" else 1e-5  # a step may move by a cell
    assert np.abs(expit(merged) - expit(exact)).mean() < bound / 10
    assert np.abs(expit(merged) - expit(exact)).max() < bound


@pytest.mark.parametrize("name", CALIBRATORS)
def test_no_calibrator_turns_a_ranking_round(name):
    y = np.repeat([0, 1], 20)
    separable = np.r_[np.linspace(-5, -1, 20), np.linspace(1, 5, 20)]
    noise = np.random.default_rng(17).normal(size=40)
    far = np.array([-700.0, -1.0, 0.0, 1.0, 700.0])
    for logit in (separable, -separable, noise, np.full(40, 3.0), np.zeros(40), 100 * separable):
        calibrated = fitted(name, y, logit)(far)
        assert np.isfinite(calibrated).all()
        assert (np.diff(calibrated) >= (0 if name == "isotonic" else 1e-9)).all()
        assert name == "isotonic" or auroc(y, fitted(name, y, logit)(logit)) == auroc(y, logit)


def test_isotonic_never_claims_more_than_its_patients_show():
    y = np.repeat([0, 1], 20)
    calibrated = expit(fitted("isotonic", y, np.arange(40.0))([-10, 100]))
    np.testing.assert_allclose(calibrated, [1 / 41, 40 / 41], atol=1e-12)
    pairs = expit(fitted("isotonic", y, np.arange(40.0), np.arange(40) // 2)([-10, 100]))
    np.testing.assert_allclose(pairs, [1 / 21, 20 / 21], atol=1e-12)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_a_loaded_calibrator_answers_to_the_bit(name, tmp_path):
    y, z = calibrated_cases(np.random.default_rng(18), 500)
    calibrator = fitted(name, y, 2 * z + 1)
    write_calibrators(tmp_path / "calibrators.json", {"mine": calibrator})
    loaded = read_calibrators(tmp_path / "calibrators.json")
    at = np.random.default_rng(19).normal(0, 9, 10_000)
    np.testing.assert_array_equal(loaded["mine"](at), calibrator(at))
    assert loaded == {"mine": calibrator}


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"mine": {"name": "platt", "parameters": {}}}', '{"mine": {"name": "logistic", "parameters": {}}}'],
)
def test_a_file_without_calibrators_is_named(text, tmp_path):
    path = tmp_path / "calibrators.json"
    with pytest.raises(ValueError, match=r"calibrators\.json: no such file"):
        read_calibrators(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"calibrators\.json: no calibrators of this version"):
        read_calibrators(path)


# The choice


def test_a_calibrator_is_tried_only_where_the_patients_carry_it():
    y, z = calibrated_cases(np.random.default_rng(20), 6000)
    twofold = np.repeat(np.arange(3000), 2)
    tried = {}
    for positives in (6, 199, 200, 999, 1000):
        rows = np.r_[np.flatnonzero(y == 0)[:1500], np.flatnonzero(y == 1)[:positives]]
        tried[positives] = choice_of(y[rows], z[rows]).table["name"].tolist()
        # images of one patient are one
        copies = choice_of(np.repeat(y[rows], 2), np.repeat(z[rows], 2), twofold[: 2 * len(rows)])
        assert copies.table["name"].tolist() == tried[positives]
    assert tried[6] == tried[199] == ["identity", "logistic"]
    assert tried[200] == tried[999] == ["identity", "logistic", "beta"]
    assert tried[1000] == list(CALIBRATORS)


@pytest.mark.parametrize(
    ("distort", "winner"),
    [(lambda z: z, "logistic"), (lambda z: 2 * z - 1, "logistic"), (lambda z: z + 1.5 * np.logaddexp(0, z), "beta")],
)
def test_a_richer_calibrator_is_taken_where_patients_held_out_prefer_it(distort, winner):
    y, logit = calibrated_cases(np.random.default_rng(17), 3000)
    z = distort(logit)
    groups, order = np.arange(3000) // 2, np.random.default_rng(18).permutation(3000)
    choices = [choice_of(y[rows], z[rows], groups[rows], seed=19) for rows in (np.arange(3000), order)]
    assert [choice.name for choice in choices] == [winner, winner]
    table = choices[0].table.set_index("name")
    np.testing.assert_allclose(table["nll"], choices[1].table["nll"], atol=1e-9)
    np.testing.assert_allclose(table["excess"], table["nll"] - table["nll"]["logistic"], atol=1e-12)
    assert table["chosen"].sum() == table["chosen"][winner] == 1
    assert winner == "logistic" or -table["excess"][winner] > table["standard_error"][winner]
    # identity needs no fit: its out-of-fold figure is the plain one
    assert table["nll"]["identity"] == pytest.approx(negative_log_likelihood(y, z), abs=1e-12)


def test_a_better_likelihood_does_not_buy_a_lost_ranking(monkeypatch):
    """A step in the probabilities that a line cannot fit, and a calibrator of two levels that fits nothing else."""
    rng = np.random.default_rng(21)
    z = rng.normal(size=5000)
    y = (rng.random(5000) < expit(np.where(z > 0, 3, -3) + 0.5 * z)).astype(int)
    coarse = CALIBRATORS["isotonic"]._replace(
        fit=lambda y, z, w: {"logit": [-1e-9, 1e-9], "y_prob": [float(w @ y / w.sum()) / 10, 0.95]}
    )
    monkeypatch.setitem(CALIBRATORS, "isotonic", coarse)
    choice = choice_of(y, z)
    table = choice.table.set_index("name")
    assert table["excess"]["isotonic"] < -10 * table["standard_error"]["isotonic"]
    assert table["auroc"]["isotonic"] < table["auroc"]["identity"] - 0.003
    assert choice.name != "isotonic"
    np.testing.assert_array_equal(table.loc[["logistic", "beta"], "auroc"], table["auroc"]["identity"])


def test_isotonic_is_taken_where_the_score_really_has_steps():
    rng = np.random.default_rng(22)
    z = rng.choice([-3.0, -1.0, 0.0, 1.0, 3.0], size=6000)  # nothing to merge
    y = (rng.random(6000) < np.array([0.02, 0.5, 0.52, 0.55, 0.98])[np.searchsorted([-3, -1, 0, 1, 3], z)]).astype(int)
    choice = choice_of(y, z)
    assert choice.name == "isotonic"
    assert choice.table["auroc"].iloc[3] == pytest.approx(choice.table["auroc"].iloc[0], abs=1e-3)


def test_six_positives_leave_the_ranking_as_it_was():
    """A rare finding, AUROC about 0.9. A menu once chose isotonic here, which merged the cases into five levels."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y, groups = np.zeros(4000), np.arange(4000) // 3
        y[rng.choice(4000, 6, replace=False)] = 1
        z = -6 + rng.normal(size=4000) + 1.8 * y
        choice = choice_of(y, z, groups)
        assert choice.name == "logistic"
        assert auroc(y, fit_calibrator(choice.name, y, z, groups=groups)(z)) == auroc(y, z)
        assert choice.table["auroc"][0] == choice.table["auroc"][1]


def test_errors_of_the_choice_count_patients_and_not_images():
    y, logit = calibrated_cases(np.random.default_rng(19), 300)
    repeated = np.repeat(np.arange(300), 4)
    once = choice_of(y, 2 * logit, seed=20)
    fourfold = choice_of(y[repeated], 2 * logit[repeated], repeated, seed=20)
    assert fourfold.table["standard_error"][0] == pytest.approx(once.table["standard_error"][0], rel=0.05)
    np.testing.assert_allclose(fourfold.table["nll"], once.table["nll"], rtol=0.02)


def test_the_procedure_gains_on_new_patients_where_there_is_something_to_gain():
    y, logit = calibrated_cases(np.random.default_rng(35), 600)
    options = {"groups": np.arange(600) // 2, "n_folds": 5}
    distorted = nested_choice(y, 2 * logit, rng=np.random.default_rng(36), **options)
    assert set(distorted.names) == {"logistic"}
    assert negative_log_likelihood(y, distorted.logit) < negative_log_likelihood(y, 2 * logit) - 0.05
    calibrated = nested_choice(y, logit, rng=np.random.default_rng(36), **options)
    assert negative_log_likelihood(y, calibrated.logit) == pytest.approx(negative_log_likelihood(y, logit), abs=0.01)


def test_the_nested_loop_neither_chooses_nor_fits_on_the_patients_that_it_judges(monkeypatch):
    rng = np.random.default_rng(37)
    y, z, groups = rng.integers(2, size=300), 5 * rng.normal(size=300), np.arange(300) // 3
    fold = calibrators.patient_folds(y, groups, n_folds=5, rng=np.random.default_rng(38))
    chosen_on = []

    def spy(y_true, logit, **options):
        chosen_on.append(set(options["groups"]))
        return choose_calibrator(y_true, logit, **options)

    monkeypatch.setattr("tmv_lib.calibration.calibrators.choose_calibrator", spy)
    nested = nested_choice(y, z, groups=groups, n_folds=5, rng=np.random.default_rng(38))
    for k, name in enumerate(nested.names):
        others = fold != k
        assert chosen_on[k] == set(groups[others])
        expected = fit_calibrator(name, y[others], z[others], groups=groups[others])(z[~others])
        np.testing.assert_array_equal(nested.logit[~others], expected)


# Prevalence


def test_the_shift_is_bayes_rule():
    # p / (1 - p) = likelihood ratio times prior odds
    ratio, source, target = np.array([0.2, 1.0, 7.0]), 0.4, 0.05
    before, after = (ratio * prior / (ratio * prior + 1 - prior) for prior in (source, target))
    shifted = at_prevalence(np.log(before / (1 - before)), source=source, target=target)
    np.testing.assert_allclose(expit(shifted), after, atol=1e-15)
    np.testing.assert_allclose(at_prevalence(shifted, source=target, target=source), np.log(before / (1 - before)))


def test_the_shift_mends_what_another_prevalence_breaks():
    y, z = calibrated_cases(np.random.default_rng(39), 50_000)
    weights = prevalence_weights(y, target=0.05)
    shifted = at_prevalence(z, source=y.mean(), target=0.05)
    assert calibration_in_the_large(y, z, weights=weights) < -2
    assert calibration_in_the_large(y, shifted, weights=weights) == pytest.approx(0, abs=0.05)
    assert negative_log_likelihood(y, shifted, weights=weights) < negative_log_likelihood(y, z, weights=weights) - 0.1


def test_prevalence_weights_reach_the_prevalence_in_every_resample():
    rng = np.random.default_rng(40)
    y = rng.integers(2, size=50)
    drawn = rng.integers(0, 4, size=(6, 50))
    weights = prevalence_weights(y, target=0.2, weights=drawn)
    np.testing.assert_allclose(weights.sum(axis=1), drawn.sum(axis=1))
    np.testing.assert_allclose(weights @ y / weights.sum(axis=1), 0.2)
    assert ((weights > 0) == (drawn > 0)).all()
    np.testing.assert_allclose(prevalence_weights(y, target=y.mean()), 1)


# Bad input

WITH_RNG = {
    "calibration_test": lambda y, p: calibration_test(y, p, rng=np.random.default_rng(0)),
    "corp_curve": lambda y, p: corp_curve(y, p, rng=np.random.default_rng(0)),
    "calibration_noise_floor": lambda y, p: calibration_noise_floor(p, rng=np.random.default_rng(0)),
}


@pytest.mark.parametrize("metric", [*OF_PROBABILITIES, WITH_RNG["calibration_test"], WITH_RNG["corp_curve"]])
@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([], [], "at least one case"),
        ([0, 1], [0.1], "one value a case"),
        ([0, 2], [0.1, 0.2], "0 and 1 only"),
        ([0, 1], [0.1, 1.2], r"y_prob must lie in \[0, 1\], found 0.1 to 1.2"),
        ([0, 1], [0.1, np.nan], "finite"),
    ],
)
def test_functions_of_probabilities_refuse(metric, y, p, message):
    with pytest.raises(ValueError, match=message):
        metric(y, p)


@pytest.mark.parametrize("p", [[], [0.1, 1.2], [0.1, np.nan]])
def test_noise_floor_refuses(p):
    with pytest.raises(ValueError, match="y_prob must"):
        WITH_RNG["calibration_noise_floor"](None, p)


@pytest.mark.parametrize("metric", [*OF_PROBABILITIES, *WITH_RNG.values()])
@pytest.mark.parametrize("p", [np.full(40, 0.3), np.zeros(40), np.ones(40)])
@pytest.mark.parametrize("y", [np.zeros(40), np.ones(40)])
def test_functions_of_probabilities_answer_for_one_class_and_constant_scores(metric, y, p):
    found = metric(y, p)
    values = found if isinstance(found, tuple) else [found]
    assert all(np.isfinite(value).all() for value in values)


IN_FOLDS = {
    "choose_calibrator": choose_calibrator,
    "nested_choice": nested_choice,
    "cross_fitted": lambda y, z, **options: cross_fitted("logistic", y, z, **options),
}


def in_folds(function):
    def call(y, z):
        return function(y, z, groups=np.arange(len(y)), n_folds=2, rng=np.random.default_rng(0))

    return call


@pytest.mark.parametrize(
    "metric",
    [
        *OF_LOGITS,
        lambda y, z: fit_calibrator("logistic", y, z, groups=np.arange(len(y))),
        *map(in_folds, IN_FOLDS.values()),
    ],
)
@pytest.mark.parametrize(
    ("y", "z", "message"),
    [
        ([], [], "at least one case"),
        ([0, 1], [0.1], "one value a case"),
        ([0, 2], [0.1, 0.2], "0 and 1 only"),
        ([0, 1], [0.1, np.nan], "logit must be finite"),
        ([1, 1], [0.1, 0.2], "one class only"),
    ],
)
def test_functions_of_logits_refuse(metric, y, z, message):
    with pytest.raises(ValueError, match=message):
        metric(y, z)


@pytest.mark.parametrize("function", IN_FOLDS.values())
def test_functions_of_folds_refuse(function):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one patient a case"):
        function([0, 1], [0.1, 0.2], groups=[1], n_folds=2, rng=rng)
    with pytest.raises(ValueError, match="n_folds must lie between 2 and the number of patients"):
        function([0, 1], [0.1, 0.2], groups=[1, 2], n_folds=3, rng=rng)
    with pytest.raises(ValueError, match="one class only"):
        function([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], groups=[1, 2, 3, 4], n_folds=2, rng=rng)


@pytest.mark.parametrize("metric", BINNED)
def test_bins_are_checked(metric):
    y, p = [0, 1, 1], [0.2, 0.4, 0.6]
    with pytest.raises(ValueError, match="3 cases for 15 bins"):
        metric(y, p, strategy="quantile")
    with pytest.raises(ValueError, match="uniform or quantile"):
        metric(y, p, strategy="width")
    with pytest.raises(ValueError, match="n_bins must be at least 1"):
        metric(y, p, n_bins=0)
    metric([*y, 1], [*p, 0.6], n_bins=100)


@pytest.mark.parametrize("metric", [*OF_PROBABILITIES[1:-1], calibration_slope, calibration_in_the_large])
@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, np.nan]])
def test_weights_are_checked(metric, weights):
    with pytest.raises(ValueError, match="weights must"):
        metric([0, 1, 0, 1], [0.2, 0.4, 0.6, 0.6], weights=weights)


@pytest.mark.parametrize("value", [0, 1, 1.5, np.nan])
def test_prevalences_are_checked(value):
    with pytest.raises(ValueError, match=r"target must lie in \(0, 1\)"):
        at_prevalence([0.0], source=0.5, target=value)
    with pytest.raises(ValueError, match=r"source must lie in \(0, 1\)"):
        at_prevalence([0.0], source=value, target=0.5)
    with pytest.raises(ValueError, match=r"target must lie in \(0, 1\)"):
        prevalence_weights([0, 1], target=value)
    with pytest.raises(ValueError, match="one class only"):
        prevalence_weights([1, 1], target=0.5)
    with pytest.raises(ValueError, match="logit must be finite"):
        at_prevalence([np.nan], source=0.5, target=0.5)


def test_what_has_no_answer_is_refused():
    with pytest.raises(ValueError, match="separate the classes"):
        calibration_slope([0, 0, 1, 1], [-2, -1, -1, 2])
    with pytest.raises(ValueError, match="separate the classes"):
        calibration_slope([1, 1, 0, 0], [-2, -1, 1, 2])
    with pytest.raises(ValueError, match="two different logits"):
        calibration_slope([0, 1], [1, 1])
    with pytest.raises(ValueError, match="0 everywhere"):
        fit_temperature([0, 1], [0, 0])
    with pytest.raises(ValueError, match="must be one of identity"):
        fit_calibrator("platt", [0, 1], [0.1, 0.2], groups=[0, 1])
    with pytest.raises(ValueError, match="one patient a case"):
        fit_calibrator("logistic", [0, 1], [0.1, 0.2], groups=[0])
    with pytest.raises(ValueError, match="logit must be finite"):
        Calibrator("identity", {})([np.nan])
    with pytest.raises(ValueError, match="n_draws"):
        calibration_noise_floor([0.1, 0.2], n_draws=0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="n_draws"):
        corp_curve([0, 1], [0.1, 0.2], n_draws=0, rng=np.random.default_rng(0))


def test_cross_fitted_logits_come_from_other_patients():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 400)
    y = (rng.random(400) < expit(z / 2)).astype(int)
    groups = np.repeat(np.arange(200), 2)
    options = {"groups": groups, "n_folds": 5}
    found = cross_fitted("logistic", y, z, rng=np.random.default_rng(1), **options)
    # Each fold has one line of its own, close to that of all cases.
    fold = calibrators.patient_folds(y, groups, n_folds=5, rng=np.random.default_rng(1))
    for k in range(5):
        slope, intercept = np.polyfit(z[fold == k], found[fold == k], 1)
        np.testing.assert_allclose(found[fold == k], intercept + slope * z[fold == k], atol=1e-9)
        assert slope == pytest.approx(fitted("logistic", y, z, groups).parameters["slope"], rel=0.3)


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (3, -2), (0.01, 0.001), (50, 900)])
def test_the_boundary_is_the_last_logit_that_is_not_decided_positive(name, scale, shift):
    y, logit = calibrated_cases(np.random.default_rng(43), 500)
    calibrator = fitted(name, y, scale * logit + shift)
    boundary = calibrator.boundary()
    at, above = calibrator([boundary, np.nextafter(boundary, np.inf)])
    assert at <= 0 < above
    z = scale * np.linspace(-9, 9, 2001) + shift
    np.testing.assert_array_equal(calibrator(z) > 0, z > boundary)
    np.testing.assert_array_equal(calibrator.probability(z) > 0.5, z > boundary)


def test_a_calibrator_that_decides_all_alike_has_no_boundary():
    for probability, boundary in ((0.4, np.inf), (0.5, np.inf), (0.6, -np.inf)):
        flat = Calibrator("isotonic", {"logit": [0.0, 1.0], "y_prob": [probability, probability]})
        assert flat.boundary() == boundary


def test_a_calibrator_keeps_the_shape_of_its_logits():
    calibrator = Calibrator("logistic", {"intercept": 1.0, "slope": 2.0})
    z = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(calibrator(z), 1 + 2 * z)
    np.testing.assert_array_equal(calibrator.probability(z), expit(1 + 2 * z))


# The stage

PARAMS = CalibrationParams(bins=15, folds=5, noise_draws=100, prevalences=[0.05, 0.5], resamples=100, seed=0)


def made_test_split(rng, n):
    y, logit = calibrated_cases(rng, n)
    return pd.DataFrame({"y_true": y, "score": logit, "patient_id": [f"p{k // 2}" for k in range(n)]})


def test_what_cannot_be_computed_is_absent_with_its_reason():
    few = pd.DataFrame({"y_true": [0, 0, 1, 1], "patient_id": list("abcd")})
    found = measure(few, np.array([-2.0, -1.0, 1.0, 2.0]), PARAMS)
    assert "4 cases for 15 bins" in found["positive_class_ece_quantile"].absent
    assert "at least 2 cases" in found["positive_class_debiased"].absent
    assert "separate the classes" in found["slope"].absent
    assert found["positive_class_ece_uniform"]["ece"] > 0
    procedure = gain_of_procedure(few.assign(score=0.5), PARAMS, np.random.default_rng(0))
    assert procedure.keys() == {"nll_gain"}
    assert "number of patients" in procedure["nll_gain"].absent


def test_constant_scores_have_figures():
    cases = made_test_split(np.random.default_rng(1), 60)
    for logit in (np.zeros(60), np.full(60, 3.0)):
        found = measure(cases, logit, PARAMS)
        assert "two different logits" in found["slope"].absent
        gap = abs(cases["y_true"].mean() - expit(logit[0]))
        assert found["positive_class_ece_uniform"]["ece"] == pytest.approx(gap)
        chosen = gain_of_procedure(cases.assign(score=logit), PARAMS, np.random.default_rng(0))
        assert sum(chosen["times_chosen"].values()) == PARAMS.folds


def write_predictions(path, cases):
    """As `train` writes them, with the network's own logit under that name."""
    path.parent.mkdir(parents=True)
    ids = [f"i{k}" for k in range(len(cases))]
    cases.assign(image_id=ids).rename(columns={"score": "logit"}).to_csv(path, index=False)


def predictions(rng, *, sign=1.0):
    """200 images of val, 200 of test, two a patient."""
    cases = made_test_split(rng, 400)
    return cases.assign(score=sign * cases["score"], split=np.repeat(["val", "test"], 200))


def run_stage(folder, monkeypatch, cases, **changes):
    """Run the stage on one member's predictions; its metrics."""
    path = folder / "data/train/mine/predictions.csv"
    if not path.exists():
        write_predictions(path, cases)
    params = {"calibration": PARAMS.model_dump() | changes, "members": {"mine": None}}
    params |= {"task": "binary", "question": {"positive": []}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    monkeypatch.chdir(folder)
    stage.main()
    return json.loads(Path("metrics/calibration.json").read_text("utf-8"))["calibration"]["mine"]


def test_scores_that_rank_the_wrong_way_stop_the_run(tmp_path, monkeypatch):
    cases = predictions(np.random.default_rng(6), sign=-1)
    val = cases[cases["split"] == "val"]
    message = rf"the scores rank the wrong way: AUROC on val is {auroc(val['y_true'], val['score']):.3f}"
    with pytest.raises(ValueError, match=message):
        require_usable(cases)
    with pytest.raises(ValueError, match=rf"^data/train/mine/predictions\.csv: {message}"):
        run_stage(tmp_path, monkeypatch, cases)


def test_one_patient_of_a_class_or_a_split_of_one_class_is_too_few():
    cases = predictions(np.random.default_rng(6))
    val = cases["split"] == "val"
    with pytest.raises(ValueError, match="split val needs 2 patients of each class, found 1"):
        require_usable(cases.assign(y_true=cases["y_true"].where(~val, cases["patient_id"] == "p0").astype(int)))
    for split in ("val", "test"):
        with pytest.raises(ValueError, match=f"split {split} must hold both classes"):
            require_usable(cases.assign(y_true=cases["y_true"].where(cases["split"] != split, 1)))


def test_a_handful_of_patients_is_enough_or_the_file_is_named(tmp_path, monkeypatch):
    y = np.array([0, 0, 0, 1, 1])  # a patient a fold: none of them holds both classes
    cases = pd.DataFrame({"y_true": np.tile(y, 2), "score": np.tile([-1.0, 1, 0, 2, 0.5], 2)})
    cases = cases.assign(patient_id=[f"p{k}" for k in range(10)], split=np.repeat(["val", "test"], 5))
    found = run_stage(tmp_path, monkeypatch, cases)
    assert found["auroc_before_absent"] is True
    why = pd.read_csv("data/calibration/absent.csv").set_index("metric")["reason"]
    assert why["calibration.mine.auroc_before_absent"] == "no fold of validation holds both classes"
    message = r"mine/predictions\.csv: split val in 6 folds \(calibration\.folds\): n_folds"
    with pytest.raises(ValueError, match=message):
        run_stage(tmp_path, monkeypatch, cases, folds=6)


def test_scores_that_rank_nothing_go_on_and_are_shrunk_to_the_prevalence(tmp_path, monkeypatch):
    cases = predictions(np.random.default_rng(7)).assign(score=3 * np.random.default_rng(8).normal(size=400))
    found = run_stage(tmp_path, monkeypatch, cases)
    assert found["calibrator"]["name"] == "logistic"
    assert 0 < found["calibrator"]["slope"] < 0.2
    assert found["auroc_before"] == found["auroc_after"]
    assert found["procedure"]["times_chosen"] == {"logistic": PARAMS.folds}
    assert found["procedure"]["nll_gain_low"] > 0
    # what was fitted is on disk, and gives what the table holds
    table = pd.read_csv("data/train/mine/predictions.csv")
    calibrator = read_calibrators("data/calibration/calibrators.json")["mine"]
    cases = pd.read_csv("data/calibration/cases.csv")
    np.testing.assert_allclose(cases["logit_mine"], calibrator(table["logit"]), rtol=1e-6)
    np.testing.assert_allclose(cases["y_prob_mine"], calibrator.probability(table["logit"]), rtol=1e-6)
    compared = pd.read_csv("plots/calibration/calibrators.csv")
    assert compared["name"].tolist() == ["identity", "logistic"]
    assert compared["low"][0] > 0


def test_validation_alone_is_calibrated_by_other_patients():
    cases = predictions(np.random.default_rng(10)).assign(image_id=[f"i{k}" for k in range(400)])
    found = calibrate(cases, PARAMS).cases
    assert found["image_id"].tolist() == cases["image_id"].tolist()
    val = (cases["split"] == "val").to_numpy()
    same = found["cross_fitted_logit"] == found["logit"]
    assert same[~val].all()
    assert not same[val].any()


def test_the_truth_of_the_test_split_moves_no_calibrator():
    cases = predictions(np.random.default_rng(11)).assign(image_id=[f"i{k}" for k in range(400)])
    swapped = cases.assign(y_true=cases["y_true"].where(cases["split"] == "val", 1 - cases["y_true"]))
    first, second = (calibrate(one, PARAMS) for one in (cases, swapped))
    assert first.calibrator == second.calibrator
    pd.testing.assert_frame_equal(first.cases, second.cases)


def test_logits_that_are_left_alone_are_tested_once(tmp_path, monkeypatch):
    def left_alone(*_args, **_options):
        return Calibrator("identity", {})

    monkeypatch.setattr("tmv_lib.calibration.calibrators.fit_calibrator", left_alone)
    found = run_stage(tmp_path, monkeypatch, predictions(np.random.default_rng(9)))
    assert found["before"] == found["after"]
    tests = [entry for entry in found["after"].values() if isinstance(entry, dict) and "p_value" in entry]
    least = min(tests, key=lambda entry: entry["p_value"])
    family = 4 + 1  # uniform and quantile of both views, and that of patients
    assert len(tests) == 4
    assert least["p_value_holm"] <= min(1, family * least["p_value"]) + 1e-12


def test_figures_of_patients_pool_their_images():
    cases = made_test_split(np.random.default_rng(2), 200)
    found = measure_patients(cases, cases["score"].to_numpy(), PARAMS)
    pooled = cases.groupby("patient_id").agg(y=("y_true", "max"), z=("score", "mean"))
    assert (found["n"], found["n_positive"]) == (100, pooled["y"].sum())
    ece = expected_calibration_error(pooled["y"], expit(pooled["z"]))
    assert found["positive_class_ece_uniform"]["ece"] == pytest.approx(ece, abs=1e-12)
    assert found["nll"].value == pytest.approx(negative_log_likelihood(pooled["y"], pooled["z"]), abs=1e-12)
    assert found["in_the_large"].value == pytest.approx(calibration_in_the_large(pooled["y"], pooled["z"]), abs=1e-9)


def test_another_prevalence_is_measured_with_and_without_the_shift():
    cases = made_test_split(np.random.default_rng(3), 400)
    found = measure_elsewhere(cases, cases["score"].to_numpy(), 0.5, PARAMS)
    assert found.keys() == {"source", "0.05", "0.5"}
    assert found["source"] == 0.5
    unmoved = found["0.5"]
    assert unmoved["shifted"]["nll"].value == pytest.approx(unmoved["unshifted"]["nll"].value)
    rare = found["0.05"]
    # the shift moves every logit, and so the intercept, by the same log-odds
    moved = rare["shifted"]["in_the_large"].value - rare["unshifted"]["in_the_large"].value
    assert moved == pytest.approx(-np.log(0.05 / 0.95), abs=1e-6)
    assert rare["shifted"]["nll"].high < rare["unshifted"]["nll"].low


def test_a_thinned_curve_keeps_its_corners():
    y, logit = calibrated_cases(np.random.default_rng(4), 3000)
    curve = pd.DataFrame(corp_curve(y, expit(logit), n_draws=2, rng=np.random.default_rng(0))._asdict())
    thinned = thin(curve)
    assert len(thinned) < 500
    restored = np.interp(curve["y_prob"], thinned["y_prob"], thinned["recalibrated"])
    np.testing.assert_allclose(restored, curve["recalibrated"], atol=1e-12)
    assert thin(curve[:9]).equals(curve[:9])


def test_calibration_after_deferral_is_that_of_the_decided():
    cases = made_test_split(np.random.default_rng(5), 300)
    cases = cases.assign(y_prob=expit(cases["score"] - 1), deferred=cases["score"].abs() < 1)
    resampler = Resampler(cases["patient_id"].to_numpy(), 100, seed=0)
    found = evaluation.calibration_of_decided(cases, resampler)
    decided = cases[~cases["deferred"]]
    for name, part in (("decided", decided), ("all", cases)):
        assert found[name]["n"] == len(part)
        ece = expected_calibration_error(part["y_true"], part["y_prob"])
        assert found[name]["ece"] == pytest.approx(ece, abs=1e-12)
        large = calibration_in_the_large(part["y_true"], part["score"] - 1)
        assert found[name]["in_the_large"].value == pytest.approx(large, abs=1e-3)  # probabilities are clipped
    nobody = evaluation.calibration_of_decided(cases.assign(deferred=True), resampler)
    assert nobody["decided"]["ece"].absent == "there is no such case"


@pytest.mark.parametrize("k", range(11))
def test_the_noise_floor_counts_ties(k):
    """One score for all: the ECE is |K/n - p|, and its p-value the exact tail of the binomial."""
    n, p = 10, 0.3
    floor = calibration_noise_floor(np.full(n, p), n_draws=20_000, rng=np.random.default_rng(0))
    found = floor.p_value(float(expected_calibration_error(np.arange(n) < k, np.full(n, p))))
    outcomes = np.arange(n + 1)
    as_far = np.abs(outcomes / n - p) >= abs(k / n - p) - 1e-9
    assert found == pytest.approx(binom.pmf(outcomes, n, p)[as_far].sum(), abs=0.015)
