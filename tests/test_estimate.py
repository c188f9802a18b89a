"""Figures as values: their intervals, their reasons, their tests; and what one network's figures are made of."""

import json
from dataclasses import fields
from functools import partial

import numpy as np
import pandas as pd
import pytest

from tmv_lib.pipeline.metrics import SUFFIXES, write_metrics
from tmv_lib.pipeline.record import read_metrics
from tmv_lib.reading.answer import ReadingParams, by_patient, performance
from tmv_lib.statistics.classification import accuracy, negative_log_likelihood, sensitivity
from tmv_lib.statistics.estimate import Estimate, Resampler, adjust, difference, interval_rows, mean
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.resampling import bootstrap, generator
from tmv_lib.statistics.tests import wilson_interval


def resampler(groups) -> Resampler:
    return Resampler(np.asarray(groups), 200, seed=0)


def test_a_figure_lies_inside_its_interval():
    values = np.random.default_rng(0).normal(size=100)
    found = resampler(np.arange(100)).estimate(mean, values)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(values.mean())
    # 1.96 standard errors to each side, as far as 200 resamples tell
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.2)
    assert (found.p_value, found.absent, found.interval_absent) == (None, None, None)


def test_what_cannot_be_computed_is_absent_with_its_reason():
    found = resampler(np.arange(5)).estimate(auroc, np.ones(5, int), np.arange(5.0))
    assert found == Estimate(absent=found.absent)
    assert "class" in found.absent
    assert "no such case" in resampler([]).estimate(mean, np.array([])).absent


def test_what_some_resample_lacks_is_absent():
    def odds(values, *, weights=None):
        return (values if weights is None else weights * values).sum(axis=-1) / (0 if weights is None else 1)

    assert "not defined in every resample" in resampler(np.arange(9)).estimate(odds, np.ones(9)).absent


def test_weights_repeat_cases():
    values, weights = np.array([1.0, 2.0, 4.0]), np.array([[1, 1, 1], [2, 0, 1]])
    np.testing.assert_allclose(mean(values, weights=weights), [7 / 3, 2.0])


def difference_of_means(first, second, *, weights=None):
    return mean(first, weights=weights) - mean(second, weights=weights)


def test_a_difference_carries_the_p_value_of_its_interval():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.5, 1, size=100), rng.normal(size=100)
    found = resampler(np.arange(100)).estimate(difference_of_means, first, second, null=0.0)
    rng = generator(0, "resamples")
    drawn = bootstrap(difference_of_means, first, second, groups=np.arange(100), n_resamples=200, rng=rng)
    assert found == Estimate(first.mean() - second.mean(), drawn.low, drawn.high, drawn.p_value(0.0))
    assert (found.low > 0) == (found.p_value < 0.05)


def test_an_interval_that_does_not_hold_is_left_out():
    values = np.arange(9.0)
    assert resampler(np.arange(9)).estimate(mean, values, interval=False) == Estimate(4.0)
    tested = resampler(np.arange(9)).estimate(mean, values, null=0.0, interval=False)
    assert tested == Estimate(4.0, p_value=tested.p_value)
    assert tested.p_value == 2 / 201


def test_a_proportion_of_all_or_none_has_wilsons_interval():
    found = resampler(np.repeat(np.arange(10), 2)).estimate(mean, np.zeros(20))
    # Wilson at k = 0 with 10 patients: z^2 / (n + z^2)
    end = 1.959964**2 / (10 + 1.959964**2)
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(end, rel=1e-6)
    same = resampler(np.arange(10)).estimate(partial(difference, accuracy), *np.ones((3, 10)), null=0.0)
    assert (same.value, same.low, same.p_value) == (0, -same.high, 1)
    assert same.high == pytest.approx(end, rel=1e-6)


