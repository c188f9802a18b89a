import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy.optimize import isotonic_regression
from scipy.special import expit
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error

from tmv_lib.calibration import (
    CALIBRATORS,
    calibration_in_the_large,
    calibration_noise_floor,
    calibration_slope,
    choose_calibrator,
    corp_decomposition,
    cross_fitted,
    debiased_calibration_error,
    decision_boundary,
    expected_calibration_error,
    fit_calibrator,
    fit_temperature,
    maximum_calibration_error,
    reliability_curve,
    smooth_calibration_error,
    top_label,
)
from tmv_lib.classification import brier_score, negative_log_likelihood
from tmv_lib.statistics import auroc, wilson_interval

STRATEGIES = ["uniform", "quantile"]
OF_PROBABILITIES = [
    reliability_curve,
    expected_calibration_error,
    maximum_calibration_error,
    debiased_calibration_error,
    smooth_calibration_error,
    corp_decomposition,
    top_label,
]
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
    assert maximum_calibration_error(y, p, n_bins=2) == pytest.approx(0.3)
    # 1/2 (0.2^2 - 0.5 * 0.5 / 1) + 1/2 (0.3^2 - 0) is negative, so the floor holds; bins of one case have no variance
    assert debiased_calibration_error(y, p, n_bins=2) == 0
    with pytest.raises(ValueError, match="at least 2 cases"):
        debiased_calibration_error([0, 1], [0.2, 0.8], n_bins=2)
    # eight cases at 0.5, all positive: (1/2)^2 - 0
    assert debiased_calibration_error(np.ones(8), np.full(8, 0.5)) == 0.5


@pytest.mark.parametrize(("ours", "norm"), [(expected_calibration_error, "l1"), (maximum_calibration_error, "max")])
def test_binned_errors_agree_with_torchmetrics(ours, norm):
    rng = np.random.default_rng(1)
    y, logit = calibrated_cases(rng, 500)
    p = expit(2 * logit).astype(np.float32)  # off the edges, where the two would differ
    theirs = binary_calibration_error(torch.tensor(p), torch.tensor(y), n_bins=15, norm=norm)
    assert ours(y, p) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_expected_error_is_the_curve_averaged_by_cases(strategy):
    y, p = tied_cases(np.random.default_rng(2))
    curve = reliability_curve(y, p, strategy=strategy)
    expected = curve.n @ np.abs(curve.accuracy - curve.confidence) / y.size
    assert expected_calibration_error(y, p, strategy=strategy) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [expected_calibration_error, calibration_slope, calibration_in_the_large])
def test_weights_count_rows(metric):
    rng = np.random.default_rng(3)
    y, p = tied_cases(rng)
    if metric is not expected_calibration_error:
        p = 4 * p - 2
    counts = rng.integers(0, 4, size=(4, y.size))
    expected = [metric(np.repeat(y, row), np.repeat(p, row)) for row in counts]
    np.testing.assert_allclose(metric(y, p, weights=counts), expected, atol=1e-9)
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


def test_corp_agrees_with_scipy_isotonic_regression():
    y, logit = calibrated_cases(np.random.default_rng(8), 300)
    p = expit(2 * logit)
    order = np.argsort(p)
    recalibrated = isotonic_regression(y[order]).x
    score = brier_score(y[order], recalibrated)
    expected = (brier_score(y, p) - score, y.var() - score, y.var())
    np.testing.assert_allclose(corp_decomposition(y, p), expected, atol=1e-12)


def test_corp_of_known_cases():
    y = np.array([0, 0, 1, 1])
    assert corp_decomposition(y, np.full(4, 0.5)) == (0, 0, 0.25)
    assert corp_decomposition(y, y) == (0, 0.25, 0.25)
    assert corp_decomposition(y, 1 - y) == (0.75, 0, 0.25)
    assert corp_decomposition([1, 1], [0.5, 0.5]) == (0.25, 0, 0)


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


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_leave_a_calibrated_model_alone(name):
    rng = np.random.default_rng(13)
    calibrator = fit_calibrator(name, *calibrated_cases(rng, 20_000))
    z = np.linspace(-6, 6, 50)
    assert np.abs(expit(calibrator(z)) - expit(z)).max() < 0.04
    assert all(isinstance(value, float) for value in calibrator.parameters.values())
    assert calibrator.name == name


