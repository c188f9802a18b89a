from functools import partial

import numpy as np
import pandas as pd
import pytest

from tmv_lib.reading.answer import by_patient, performance
from tmv_lib.statistics.classification import accuracy, negative_log_likelihood
from tmv_lib.statistics.estimate import adjust, by_class, counts, difference, figure, gain, mean
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.resampling import bootstrap


def resampling(groups: np.ndarray) -> dict:
    return {"groups": groups, "n_resamples": 200, "rng": np.random.default_rng(0)}


def test_a_figure_lies_inside_its_interval():
    values = np.random.default_rng(0).normal(size=100)
    found = figure("level", mean, values, **resampling(np.arange(100)))
    assert found["level_low"] < found["level"] < found["level_high"]
    assert found["level"] == pytest.approx(values.mean())
    # 1.96 standard errors to each side, as far as 200 resamples tell
    width = found["level_high"] - found["level_low"]
    assert width == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.2)


def test_what_cannot_be_computed_is_absent_with_its_reason():
    found = figure("auroc", auroc, np.ones(5, int), np.arange(5.0), **resampling(np.arange(5)))
    assert list(found) == ["auroc_absent"]
    assert "class" in found["auroc_absent"]
    assert "no such case" in figure("level", mean, np.array([]), **resampling(np.array([])))["level_absent"]


def test_weights_repeat_cases():
    values, weights = np.array([1.0, 2.0, 4.0]), np.array([[1, 1, 1], [2, 0, 1]])
    np.testing.assert_allclose(mean(values, weights=weights), [7 / 3, 2.0])
    outcome, score = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.2, 0.8])
    assert gain(outcome, score, -score) == 1.0


def difference_of_means(first, second, *, weights=None):
    return mean(first, weights=weights) - mean(second, weights=weights)


def test_a_difference_carries_the_p_value_of_its_interval():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.5, 1, size=100), rng.normal(size=100)
    found = figure("d", difference_of_means, first, second, null=0.0, **resampling(np.arange(100)))
    drawn = bootstrap(difference_of_means, first, second, **resampling(np.arange(100)))
    assert found == {
        "d": first.mean() - second.mean(),
        "d_low": drawn.low,
        "d_high": drawn.high,
        "d_p_value": drawn.p_value(0.0),
    }
    assert (found["d_low"] > 0) == (found["d_p_value"] < 0.05)


def test_an_interval_that_does_not_hold_is_left_out():
    values, options = np.arange(9.0), {"interval": False, **resampling(np.arange(9))}
    assert list(figure("level", mean, values, **options)) == ["level"]
    assert list(figure("level", mean, values, null=0.0, **options)) == ["level", "level_p_value"]


def test_a_proportion_of_all_or_none_has_wilsons_interval():
    found = figure("rate", mean, np.zeros(20), **resampling(np.repeat(np.arange(10), 2)))
    # Wilson at k = 0 with 10 patients: z^2 / (n + z^2)
    end = 1.959964**2 / (10 + 1.959964**2)
    assert (found["rate"], found["rate_low"]) == (0, 0)
    assert found["rate_high"] == pytest.approx(end, rel=1e-6)
    arrays = np.ones(10), np.ones(10), np.ones(10)
    same = figure("d", partial(difference, accuracy), *arrays, null=0.0, **resampling(np.arange(10)))
    assert (same["d"], same["d_low"], same["d_p_value"]) == (0, -same["d_high"], 1)
    assert same["d_high"] == pytest.approx(end, rel=1e-6)


def test_wilson_speaks_of_proportions_alone():
    logit, y_true, options = np.linspace(-2, 2, 20), np.repeat([0, 1], [17, 3]), resampling(np.arange(20))
    nll = figure("d", partial(difference, negative_log_likelihood), y_true, logit, logit, null=0.0, **options)
    assert (nll["d_low"], nll["d_high"]) == (0, 0)  # the same predictions cost the same, whoever the patients are
    perfect = figure("auroc", auroc, y_true, logit, stratify=y_true, **options)
    # Wilson at k = n = 3, the rarer class: n / (n + z^2)
    assert perfect["auroc_low"] == pytest.approx(3 / (3 + 1.959964**2), rel=1e-6)


@pytest.mark.parametrize(
    ("y_true", "score", "groups", "reason"),
    [
        ([1, 1, 1], [1, 2, 3], [1, 2, 3], "one class only"),
        ([0, 1, 1], [1, np.nan, 3], [1, 2, 3], "score must be finite"),
        ([0, 1, 1], [1, 2], [1, 2, 3], "one value a case"),
        ([0, 1, 1], [1, 2, 3], [1, 1, 1], "at least 2 patients"),
        ([], [], [], "at least one case"),
    ],
)
def test_every_reason_is_told(y_true, score, groups, reason):
    found = figure("auroc", auroc, np.array(y_true), np.array(score), **resampling(np.array(groups)))
    assert list(found) == ["auroc_absent"]
    assert reason in found["auroc_absent"]


def test_holm_goes_over_all_nested_tests_and_nothing_else():
    first = {"auroc": 0.9, "auroc_p_value": 0.01, "raw": {"nll_p_value": 0.03, "ece": 0.2}}
    second = {"p_value": 0.02, "claim": "p_value"}
    adjust(first, second)
    assert first["auroc_p_value_holm"] == pytest.approx(0.03)  # 3 x 0.01
    assert second["p_value_holm"] == pytest.approx(0.04)  # 2 x 0.02
    assert first["raw"] == {"nll_p_value": 0.03, "ece": 0.2, "nll_p_value_holm": pytest.approx(0.04)}  # never below
    assert "claim_holm" not in second
    adjust({})


