"""The study of later failures on cases whose failures, confidence and instability are made up."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from studies import later_failures
from studies.later_failures import QUESTIONS, compared, larger, lines, measured
from tmv_lib.pipeline.params import read
from tmv_lib.stability.answer import StabilityParams
from tmv_lib.statistics.tests import holm


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(later_failures, "RESAMPLES", 200)


@pytest.fixture
def cases():
    """600 patients a phantom, all right and steady today; the less sure, the likelier each later failure."""
    rng = np.random.default_rng(0)
    n = 1800
    y_true = rng.integers(0, 2, n)
    sure = rng.exponential(2, n)
    table = pd.DataFrame({"member": "one", "patient_id": [f"{k}" for k in range(n)], "y_true": y_true})
    table["phantom"] = np.repeat(["fit", "test", "fresh"], n // 3)
    table["logit"], table["flipped"] = np.where(y_true == 1, sure, -sure), 0
    for question in QUESTIONS:
        table[question] = (rng.random(n) < expit(-sure)).astype(int)
    return table.assign(instability=rng.random(n))


def by_question(cases, judged_on="both"):
    return pd.DataFrame(measured(cases, judged_on)).set_index("question")


def test_an_instability_that_is_the_later_failure_finds_it_and_nothing_else(cases):
    found = by_question(cases.assign(instability=cases["next seed"]))
    row = found.loc["next seed"]
    assert row["auroc"] == 1
    assert row["gain_over_margin_low"] > 0.02
    assert row["likelihood_gain_given_margin_low"] > 0.1
    assert found["n"].tolist() == [1200] * 3
    assert row["n_failed"] == cases.loc[cases["phantom"] != "fit", "next seed"].sum()
    said = lines(found.reset_index())[-1]
    assert "is a better alarm than the margin for next seed;" in said
    assert "adds to it for next seed." in said


def test_a_shuffled_instability_finds_nothing(cases):
    rng = np.random.default_rng(1)
    found = by_question(cases.assign(instability=rng.permutation(cases["next seed"] + rng.random(len(cases)))))
    assert found["auroc"].tolist() == pytest.approx([0.5] * 3, abs=0.06)
    assert (found["auroc_low"] < 0.5).all()
    assert (found["auroc_high"] > 0.5).all()
    assert (found["gain_over_margin_high"] < 0).all()  # the margin does find them
    assert lines(found.reset_index())[-1].startswith("- one: instability foretells none;")


@pytest.mark.parametrize("function", [np.negative, lambda sure: np.exp(-sure)])
def test_what_rises_as_confidence_falls_is_the_margin_again(cases, function):
    found = by_question(cases.assign(instability=function(cases["logit"].abs())))
    assert (found["auroc"] > 0.6).all()
    assert found["auroc"].tolist() == found["margin_auroc"].tolist()
    assert found["gain_over_margin"].tolist() == [0, 0, 0]
    assert found["auroc_gain_given_margin"].tolist() == pytest.approx([0] * 3, abs=0.01)
    assert found["likelihood_gain_given_margin"].tolist() == pytest.approx([0] * 3, abs=0.01)
    assert "better alarm than the margin for none; is a worse one for none" in lines(found.reset_index())[-1]


def test_what_only_tells_the_answers_apart_foretells_nothing(cases):
    often = cases.assign(
        **{question: cases[question] | (cases["y_true"] & (cases.index % 3 == 0)) for question in QUESTIONS}
    )
    found = by_question(often.assign(instability=cases["y_true"]))
    assert found["auroc"].tolist() == [0.5] * 3


def test_who_is_wrong_today_is_not_asked_and_who_flips_already_not_about_a_larger_change(cases):
    cases.loc[[600, 601, 1800 - 1], "logit"] *= -1
    cases.loc[602, "instability"] = np.nan
    cases.loc[[603, 604, 5], "flipped"] = 1
    counted = {question: compared(cases, question) for question in QUESTIONS}
    assert [entry["n"] for entry in counted.values()] == [1200 - 4 - 2, 1200 - 4, 1200 - 4]
    assert [entry["n_fitted"] for entry in counted.values()] == [599, 600, 600]
    assert by_question(cases, "test split")["n"].tolist() == [600 - 3 - 2, 597, 597]


def test_the_three_questions_are_one_family(cases):
    found = by_question(cases)
    for name in later_failures.TESTED:
        assert found[f"{name}_p_value_holm"].tolist() == pytest.approx(holm(found[f"{name}_p_value"]))


def test_too_few_failures_are_said_to_be_too_few(cases):
    found = by_question(cases.assign(**{"another site": 0}))
    assert found.loc["another site", "rests_on"] == "none"
    assert "0 errors" in found.loc["another site", "auroc_absent"]
    (row,) = (line for line in lines(found.reset_index()) if line.startswith("| one | another site"))
    assert row.endswith("| 0 of 1200 | none | - | - | - | - | - |")
    assert lines(found.reset_index())[-1].endswith("has too few failures to tell what it adds for another site.")


def test_larger_changes_are_twice_the_mild_ones():
    params = read("params.yaml", "stability", StabilityParams)
    sizes = larger(params.model_copy(update={"contrast": 1.2, "rotation": 5.0}))
    assert sizes["contrast"] == pytest.approx(1.4)
    assert sizes["rotation"] == 10
    assert sizes["blur"] == pytest.approx(2 * params.blur)
