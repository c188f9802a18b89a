import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit

from tmv_lib.deferral import combination

FOLDS = {"n_folds": 5, "n_foldings": 3}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def members(rng: np.random.Generator, n: int, noise: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Members that see the true log odds through noise of their own, each calibrated by the slope that shrinks it."""
    z = rng.normal(0, 2, n)
    y = (rng.random(n) < expit(z)).astype(int)
    seen = [(z + rng.normal(0, s, n)) * 4 / (4 + s**2) for s in noise]
    return y, np.column_stack(seen), np.arange(n) // 2


def test_each_way_is_its_formula():
    z = np.array([[2.0, -1.0], [0.0, 0.5]])
    ways = {way: combination.combine(z, way=way, stack=[0.1, 0.7, 0.4]) for way in combination.WAYS}
    np.testing.assert_allclose(ways["first_member"], expit(z[:, 0]))
    np.testing.assert_allclose(ways["mean_probability"], (expit(z[:, 0]) + expit(z[:, 1])) / 2)
    np.testing.assert_allclose(ways["mean_logit"], expit([0.5, 0.25]))
    np.testing.assert_allclose(ways["stacking"], expit([0.1 + 1.4 - 0.4, 0.1 + 0.2]))


def test_a_stack_is_shrunk_to_the_mean_logit_and_yields_to_many_cases(rng):
    few = combination.fit_stack([0, 1], [[-1.0, 1.0], [1.0, -1.0]])
    np.testing.assert_allclose(few, [0, 0.5, 0.5], atol=0.35)
    y, z, _ = members(rng, 50_000, (0.5, 3.0))
    peer = sm.Logit(y, sm.add_constant(z)).fit(disp=0).params
    np.testing.assert_allclose(combination.fit_stack(y, z), peer, atol=0.01)


def test_many_rows_of_weights_are_as_many_fits(rng):
    y, z, _ = members(rng, 200, (1.0, 1.0))
    keep = rng.random((3, 200)) < 0.7
    rows = combination.fit_stack(y, z, weights=keep)
    for kept, row in zip(keep, rows, strict=True):
        np.testing.assert_allclose(row, combination.fit_stack(y[kept], z[kept]), atol=1e-6)


@pytest.mark.parametrize(
    ("noise", "ways"),
    [
        ((0.3, 6.0), {"first_member", "stacking"}),  # the second knows nothing
        ((2.0, 2.0), {"mean_logit", "mean_probability", "stacking"}),  # as good as each other, and independent
    ],
)
def test_validation_chooses_what_is_best(rng, noise, ways):
    y, z, groups = members(rng, 4000, noise)
    choice = combination.choose(y, z, groups=groups, rng=rng, **FOLDS)
    assert choice.way in ways
    assert sum(choice.times_chosen.values()) == 15
    assert choice.nll[choice.way] == min(choice.nll.values())
    assert choice.gain.low <= choice.gain.value <= choice.gain.high
    assert (choice.gain.high < 0) == (noise == (2.0, 2.0))


def test_choosing_is_judged_on_patients_that_it_has_not_seen():
    """Members that know nothing: the least of four losses looks like a gain, the nested figure does not."""
    gains = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y, z = rng.integers(0, 2, 200), rng.normal(0, 0.3, (200, 3))
        gains.append(combination.choose(y, z, groups=np.arange(200), rng=rng, **FOLDS).gain)
    assert sum(gain.high < 0 for gain in gains) <= 2


def test_one_member_leaves_no_choice(rng):
    y, z, groups = members(rng, 100, (1.0,))
    choice = combination.choose(y, z, groups=groups, rng=rng, **FOLDS)
    assert (choice.way, choice.gain.ends) == ("first_member", (0, 0, 0))


def test_a_patients_labels_reach_none_of_its_probabilities(rng):
    y, z, groups = members(rng, 200, (1.0, 1.0))
    flipped = np.where(groups == 0, 1 - y, y)
    # flipping may move a patient to another stratum and so all folds: keep the folds, change the labels
    fold = np.arange(200) // 2 % 5
    before, after = (combination._stacked(labels.astype(float), z, fold) for labels in (y, flipped))
    np.testing.assert_allclose(before[groups == 0], after[groups == 0])
    assert not np.allclose(before[fold != 0], after[fold != 0])


@pytest.mark.parametrize("way", combination.WAYS[:3])
def test_means_need_no_fit(rng, way):
    y, z, groups = members(rng, 50, (1.0, 1.0))
    found = combination.cross_fitted(y, z, groups=groups, way=way, n_folds=5, rng=rng)
    np.testing.assert_array_equal(found, combination.combine(z, way=way, stack=()))
