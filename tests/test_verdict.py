import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from tmv_lib.deferral import costs, verdict
from tmv_lib.deferral.costs import Prices
from tmv_lib.pipeline.metrics import plain
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.estimate import Resampler

PRICES = Prices(5.0, 1.0, 0.25)


def judge(cases: pd.DataFrame, prices: Prices = PRICES) -> dict:
    return verdict.judge(cases, prices, Resampler(cases["patient_id"].to_numpy(), 200, seed=0))


def sentences(found: dict, **words: str) -> list[str]:
    """The words of a verdict as it is read from a metrics file."""
    return verdict.sentences(Figures(plain(found), "here"), **words)


def made(n: int, *, mean: float = 0.0, spread: float = 3.0, threshold: float = 0.7, seed: int = 0) -> pd.DataFrame:
    """Calibrated cases; the first member is as good as the ensemble and decides all."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(mean, spread, n))
    decision = costs.cheapest_decision(p, **PRICES.errors)
    deferred = costs.certainty(p, **PRICES.errors) < threshold
    y_true = (rng.random(n) < p).astype(int)
    table = {"patient_id": np.arange(n) // 2, "y_true": y_true, "decision": decision, "deferred": deferred}
    return pd.DataFrame(table | {"baseline": decision})


def test_a_good_policy_with_many_cases_is_to_be_used():
    found = judge(made(4000))
    assert found["answer"] == "use"
    assert set(found["against"]) == set(verdict.RIVALS)
    assert all(entry["difference"].high < 0 for entry in found["against"].values())


def test_differences_are_those_of_the_costs():
    cases = made(500)
    found = judge(cases)["against"]
    own = costs.failure_cost(
        cases["y_true"], cases["decision"], deferred=cases["deferred"], review=0.25, **PRICES.errors
    )
    assert found["doctor_reads_all"]["difference"].value == pytest.approx(own - 0.25)
    prevalence = cases["y_true"].mean()
    assert found["all_called_positive"]["difference"].value == pytest.approx(own - (1 - prevalence))
    assert found["all_called_negative"]["difference"].value == pytest.approx(own - 5 * prevalence)


def test_few_cases_cannot_tell_and_the_number_that_would_is_about_right():
    few = made(60, spread=2.0)
    found = judge(few)
    assert found["answer"] == "cannot_tell"
    wanted = found["patients_needed"]
    assert wanted > 30
    answers = [judge(made(2 * wanted, spread=2.0, seed=seed))["answer"] for seed in range(1, 11)]
    assert answers.count("use") >= 4  # 80 % if the few were typical, and they are few


def test_two_point_estimates_are_never_compared():
    """The policy is dearer in the sample by less than its noise: nothing is forbidden on that."""
    cases = made(80, spread=1.2)
    found = judge(cases)
    difference = found["against"]["doctor_reads_all"]["difference"]
    assert difference.low < 0 < difference.high
    assert found["answer"] != "use"


def test_a_rare_finding_that_is_never_called_is_of_no_use():
    """One in a hundred has it and nobody is called: calling all negative does as well, whatever the error rate."""
    n = 10_000
    y_true = (np.arange(n) % 100 == 0).astype(int)
    deferred = np.arange(n) % 5000 == 0
    cases = pd.DataFrame({"patient_id": range(n), "y_true": y_true, "decision": 0, "deferred": deferred, "baseline": 0})
    found = judge(cases)
    assert found["answer"] == "do_not_use"
    assert found["because_of"] == "misses_most"
    assert found["missed"].value > 0.95
    words = sentences(found)
    assert words[0].startswith("Do not use it")
    assert "misses 9" in words[1] or "misses 100 %" in words[1]
    assert "calling every case negative" in words[1]
    assert "hardly any case positive" in words[2]


def test_a_policy_dearer_than_its_rival_is_not_to_be_used():
    cases = made(2000)
    cases["decision"] = 1 - cases["y_true"]
    found = judge(cases)
    assert found["answer"] == "do_not_use"
    assert found["is_dearer"]
    assert "costs more than" in sentences(found)[1]


def test_equal_to_its_first_member_is_not_enough_to_be_used():
    cases = made(3000, threshold=0.0)  # nobody is deferred: the policy is its first member
    found = judge(cases, PRICES._replace(review=0.7))
    assert found["answer"] == "cannot_tell"
    assert found["because_of"] == "first_member_decides_all"
    assert "no number" in found["patients_needed"].absent
    assert "no number" in sentences(found)[1]


@pytest.mark.parametrize("n", [60, 4000])
def test_the_words_carry_the_figures(n):
    found = judge(made(n, spread=2.0))
    head, why, does = sentences(found, cases="films", positive="an opacity")
    assert {"use": "Use it", "cannot_tell": "Cannot tell"}[found["answer"]] in head
    assert f"{found['cost']:.3g}" in why
    assert f"{100 * found['good_for']['called_negative']['share']:.0f} % of the cases negative" in does
    assert "an opacity" in does