def test_wilson_speaks_of_proportions_alone():
    logit, y_true = np.linspace(-2, 2, 20), np.repeat([0, 1], [17, 3])
    metric = partial(difference, negative_log_likelihood)
    nll = resampler(np.arange(20)).estimate(metric, y_true, logit, logit, null=0.0)
    assert (nll.low, nll.high) == (0, 0)  # the same predictions cost the same, whoever the patients are
    perfect = resampler(np.arange(20)).estimate(auroc, y_true, logit, stratify=y_true)
    # Wilson at k = n = 3, the rarer class: n / (n + z^2)
    assert perfect.low == pytest.approx(3 / (3 + 1.959964**2), rel=1e-6)


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
def test_every_reason_is_kept(y_true, score, groups, reason):
    found = resampler(groups).estimate(auroc, np.array(y_true), np.array(score))
    assert found == Estimate(absent=found.absent)
    assert reason in found.absent


def test_figures_of_some_cases_resample_their_patients_alone():
    values, groups = np.random.default_rng(2).normal(size=60), np.repeat(np.arange(20), 3)
    here = groups < 12
    alone = resampler(groups[here]).estimate(mean, values[here])
    assert resampler(groups).among(here).estimate(mean, values[here]) == alone
    assert resampler(groups).among(np.flatnonzero(here)).estimate(mean, values[here]) == alone


def test_holm_goes_over_all_nested_tests_and_nothing_else():
    first = {"auroc": 0.9, "auroc_p_value": 0.01, "raw": {"nll_p_value": 0.03, "ece": 0.2}}
    second = {"p_value": 0.02, "claim": "p_value"}
    adjust(first, second)
    assert first["auroc_p_value_holm"] == pytest.approx(0.03)  # 3 x 0.01
    assert second["p_value_holm"] == pytest.approx(0.04)  # 2 x 0.02
    assert first["raw"] == {"nll_p_value": 0.03, "ece": 0.2, "nll_p_value_holm": pytest.approx(0.04)}  # never below
    assert "claim_holm" not in second
    adjust({})


def test_an_estimate_is_a_test_and_keeps_all_but_its_adjusted_p_value():
    one = Estimate(0.2, 0.1, 0.3, 0.01)
    found = {"gain": one, "raw": {"gain": one, "level": Estimate(0.5, 0.4, 0.6)}, "p_value": 0.04}
    adjust(found)  # equal in all, the two are one test: two in the family
    assert found["gain"] == found["raw"]["gain"] == Estimate(0.2, 0.1, 0.3, 0.01, p_value_holm=0.02)
    assert found["raw"]["level"] == Estimate(0.5, 0.4, 0.6)
    assert found["p_value_holm"] == 0.04
    apart = {"first": {"gain": one}, "second": {"gain": one}}
    adjust(apart, distinct=True)
    assert apart["first"]["gain"].p_value_holm == apart["second"]["gain"].p_value_holm == 0.02


def test_a_test_that_stands_twice_counts_once():
    before = {"ece": 0.1, "noise_floor": 0.04, "p_value": 0.03}
    after, elsewhere = before.copy(), {"ece": 0.2, "noise_floor": 0.04, "p_value": 0.03}
    adjust({"before": before, "after": after})
    assert before["p_value_holm"] == after["p_value_holm"] == 0.03
    adjust({"before": before, "after": after, "elsewhere": elsewhere})
    assert [found["p_value_holm"] for found in (before, after, elsewhere)] == [0.06] * 3
    # decisions of the same cases under two names of a figure, or a p-value alone, are not known to be one test
    alike = {"auroc": 0.1, "auroc_p_value": 0.03, "nll": 0.1, "nll_p_value": 0.03}
    adjust(alike, lone := {"p_value": 0.03}, alone := {"p_value": 0.03})
    assert alike["nll_p_value_holm"] == lone["p_value_holm"] == alone["p_value_holm"] == 0.12


def test_difference_is_paired():
    y_true, first, second = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.2, 0.8]), np.array([0.1, 0.2, 0.9, 0.8])
    assert difference(auroc, y_true, first, second) == 1 - 0.5
    weights = np.random.default_rng(0).integers(1, 4, size=(5, 4))
    np.testing.assert_array_equal(difference(auroc, y_true, first, first, weights=weights), np.zeros(5))


