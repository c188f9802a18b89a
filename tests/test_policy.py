from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import confusion_matrix, precision_score

from tmv_lib.deferral import costs as deferral
from tmv_lib.deferral import evaluation, sweep
from tmv_lib.deferral.costs import Prices
from tmv_lib.statistics.estimate import Resampler
from tmv_lib.statistics.tests import wilson_interval

PRICES = Prices(5.0, 1.0, 0.25)
HUMAN = Prices(5.0, 1.0, 0.25, sensitivity=0.9, specificity=0.8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def resampler(cases: pd.DataFrame, rng: np.random.Generator) -> Resampler:
    return Resampler(cases["patient_id"].to_numpy(), 200, seed=0)


def made(
    rng: np.random.Generator, n: int = 400, *, spread: float = 2, threshold: float = 0.4, prices: Prices = PRICES
) -> pd.DataFrame:
    """Calibrated cases, two images a patient, decided by the cheapest decision and deferred below the threshold.

    spread: standard deviation of the log odds.
    """
    y_prob = expit(rng.normal(0, spread, n))
    certainty = deferral.certainty(y_prob, **prices.errors)
    return pd.DataFrame(
        {
            "patient_id": np.arange(n) // 2,
            "y_true": (rng.random(n) < y_prob).astype(int),
            "y_prob": y_prob,
            "certainty": certainty,
            "decision": deferral.cheapest_decision(y_prob, **prices.errors),
            "deferred": deferral.decide(certainty, threshold=threshold),
            "out_of_distribution": False,
            "baseline": (expit(rng.normal(0, 2, n)) > 0.5).astype(int),
        }
    )


def wrong(cases: pd.DataFrame) -> np.ndarray:
    return (cases["decision"] != cases["y_true"]).to_numpy()


@pytest.mark.parametrize(
    ("prices", "pays"),
    [
        (Prices(5, 1, 0.25), True),
        (Prices(5, 1, 5 / 6 - 1e-9), True),
        (Prices(5, 1, 5 / 6 + 1e-9), False),  # R_max = 5 / 6
        (Prices(5, 1, 0.0, sensitivity=0.5, specificity=0.5), False),  # a coin
        (Prices(1, 1, 0.0), True),
    ],
)
def test_deferral_never_pays_above_the_highest_loss(prices, pays):
    assert (prices.chow_threshold > 0) == pays


def test_a_referral_costs_the_review_and_the_doctors_errors():
    np.testing.assert_allclose(HUMAN.of(np.array([1, 0]))["review"], [0.25 + 5 * 0.1, 0.25 + 1 * 0.2])
    assert set(PRICES.of(np.array([1, 0]))["review"]) == {0.25}


@pytest.mark.parametrize("prices", [PRICES, HUMAN])
def test_the_summary_is_that_of_its_parts(rng, prices):
    cases = made(rng)
    found = evaluation.summary(cases, prices, resampler(cases, rng))
    decided = ~cases["deferred"]
    assert found["errors_left"] == wrong(cases[decided]).sum() < found["errors_deciding_all"] == wrong(cases).sum()
    assert found["coverage"].value == decided.mean()
    assert found["selective_risk"].value == pytest.approx(wrong(cases[decided]).mean())
    assert found["accuracy_at_half"].value == pytest.approx(((cases["y_prob"] > 0.5) == cases["y_true"]).mean())
    cost = deferral.failure_cost(
        cases["y_true"], cases["decision"], deferred=cases["deferred"], **prices.of(cases["y_true"].to_numpy())
    )
    assert found["failure_cost"].value == pytest.approx(cost)


def test_every_case_is_counted_once(rng):
    cases = made(rng)
    counts = evaluation.decided_counts(cases)
    assert sum(counts.values()) == len(cases)
    decided = cases[~cases["deferred"]]
    tn, fp, fn, tp = confusion_matrix(decided["y_true"], decided["decision"]).ravel()
    called = [f"{truth}_called_{call}" for truth in ("negative", "positive") for call in ("negative", "positive")]
    assert [counts[name] for name in called] == [tn, fp, fn, tp]
    assert counts["positive_deferred"] == cases.loc[cases["deferred"], "y_true"].sum()


def test_predictive_values_follow_bayes(rng):
    cases = made(rng, 2000)
    here = evaluation.predictive_values(cases, cases["y_true"].mean(), resampler(cases, rng))
    decided = cases[~cases["deferred"]]
    assert here["precision"].value == pytest.approx(precision_score(decided["y_true"], decided["decision"]))
    inverted = precision_score(1 - decided["y_true"], 1 - decided["decision"])
    assert here["negative_predictive_value"].value == pytest.approx(inverted)
    rare = evaluation.predictive_values(cases, 0.05, resampler(cases, rng))
    called = ((cases["decision"] == 1) & ~cases["deferred"]).to_numpy()
    hit, alarm = (called[cases["y_true"] == label].mean() for label in (1, 0))
    assert rare["precision"].value == pytest.approx(0.05 * hit / (0.05 * hit + 0.95 * alarm))
    assert rare["precision"].low < rare["precision"].value < rare["precision"].high < here["precision"].value
    assert rare["negative_predictive_value"].value > here["negative_predictive_value"].value


def test_predictive_values_of_another_place_with_the_same_classes(rng):
    """Cases drawn at the other prevalence say what reweighting said."""
    cases = made(rng, 20_000)
    told = evaluation.predictive_values(cases, 0.1, replace(resampler(cases, rng), n_resamples=100))["precision"].value
    by_class = [
        cases[cases["y_true"] == label].sample(n, replace=True, random_state=1)
        for label, n in ((1, 10**4), (0, 9 * 10**4))
    ]
    drawn = pd.concat(by_class)
    drawn = drawn[~drawn["deferred"]]
    assert told == pytest.approx(precision_score(drawn["y_true"], drawn["decision"]), abs=0.01)


def test_no_false_call_is_not_certainty(rng):
    cases = made(rng, 100, threshold=0)
    cases["decision"] = np.where(np.arange(100) < 30, cases["y_true"], 0)  # no false positive
    found = evaluation.predictive_values(cases, 0.2, resampler(cases, rng))
    hit = ((cases["decision"] == 1) & (cases["y_true"] == 1)).sum() / cases["y_true"].sum()
    most = wilson_interval(0, cases.loc[cases["y_true"] == 0, "patient_id"].nunique())[1]
    assert (found["precision"].value, found["precision"].high) == (1, 1)
    assert found["precision"].low == pytest.approx(0.2 * hit / (0.2 * hit + 0.8 * most))
    cases["decision"] = 0
    found = evaluation.predictive_values(cases, 0.2, resampler(cases, rng))
    assert found["precision"].absent == "no case is called positive"
    assert found["negative_predictive_value"].value == pytest.approx(0.8)


def test_disagreement_known_answer(rng):
    cases = pd.DataFrame({"patient_id": range(6), "y_true": [1, 1, 0, 0, 1, 0], "decision": [1, 0, 0, 1, 0, 0]})
    cases["deferred"] = [False, True, False, True, False, False]
    votes = np.array([[1, 1], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0]])
    found = evaluation.disagreement(cases, votes, resampler(cases, rng))
    assert (found["n"], found["agree"]["n"], found["disagree"]["n_errors"]) == (2, 4, 2)
    assert (found["disagree"]["deferral_rate"].value, found["agree"]["deferral_rate"].value) == (1, 0)
    assert found["share_of_errors"].value == pytest.approx(2 / 3)


