import numpy as np
import pytest

from tmv_lib.reporting import figure, gain, mean, performance, share
from tmv_lib.statistics import auroc


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


def test_a_share_with_wilsons_interval():
    found = share("rate", 0, 10)
    assert found["rate"] == 0
    # Wilson at k = 0: z^2 / (n + z^2)
    assert found["rate_high"] == pytest.approx(1.959964**2 / (10 + 1.959964**2), rel=1e-6)


def test_performance_counts_each_decision_with_its_own_threshold():
    y_true, score = np.array([0, 0, 1, 1] * 10), np.array([-2.0, 0.5, -0.5, 3.0] * 10)
    y_prob = 1 / (1 + np.exp(-score))
    options = {"operating_point": -1.0, "n_resamples": 100, "rng": np.random.default_rng(0)}
    found = performance(y_true, score, y_prob, groups=np.arange(40), **options)
    half, point = found["at_half"], found["at_operating_point"]
    assert (half["true_positive"], half["false_positive"], half["false_negative"]) == (10, 10, 10)
    assert (point["true_positive"], point["false_positive"], point["false_negative"]) == (20, 10, 0)
    assert point["sensitivity"] == 1.0
    assert found["auroc"] == 0.75
    assert (found["n"], found["n_positive"], found["n_patients"]) == (40, 20, 40)
