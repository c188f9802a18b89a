import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import chi2
from sklearn.linear_model import LogisticRegression

from tmv_lib.site import calibrated
from tmv_lib.site.calibrated import estimate
from tmv_lib.site.updating import (
    UPDATES,
    calibration_interaction,
    closed_test,
    cross_fitted_update,
    patient_counts,
)
from tmv_lib.site.updating import site_folds as fold_by_patient
from tmv_lib.statistics.classification import negative_log_likelihood
from tmv_lib.statistics.estimate import Estimate


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def world(rng, n, *, intercept=0.0, slope=1.0, images=1):
    """Patients whose true logit is intercept + slope z, each with `images` images of one truth."""
    z = rng.normal(0, 2, n)
    y = (rng.random(n) < expit(intercept + slope * z)).astype(int)
    return np.repeat(y, images), np.repeat(z, images), np.repeat(np.arange(n), images)


def test_true_logits_are_kept_in_93_percent_of_2000_repeats():
    kept = 0
    for seed in range(2000):
        y, z, groups = world(np.random.default_rng(seed), 300)
        kept += closed_test(y, z, groups=groups).choice[0] == 0
    assert kept / 2000 >= 0.93


def two_places(seed, n=150, *, images=1, home=(0.0, 1.0), away=(0.0, 1.0)):
    """Source and site, each with its own line."""
    rng = np.random.default_rng(seed)
    parts = [world(rng, n, intercept=a, slope=b, images=images) for a, b in (home, away)]
    y, z = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    groups = np.r_[parts[0][2], n + parts[1][2]]
    return y, z, np.repeat([0, 1], len(y) // 2), groups


def interaction(y, z, site, groups, n_resamples=1):
    rng = np.random.default_rng(0)
    return calibration_interaction(y, z, site, groups=groups, n_resamples=n_resamples, rng=rng)


@pytest.mark.parametrize("images", [1, 3])
def test_a_model_that_is_equally_wrong_in_both_places_is_not_blamed_on_the_site(images):
    wrong = {"home": (-0.8, 0.6), "away": (-0.8, 0.6)}
    blamed = sum(interaction(*two_places(seed, images=images, **wrong))["p_value"] < 0.05 for seed in range(300))
    assert blamed <= 27  # 15 are promised, and 27 or more have a chance of 0.3 %


def test_a_site_with_another_line_is_found():
    found = [interaction(*two_places(seed, 300, away=(-1.0, 0.7)))["p_value"] < 0.05 for seed in range(40)]
    assert sum(found) >= 36


def test_the_interaction_is_that_of_a_logistic_regression():
    y, z, site, groups = two_places(0, 300, away=(-0.5, 0.8))
    found = interaction(y, z, site, groups)
    design = np.column_stack([z, site, site * z])
    full, one = (sm.Logit(y, sm.add_constant(x)).fit(disp=False) for x in (design, z[:, None]))
    assert found["p_value"] == pytest.approx(chi2.sf(2 * (full.llf - one.llf) / found["design_effect"], 2), rel=0.02)
    assert found["intercept_difference"].value == pytest.approx(full.params[2], abs=0.01)
    assert found["slope_difference"].value == pytest.approx(full.params[3], abs=0.01)


def test_the_design_effect_of_copies_is_their_number():
    y, z, site, groups = two_places(0, 200, images=3)
    assert interaction(y, z, site, groups)["design_effect"] == pytest.approx(3, rel=0.15)


def test_the_interval_of_the_slope_covers_its_difference():
    covered = 0
    for seed in range(60):
        found = interaction(*two_places(seed, 200, away=(0.0, 0.7)), n_resamples=200)
        covered += found["slope_difference"].low <= -0.3 <= found["slope_difference"].high
    assert covered >= 52


def test_an_interaction_needs_both_classes_in_both_places():
    with pytest.raises(ValueError, match="one class only at the site"):
        interaction([0, 1, 1, 1], [0.0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 2, 3])


def test_several_images_a_patient_do_not_make_it_update_more_often():
    kept = 0
    for seed in range(400):
        y, z, groups = world(np.random.default_rng(seed), 200, images=3)
        kept += closed_test(y, z, groups=groups).choice[0] == 0
    assert kept / 400 >= 0.93


@pytest.mark.parametrize(("intercept", "slope", "expected"), [(-2.0, 1.0, "intercept"), (0.0, 0.4, "both")])
def test_the_smallest_sufficient_update_is_chosen(intercept, slope, expected):
    chosen = []
    for seed in range(50):
        y, z, groups = world(np.random.default_rng(seed), 500, intercept=intercept, slope=slope)
        chosen.append(UPDATES[closed_test(y, z, groups=groups).choice[0]])
    assert chosen.count(expected) >= 45


def test_statistics_are_those_of_maximum_likelihood(rng):
    y, z, groups = world(rng, 400, intercept=0.5, slope=0.8)
    found = closed_test(y, z, groups=groups)
    line = LogisticRegression(C=1e8, tol=1e-10, max_iter=1000).fit(z[:, None], y)
    loss = [400 * negative_log_likelihood(y, t) for t in (z, line.intercept_[0] + line.coef_[0, 0] * z)]
    assert found.against_keep[0] == pytest.approx(2 * (loss[0] - loss[1]), rel=0.01)
    assert (found.choice[0] == 0) == (found.against_keep[0] < chi2.ppf(0.95, 2))


def test_an_update_leaves_the_ranking(rng):
    y, z, groups = world(rng, 300, intercept=1, slope=0.5)
    found = closed_test(y, z, groups=groups)
    assert found.slope[0] > 0


def test_a_huge_shift_does_not_diverge(rng):
    y, z, groups = world(rng, 200, intercept=-6, slope=0.5)
    found = closed_test(y, 8 * z + 20, groups=groups)
    assert negative_log_likelihood(y, found.intercept + found.slope * (8 * z + 20)) < 0.7


def test_flipping_one_patients_labels_leaves_its_own_probabilities_bit_identical(rng):
    y, z, groups = world(rng, 80, intercept=-1, slope=0.6, images=2)
    folds = fold_by_patient(groups, n_folds=5, n_foldings=3, rng=np.random.default_rng(3))
    flipped = np.where(groups == 7, 1 - y, y)
    options = {"groups": groups, "folds": folds, "weights": np.ones((1, len(y)))}
    before, after = (cross_fitted_update(truth, z, **options)[0][0] for truth in (y, flipped))
    np.testing.assert_array_equal(before[groups == 7], after[groups == 7])
    assert (before != after).any()


def test_one_class_and_few_cases_leave_the_logit_alone(rng):
    z = rng.normal(size=10)
    found = closed_test(np.ones(10), z, groups=np.arange(10))
    assert (found.choice[0], found.intercept[0], found.slope[0]) == (0, 0, 1)
    with pytest.raises(ValueError, match=r"number of patients \(4\), found 5"):
        fold_by_patient(np.arange(4), n_folds=5, n_foldings=1, rng=rng)


def test_a_patient_drawn_twice_is_two_copies_in_one_fold(rng):
    y, z, groups = world(rng, 60, intercept=1)
    folds = fold_by_patient(groups, n_folds=5, n_foldings=2, rng=rng)
    times = np.where(groups < 30, 2, 1)
    own, _ = cross_fitted_update(y, z, groups=groups, folds=folds, weights=times[None].astype(float))
    truth, scores, fold = (np.repeat(of, times, axis=-1) for of in (y, z, folds))
    options = {"groups": np.arange(len(truth)), "folds": fold, "weights": np.ones((1, len(truth)))}
    np.testing.assert_allclose(np.repeat(own[0], times), cross_fitted_update(truth, scores, **options)[0][0])
    counts = patient_counts(groups, n_resamples=50, rng=rng)
    assert (counts.sum(axis=1) == len(y)).all()


def test_an_interval_that_a_resample_lacks_is_absent_with_its_reason():
    def fails_on_rows(*_, weights=None):
        if weights is not None:
            raise ValueError("one class only")
        return 0.5

    found = estimate(fails_on_rows, np.zeros(2), np.zeros(2), np.zeros((2, 2)), np.ones((2, 2)))
    assert found == Estimate(0.5, interval_absent="one class only")


def test_an_interval_is_the_middle_95_percent_of_the_resampled_figures():
    def first(_, logit, *, weights=None):
        return logit[0] * (1 if weights is None else weights[0])

    resampled, weights = np.arange(101.0)[:, None], np.full((101, 1), 2.0)
    assert estimate(first, np.zeros(1), np.array([7.0]), resampled, weights) == Estimate(7.0, 5.0, 195.0)


def test_a_million_cases_within_five_seconds(rng):
    y, z, groups = world(rng, 1_000_000, intercept=0.3)
    start = time.process_time()
    assert UPDATES[closed_test(y, z, groups=groups).choice[0]] == "intercept"
    assert time.process_time() - start < 5


def test_no_update_turns_a_ranking_round():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 400)
    y = (rng.random(400) < expit(-z)).astype(int)  # the labels of the site are reversed
    update = closed_test(y, z, groups=np.arange(400))
    assert update.slope[0] > 0


def test_of_many_patients_a_refit_in_every_resample_moves_an_interval_by_less_than_a_quarter_of_its_width(monkeypatch):
    rng, n = np.random.default_rng(3), 1500
    z = rng.normal(0, 2, n)
    y_true = (rng.random(n) < expit(0.5 + 0.7 * z)).astype(int)
    site = pd.DataFrame({"image_id": np.arange(n), "patient_id": np.arange(n), "y_true": y_true, "logit_net": z})
    params = SimpleNamespace(folds=5, foldings=2, resamples=300, seed=1)
    found = []
    for most in (n, n - 1):
        monkeypatch.setattr(calibrated, "REFITTED", most)
        metrics, logits = calibrated.calibrate_at_site(site, site, "net", params)
        found.append(metrics["site_calibrated"])
    assert logits["site_logit"].notna().all()
    for name in ("nll", "brier_score", "accuracy"):
        refitted, plain = (one[name] for one in found)
        assert plain.value == pytest.approx(
            refitted.value, abs=0.05 * (refitted.high - refitted.low)
        )  # another folding
        width = refitted.high - refitted.low
        assert plain.low == pytest.approx(refitted.low, abs=0.25 * width)
        assert plain.high == pytest.approx(refitted.high, abs=0.25 * width)
