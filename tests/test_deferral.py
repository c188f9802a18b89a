from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.preprocessing import StandardScaler

from tmv_lib.deferral import (
    break_even_review_price,
    certainty,
    cheapest_decision,
    chow_review_price,
    chow_threshold,
    complete_signals,
    cost_optimal_threshold,
    decide,
    error_cost,
    failure_cost,
    learned_certainty,
    net_benefit,
    oracle_deferral_cost,
    random_deferral_cost,
    referral_cost,
    threshold_for_budget,
    threshold_sweep,
)

COSTS = {"cost_fn": 5.0, "cost_fp": 1.0}
EQUAL = {"cost_fn": 1.0, "cost_fp": 1.0}
PRICED = COSTS | {"review": 0.25}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def calibrated_cases(rng, n):
    p = rng.beta(0.5, 0.8, n)
    return (rng.random(n) < p).astype(int), p


def cases_with_signals(rng, n, costs, *, informative):
    """Calibrated cases with two signals, of which the first, where informative, differs between errors and the rest."""
    p = expit(rng.normal(0, 2, n))
    y_true = (rng.random(n) < p).astype(int)
    signals = rng.normal(size=(n, 2))
    signals[:, 0] += 1.5 * informative * (cheapest_decision(p, **costs) != y_true)
    return y_true, p, signals


def test_equal_costs_give_the_margin(rng):
    p = rng.random(1000)
    for cost in (0.1, 1.0, 7.0):
        np.testing.assert_allclose(certainty(p, cost_fn=cost, cost_fp=cost), np.abs(2 * p - 1), atol=1e-15)


@pytest.mark.parametrize(("threshold", "low", "high"), [(0.3, 0.35, 0.65), (0.5, 0.25, 0.75)])
def test_equal_costs_defer_an_open_interval(threshold, low, high):
    p = np.array([low - 1e-6, low, low + 1e-6, 0.5, high - 1e-6, high, high + 1e-6])
    deferred = decide(certainty(p, **EQUAL), threshold=threshold)
    assert deferred.tolist() == [False, False, True, True, True, False, False]


def test_certainty_is_one_minus_the_normalised_cost_of_the_cheapest_decision(rng):
    p = rng.random(1000)
    decision = cheapest_decision(p, **COSTS)
    of_positive, of_negative = 1.0 * (1 - p), 5.0 * p
    expected = np.where(decision == 1, of_positive, of_negative)
    np.testing.assert_array_equal(expected, np.minimum(of_positive, of_negative))
    np.testing.assert_allclose(certainty(p, **COSTS), 1 - expected / (5 / 6), atol=1e-14)


def test_certainty_spans_the_unit_interval():
    assert certainty([0, 1 / 6, 1], **COSTS) == pytest.approx([1, 0, 1], abs=1e-15)
    assert cheapest_decision([1 / 6 - 1e-9, 1 / 6 + 1e-9], **COSTS).tolist() == [0, 1]
    assert cheapest_decision([0.5, 0.5 + 1e-9], **EQUAL).tolist() == [0, 1]


def test_threshold_zero_defers_nobody_and_a_larger_one_a_superset(rng):
    kappa = np.append(rng.random(200), [0, 1])
    assert not decide(kappa, threshold=0).any()
    masks = [decide(kappa, threshold=t) for t in np.linspace(0, 1, 21)]
    assert all((larger >= smaller).all() for smaller, larger in pairwise(masks))
    assert masks[-1].sum() == kappa.size - 1  # a case without doubt is never deferred


def test_failure_cost_known_answer():
    y_true, y_pred = [1, 1, 0, 0, 1], [0, 1, 1, 0, 0]
    assert error_cost(y_true, y_pred, **COSTS).tolist() == [5, 0, 1, 0, 5]
    assert failure_cost(y_true, y_pred, **PRICED) == pytest.approx((2 * 5 + 1) / 5)
    assert failure_cost(y_true, y_pred, deferred=[1, 1, 0, 0, 0], **PRICED) == pytest.approx((5 + 1 + 2 * 0.25) / 5)