def test_subgroups_add_up_and_their_order_is_immaterial(rng):
    cases = made(rng)
    named = pd.DataFrame({"ward": rng.choice(["a", "b"], len(cases))})
    found = evaluation.by_subgroup(cases, named, resampler(cases, rng))
    assert list(found) == ["ward: a", "ward: b", "y_true: negative", "y_true: positive"]
    assert [one["defined_by_truth"] for one in found.values()] == [False, False, True, True]
    for pair in ("ward: a", "ward: b"), ("y_true: negative", "y_true: positive"):
        assert sum(found[name]["n"] for name in pair) == len(cases)
        assert sum(found[name]["errors_left"] for name in pair) == wrong(cases[~cases["deferred"]]).sum()
    first, second = found["ward: a"], found["ward: b"]
    for key in ("gap_deciding_all", "gap_decided"):
        assert first[key].value == pytest.approx(-second[key].value)
        assert first[key].p_value_holm == first[key].p_value is not None  # the two are one test
    assert first["widened"].value == pytest.approx(second["widened"].value)
    for name in ("y_true: negative", "y_true: positive"):
        assert found[name]["gap_decided"].absent
        assert found[name]["widened"].absent
    order = rng.permutation(len(cases))
    shuffled, renamed = (table.iloc[order].reset_index(drop=True) for table in (cases, named))
    again = evaluation.by_subgroup(shuffled, renamed, resampler(shuffled, rng))
    for name, one in found.items():
        for key in ("coverage", "selective_risk", *(("gap_decided", "widened") if "ward" in name else ())):
            assert again[name][key].value == pytest.approx(one[key].value)


