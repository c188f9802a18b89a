import numpy as np
import pytest
from scipy.special import expit

from tmv_lib.site.triage import accepted, certify_sides, one_image_each


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def world(rng, n_patients, images=1):
    """A model that is wrong in known ways: P(y = 1) = sigma(z - 1) at shipped logit z."""
    z = rng.normal(0, 3, n_patients)
    z = np.repeat(z, images) + 0.3 * rng.normal(size=n_patients * images)
    return (rng.random(len(z)) < expit(z - 1)).astype(int), z, np.repeat(np.arange(n_patients), images)


def test_violations_of_either_side_stay_below_delta_with_several_images_a_patient():
    delta, violated, certified = 0.2, 0, 0
    everyone = world(np.random.default_rng(0), 200_000)
    grid_of = world(np.random.default_rng(1), 400)[1]
    truth = {}
    for side, (there, wrong) in enumerate(((everyone[1] > 0, everyone[0] == 0), (everyone[1] <= 0, everyone[0] == 1))):
        confidence = np.abs(everyone[1][there])
        order = np.argsort(-confidence)
        truth[side] = (-confidence[order], np.cumsum(wrong[there][order]) / (1 + np.arange(there.sum())))
    for seed in range(300):
        rng = np.random.default_rng(10 + seed)
        y, logit, groups = world(rng, 250, images=3)
        here = one_image_each(groups, rng=rng)
        sides = certify_sides(y[here], logit[here], source_logit=grid_of, risk=0.1, delta=delta)
        broken = False
        for side, certificate in enumerate(sides):
            if certificate.certified:
                certified += 1
                thresholds, risk = truth[side]
                place = np.searchsorted(thresholds, -certificate.threshold, side="right") - 1
                broken |= bool(risk[place] > 0.1)
        violated += broken
    assert certified > 100
    assert violated / 300 <= delta


def test_a_side_without_enough_cases_accepts_nobody(rng):
    y, z, _ = world(rng, 20)
    sides = certify_sides(y, z, source_logit=z, risk=0.01, delta=0.1)
    assert not sides.positive.certified
    assert not sides.negative.certified
    assert not accepted(z, sides).any()


def test_the_sides_are_separate(rng):
    y, z, _ = world(rng, 2000)
    both = certify_sides(y, z, source_logit=z, risk=0.1, delta=0.1)
    spoiled = certify_sides(np.where(z > 0, 0, y), z, source_logit=z, risk=0.1, delta=0.1)
    assert both.positive.certified
    assert not spoiled.positive.certified
    assert both.negative == spoiled.negative


def test_one_image_of_each_patient_whichever(rng):
    groups = np.array(["a", "b", "b", "c", "c", "c"])
    seen = set()
    for _ in range(60):
        taken = one_image_each(groups, rng=rng)
        assert sorted(groups[taken]) == ["a", "b", "c"]
        seen |= set(taken.tolist())
    assert seen == set(range(6))
