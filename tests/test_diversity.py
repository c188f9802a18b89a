"""Who ranks and who is calibrated better, in worlds where it is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from tmv_lib.calibration.errors import expected_calibration_error
from tmv_lib.reading.answer import UNTESTED, ReadingParams, claim, differences, shared_errors
from tmv_lib.statistics.classification import logistic_miscalibration
from tmv_lib.statistics.estimate import Estimate, difference

PARAMS = ReadingParams(sensitivity=0.95, resamples=200, seed=0)


def world(*, noise=(1.0, 1.0), scale=(1.0, 1.0), n: int = 400, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Two readers of the same patients, two images each, who see a finding of strength 2 through noise of their own.

    Their logits are calibrated by construction; `scale` multiplies them in `score`: above 1 is overconfident.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n // 2), 2)
    y_true = patient % 2
    common = {"image_id": [f"i{k}" for k in range(n)], "patient_id": patient, "y_true": y_true}
    seen = 2 * (y_true - 0.5) + 0.5 * rng.normal(size=n)
    readers = {}
    for name, spread, factor in zip(("dense", "res"), noise, scale, strict=True):
        x = seen + spread * rng.normal(size=n)
        logit = 2 * x / (0.25 + spread**2)  # calibrated: x is Normal of mean +-1, variance 0.25 + spread^2
        readers[name] = pd.DataFrame({**common, "score": factor * logit, "logit": logit})
    return readers


def compared(**readers) -> dict:
    return differences(world(seed=1, **readers), world(**readers), PARAMS)


def test_alike_readers_are_undecided():
    found = compared()
    assert found["ranks_better"] == "undecided"
    assert found["calibrates_better"] == {"raw": "undecided", "calibrated": "undecided"}
    assert claim(found, "dense", "res") == "not_supported"


def test_a_noisier_reader_ranks_worse_and_is_as_well_calibrated():
    found = compared(noise=(0.7, 2.0))
    assert found["ranks_better"] == "dense"
    assert found["calibrates_better"]["raw"] == "undecided"
    assert found["raw"]["nll_difference"].p_value < 0.01  # NLL does not tell ranking from calibration
    assert claim(found, "dense", "res") == "contradicted"


def test_an_overconfident_reader_is_worse_calibrated_until_it_is_calibrated():
    found = compared(scale=(1.0, 3.0))
    assert found["ranks_better"] == "undecided"
    assert found["calibrates_better"] == {"raw": "dense", "calibrated": "undecided"}
    # a scale moves no operating point
    scaled, unscaled = (one["at_operating_point"]["accuracy_difference"] for one in (found, compared()))
    assert replace(scaled, p_value_holm=None) == replace(unscaled, p_value_holm=None)
    assert claim(found, "dense", "res") == "not_supported"
    assert compared(scale=(3.0, 1.0))["calibrates_better"]["raw"] == "res"


def test_the_claim_where_it_is_true_and_where_both_halves_are_false():
    assert claim(compared(noise=(2.0, 0.7), scale=(1.0, 3.0)), "dense", "res") == "supported"
    assert claim(compared(noise=(0.7, 2.0), scale=(3.0, 1.0)), "dense", "res") == "contradicted"


def test_one_false_half_contradicts_the_claim_and_one_true_half_does_not_support_it():
    def of(ranks, calibrates):
        return claim({"ranks_better": ranks, "calibrates_better": {"raw": calibrates}}, "dense", "res")

    assert of("res", "dense") == "supported"
    assert of("res", "undecided") == of("undecided", "dense") == of("undecided", "undecided") == "not_supported"
    assert {of("dense", other) for other in ("dense", "res", "undecided")} == {"contradicted"}
    assert {of(other, "res") for other in ("dense", "res", "undecided")} == {"contradicted"}


def test_differences_change_sign_with_the_order_of_members():
    test = world(noise=(0.7, 1.0), scale=(1.0, 2.0))
    forth, back = (differences(pair, pair, PARAMS) for pair in (test, dict(reversed(test.items()))))
    for part in (None, "raw", "calibrated", "per_patient", "at_operating_point"):
        one, other = (found if part is None else found[part] for found in (forth, back))
        names = [name for name in one if name.endswith("_difference")]
        assert names
        for name in names:
            assert one[name].value == pytest.approx(-other[name].value, abs=1e-12)
            if name != "ece_difference":
                assert one[name].low == pytest.approx(-other[name].high, abs=1e-9)
                assert one[name].p_value_holm == pytest.approx(other[name].p_value_holm)
    assert forth["ranks_better"] == back["ranks_better"]


@pytest.mark.parametrize(
    ("scale", "sizes"),
    [
        ((1.5, 1.2), (3, 12)),  # a scale moves no decision at p > 0.5: of its 15, three tests stand there twice
        ((1.0, 1.0), (2, 10)),  # raw and calibrated are the same: nor do NLL, Brier score and miscalibration differ
    ],
)
def test_two_families_are_corrected_apart_and_a_test_counts_once(scale, sizes):
    found = compared(noise=(0.3, 1.5), scale=scale)
    claimed, others = [], []
    for part, figures in {None: found, **found}.items():
        for name, one in figures.items() if isinstance(figures, dict) else ():
            if isinstance(one, Estimate) and one.p_value is not None:
                ours = "miscalibration" in name or (part, name) == (None, "auroc_difference")
                (claimed if ours else others).append((one.p_value, one.p_value_holm))
    for family, entries, size in ((claimed, 3, sizes[0]), (others, 15, sizes[1])):
        assert len(family) == entries
        least, adjusted = min(family)
        assert adjusted == pytest.approx(size * least)
        assert adjusted < 1


def test_the_ece_has_neither_interval_nor_test():
    test = world(scale=(1.0, 3.0))
    found = differences(test, test, PARAMS)["raw"]["ece_difference"]
    expected = [expected_calibration_error(rows["y_true"], expit(rows["score"])) for rows in test.values()]
    assert found == Estimate(expected[0] - expected[1], interval_absent=UNTESTED)


def test_errors_are_counted_by_who_makes_them():
    y_true, ids = np.array([0, 0, 1, 1, 1, 0]), np.arange(6)
    logits = {"dense": [-1.0, 1, 1, -1, -1, -1], "res": [-1.0, 1, -1, -1, 1, -1]}
    test = {
        name: pd.DataFrame({"y_true": y_true, "patient_id": ids, "score": logit, "logit": logit})
        for name, logit in logits.items()
    }
    found = shared_errors(test, PARAMS)
    assert [found[name] for name in ("both_right", "only_first_wrong", "only_second_wrong", "double_fault")] == [
        2,
        1,
        1,
        2,
    ]
    assert (found["disagreement"], found["disagreement_rate"].value, found["mcnemar_p_value"]) == (2, 2 / 6, 1.0)


def test_opposed_perfect_readers_have_no_delong_statistic():
    y_true = np.array([0, 0, 1, 1])
    test = {
        name: pd.DataFrame({"y_true": y_true, "patient_id": range(4), "score": sign * y_true, "logit": sign * y_true})
        for name, sign in (("dense", 1.0), ("res", -1.0))
    }
    assert "variance is 0" in shared_errors(test, PARAMS)["delong"].absent


def test_ranking_biases_the_difference_of_ece_and_not_that_of_miscalibration():
    # both perfectly calibrated, one ranks better: the true difference of either figure is 0
    found = {expected_calibration_error: [], logistic_miscalibration: []}
    for seed in range(100):
        dense, res = world(noise=(0.5, 1.5), n=420, seed=seed).values()
        found[expected_calibration_error].append(
            difference(expected_calibration_error, dense["y_true"], expit(dense["logit"]), expit(res["logit"]))
        )
        found[logistic_miscalibration].append(
            difference(logistic_miscalibration, dense["y_true"], dense["logit"], res["logit"])
        )
    z = {metric: np.mean(drawn) / np.std(drawn) * np.sqrt(100) for metric, drawn in found.items()}
    assert z[expected_calibration_error] < -10
    assert abs(z[logistic_miscalibration]) < 3
    assert np.mean(found[expected_calibration_error]) < -0.01
    assert abs(np.mean(found[logistic_miscalibration])) < 0.001