@pytest.mark.parametrize(("deferred_from", "widening"), [("a", "narrows"), ("b", "widens")])
def test_a_gap_is_widened_or_narrowed(rng, deferred_from, widening):
    """Group a errs four times as often; deferring the errors of one group alone moves the gap."""
    ward = np.repeat(["a", "b"], 300)
    error = rng.random(600) < np.where(ward == "a", 0.4, 0.1)
    y_true = rng.integers(0, 2, 600)
    cases = pd.DataFrame({"patient_id": range(600), "y_true": y_true, "decision": np.where(error, 1 - y_true, y_true)})
    cases["deferred"] = error & (ward == deferred_from) & (rng.random(600) < 0.8)
    found = evaluation.by_subgroup(cases, pd.DataFrame({"ward": ward}), resampler(cases, rng))["ward: a"]
    assert found["widening"] == widening
    assert (found["widened"].value > 0) == (widening == "widens")


def test_caught_counts_each_kind_once(rng):
    cases = pd.DataFrame({"patient_id": range(7), "y_true": [1, 1, 1, 0, 0, 0, 1], "decision": [0, 0, 1, 1, 0, 1, 1]})
    cases["deferred"] = [True, False, False, True, False, False, False]
    kinds = pd.Series(["blind", "blind", "blind", "", "", "noise", ""])
    found = evaluation.caught(cases, kinds, PRICES, resampler(cases, rng))
    assert {name: (one["n"], one["deferred"], one["left"], one["decided_rightly"]) for name, one in found.items()} == {
        "blind": (3, 1, 1, 1),
        "noise": (1, 0, 1, 0),
        "without a kind": (1, 1, 0, 0),
    }
    assert found["blind"]["caught"].value == pytest.approx(1 / 3)
    assert evaluation.caught(cases.assign(decision=cases["y_true"]), kinds * 0, PRICES, resampler(cases, rng)) == {}


def test_net_benefit_against_the_confusion_matrix(rng):
    """Vickers & Elkin 2006: TP / n - FP / n p / (1 - p), by another's count."""
    cases = made(rng)
    curves = sweep.net_benefits(cases, PRICES, threshold_probs=np.array([0.1, 1 / 6, 0.5, 0.9]))
    found = curves.pivot_table(index="threshold_prob", columns="series", values="net_benefit")
    n, prevalence = len(cases), cases["y_true"].mean()
    for p, row in found.iterrows():
        _, fp, _, tp = confusion_matrix(cases["y_true"], cases["y_prob"] > p, labels=[0, 1]).ravel()
        assert row["ensemble decides all"] == pytest.approx(tp / n - fp / n * p / (1 - p))
        assert row["all called positive"] == pytest.approx(prevalence - (1 - prevalence) * p / (1 - p))
        assert row["nobody called positive"] == 0
        kept = cases[~cases["deferred"]]
        _, fp, _, tp = confusion_matrix(kept["y_true"], kept["y_prob"] > p, labels=[0, 1]).ravel()
        found_by_doctor = cases.loc[cases["deferred"], "y_true"].sum()
        referred = cases["deferred"].sum() * 0.25 / 5
        assert row["policy"] == pytest.approx((tp + found_by_doctor - referred) / n - fp / n * p / (1 - p))


@pytest.mark.parametrize("prices", [PRICES, HUMAN])
def test_a_sweep_agrees_with_each_policy_on_its_own(rng, prices):
    cases = made(rng, prices=prices)
    y_true, decision = cases["y_true"].to_numpy(), cases["decision"].to_numpy()
    thresholds = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
    rows = sweep.threshold_sweep(cases, prices, thresholds=thresholds)
    costs = prices.of(y_true)
    rival = deferral.failure_cost(y_true, cases["baseline"], **costs)
    for row in rows.itertuples():
        deferred = deferral.decide(cases["certainty"], threshold=row.threshold)
        cost = deferral.failure_cost(y_true, decision, deferred=deferred, **costs)
        assert row.reduction == pytest.approx(1 - cost / rival)
        # Vickers & Elkin 2006: TP with those that a doctor finds, less false alarms and referrals at their price
        found = (y_true[deferred | (decision == 1)]).sum() - (costs["review"][deferred] / prices.cost_fn).sum()
        alarms = ((y_true == 0) & (decision == 1) & ~deferred).sum()
        assert row.net_benefit == pytest.approx((found - prices.cost_fp / prices.cost_fn * alarms) / len(cases))
        if row.threshold == 0:
            assert np.isnan(row.break_even_review_price)
            continue
        doctors_errors = costs["review"] - prices.review
        avoided = deferral.error_cost(y_true, decision, **prices.errors) - doctors_errors
        price = deferral.break_even_review_price(avoided, deferred)
        assert row.break_even_review_price == pytest.approx(price)
    assert (np.diff(rows["coverage"]) <= 0).all()
    assert (np.diff(rows["errors_avoided"]) >= 0).all()