def test_deferring_everything_costs_the_review(rng):
    y_true, p = calibrated_cases(rng, 100)
    assert failure_cost(y_true, p > 0.5, deferred=np.ones(100), **PRICED) == pytest.approx(0.25)


def test_weights_count_cases_as_often_as_they_were_drawn(rng):
    y_true, p = calibrated_cases(rng, 80)
    y_pred = cheapest_decision(p, **COSTS)
    deferred = decide(certainty(p, **COSTS), threshold=0.6)
    counts = rng.multinomial(80, np.full(80, 1 / 80), size=4)
    repeated = [
        failure_cost(np.repeat(y_true, c), np.repeat(y_pred, c), deferred=np.repeat(deferred, c), **PRICED)
        for c in counts
    ]
    weighted = failure_cost(y_true, y_pred, deferred=deferred, weights=counts, **PRICED)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-13)


@pytest.mark.parametrize("costs", [COSTS, EQUAL])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_chows_rule_is_cheapest_for_calibrated_probabilities(costs, threshold, rng):
    y_true, p = calibrated_cases(rng, 200_000)
    review = chow_review_price(threshold, **costs)
    grid = np.linspace(0, 1, 41)
    sweep = threshold_sweep(y_true, p, certainty(p, **costs), thresholds=grid, review=review, **costs)
    best = sweep.loc[sweep["failure_cost"].idxmin(), "threshold"]
    assert abs(best - threshold) <= 0.05
    at_chow = sweep.loc[np.isclose(grid, threshold), "failure_cost"].item()
    assert at_chow <= sweep["failure_cost"].min() + 1e-3
    half = failure_cost(y_true, p > 0.5, review=review, **costs)
    assert at_chow < sweep["failure_cost"].iloc[0] <= half + 1e-12


def test_break_even_price_makes_the_policy_cost_what_deciding_all_costs(rng):
    y_true, p = calibrated_cases(rng, 500)
    y_pred = cheapest_decision(p, **COSTS)
    deferred = decide(certainty(p, **COSTS), threshold=0.5)
    price = break_even_review_price(y_true, y_pred, deferred, **COSTS)
    everything = failure_cost(y_true, y_pred, review=price, **COSTS)
    assert failure_cost(y_true, y_pred, deferred=deferred, review=price, **COSTS) == pytest.approx(everything)
    with pytest.raises(ValueError, match="no case is deferred"):
        break_even_review_price(y_true, y_pred, np.zeros(500), **COSTS)


def test_sweep_agrees_with_each_policy_on_its_own(rng):
    y_true, p = calibrated_cases(rng, 300)
    kappa = np.round(certainty(p, **COSTS), 1)  # with ties
    sweep = threshold_sweep(y_true, p, kappa, thresholds=[0, 0.3, 0.45, 0.9], **PRICED)
    y_pred = cheapest_decision(p, **COSTS)
    for row in sweep.itertuples():
        kept = ~decide(kappa, threshold=row.threshold)
        errors = (y_true != y_pred)[kept]
        assert row.coverage == pytest.approx(kept.mean())
        assert row.deferral_rate == pytest.approx(1 - kept.mean())
        assert row.selective_risk == pytest.approx(errors.mean())
        assert row.sensitivity == pytest.approx(recall_score(y_true[kept], y_pred[kept]))
        assert row.specificity == pytest.approx(recall_score(y_true[kept], y_pred[kept], pos_label=0))
        assert (row.errors_left, row.errors_avoided) == (errors.sum(), (y_true != y_pred).sum() - errors.sum())
        assert row.failure_cost == pytest.approx(failure_cost(y_true, y_pred, deferred=~kept, **PRICED))


