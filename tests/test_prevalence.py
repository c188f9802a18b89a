from functools import partial

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit

from tmv_lib.calibration.prevalence import at_prevalence, prevalence_by_confusion, prevalence_by_em
from tmv_lib.statistics.resampling import bootstrap


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def label_shift(rng, n, *, prevalence, source=0.5):
    """Two Normals at -1 and 1: the logit at prevalence `source` is 2 x + log-odds of it."""
    y = (rng.random(n) < prevalence).astype(int)
    x = rng.normal(2 * y - 1, 1)
    return y, 2 * x + np.log(source / (1 - source))


def by_confusion(source_y, source_logit, logit):
    site = np.repeat([0, 1], [len(source_y), len(logit)])
    return prevalence_by_confusion(np.r_[source_y, np.zeros(len(logit))], np.r_[source_logit, logit], site)


@pytest.mark.parametrize("prevalence", [0.1, 0.3, 0.8])
def test_both_find_a_prevalence_that_alone_has_changed(rng, prevalence):
    source_y, source_logit = label_shift(rng, 20_000, prevalence=0.4, source=0.4)
    _, logit = label_shift(rng, 20_000, prevalence=prevalence, source=0.4)
    assert prevalence_by_em(logit, source=0.4) == pytest.approx(prevalence, abs=0.02)
    assert by_confusion(source_y, source_logit, logit) == pytest.approx(prevalence, abs=0.02)


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


def test_a_whole_weight_is_as_many_copies(rng):
    y, z = label_shift(rng, 200, prevalence=0.3)
    site = np.repeat([0, 1], 100)
    weights = rng.integers(0, 3, (4, 200))
    em = prevalence_by_em(z, source=0.5, weights=weights)
    confusion = prevalence_by_confusion(y, z, site, weights=weights)
    for row, drawn in enumerate(weights):
        copies = np.repeat(np.arange(200), drawn)
        assert em[row] == pytest.approx(prevalence_by_em(z[copies], source=0.5))
        assert confusion[row] == pytest.approx(prevalence_by_confusion(y[copies], z[copies], site[copies]))


def test_the_bootstrap_interval_of_em_covers_the_prevalence():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        _, z = label_shift(rng, 200, prevalence=0.3)
        metric = partial(prevalence_by_em, source=0.5)
        low, high, _ = bootstrap(metric, z, groups=np.arange(200), n_resamples=200, rng=rng)
        covered += low <= 0.3 <= high
    assert covered >= 52  # 57 of 60 are promised, and 52 or fewer have a chance of 1 %


def test_the_truth_of_the_site_plays_no_part(rng):
    y, z = label_shift(rng, 200, prevalence=0.3)
    site = np.repeat([0, 1], 100)
    assert prevalence_by_confusion(y, z, site) == prevalence_by_confusion(np.where(site, 1 - y, y), z, site)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="negatives at the source are needed, found none"):
        by_confusion([1, 1], [1, 2], [0.5])
    with pytest.raises(ValueError, match="positive more often among the source's positives"):
        by_confusion([1, 0], [-1, 2], [0.5])