def test_an_estimate_comes_back_from_its_file(tmp_path):
    kept = {
        "auroc": Estimate(0.9, 0.8, 0.95),
        "gain": Estimate(0.1, 0.0, 0.2, 0.03, 0.06),
        "ece": Estimate(0.05, interval_absent="biased"),
        "slope": Estimate(absent="one logit"),
    }
    write_metrics("baseline", {"baseline": {"n": 3, "inner": kept, "absent": 12}}, root=tmp_path)
    written = json.loads((tmp_path / "metrics/baseline.json").read_text("utf-8"))["baseline"]
    assert written["inner"]["gain_p_value_holm"] == 0.06
    assert written["inner"]["slope_absent"] is True  # why stands elsewhere, and DVC's table stays narrow
    assert "slope" not in written["inner"]
    assert written["absent"] == 12  # a class of that name
    found = read_metrics("baseline", root=tmp_path)["baseline"]["inner"]
    assert {name: found.estimate(name) for name in kept} == kept
    (tmp_path / "data/baseline/absent.csv").unlink()  # a clone has the metrics alone
    found = read_metrics("baseline", root=tmp_path)["baseline"]["inner"]
    assert "data/baseline/absent.csv would say" in found.estimate("slope").absent
    assert found.estimate("auroc") == kept["auroc"]


def test_a_figure_moves_with_nothing_else_that_is_drawn():
    values, other = np.random.default_rng(2).random((2, 60))
    alone, after = resampler(np.arange(60)), resampler(np.arange(60))
    after.estimate(mean, other)
    assert alone.estimate(mean, values) == after.estimate(mean, values)
    first, second = alone.estimate(mean, values), alone.estimate(mean, 1 - values)
    assert first.low + second.high == pytest.approx(1)  # figures of the same cases rest on the same resamples


def test_a_metric_that_is_not_there_is_named_and_not_taken_for_not_measured(tmp_path):
    path = tmp_path / "metrics/baseline.json"
    assert read_metrics("baseline", root=tmp_path) is None
    write_metrics("baseline", {"baseline": {"auroc": Estimate(0.9, 0.8, 0.95)}}, root=tmp_path)
    found = read_metrics("baseline", root=tmp_path)["baseline"]
    for ask in (found.__getitem__, found.estimate):
        with pytest.raises(ValueError, match=r"baseline\.json baseline: no metric 'auc'; there are auroc, auroc_low"):
            ask("auc")
    assert found.get("auc") is None
    assert "auc" not in found
    assert dict(found) == {"auroc": 0.9, "auroc_low": 0.8, "auroc_high": 0.95}
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"baseline\.json: not a metrics file"):
        read_metrics("baseline", root=tmp_path)


def test_two_values_of_one_key_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metric a\.gain_low stands there twice"):
        write_metrics("m", {"a": {"gain_low": 0.3, "gain": Estimate(0.1, 0.0, 0.2)}}, root=tmp_path)
    assert not (tmp_path / "metrics/m.json").exists()


def test_every_field_of_an_estimate_has_a_suffix():
    assert list(SUFFIXES) == [field.name for field in fields(Estimate)]


def test_a_row_to_draw_needs_a_value():
    assert interval_rows(Estimate(0.5, 0.4, 0.6), series="a") == [
        {"series": "a", "value": 0.5, "low": 0.4, "high": 0.6}
    ]
    assert interval_rows(Estimate(absent="no such case"), series="a") == []