def test_sweep_leaves_empty_what_does_not_exist():
    sweep = threshold_sweep([1, 0, 0], [0.9, 0.4, 0.1], [0.1, 0.8, 0.9], thresholds=[0.0, 0.5, 1.0], **PRICED)
    assert sweep["coverage"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert sweep["sensitivity"].isna().tolist() == [False, True, True]
    assert sweep["selective_risk"].isna().tolist() == [False, False, True]
    assert sweep["failure_cost"].iloc[-1] == 0.25
    assert sweep.to_csv(index=False).splitlines()[-1] == "1.0,0.0,1.0,,,,0,1,0.25"


@pytest.mark.parametrize("budget", [0, 0.1, 0.29, 0.5, 0.999, 1])
def test_threshold_for_budget_is_the_largest_affordable(budget, rng):
    for kappa in (rng.random(100), np.round(rng.random(100), 1), np.ones(100)):
        threshold = threshold_for_budget(kappa, budget=budget)
        assert decide(kappa, threshold=threshold).mean() <= budget
        if threshold < 1:
            assert decide(kappa, threshold=np.nextafter(threshold, 2)).mean() > budget
    distinct = np.linspace(0, 0.99, 100)
    assert decide(distinct, threshold=threshold_for_budget(distinct, budget=0.29)).sum() == 29


def test_random_deferral_is_the_mean_over_lots(rng):
    y_true, p = calibrated_cases(rng, 60)
    y_pred = cheapest_decision(p, **COSTS)
    lots = np.argsort(rng.random((4000, 60)), axis=1) < 15
    simulated = [failure_cost(y_true, y_pred, deferred=lot, **PRICED) for lot in lots]
    expected = random_deferral_cost(y_true, y_pred, deferral_rate=[0.25], **PRICED)[0]
    assert expected == pytest.approx(np.mean(simulated), abs=4 * np.std(simulated) / np.sqrt(4000))


def test_oracle_is_no_dearer_than_any_policy_of_the_same_rate(rng):
    y_true, p = calibrated_cases(rng, 200)
    y_pred = cheapest_decision(p, **COSTS)
    sweep = threshold_sweep(y_true, p, certainty(p, **COSTS), thresholds=np.linspace(0, 1, 30), **PRICED)
    oracle = oracle_deferral_cost(y_true, y_pred, deferral_rate=sweep["deferral_rate"], **PRICED)
    lot = random_deferral_cost(y_true, y_pred, deferral_rate=sweep["deferral_rate"], **PRICED)
    assert (oracle <= sweep["failure_cost"] + 1e-12).all()
    assert (oracle <= lot + 1e-12).all()


def test_oracle_known_answer():
    y_true, y_pred = [1, 0, 0, 1, 0], [0, 1, 0, 1, 0]
    cost = oracle_deferral_cost(y_true, y_pred, deferral_rate=[0, 0.2, 0.4, 1], **PRICED)
    assert cost == pytest.approx([(5 + 1) / 5, (1 + 0.25) / 5, 2 * 0.25 / 5, 0.25])


@pytest.mark.parametrize("costs", [EQUAL, COSTS])
def test_learned_certainty_uses_an_informative_signal(costs, rng):
    y_true, p, signals = cases_with_signals(rng, 1500, costs, informative=True)
    learned = learned_certainty(
        y_true, p, signals, groups=np.arange(1500) // 2, n_folds=5, n_foldings=2, rng=rng, **costs
    )
    assert learned.beats_margin is True
    assert learned.cost_difference < -learned.standard_error < 0
    assert learned.coefficients[2] > 5 * abs(learned.coefficients[3])
    assert "beats the margin" in learned.reason

    y_true, p, signals = cases_with_signals(rng, 20_000, costs, informative=True)
    y_pred = cheapest_decision(p, **costs)
    kappa = learned.kappa(p, signals)
    cost = {
        name: threshold_sweep(y_true, p, k, thresholds=[0.3, 0.5], review=0.3, **costs)["failure_cost"]
        for name, k in (("learned", kappa), ("margin", certainty(p, **costs)))
    }
    assert (cost["learned"] < cost["margin"]).all()
    # on the same scale: the expected cost is the realised one
    realised = error_cost(y_true, y_pred, **costs)[kappa > 0].mean()
    assert chow_review_price(0, **costs) * (1 - kappa[kappa > 0]).mean() == pytest.approx(realised, rel=0.1)


def test_learned_certainty_keeps_the_margin_where_signals_are_noise():
    kept = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y_true, p, signals = cases_with_signals(rng, 300, EQUAL, informative=False)
        learned = learned_certainty(
            y_true, p, signals, groups=np.arange(300), n_folds=5, n_foldings=2, rng=rng, **EQUAL
        )
        kept.append(not learned.beats_margin)
    assert np.mean(kept) >= 0.8


def test_preference_is_by_the_cost_averaged_over_review_prices(rng):
    alike = (np.repeat(part, 2, axis=0) for part in cases_with_signals(rng, 200, COSTS, informative=True))
    y_true, p, signals = alike  # the two cases of a patient add no evidence over one
    groups = np.arange(400) // 2
    learned = learned_certainty(y_true, p, signals, groups=groups, n_folds=5, n_foldings=1, rng=rng, **COSTS)

    thresholds = (np.arange(2000) + 0.5) / 2000
    cost = error_cost(y_true, cheapest_decision(p, **COSTS), **COSTS)
    per_case = [
        np.mean([np.where(decide(k, threshold=t), chow_review_price(t, **COSTS), cost) for t in thresholds], axis=0)
        for k in (learned.out_of_fold, certainty(p, **COSTS))
    ]
    difference = per_case[0] - per_case[1]
    assert learned.cost_difference == pytest.approx(difference.mean(), abs=1e-4)
    assert learned.standard_error == pytest.approx(difference[::2].std(ddof=1) / np.sqrt(200), rel=1e-2)


def test_the_verdict_is_the_mean_of_several_ways_to_cut_the_folds(rng):
    y_true, p, signals = cases_with_signals(rng, 200, COSTS, informative=True)

    def learn(n_foldings, rng):
        groups = np.arange(200) // 2
        return learned_certainty(y_true, p, signals, groups=groups, n_folds=5, n_foldings=n_foldings, rng=rng, **COSTS)

    one_by_one = np.random.default_rng(1)
    single = [learn(1, one_by_one) for _ in range(4)]
    together = learn(4, np.random.default_rng(1))
    assert together.cost_difference == pytest.approx(np.mean([one.cost_difference for one in single]))
    np.testing.assert_allclose(together.out_of_fold, np.mean([one.out_of_fold for one in single], axis=0))
    assert together.beats_margin == (together.cost_difference < -together.standard_error)
    np.testing.assert_array_equal(together.coefficients, single[0].coefficients)
    with pytest.raises(ValueError, match="n_foldings must be at least 1"):
        learn(0, rng)


@pytest.mark.parametrize("n_errors", [0, 1, 3, 97, 100])
def test_learned_certainty_with_few_errors_says_that_the_margin_is_kept(n_errors, rng):
    p = np.tile([0.9, 0.1], 50)
    y_true = (p > 0.5).astype(int)
    y_true[:n_errors] = 1 - y_true[:n_errors]
    signals = rng.normal(size=(100, 3))
    learned = learned_certainty(y_true, p, signals, groups=np.arange(100), n_folds=5, n_foldings=2, rng=rng, **COSTS)
    assert learned.beats_margin is False
    assert learned.cost_difference is None
    assert "the margin is kept" in learned.reason
    np.testing.assert_array_equal(learned.out_of_fold, certainty(p, **COSTS))
    np.testing.assert_allclose(learned.kappa(p, signals), certainty(p, **COSTS), atol=1e-5)


def test_learned_certainty_equals_scikit_learn_where_both_fit_the_same_model(rng):
    # a constant probability of 1/2 makes the offset 0; the constant is the only coefficient that sklearn leaves free
    n = 4000
    signals = rng.normal(size=(n, 2)) * [1, 20]
    y_true = (rng.random(n) < expit(signals @ [1, 0.05])).astype(int)
    learned = learned_certainty(
        y_true, np.full(n, 0.5), signals, groups=np.arange(n), n_folds=2, n_foldings=1, rng=rng, **EQUAL
    )
    x = np.column_stack([np.ones(n), StandardScaler().fit_transform(signals)])
    peer = LogisticRegression(C=1, fit_intercept=False, tol=1e-10).fit(x, y_true).coef_[0]
    np.testing.assert_allclose(np.delete(learned.coefficients, 1), peer, atol=1e-5)


def test_out_of_fold_certainty_never_sees_its_own_patient(rng):
    y_true, p, signals = cases_with_signals(rng, 200, EQUAL, informative=True)
    groups = np.arange(200) // 4

    def out_of_fold(labels):
        folds = np.random.default_rng(3)
        return learned_certainty(
            labels, p, signals, groups=groups, n_folds=4, n_foldings=2, rng=folds, **EQUAL
        ).out_of_fold

    wrong = (p > 0.5) != y_true
    half_wrong = np.flatnonzero(np.bincount(groups, weights=wrong) == 2)[0]
    patient = groups == half_wrong
    changed = np.where(patient, 1 - y_true, y_true)  # half of the four are wrong as before: the folds stay
    np.testing.assert_array_equal(out_of_fold(changed)[patient], out_of_fold(y_true)[patient])
    assert (out_of_fold(changed)[~patient] != out_of_fold(y_true)[~patient]).any()


def test_order_of_cases_is_immaterial(rng):
    y_true, p = calibrated_cases(rng, 100)
    kappa = certainty(p, **COSTS)
    order = rng.permutation(100)
    sweeps = [
        threshold_sweep(y_true[rows], p[rows], kappa[rows], thresholds=[0, 0.4, 0.8], **PRICED)
        for rows in (order, np.arange(100))
    ]
    assert sweeps[0].equals(sweeps[1])


@pytest.mark.parametrize("costs", [{"cost_fn": 0}, {"cost_fp": -1}, {"cost_fn": np.inf}, {"cost_fp": np.nan}])
def test_bad_costs(costs):
    costs = COSTS | costs
    calls = [
        lambda: certainty([0.5], **costs),
        lambda: cheapest_decision([0.5], **costs),
        lambda: error_cost([1], [0], **costs),
        lambda: failure_cost([1], [0], review=0.1, **costs),
        lambda: chow_review_price(0.5, **costs),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="must be positive and finite"):
            call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: certainty([1.2], **COSTS), "y_prob must lie"),
        (lambda: certainty([np.nan], **COSTS), "y_prob must be finite"),
        (lambda: decide([0.5], threshold=1.1), "threshold must lie"),
        (lambda: decide([-0.1], threshold=0.5), "kappa must lie"),
        (lambda: threshold_for_budget([0.5], budget=-0.1), "budget must lie"),
        (lambda: chow_review_price(-1, **COSTS), "threshold must lie"),
        (lambda: failure_cost([1], [0], review=-1, **COSTS), "review must be"),
        (lambda: failure_cost([1, 0], [0], **PRICED), "y_pred must hold one value"),
        (lambda: failure_cost([1, 0], [0, 0.5], **PRICED), "y_pred must hold 0 and 1"),
        (lambda: failure_cost([1, 0], [0, 0], deferred=[1], **PRICED), "deferred must hold one value"),
        (lambda: failure_cost([1, 0], [0, 0], weights=[1], **PRICED), "weights must have shape"),
        (lambda: threshold_sweep([1], [0.5], [0.5], thresholds=[2], **PRICED), "thresholds must lie"),
        (lambda: oracle_deferral_cost([1], [0], deferral_rate=[1.5], **PRICED), "deferral_rate must lie"),
    ],
)
def test_bad_values(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_bad_signals(rng):
    for signals in (np.ones(4), np.ones((3, 2)), np.full((4, 2), np.nan)):
        with pytest.raises(ValueError, match="signals must be finite"):
            learned_certainty(
                [0, 1, 0, 1], np.full(4, 0.4), signals, groups=range(4), n_folds=2, n_foldings=1, rng=rng, **COSTS
            )


def test_a_doctor_who_errs_makes_a_referral_dearer(rng):
    y_true, p = calibrated_cases(rng, 400)
    perfect = referral_cost(y_true, review=0.25, sensitivity=1, specificity=1, **COSTS)
    assert (perfect == 0.25).all()
    price = referral_cost(y_true, review=0.25, sensitivity=0.8, specificity=0.9, **COSTS)
    assert price[y_true == 1] == pytest.approx(1.25)
    assert price[y_true == 0] == pytest.approx(0.35)
    y_pred = cheapest_decision(p, **COSTS)
    assert failure_cost(y_true, y_pred, review=price, deferred=np.ones(400), **COSTS) == pytest.approx(price.mean())


@pytest.mark.parametrize(("sensitivity", "specificity"), [(1.0, 1.0), (0.9, 0.8)])
def test_deferral_pays_below_the_threshold_of_chow_and_never_above(sensitivity, specificity):
    p_star = 1 / 6  # the case of least certainty: a decision costs R_max = 5/6
    doctor = {"sensitivity": sensitivity, "specificity": specificity}
    for review in (0.1, 0.25, 0.9):
        referral = review + 5 * (1 - sensitivity) * p_star + (1 - specificity) * (1 - p_star)
        t = chow_threshold(review, **COSTS, **doctor)
        assert t == pytest.approx(max(0, 1 - referral / (5 / 6)))


def test_net_benefit_is_prevalence_less_the_failure_cost_of_a_missed_positive(rng):
    y_true, p = calibrated_cases(rng, 400)
    y_pred = cheapest_decision(p, **COSTS)
    deferred = decide(certainty(p, **COSTS), threshold=0.5)
    price = referral_cost(y_true, review=0.25, sensitivity=0.9, specificity=0.8, **COSTS)
    found = net_benefit(y_true, y_pred, odds=1 / 5, referral=price / 5, deferred=deferred)
    cost = failure_cost(y_true, y_pred, review=price, deferred=deferred, **COSTS)
    assert found == pytest.approx(y_true.mean() - cost / 5)
    # Vickers & Elkin: TP/n - FP/n odds
    tp, fp = (y_true * y_pred).sum(), ((1 - y_true) * y_pred).sum()
    assert net_benefit(y_true, y_pred, odds=0.2) == pytest.approx(tp / 400 - 0.2 * fp / 400)


def test_a_missing_signal_is_said_and_not_made_up():
    signals = pd.DataFrame({"a": [1.0, np.nan, 3.0, np.nan], "b": [np.nan, np.nan, np.nan, 2.0], "c": [1.0, 2, 3, 4]})
    found = complete_signals(signals, fitted=np.array([True, True, True, False]))
    assert found.absent == ["b"]
    assert found.n_missing == {"a": 2}
    assert found.table["a"].tolist() == [1, 2, 3, 2]
    assert found.table["missing_a"].tolist() == [0, 1, 0, 1]
    assert list(found.table) == ["a", "c", "missing_a"]


def test_rounding_is_no_signal():
    rounding = 1e-9 * np.random.default_rng(0).normal(size=4)
    signals = pd.DataFrame({"same_of_every_image": -0.5 + rounding, "varies": [0.1, 0.1001, 0.1, 0.1002]})
    found = complete_signals(signals, fitted=np.ones(4, dtype=bool))
    assert found.absent == ["same_of_every_image"]
    assert list(found.table) == ["varies"]


def test_the_cost_optimal_threshold_defers_fewest_of_the_cheapest():
    sweep = threshold_sweep([1, 0], [0.9, 0.1], [0.9, 0.95], thresholds=[0, 0.5, 0.92], **PRICED)
    assert cost_optimal_threshold(sweep) == 0
