import time

import numpy as np
import pytest
from scipy.special import expit

from tmv_lib.site.learning_curve import Labelled, bands, learning_curve

OPTIONS = {"source_logit": np.linspace(-6, 6, 200), "risk": 0.1, "delta": 0.1}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def site(rng, n, *, intercept=0.0):
    z = rng.normal(0, 3, n)
    y = (rng.random(n) < expit(intercept + z)).astype(float)
    return Labelled(y, z, np.arange(n))


def curve(local, rng, *, judged_on=None, sizes=(25, 100, 200), draws=40):
    return bands(
        learning_curve(local, judged_on=judged_on, n_patients=list(sizes), n_draws=draws, rng=rng, **OPTIONS)
    ).set_index(["measure", "n"])["median"]


def test_labels_mend_a_shifted_site_and_do_not_harm_a_true_one(rng):
    shifted = curve(site(rng, 300, intercept=-3), rng)
    assert shifted["nll", 200] < -0.1
    assert shifted["accuracy", 200] > 0.02
    assert shifted["debiased_ece", 200] < -0.1
    true = curve(site(rng, 300), rng)
    assert abs(true["nll", 200]) < 0.01


def test_the_band_is_of_what_labels_change_and_not_of_who_judges(rng):
    options = {"judged_on": None, "n_patients": [200], "n_draws": 40, "rng": rng, **OPTIONS}
    rows = learning_curve(site(rng, 300, intercept=-1), **options)
    found = bands(rows).set_index(["measure", "n"])
    assert (found.xs(0, level="n") == 0).all(axis=None)
    levels = rows.pivot(index="draw", columns="n", values="nll")
    changes = levels[200] - levels[0]
    assert found.loc[("nll", 200), "median"] == pytest.approx(changes.median())
    assert found.loc[("nll", 200), "high"] == pytest.approx(changes.quantile(0.95))
    assert changes.std() < 0.6 * levels[200].std()


def test_more_patients_certify_more(rng):
    found = curve(site(rng, 600), rng, sizes=(25, 100, 300))
    assert found["coverage", 0] == 0
    assert found["coverage", 300] >= found["coverage", 100] >= found["coverage", 25]
    assert found["coverage", 300] > 0


def test_other_cases_judge_where_there_are_any(rng):
    local, test = site(rng, 60, intercept=-2), site(rng, 500, intercept=-2)
    options = {"judged_on": test, "n_patients": [25, 60], "n_draws": 10, "rng": rng, **OPTIONS}
    rows = learning_curve(local, **options)
    shipped = rows.loc[rows["n"] == 0, "accuracy"]
    np.testing.assert_allclose(shipped, ((test.logit > 0) == test.y_true).mean())
    assert bands(rows).set_index(["measure", "n"]).loc[("accuracy", 60), "median"] > 0


def test_sizes_beyond_the_site_are_left_out(rng):
    found = curve(site(rng, 100), rng, sizes=(25, 50, 90))
    assert set(found.index.get_level_values("n")) == {0, 25, 50}
    with pytest.raises(ValueError, match="a learning curve from 25 patients needs more than the 10 there are"):
        curve(site(rng, 10), rng)


def test_the_curve_of_624_takes_less_than_twenty_seconds(rng):
    start = time.process_time()
    curve(site(rng, 624), rng, sizes=(25, 50, 100, 150, 200, 300), draws=200)
    assert time.process_time() - start < 20
