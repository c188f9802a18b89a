import numpy as np
import pytest
from scipy.optimize import minimize

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


def test_bad_input_is_named(rng):
    design, y, _ = made(rng)
    with pytest.raises(ValueError, match="ridge must be above 0, found 0"):
        fit_logistic(design, y, weights=np.ones(len(design)), ridge=0, centre=np.zeros(3))
    with pytest.raises(ValueError, match="do not fit a design of 120 cases"):
        fit_logistic(design, y[:, :5], weights=np.ones(5), ridge=1, centre=np.zeros(3))
