import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from tmv_lib.deferral import costs, doubt

PRICES = {"cost_fn": 5.0, "cost_fp": 1.0}


def refer(certainty: np.ndarray) -> np.ndarray:
    return certainty < 0.7


LEARN = {"refer": refer, "review": 0.25, "n_folds": 5, "n_foldings": 3, **PRICES}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def world(
    rng: np.random.Generator, n: int, *, strength: float
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, np.ndarray]:
    """Calibrated probabilities of which a doubt in [0, 1] says what they do not: beyond 0 it pulls the truth away."""
    p = expit(rng.normal(0, 2.5, n))
    d = np.clip(rng.normal(0, 0.5, n), 0, 1)
    positive = p > 1 / 6
    wrong_odds = logit(np.where(positive, 1 - p, p)) + strength * d
    wrong = rng.random(n) < expit(wrong_odds)
    y = np.where(wrong, ~positive, positive).astype(int)
    noise = np.clip(rng.normal(0, 0.5, n), 0, 1)
    return y, p, pd.DataFrame({"disagreement": d, "distance": noise}), np.arange(n) // 2


def test_what_is_usual_is_no_doubt_and_what_is_beyond_validation_is_the_largest_seen():
    ranges = doubt.ranges_of(
        pd.DataFrame({"distance_a": [1.0, 2.0, 3.0, np.nan], "instability_a": [4.0, 4.0, 4.0, 4.0]})
    )
    assert ranges == {"distance_a": (2.0, 3.0)}  # a signal that does not vary says nothing
    new = pd.DataFrame({"distance_a": [-5.0, 2.0, 2.5, 3.0, 1e9, np.nan]})
    assert doubt.doubts(new, ranges)["distance"].tolist() == [0, 0, 0.5, 1, 1, 0]


def test_of_several_members_the_one_that_doubts_most_counts():
    ranges = {"distance_a": (0.0, 1.0), "distance_b": (0.0, 2.0), "disagreement": (0.0, 1.0)}
    table = pd.DataFrame({"distance_a": [0.1, 0.9], "distance_b": [1.0, 1.0], "disagreement": [0.0, 0.3]})
    found = doubt.doubts(table, ranges)
    assert list(found) == ["disagreement", "distance"]  # in the order in which they may enter
    assert found["distance"].tolist() == [0.5, 0.9]


def test_doubt_can_only_lower_a_certainty_and_more_doubt_lowers_it_more(rng):
    for _ in range(200):
        prices = dict(zip(("cost_fn", "cost_fp"), np.exp(rng.normal(0, 2, 2)), strict=True))
        p, d, w = rng.choice([0.0, 1.0, *rng.random(8)], 20), rng.random(), np.exp(rng.normal(0, 2))
        certainty = doubt.lowered(p, pd.DataFrame({"distance": np.full(20, d)}), {"distance": w}, **prices)
        assert ((certainty >= 0) & (certainty <= costs.certainty(p, **prices))).all()
        more = doubt.lowered(p, pd.DataFrame({"distance": np.full(20, (1 + d) / 2)}), {"distance": w}, **prices)
        assert (more <= certainty + 1e-12).all()


def test_without_weights_the_margin_is_left_to_the_last_bit(rng):
    p = rng.random(50)
    certainty = doubt.lowered(p, pd.DataFrame(index=range(50)), {}, **PRICES)
    np.testing.assert_array_equal(certainty, costs.certainty(p, **PRICES))


def test_a_doubt_that_finds_errors_is_used_and_gets_its_weight(rng):
    y, p, table, groups = world(rng, 4000, strength=4.0)
    found = doubt.learn(y, p, table, groups=groups, rng=rng, **LEARN)
    assert found.used
    assert all(difference.high < 0 for difference in found.against.values())
    assert found.weights["disagreement"] == pytest.approx(4.0, abs=0.5)
    assert found.weights["distance"] == pytest.approx(0.0, abs=0.3)
    assert (found.certainty <= costs.certainty(p, **PRICES) + 1e-12).all()


@pytest.mark.parametrize("strength", [0.0, -4.0])  # says nothing; argues for deciding, which no doubt may
def test_what_cannot_be_shown_to_help_is_not_used(strength):
    used = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y, p, table, groups = world(rng, 400, strength=strength)
        found = doubt.learn(y, p, table, groups=groups, rng=rng, **LEARN)
        used.append(found.used)
        if not found.used:
            np.testing.assert_array_equal(found.certainty, costs.certainty(p, **PRICES))
        assert all(weight >= 0 for weight in found.weights.values())
    assert sum(used) <= 1  # one-sided at 2.5 %, twice


