from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from tmv_lib.deferral.costs import (
    NEVER,
    Prices,
    break_even_review_price,
    certainty,
    cheapest_decision,
    chow_review_price,
    chow_threshold,
    decide,
    deferral_costs_at,
    error_cost,
    failure_cost,
    referral_cost,
    threshold_for_budget,
)
from tmv_lib.deferral.sweep import cost_optimal, threshold_sweep

COSTS = {"cost_fn": 5.0, "cost_fp": 1.0}
EQUAL = {"cost_fn": 1.0, "cost_fp": 1.0}
PRICED = COSTS | {"review": 0.25}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def sweep_of(y_true, y_prob, certainty, *, thresholds, **prices):
    decision = cheapest_decision(y_prob, cost_fn=prices["cost_fn"], cost_fp=prices["cost_fp"])
    cases = pd.DataFrame({"y_true": y_true, "decision": decision, "baseline": decision, "certainty": certainty})
    return threshold_sweep(cases, Prices(**prices), thresholds=thresholds)


def calibrated_cases(rng, n):
    p = rng.beta(0.5, 0.8, n)
    return (rng.random(n) < p).astype(int), p


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
    certainty = np.append(rng.random(200), [0, 1])
    assert not decide(certainty, threshold=0).any()
    masks = [decide(certainty, threshold=t) for t in np.linspace(0, 1, 21)]
    assert all((larger >= smaller).all() for smaller, larger in pairwise(masks))
    assert masks[-1].sum() == certainty.size - 1  # a case without doubt is never deferred


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
    sweep = sweep_of(y_true, p, certainty(p, **costs), thresholds=grid, review=review, **costs)
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
    avoided = error_cost(y_true, y_pred, **COSTS)
    price = break_even_review_price(avoided, deferred)
    everything = failure_cost(y_true, y_pred, review=price, **COSTS)
    assert failure_cost(y_true, y_pred, deferred=deferred, review=price, **COSTS) == pytest.approx(everything)
    with pytest.raises(ValueError, match="no case is deferred"):
        break_even_review_price(avoided, np.zeros(500))


def test_sweep_agrees_with_each_policy_on_its_own(rng):
    y_true, p = calibrated_cases(rng, 300)
    certainties = np.round(certainty(p, **COSTS), 1)  # with ties
    sweep = sweep_of(y_true, p, certainties, thresholds=[0, 0.3, 0.45, 0.9], **PRICED)
    y_pred = cheapest_decision(p, **COSTS)
    for row in sweep.itertuples():
        kept = ~decide(certainties, threshold=row.threshold)
        errors = (y_true != y_pred)[kept]
        assert row.coverage == pytest.approx(kept.mean())
        assert row.deferral_rate == pytest.approx(1 - kept.mean())
        assert row.selective_risk == pytest.approx(errors.mean())
        assert row.sensitivity == pytest.approx(recall_score(y_true[kept], y_pred[kept]))
        assert row.specificity == pytest.approx(recall_score(y_true[kept], y_pred[kept], pos_label=0))
        assert (row.errors_left, row.errors_avoided) == (errors.sum(), (y_true != y_pred).sum() - errors.sum())
        assert row.failure_cost == pytest.approx(failure_cost(y_true, y_pred, deferred=~kept, **PRICED))


