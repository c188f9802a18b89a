import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from tmv_lib.deferral import costs, verdict
from tmv_lib.deferral.costs import Prices

PRICES = Prices(5.0, 1.0, 0.25)


@pytest.fixture
def resampling():
    return {"n_resamples": 200, "rng": np.random.default_rng(0)}


def made(n: int, *, mean: float = 0.0, spread: float = 3.0, threshold: float = 0.7, seed: int = 0) -> pd.DataFrame:
    """Calibrated cases; the first member is as good as the ensemble and decides all."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(mean, spread, n))
    decision = costs.cheapest_decision(p, **PRICES.errors)
    deferred = costs.certainty(p, **PRICES.errors) < threshold
    y_true = (rng.random(n) < p).astype(int)
    table = {"patient_id": np.arange(n) // 2, "y_true": y_true, "decision": decision, "deferred": deferred}
    return pd.DataFrame(table | {"baseline": decision})


def test_a_good_policy_with_many_cases_is_to_be_used(resampling):
    found = verdict.judge(made(4000), PRICES, **resampling)
    assert found["answer"] == "use"
    assert set(found["against"]) == set(verdict.RIVALS)
    assert all(entry["difference_high"] < 0 for entry in found["against"].values())


def test_differences_are_those_of_the_costs(resampling):
    cases = made(500)
    found = verdict.judge(cases, PRICES, **resampling)["against"]
    own = costs.failure_cost(
        cases["y_true"], cases["decision"], deferred=cases["deferred"], review=0.25, **PRICES.errors
    )
    assert found["doctor_reads_all"]["difference"] == pytest.approx(own - 0.25)
    prevalence = cases["y_true"].mean()
    assert found["all_called_positive"]["difference"] == pytest.approx(own - (1 - prevalence))
    assert found["all_called_negative"]["difference"] == pytest.approx(own - 5 * prevalence)


def test_few_cases_cannot_tell_and_the_number_that_would_is_about_right(resampling):
    few = made(60, spread=2.0)
    found = verdict.judge(few, PRICES, **resampling)
    assert found["answer"] == "cannot_tell"
    wanted = found["patients_needed"]
    assert wanted > 30
    answers = [
        verdict.judge(made(2 * wanted, spread=2.0, seed=seed), PRICES, **resampling)["answer"] for seed in range(1, 11)
    ]
    assert answers.count("use") >= 4  # 80 % if the few were typical, and they are few


def test_two_point_estimates_are_never_compared(resampling):
    """The policy is dearer in the sample by less than its noise: nothing is forbidden on that."""
    cases = made(80, spread=1.2)
    found = verdict.judge(cases, PRICES, **resampling)
    doctor = found["against"]["doctor_reads_all"]
    assert doctor["difference_low"] < 0 < doctor["difference_high"]
    assert found["answer"] != "use"


def test_a_rare_finding_that_is_never_called_is_of_no_use(resampling):
    """One in a hundred has it and nobody is called: calling all negative does as well, whatever the error rate."""
    n = 10_000
    y_true = (np.arange(n) % 100 == 0).astype(int)
    deferred = np.arange(n) % 5000 == 0
    cases = pd.DataFrame({"patient_id": range(n), "y_true": y_true, "decision": 0, "deferred": deferred, "baseline": 0})
    found = verdict.judge(cases, PRICES, **resampling)
    assert found["answer"] == "do_not_use"
    assert found["because_of"] == "misses_most"
    assert found["missed"] > 0.95
    words = verdict.sentences(found)
    assert words[0].startswith("Do not use it")
    assert "misses 9" in words[1] or "misses 100 %" in words[1]
    assert "calling every case negative" in words[1]
    assert "hardly any case positive" in words[2]


def test_a_policy_dearer_than_its_rival_is_not_to_be_used(resampling):
    cases = made(2000)
    cases["decision"] = 1 - cases["y_true"]
    found = verdict.judge(cases, PRICES, **resampling)
    assert found["answer"] == "do_not_use"
    assert found["is_dearer"]
    assert "costs more than" in verdict.sentences(found)[1]


def test_equal_to_its_first_member_is_not_enough_to_be_used(resampling):
    cases = made(3000, threshold=0.0)  # nobody is deferred: the policy is its first member
    found = verdict.judge(cases, PRICES._replace(review=0.7), **resampling)
    assert found["answer"] == "cannot_tell"
    assert found["because_of"] == "first_member_decides_all"
    assert "no number" in found["patients_needed_absent"]
    assert "no number" in verdict.sentences(found)[1]


@pytest.mark.parametrize("n", [60, 4000])
def test_the_words_carry_the_figures(resampling, n):
    found = verdict.judge(made(n, spread=2.0), PRICES, **resampling)
    head, why, does = verdict.sentences(found, cases="films", positive="an opacity")
    assert {"use": "Use it", "cannot_tell": "Cannot tell"}[found["answer"]] in head
    assert f"{found['cost']:.3g}" in why
    assert f"{100 * found['good_for']['called_negative']['share']:.0f} % of the cases negative" in does
    assert "an opacity" in does