def test_ten_patients_with_an_error_carry_one_weight_in_the_order_named_beforehand(rng):
    y, p, table, _ = world(rng, 2000, strength=2.0)
    wrong = y != (p > 1 / 6)
    for n_errors, kinds in (  # four fifths of them teach in each fold
        (12, []),
        (13, ["disagreement"]),
        (24, ["disagreement"]),
        (25, ["disagreement", "distance"]),
    ):
        kept = np.concatenate([np.flatnonzero(wrong)[:n_errors], np.flatnonzero(~wrong)[:200]])
        found = doubt.learn(y[kept], p[kept], table.iloc[kept], groups=np.arange(len(kept)), rng=rng, **LEARN)
        assert (list(found.weights), found.n_errors) == (kinds, n_errors)
        assert n_errors >= 13 or (not found.used and found.against == {})


def test_weights_equal_scikit_learns_where_no_bound_is_met(rng):
    """With p = 1/2 at equal costs eta0 = 0: a logistic regression of the error without intercept."""
    n = 3000
    d = rng.random(n)
    error = rng.random(n) < expit(3 * d)
    p = np.full(n, 0.5)  # called negative, so that an error is a positive
    table = pd.DataFrame({"disagreement": d})
    found = doubt.learn(
        error.astype(int), p, table, groups=np.arange(n), rng=rng, **LEARN | {"cost_fn": 1.0, "n_foldings": 1}
    )
    peer = LogisticRegression(fit_intercept=False, C=doubt.PRIOR_SD**2, tol=1e-8).fit(d[:, None], error)
    assert found.weights["disagreement"] == pytest.approx(peer.coef_[0, 0], abs=1e-3)


def test_a_patients_own_labels_reach_none_of_its_certainties(rng):
    y, p, table, groups = world(rng, 600, strength=6.0)
    first = doubt.learn(y, p, table, groups=groups, rng=np.random.default_rng(1), **LEARN | {"n_foldings": 1})
    mine = groups == groups[0]
    # swapping the errors of one patient's two images leaves its fold, and everybody's number of errors, as they were
    right = (y == (p > 1 / 6))[mine]
    flipped = y.copy()
    if right.all() or not right.any():
        pytest.skip("this patient's images are both right or both wrong")
    flipped[mine] = 1 - y[mine]
    again = doubt.learn(flipped, p, table, groups=groups, rng=np.random.default_rng(1), **LEARN | {"n_foldings": 1})
    assert first.used
    assert again.used
    np.testing.assert_allclose(first.certainty[mine], again.certainty[mine])


def test_reasons_are_what_argued_for_deferral_the_largest_first_and_nothing_else():
    table = pd.DataFrame({"disagreement": [1.0, 0.2, 0.0, 0.0], "distance": [0.2, 1.0, 1.0, 0.0]})
    weights = {"disagreement": 2.0, "distance": 0.3}  # added: 2.0 + 0.06, 0.4 + 0.3, 0 + 0.3, nothing
    words = doubt.reasons(table, weights, close=[False, True, False, True])
    assert words == [
        doubt.KINDS["disagreement"],
        f"close to the decision boundary; {doubt.KINDS['disagreement']}; {doubt.KINDS['distance']}",
        doubt.KINDS["distance"],
        "close to the decision boundary",
    ]
    hardly = doubt.reasons(table, {"disagreement": 1e-6, "distance": 1e-6}, close=[True] * 4)
    assert hardly == ["close to the decision boundary"] * 4
    assert doubt.reasons(table, {"disagreement": 0.0, "distance": 0.0}, close=[False] * 4) == [""] * 4


def test_a_mean_difference_keeps_a_patients_cases_together(rng):
    values = rng.normal(1, 1, 50)
    twice = doubt.mean_difference(np.repeat(values, 2), np.repeat(np.arange(50), 2))
    once = doubt.mean_difference(values, np.arange(50))
    np.testing.assert_allclose(twice.ends, once.ends)
    assert once.high - once.value == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(50), rel=1e-3)


def test_a_policy_needs_the_signals_that_it_weighs_and_no_others():
    ranges = dict.fromkeys(["distance_a", "distance_b", "disagreement", "instability_a"], (0.0, 1.0))
    for kind, names in (("distance", ["distance_a", "distance_b"]), ("disagreement", ["disagreement"])):
        kept = doubt.weighed(ranges, {kind: 1.0})
        assert list(kept) == names
        table = pd.DataFrame({name: [0.5] for name in names}, index=[0])
        assert list(doubt.doubts(table, kept)) == [kind]
    assert doubt.weighed(ranges, {}) == {}
