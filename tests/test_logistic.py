import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize
from scipy.special import expit

from tmv_lib.statistics.logistic import fit_logistic


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def made(rng, n=120, d=3):
    design = np.column_stack([np.ones(n), rng.normal(size=(n, d - 1))])
    return design, (rng.random((4, n)) < 0.4).astype(float), rng.integers(0, 3, (4, n)).astype(float)


def test_every_row_is_the_minimum_that_a_general_optimiser_finds(rng):
    design, y, weights = made(rng)
    offset, centre = rng.normal(size=len(design)), np.array([0.0, 1.0, 0.0])
    found = fit_logistic(design, y, weights=weights, ridge=0.3, centre=centre, offset=offset)
    for row in range(4):

        def loss(beta, row=row):
            eta = offset + design @ beta
            fit = (weights[row] * np.logaddexp(0, np.where(y[row] == 1, -eta, eta))).sum()
            return fit + 0.15 * ((beta - centre) ** 2).sum()

        best = minimize(loss, centre, method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(found[row], best.x, atol=1e-5)


def test_a_whole_weight_is_that_many_copies(rng):
    design, y, weights = made(rng)
    copies = np.repeat(np.arange(len(design)), weights[0].astype(int))
    options = {"ridge": 0.1, "centre": np.zeros(3)}
    weighted = fit_logistic(design, y[0], weights=weights[0], **options)
    copied = fit_logistic(design[copies], y[0][copies], weights=np.ones(len(copies)), **options)
    np.testing.assert_allclose(weighted, copied, atol=1e-8)


def test_a_row_does_not_depend_on_what_the_others_hold(rng):
    design, y, weights = made(rng)
    options = {"ridge": 0.1, "centre": np.zeros(3)}
    before = fit_logistic(design, y, weights=weights, **options)
    after = fit_logistic(design, np.vstack([y[:1], 1 - y[1:]]), weights=weights, **options)
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1:] != after[1:]).all()


def test_separated_classes_and_huge_logits_stay_finite():
    z = np.array([-40.0, -30, 30, 40])
    design = np.column_stack([np.ones(4), z])
    beta = fit_logistic(design, np.array([0, 0, 1, 1]), weights=np.ones(4), ridge=0.01, centre=[0.0, 1.0])
    assert np.isfinite(beta).all()
    beta = fit_logistic(design, np.array([1, 1, 0, 0]), weights=np.ones(4), ridge=0.01, centre=[0.0, 1.0])
    assert beta[0, 1] < 0


def test_without_a_ridge_it_is_the_maximum_of_the_likelihood(rng):
    design, y, weights = made(rng)
    found = fit_logistic(design, y, weights=weights)
    for row in range(4):
        peer = sm.GLM(y[row], design, family=sm.families.Binomial(), freq_weights=weights[row]).fit(tol=1e-12)
        np.testing.assert_allclose(found[row], peer.params, atol=1e-6)


@pytest.mark.parametrize("z", [[-40.0, -30, 30, 40], [-4, -3, 3, 4], [-1, -2, 2, 1], [-1, 0, 0, 1], [1, 1, 1, 1]])
def test_without_a_ridge_what_has_no_optimum_is_refused(z):
    """Separated classes, a tie where they touch, and a column that is the intercept."""
    design = np.column_stack([np.ones(4), z])
    mixed = np.array([0, 1, 0, 1])
    for y in ([0, 0, 1, 1], [1, 1, 0, 0]):
        for outcomes in ([y], [mixed, y], [y, mixed]):
            with pytest.raises(ValueError, match="did not converge"):
                fit_logistic(design, outcomes, weights=np.ones(4))
        assert np.isfinite(fit_logistic(design, y, weights=np.ones(4), ridge=0.01)).all()


def test_an_offset_that_separates_the_classes_leaves_an_optimum():
    y, z = np.array([0.0, 0.0, 1.0, 1.0]), np.array([-2.0, -1.0, 1.0, 2.0])
    # by symmetry no intercept is better than 0
    found = fit_logistic(np.ones((4, 1)), y, weights=np.ones(4), offset=z)
    np.testing.assert_allclose(found, [[0]], atol=1e-8)


def test_a_row_of_few_cases_is_separated_though_all_of_them_are_not():
    design, y = np.column_stack([np.ones(6), [-2.0, -1, 0, 0, 1, 2]]), np.array([0, 1, 0, 1, 0, 1])
    weights = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1]])
    assert np.isfinite(fit_logistic(design, y, weights=weights[:1])).all()
    with pytest.raises(ValueError, match="did not converge"):
        fit_logistic(design, y, weights=weights)


def test_shares_of_positives_are_cases_of_both_classes():
    design = np.column_stack([np.ones(2), [-1.0, 1.0]])
    # two levels, two coefficients: the shares themselves
    found = fit_logistic(design, [0.2, 0.9], weights=[5.0, 10.0])
    np.testing.assert_allclose(expit(design @ found[0]), [0.2, 0.9], atol=1e-8)


def test_bad_input_is_named(rng):
    design, y, _ = made(rng)
    with pytest.raises(ValueError, match="ridge must be at least 0, found -1"):
        fit_logistic(design, y, weights=np.ones(len(design)), ridge=-1, centre=np.zeros(3))
    with pytest.raises(ValueError, match="do not fit a design of 120 cases"):
        fit_logistic(design, y[:, :5], weights=np.ones(5), ridge=1, centre=np.zeros(3))