def made_split(n: int = 40) -> pd.DataFrame:
    """Four kinds of image, patient by patient; the calibrated logit is the score shifted by 0.25."""
    score = np.array([-2.0, 0.5, -0.5, 3.0] * (n // 4))
    truth = np.array([0, 0, 1, 1] * (n // 4))
    return pd.DataFrame({"y_true": truth, "score": score, "logit": score - 0.25, "patient_id": np.arange(n)})


def read(test: pd.DataFrame) -> dict:
    """Performance where validation looks like the test split."""
    cases = pd.concat([test.assign(split=split) for split in ("val", "test")], ignore_index=True)
    return performance(cases, ReadingParams(sensitivity=0.95, resamples=100, seed=0))


def test_performance_counts_each_decision_with_its_own_threshold():
    found = read(made_split())
    half, point = found["at_half"], found["at_operating_point"]
    assert (half["true_positive"], half["false_positive"], half["false_negative"]) == (10, 10, 10)
    assert (point["true_positive"], point["false_positive"], point["false_negative"]) == (20, 10, 0)
    expected = {"sensitivity": 1, "precision": 2 / 3, "negative_predictive_value": 1}
    assert {name: point[name].value for name in expected} == expected
    # Wilson for the 10 patients called negative, not for all 40
    assert point["negative_predictive_value"].low == pytest.approx(10 / (10 + 1.959964**2), rel=1e-6)
    assert found["auroc"].value == 0.75
    assert found["nll"].value == pytest.approx(np.mean(np.log1p(np.exp([-2.25, 0.25, 0.75, -2.75]))))
    assert (found["n"], found["n_positive"], found["n_patients"]) == (40, 20, 40)


def test_every_figure_has_its_interval_except_counts():
    found = read(made_split())
    parts = [part for level in (found.pop("per_patient"), found) for part in (level, *level.values())]
    values = [
        value for part in parts if isinstance(part, dict) for value in part.values() if not isinstance(value, dict)
    ]
    figures = [value for value in values if isinstance(value, Estimate)]
    assert len(figures) == 2 * (4 + 2 * 6)
    assert all(one.low <= one.value <= one.high + 1e-12 for one in figures)
    assert all(isinstance(value, (int, np.integer)) for value in values if not isinstance(value, Estimate))


def test_one_image_a_patient_reads_alike_per_patient():
    found = read(made_split())
    apart = found.pop("per_patient")
    assert apart["n"] == found["n"]
    for name in ("auroc", "brier_score", "nll"):
        assert apart[name].value == found[name].value
    assert apart["at_operating_point"]["true_positive"] == found["at_operating_point"]["true_positive"]


def test_patients_are_pooled_before_they_are_counted():
    # each patient has one image of every kind of its class: mean scores -0.05 and 1.25 separate them, though the
    # threshold that finds the positive images, -0.5, would not
    test = made_split().assign(patient_id=np.repeat(np.arange(10), 4)).replace({"score": {0.5: 1.9}})
    test["patient_id"] = 2 * test["patient_id"] + test["y_true"]
    found = read(test)["per_patient"]
    assert (found["n"], found["n_positive"], found["auroc"].value) == (20, 10, 1.0)
    assert found["at_operating_point"]["accuracy"].value == 1.0  # its threshold is a patient's, too
    assert by_patient(test)[["y_true", "score", "logit", "patient_id"]].iloc[1].tolist() == [1, 1.25, 1.0, 1]


def test_figures_by_class_rest_on_the_patients_of_that_class():
    y_true, y_pred, groups = np.array([0, 1] * 10), np.array([0, 1] * 9 + [1, 0]), np.repeat(np.arange(10), 2)
    found = resampler(groups).by_class(y_true, y_pred)
    assert {name: one.value for name, one in found.items()} == dict.fromkeys(found, 0.9)
    alone = resampler(groups[y_true == 1]).estimate(sensitivity, y_true[y_true == 1], y_pred[y_true == 1])
    assert found["sensitivity"] == alone


def test_nobody_called_positive_is_said():
    found = resampler(np.arange(10)).by_class(np.array([0, 1] * 5), np.zeros(10, int), prefix="all_")
    assert "at least one case, found none" in found["all_precision"].absent
    # Wilson for the 5 patients of the class
    none = wilson_interval(0, 5)
    assert found["all_sensitivity"] == Estimate(0.0, *map(float, none))
    assert found["all_negative_predictive_value"].value == 0.5


def test_counts():
    assert resampler([]).counts(np.array([])) == {"n": 0, "n_positive": 0, "n_patients": 0}
    assert resampler(["a", "a", "b"]).counts(np.array([1, 1, 0])) == {"n": 3, "n_positive": 2, "n_patients": 2}