@pytest.mark.parametrize("name", ["temperature", "platt", "beta", "isotonic", "entropy_temperature"])
def test_calibrators_mend_an_overconfident_model(name):
    rng = np.random.default_rng(14)
    y, logit = calibrated_cases(rng, 5000)
    calibrated = fit_calibrator(name, y, 3 * logit)(3 * logit)
    assert expected_calibration_error(y, expit(3 * logit)) > 0.08
    assert expected_calibration_error(y, expit(calibrated)) < 0.03
    assert negative_log_likelihood(y, calibrated) < negative_log_likelihood(y, 3 * logit) - 0.1


def test_platt_and_beta_agree_with_statsmodels_but_for_their_ridge():
    y, logit = calibrated_cases(np.random.default_rng(15), 2000)
    z = 1.5 * logit + 1
    platt = sm.GLM(y, sm.add_constant(z), family=sm.families.Binomial()).fit().params
    np.testing.assert_allclose(list(fit_calibrator("platt", y, z).parameters.values()), platt, atol=1e-3)
    p = expit(z)
    design = np.column_stack([np.log(p), -np.log1p(-p), np.ones(z.size)])
    beta = sm.GLM(y, design, family=sm.families.Binomial()).fit().params
    assert (beta[:2] > 0).all()
    np.testing.assert_allclose(list(fit_calibrator("beta", y, z).parameters.values()), beta, atol=2e-3)


def test_entropy_temperature_recovers_its_own_parameters():
    rng = np.random.default_rng(16)
    z = 4 * rng.normal(size=50_000)
    p = expit(z)
    share = -(p * np.log(p) + (1 - p) * np.log1p(-p)) / np.log(2)
    temperature = np.log1p(np.exp(-0.3 * np.log(share) + 0.8)) + 0.01
    y = rng.random(z.size) < expit(z / temperature)
    calibrator = fit_calibrator("entropy_temperature", y, z)
    assert calibrator.parameters["weight"] == pytest.approx(-0.3, abs=0.05)
    assert calibrator.parameters["bias"] == pytest.approx(0.8, abs=0.05)
    np.testing.assert_allclose(calibrator(z), z / temperature, atol=0.2)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_survive_separable_reversed_and_constant_logits(name):
    y = np.repeat([0, 1], 20)
    separable = np.r_[np.linspace(-5, -1, 20), np.linspace(1, 5, 20)]
    far = np.array([-700.0, -1.0, 0.0, 1.0, 700.0])
    for logit in (separable, -separable, np.full(40, 3.0), 100 * separable):
        assert np.isfinite(fit_calibrator(name, y, logit)(far)).all()
    assert (np.diff(fit_calibrator(name, y, separable)(far)) >= 0).all()
    if name in ("temperature", "beta", "isotonic"):
        assert (np.diff(fit_calibrator(name, y, -separable)(far)) >= 0).all()


def test_isotonic_never_claims_more_than_its_cases_show():
    y = np.repeat([0, 1], 20)
    calibrated = expit(fit_calibrator("isotonic", y, np.arange(40.0))([-10, 100]))
    np.testing.assert_allclose(calibrated, [1 / 41, 40 / 41], atol=1e-12)


@pytest.mark.parametrize(
    ("distort", "winner"),
    [(lambda z: z, "identity"), (lambda z: 2 * z, "temperature"), (lambda z: z + 1.5, "platt")],
)
def test_the_simplest_sufficient_calibrator_is_chosen(distort, winner):
    rng = np.random.default_rng(17)
    y, logit = calibrated_cases(rng, 1500)
    groups = np.arange(1500) // 2
    order = rng.permutation(1500)
    choices = [
        choose_calibrator(y[rows], distort(logit)[rows], groups=groups[rows], n_folds=5, rng=np.random.default_rng(18))
        for rows in (slice(None), order)
    ]
    assert [choice.name for choice in choices] == [winner, winner]
    table = choices[0].table
    assert table["name"].tolist() == list(CALIBRATORS)
    assert table.loc[table["chosen"], "name"].tolist() == [winner]
    np.testing.assert_allclose(table["nll"], choices[1].table["nll"], atol=1e-9)
    excess = table["nll"] - table["nll"].min()
    assert (excess[table["chosen"]] <= table["standard_error"][table["chosen"]]).all()
    # identity needs no fit: its out-of-fold figure is the plain one
    assert table["nll"][0] == pytest.approx(negative_log_likelihood(y, distort(logit)), abs=1e-12)


