import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit

from tmv_lib.calibration import at_prevalence
from tmv_lib.prevalence import prevalence_by_confusion, prevalence_by_em


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def label_shift(rng, n, *, prevalence, source=0.5):
    """Two Normals at -1 and 1: the logit at prevalence `source` is 2 x + log-odds of it."""
    y = (rng.random(n) < prevalence).astype(int)
    x = rng.normal(2 * y - 1, 1)
    return y, 2 * x + np.log(source / (1 - source))


@pytest.mark.parametrize("prevalence", [0.1, 0.3, 0.8])
def test_both_find_a_prevalence_that_alone_has_changed(rng, prevalence):
    source_y, source_logit = label_shift(rng, 20_000, prevalence=0.4, source=0.4)
    _, logit = label_shift(rng, 20_000, prevalence=prevalence, source=0.4)
    assert prevalence_by_em(logit, source=0.4) == pytest.approx(prevalence, abs=0.02)
    assert prevalence_by_confusion(source_y, source_logit, logit) == pytest.approx(prevalence, abs=0.02)


def test_em_ends_at_the_maximum_of_the_likelihood(rng):
    _, z = label_shift(rng, 300, prevalence=0.3)

    def loss(pi):  # p(x) is proportional to p_s(x) [pi sigma(z) / pi_s + (1 - pi) sigma(-z) / (1 - pi_s)]
        return -np.log(pi * expit(z) / 0.5 + (1 - pi) * expit(-z) / 0.5).sum()

    best = minimize_scalar(loss, bounds=(1e-4, 1 - 1e-4), method="bounded", options={"xatol": 1e-8}).x
    assert prevalence_by_em(z, source=0.5) == pytest.approx(best, abs=1e-4)


def test_the_correction_is_bayes_rule(rng):
    y, z = label_shift(rng, 50_000, prevalence=0.2)
    moved = at_prevalence(z, source=0.5, target=0.2)
    assert expit(moved).mean() == pytest.approx(y.mean(), abs=0.01)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="both classes are needed at the source"):
        prevalence_by_confusion([1, 1], [1, 2], [0.5])
    with pytest.raises(ValueError, match="positive more often among positives"):
        prevalence_by_confusion([1, 0], [-1, 2], [0.5])