def test_sweep_leaves_empty_what_does_not_exist():
    sweep = sweep_of([1, 0, 0], [0.9, 0.4, 0.1], [0.1, 0.8, 0.9], thresholds=[0.0, 0.5, 1.0], **PRICED)
    assert sweep["coverage"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert sweep["sensitivity"].isna().tolist() == [False, True, True]
    assert sweep["selective_risk"].isna().tolist() == [False, False, True]
    assert sweep["failure_cost"].iloc[-1] == 0.25
    assert sweep.loc[:, :"failure_cost"].to_csv(index=False).splitlines()[-1] == "1.0,0.0,1.0,,,,0,1,0.25"


@pytest.mark.parametrize("budget", [0, 0.1, 0.29, 0.5, 0.999, 1])
def test_threshold_for_budget_is_the_largest_affordable(budget, rng):
    for certainties in (rng.random(100), np.round(rng.random(100), 1), np.ones(100)):
        threshold = threshold_for_budget(certainties, budget=budget)
        assert decide(certainties, threshold=threshold).mean() <= budget
        if threshold < 1:
            assert decide(certainties, threshold=np.nextafter(threshold, 2)).mean() > budget
    distinct = np.linspace(0, 0.99, 100)
    assert decide(distinct, threshold=threshold_for_budget(distinct, budget=0.29)).sum() == 29


def test_random_deferral_is_the_mean_over_lots(rng):
    y_true, p = calibrated_cases(rng, 60)
    y_pred = cheapest_decision(p, **COSTS)
    lots = np.argsort(rng.random((4000, 60)), axis=1) < 15
    simulated = [failure_cost(y_true, y_pred, deferred=lot, **PRICED) for lot in lots]
    expected = deferral_costs_at(y_true, y_pred, deferral_rate=[0.25], **PRICED)["random"][0]
    assert expected == pytest.approx(np.mean(simulated), abs=4 * np.std(simulated) / np.sqrt(4000))


def test_oracle_is_no_dearer_than_any_policy_of_the_same_rate(rng):
    y_true, p = calibrated_cases(rng, 200)
    y_pred = cheapest_decision(p, **COSTS)
    sweep = sweep_of(y_true, p, certainty(p, **COSTS), thresholds=np.linspace(0, 1, 30), **PRICED)
    rivals = deferral_costs_at(y_true, y_pred, deferral_rate=sweep["deferral_rate"], **PRICED)
    assert (rivals["oracle"] <= sweep["failure_cost"] + 1e-12).all()
    assert (rivals["oracle"] <= rivals["random"] + 1e-12).all()


def test_oracle_known_answer():
    y_true, y_pred = [1, 0, 0, 1, 0], [0, 1, 0, 1, 0]
    cost = deferral_costs_at(y_true, y_pred, deferral_rate=[0, 0.2, 0.4, 1], **PRICED)
    assert cost["oracle"] == pytest.approx([(5 + 1) / 5, (1 + 0.25) / 5, 2 * 0.25 / 5, 0.25])


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
        (lambda: decide([1.1], threshold=0.5), "certainty must lie"),
        (lambda: threshold_for_budget([0.5], budget=-0.1), "budget must lie"),
        (lambda: chow_review_price(-1, **COSTS), "threshold must lie"),
        (lambda: failure_cost([1], [0], review=-1, **COSTS), "review must be"),
        (lambda: failure_cost([1, 0], [0], **PRICED), "y_pred must hold one value"),
        (lambda: failure_cost([1, 0], [0, 0.5], **PRICED), "y_pred must hold 0 and 1"),
        (lambda: failure_cost([1, 0], [0, 0], deferred=[1], **PRICED), "deferred must hold one value"),
        (lambda: failure_cost([1, 0], [0, 0], weights=[1], **PRICED), "weights must have shape"),
        (lambda: sweep_of([1], [0.5], [0.5], thresholds=[2], **PRICED), "thresholds must lie"),
        (lambda: deferral_costs_at([1], [0], deferral_rate=[1.5], **PRICED), "deferral_rate must lie"),
    ],
)
def test_bad_values(call, words):
    with pytest.raises(ValueError, match=words):
        call()


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


def test_the_cost_optimal_threshold_defers_fewest_of_the_cheapest():
    sweep = sweep_of([1, 0], [0.9, 0.1], [0.9, 0.95], thresholds=[0, 0.5, 0.92], **PRICED)
    assert cost_optimal({"validation": sweep}) == {
        "threshold": 0,
        "validation_failure_cost": 0,
        "validation_coverage": 1,
    }


def test_what_is_never_decided_is_deferred_at_any_threshold_and_counts_towards_a_budget(rng):
    y_true, y_prob = calibrated_cases(rng, 200)
    certainties = certainty(y_prob, **COSTS)
    certainties[:10] = NEVER
    for threshold in (0.0, 0.5, 1.0):
        assert decide(certainties, threshold=threshold)[:10].all()
    rows = sweep_of(y_true, y_prob, certainties, thresholds=[0.0], **PRICED)
    assert rows["deferral_rate"].tolist() == [0.05]
    for budget in (0.0, 0.05, 0.3):
        threshold = threshold_for_budget(certainties, budget=budget)
        assert decide(certainties, threshold=threshold).mean() <= max(budget, 0.05) + 1e-12