def test_a_baseline_without_errors_cannot_be_undercut(rng):
    cases = made(rng)
    rows = sweep.threshold_sweep(cases.assign(baseline=cases["y_true"]), PRICES, thresholds=np.array([0.0, 0.5]))
    assert rows["reduction"].isna().all()


def test_what_is_decided_and_what_it_costs_agree_with_the_summary(rng):
    cases = made(rng, prices=HUMAN).assign(y_prob_baseline=0.4)
    told = evaluation.summary(cases, HUMAN, resampler(cases, rng))
    said = evaluation.decisions(cases, HUMAN, resampler(cases, rng), threshold=0.4, prevalences=[0.1])
    cost = evaluation.costs(cases, HUMAN, resampler(cases, rng))
    assert said["errors_left"] == told["errors_left"]
    assert said["errors_avoided"] == told["errors_deciding_all"] - told["errors_left"]
    assert said["coverage"].value == told["coverage"].value == 1 - said["deferral_rate"]
    assert said["at_prevalence"].keys() == {"0.1"}
    own = cost["failure_cost"].value
    assert own == pytest.approx(told["failure_cost"].value, abs=1e-12)
    assert cost["oracle_deferral_cost"] <= own <= cost["random_deferral_cost"]
    positives = cases["y_true"].mean()
    assert cost["baseline_at_half_decides_all"]["cost"].value == pytest.approx(
        5 * positives
    )  # it calls nobody positive
    assert cost["net_benefit"].value == pytest.approx(positives - own / 5)
    nobody = cases.assign(deferred=False)
    assert evaluation.costs(nobody, HUMAN, resampler(nobody, rng))["ensemble_decides_all"]["reduction"].value == 0


def test_no_certainty_ranks_better_than_the_oracle(rng):
    cases = made(rng)
    scores = {"margin": cases["certainty"].to_numpy(), "drawn": rng.random(len(cases))}
    found = evaluation.rankings(cases, scores, resampler(cases, rng))
    assert found["oracle"]["eaurc"].value == pytest.approx(0, abs=1e-12)
    assert found["oracle"]["augrc"].value < found["margin"]["augrc"].value < found["drawn"]["augrc"].value
    ends = sweep.risk_coverage(cases, scores).groupby("series")["selective_risk"].last()
    np.testing.assert_allclose(ends, wrong(cases).mean())  # whoever sorts, all cases hold the same errors


def test_the_margin_at_the_same_referral_rate_is_no_rival_of_itself(rng):
    cases = made(rng, 600).assign(y_prob_baseline=0.4)
    found = evaluation.costs(cases, PRICES, resampler(cases, rng))
    assert found["cost_minus_margin"].value == pytest.approx(0, abs=1e-12)
    plain = np.abs(2 * cases["y_prob"] - 1)
    like = plain.rank(method="first") <= cases["deferred"].sum()
    rival = deferral.failure_cost(cases["y_true"], cases["decision"], deferred=like, review=0.25, **PRICES.errors)
    assert found["plain_margin_deferral_cost"] == pytest.approx(rival)
    difference = found["cost_minus_plain_margin"]
    assert difference.value == pytest.approx(found["failure_cost"].value - rival)
    assert difference.low < difference.value


def test_the_price_at_which_reviews_break_even_carries_its_interval(rng):
    cases = made(rng, 600).assign(y_prob_baseline=0.4)
    found = evaluation.costs(cases, PRICES, resampler(cases, rng))
    deferred = cases["deferred"].to_numpy()
    avoided = deferral.error_cost(cases["y_true"], cases["decision"], **PRICES.errors)[deferred]
    price = found["break_even_review_price"]
    assert price.value == pytest.approx(avoided.mean())
    assert price.low < avoided.mean() < price.high
    nobody = evaluation.costs(cases.assign(deferred=False), PRICES, resampler(cases, rng))
    assert "no case is deferred" in nobody["break_even_review_price"].absent


def test_what_is_out_of_distribution_is_deferred_first_by_every_margin(rng):
    cases = made(rng, 100)
    surest = cases["y_prob"].idxmax()
    cases.loc[surest, "out_of_distribution"] = True
    for margin in deferral.margins(cases, PRICES).values():
        assert deferral.least_certain(margin)[surest] == 1


def test_threshold_and_prices_imply_one_another(rng):
    cases = made(rng)
    found = evaluation.decisions(cases, PRICES, resampler(cases, rng), threshold=0.3, prevalences=[])
    assert found["chow_threshold"] == pytest.approx(0.7)  # 1 - 0.25 / (5 / 6)
    assert found["chow_review_price"] == pytest.approx(0.7 * 5 / 6)
    asked = found["chow_threshold"]
    again = evaluation.decisions(cases, PRICES, resampler(cases, rng), threshold=asked, prevalences=[])
    assert again["chow_review_price"] == pytest.approx(0.25)