def test_a_test_that_stands_twice_counts_once():
    before = {"ece": 0.1, "noise_floor": 0.04, "p_value": 0.03}
    after, elsewhere = before.copy(), {"ece": 0.2, "noise_floor": 0.04, "p_value": 0.03}
    adjust({"before": before, "after": after})
    assert before["p_value_holm"] == after["p_value_holm"] == 0.03
    adjust({"before": before, "after": after, "elsewhere": elsewhere})
    assert [found["p_value_holm"] for found in (before, after, elsewhere)] == [0.06] * 3
    # decisions of the same cases under two names of a figure, or a p-value alone, are not known to be one test
    told = {"auroc": 0.1, "auroc_p_value": 0.03, "nll": 0.1, "nll_p_value": 0.03}
    adjust(told, lone := {"p_value": 0.03}, alone := {"p_value": 0.03})
    assert told["nll_p_value_holm"] == lone["p_value_holm"] == alone["p_value_holm"] == 0.12


def test_difference_is_paired():
    y_true, first, second = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.2, 0.8]), np.array([0.1, 0.2, 0.9, 0.8])
    assert difference(auroc, y_true, first, second) == 1 - 0.5
    weights = np.random.default_rng(0).integers(1, 4, size=(5, 4))
    np.testing.assert_array_equal(difference(auroc, y_true, first, first, weights=weights), np.zeros(5))


def made_split(n: int = 40) -> pd.DataFrame:
    """Four kinds of image, patient by patient; the calibrated logit is the score shifted by 0.25."""
    score = np.array([-2.0, 0.5, -0.5, 3.0] * (n // 4))
    truth = np.array([0, 0, 1, 1] * (n // 4))
    return pd.DataFrame({"y_true": truth, "score": score, "logit": score - 0.25, "patient_id": np.arange(n)})


def read(val: pd.DataFrame, test: pd.DataFrame, seed: int = 0) -> dict:
    return performance(val, test, sensitivity=0.95, n_resamples=100, rng=np.random.default_rng(seed))


def test_performance_counts_each_decision_with_its_own_threshold():
    found = read(made_split(), made_split())
    half, point = found["at_half"], found["at_operating_point"]
    assert (half["true_positive"], half["false_positive"], half["false_negative"]) == (10, 10, 10)
    assert (point["true_positive"], point["false_positive"], point["false_negative"]) == (20, 10, 0)
    assert (point["sensitivity"], point["precision"], point["negative_predictive_value"]) == (1, 2 / 3, 1)
    # Wilson for the 10 patients called negative, not for all 40
    assert point["negative_predictive_value_low"] == pytest.approx(10 / (10 + 1.959964**2), rel=1e-6)
    assert found["auroc"] == 0.75
    assert found["nll"] == pytest.approx(np.mean(np.log1p(np.exp([-2.25, 0.25, 0.75, -2.75]))))
    assert (found["n"], found["n_positive"], found["n_patients"]) == (40, 20, 40)


def test_every_figure_has_its_interval_except_counts():
    found = read(made_split(), made_split())
    parts = [part for level in (found.pop("per_patient"), found) for part in (level, *level.values())]
    names = [(part, name) for part in parts if isinstance(part, dict) for name in part]
    figures = [
        (part, name) for part, name in names if isinstance(part[name], float) and name[-4:] not in ("_low", "high")
    ]
    assert len(figures) == 2 * (4 + 2 * 6)
    assert all(part[f"{name}_low"] <= part[name] <= part[f"{name}_high"] + 1e-12 for part, name in figures)


def test_one_image_a_patient_reads_alike_per_patient():
    found = read(made_split(), made_split())
    apart = found.pop("per_patient")
    assert [apart[name] for name in ("n", "auroc", "brier_score", "nll")] == [
        found[name] for name in ("n", "auroc", "brier_score", "nll")
    ]
    assert apart["at_operating_point"]["true_positive"] == found["at_operating_point"]["true_positive"]


def test_patients_are_pooled_before_they_are_counted():
    # each patient has one image of every kind of its class: mean scores -0.05 and 1.25 separate them, though the
    # threshold that finds the positive images, -0.5, would not
    test = made_split().assign(patient_id=np.repeat(np.arange(10), 4)).replace({"score": {0.5: 1.9}})
    test["patient_id"] = 2 * test["patient_id"] + test["y_true"]
    found = read(test, test)["per_patient"]
    assert (found["n"], found["n_positive"], found["auroc"]) == (20, 10, 1.0)
    assert found["at_operating_point"]["accuracy"] == 1.0  # its threshold is a patient's, too
    assert by_patient(test).iloc[1].tolist() == [1, 1.25, 1.0, 1]


def test_nobody_called_positive_is_said():
    found = by_class(np.array([0, 1] * 5), np.zeros(10, int), prefix="all_", **resampling(np.arange(10)))
    assert "at least one case, found none" in found["all_precision_absent"]
    assert (found["all_sensitivity"], found["all_negative_predictive_value"]) == (0, 0.5)


def test_counts_of_nothing():
    assert counts(np.array([]), np.array([])) == {"n": 0, "n_positive": 0, "n_patients": 0}