def test_identity_wins_on_calibrated_data_though_noise_favours_others():
    chosen, least = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        choice = choose_calibrator(*calibrated_cases(rng, 300), groups=np.arange(300), n_folds=5, rng=rng)
        chosen.append(choice.name)
        least.append(choice.table["name"][choice.table["nll"].argmin()])
    assert chosen.count("identity") >= 18
    assert least.count("identity") <= 15


def test_errors_of_the_choice_count_patients_and_not_images():
    y, logit = calibrated_cases(np.random.default_rng(19), 300)
    repeated = np.repeat(np.arange(300), 4)
    once = choose_calibrator(y, 2 * logit, groups=np.arange(300), n_folds=5, rng=np.random.default_rng(20))
    fourfold = choose_calibrator(
        y[repeated], 2 * logit[repeated], groups=repeated, n_folds=5, rng=np.random.default_rng(20)
    )
    assert fourfold.table["standard_error"][0] == pytest.approx(once.table["standard_error"][0], rel=0.05)


# Bad input


@pytest.mark.parametrize("metric", OF_PROBABILITIES)
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


@pytest.mark.parametrize("metric", [*OF_LOGITS, lambda y, z: fit_calibrator("platt", y, z)])
@pytest.mark.parametrize(
    ("y", "z", "message"),
    [
        ([], [], "at least one case"),
        ([0, 1], [0.1], "one value a case"),
        ([0, 1], [0.1, np.nan], "logit must be finite"),
        ([1, 1], [0.1, 0.2], "one class only"),
    ],
)
def test_functions_of_logits_refuse(metric, y, z, message):
    with pytest.raises(ValueError, match=message):
        metric(y, z)


@pytest.mark.parametrize("metric", [reliability_curve, expected_calibration_error, maximum_calibration_error])
def test_bins_are_checked(metric):
    y, p = [0, 1, 1], [0.2, 0.4, 0.6]
    with pytest.raises(ValueError, match="3 cases for 15 bins"):
        metric(y, p, strategy="quantile")
    with pytest.raises(ValueError, match="uniform or quantile"):
        metric(y, p, strategy="width")
    with pytest.raises(ValueError, match="n_bins must be at least 1"):
        metric(y, p, n_bins=0)
    metric(y, p, n_bins=100)


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
        fit_calibrator("histogram", [0, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="logit must be finite"):
        fit_calibrator("identity", [0, 1], [0.1, 0.2])([np.nan])
    with pytest.raises(ValueError, match="n_draws"):
        calibration_noise_floor([0.1, 0.2], n_draws=0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="one patient a case"):
        choose_calibrator([0, 1], [0.1, 0.2], groups=[1], n_folds=2, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="one class only"):
        choose_calibrator([0, 0, 1], [0.1, 0.2, 0.3], groups=[1, 2, 3], n_folds=3, rng=np.random.default_rng(0))


def test_cross_fitted_logits_come_from_other_patients():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 400)
    y = (rng.random(400) < expit(z / 2)).astype(int)
    groups = np.repeat(np.arange(200), 2)
    options = {"groups": groups, "n_folds": 5}
    found = cross_fitted("temperature", y, z, rng=np.random.default_rng(1), **options)
    # A temperature divides: the ratio is one number a fold, five in all, each close to the T of all cases.
    ratios = np.unique((z / found).round(9))
    assert len(ratios) == 5
    np.testing.assert_allclose(ratios, fit_temperature(y, z), rtol=0.3)


def test_the_decision_boundary_separates_what_calibration_separates():
    z = np.array([-3.0, -1.0, 0.5, 2.0])
    assert decision_boundary(z, z - 1.0) == pytest.approx((0.5 + 2.0) / 2)
    assert decision_boundary(z, z + 9) == -np.inf
    assert decision_boundary(z, z - 9) == np.inf
