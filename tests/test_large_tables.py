"""Of many patients coarser methods stand in: each against the exact one, within the bound that its docstring states."""

import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from tmv_lib.calibration import errors
from tmv_lib.calibration.slope import calibration_slope
from tmv_lib.deferral import guarantee
from tmv_lib.pipeline.files import rounded, write_csv
from tmv_lib.site import learning_curve, shift, updating
from tmv_lib.statistics import resampling
from tmv_lib.statistics.classification import brier_score, sensitivity
from tmv_lib.statistics.estimate import Resampler, curve, difference, mean
from tmv_lib.statistics.ranking import auroc

PATIENTS = 1500


@pytest.fixture(scope="module")
def world() -> dict[str, np.ndarray]:
    """One to three images a patient, alike, 8 % of them positive; two models."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(PATIENTS), rng.integers(1, 4, PATIENTS))
    z = -3.5 + rng.normal(0, 1.2, PATIENTS)[patient] + rng.normal(0, 1.5, patient.size)
    y = (rng.random(patient.size) < expit(z)).astype(int)
    first, second = (z + rng.normal(0, spread, z.size) for spread in (0.5, 1.0))
    return {"patient": patient, "y": y, "first": first, "second": second}


def figures(world) -> dict[str, tuple]:
    y, first, second = (world[name] for name in ("y", "first", "second"))
    rare = (np.arange(y.size) % (y.size // 4) == 0).astype(float)  # 5 cases of 3,000
    return {
        "auroc": (auroc, (y, first), y),
        "difference": (partial(difference, auroc), (y, first, second), y),
        "brier_score": (brier_score, (y, expit(first)), None),
        "slope": (calibration_slope, (y, first), None),
        "sensitivity": (sensitivity, (y, (first > 0).astype(int)), None),
        "cost": (mean, (np.where(y == 1, 5.0 * (first < -2), 0.25 * (first > -2)),), None),
        "rare": (mean, (rare,), None),
    }


@pytest.mark.parametrize("name", ["auroc", "difference", "brier_score", "slope", "sensitivity", "cost", "rare"])
def test_little_bootstraps_are_as_wide_as_the_bootstrap(world, monkeypatch, name):
    metric, arrays, stratify = figures(world)[name]
    ends = {}
    for way, whole in (("exact", PATIENTS), ("little", PATIENTS - 1)):
        monkeypatch.setattr(resampling, "WHOLE", whole)
        options = {"groups": world["patient"], "n_resamples": 2000, "stratify": stratify}
        ends[way] = resampling.bootstrap(metric, *arrays, rng=np.random.default_rng(1), **options)
    width = ends["exact"].high - ends["exact"].low
    assert ends["little"].high - ends["little"].low == pytest.approx(width, rel=0.15)  # 5 % is chance on either side
    assert ends["little"].low == pytest.approx(ends["exact"].low, abs=0.12 * width)
    assert ends["little"].high == pytest.approx(ends["exact"].high, abs=0.12 * width)


def test_a_little_bootstrap_covers_the_truth_as_often_as_it_says(monkeypatch):
    """Means of 300 worlds whose truth is known: 95 % of the intervals hold it, within three standard errors."""
    monkeypatch.setattr(resampling, "WHOLE", 400)
    monkeypatch.setattr(resampling, "LITTLE", 200)
    held = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(500), 2)
        values = (rng.random(500) < 0.1)[groups] * 1.0
        found = resampling.bootstrap(mean, values, groups=groups, n_resamples=200, rng=rng)
        held += found.low <= 0.1 <= found.high
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 300) <= held / 300


def test_the_time_of_an_interval_hardly_grows_with_the_patients():
    def seconds(patients: int) -> float:
        rng = np.random.default_rng(0)
        values, groups = rng.normal(size=patients), np.arange(patients)
        start = time.process_time()
        Resampler(groups, 1000, seed=0).estimate(mean, values)
        return time.process_time() - start

    seconds(2_000)
    assert seconds(200_000) < 20 * seconds(2_000)  # a hundred times the patients


def test_dealing_blocks_gives_p_values_like_dealing_patients(monkeypatch):
    """Under one distribution they are uniform, and where places differ both see it."""
    p_values: dict[str, list[float]] = {"blocks": [], "patients": []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(400), 2)
        site = (groups % 2).astype(int)
        values = rng.normal(size=400)[groups] + rng.normal(size=800)
        for way, dealt in (("blocks", 150), ("patients", 400)):
            monkeypatch.setattr(shift, "DEALT", dealt)
            options = {"n_permutations": 199, "rng": np.random.default_rng(1)}
            p_values[way].append(shift.kolmogorov_smirnov(values, site, groups, **options).p_value)
            moved = shift.kolmogorov_smirnov(values + 0.8 * site, site, groups, **options)
            assert moved.p_value < 0.05
    for found in p_values.values():
        assert 0.38 < np.mean(found) < 0.62
        assert np.mean(np.array(found) < 0.05) <= 0.15
    assert np.corrcoef(p_values["blocks"], p_values["patients"])[0, 1] > 0.8


def test_a_coarser_distance_is_at_most_a_level_smaller(monkeypatch):
    rng = np.random.default_rng(0)
    values, site, groups = rng.normal(size=900), np.arange(900) % 3 == 0, np.arange(900)
    options = {"n_permutations": 99, "rng": rng}
    exact = shift.kolmogorov_smirnov(values + 0.1 * site, site.astype(int), groups, **options).observed
    monkeypatch.setattr(shift, "DEALT", 300)
    coarse = shift.kolmogorov_smirnov(values + 0.1 * site, site.astype(int), groups, **options).observed
    assert exact - 3 / shift.LEVELS <= coarse <= exact


def test_blocks_hold_patients_of_one_place_and_are_alike_in_size():
    domain = (np.arange(5000) % 3 == 0).astype(float)
    block, of_block = shift._blocks(domain, np.random.default_rng(0))
    assert (of_block[block] == domain).all()
    size = np.bincount(block)
    assert size.max() == 3
    assert (size < 3).sum() <= 2
    assert len(size) <= shift.DEALT


def test_counts_drawn_anew_are_distributed_as_those_of_lots(monkeypatch):
    rng = np.random.default_rng(0)
    groups = pd.Series(np.repeat(np.arange(300), 3))
    own, wrong = rng.random(900) < 0.6, rng.random(900) < 0.2
    counts = {}
    for way, whole in (("lots", 300), ("anew", 299)):
        monkeypatch.setattr(guarantee, "WHOLE", whole)
        counts[way] = guarantee.draw_lots(groups, rng=np.random.default_rng(1)).count(own, own & wrong)
    for lots, anew in zip(counts["lots"], counts["anew"], strict=True):
        assert anew.mean() == pytest.approx(lots.mean(), abs=4 * lots.std() / np.sqrt(len(lots)) * 1.5)
        assert anew.std() == pytest.approx(lots.std(), rel=0.1)


def test_normal_intervals_of_the_interaction_are_those_of_the_bootstrap(monkeypatch):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(1800), 2)
    site = (groups >= 900).astype(int)
    z = rng.normal(0, 2, groups.size)
    y = (rng.random(groups.size) < expit(z + 0.3 * site)).astype(int)
    found = {}
    for way, whole in (("exact", 900), ("normal", 899)):
        monkeypatch.setattr(updating, "WHOLE", whole)
        found[way] = updating.calibration_interaction(
            y, z, site, groups=groups, n_resamples=1000, rng=np.random.default_rng(1)
        )
    for name in ("intercept_difference", "slope_difference"):
        exact, normal = (found[way][name] for way in ("exact", "normal"))
        width = exact.high - exact.low
        assert normal.low == pytest.approx(exact.low, abs=0.1 * width)
        assert normal.high == pytest.approx(exact.high, abs=0.1 * width)
    assert found["exact"]["p_value"] == pytest.approx(found["normal"]["p_value"], rel=1e-9)


def test_a_learning_curve_of_a_sample_is_that_of_all(monkeypatch):
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 1200)
    y = (rng.random(1200) < expit(0.5 * z)).astype(float)
    medians = {}
    for way, whole in (("all", 1200), ("sample", 700)):
        monkeypatch.setattr(learning_curve, "WHOLE", whole)
        found = learning_curve.learning_curve(
            learning_curve.Labelled(y, z, np.arange(1200)),
            judged_on=None,
            source_logit=z,
            n_patients=[100, 300],
            n_draws=40,
            risk=0.05,
            delta=0.1,
            rng=np.random.default_rng(1),
        )
        banded = learning_curve.bands(found)
        medians[way] = banded[banded["measure"] == "nll"].set_index("n")
    gain = medians["all"].loc[300, "median"]
    assert gain < -0.02
    assert medians["sample"].loc[300, "median"] == pytest.approx(gain, rel=0.25)


def test_a_noise_floor_of_fewer_levels_is_the_same(monkeypatch):
    p = expit(np.random.default_rng(0).normal(-1, 2, 20_000))
    floors = {}
    for way, many in (("all", 20_000), ("fewer", 19_999)):
        monkeypatch.setattr(errors, "MANY", many)
        floors[way] = errors.calibration_noise_floor(p, n_draws=2000, rng=np.random.default_rng(1))
    assert floors["fewer"].mean == pytest.approx(floors["all"].mean, rel=0.03)
    assert floors["fewer"].p95 == pytest.approx(floors["all"].p95, rel=0.05)


def test_whole_numbers_are_patients_in_the_order_of_names():
    names = np.array(["b", "c", "a", "c"])
    numbers = np.array([7, 9, 1, 9])
    labels = [0, 1, 1, 0]
    for stratify in (None, labels):
        of_names, of_numbers = (resampling.patient_strata(groups, stratify) for groups in (names, numbers))
        for a, b in zip(of_names, of_numbers, strict=True):
            assert a.tolist() == b.tolist()


def test_a_long_curve_keeps_its_ends_and_a_short_one_every_point():
    x = np.linspace(0, 1, 20_000)
    thinned = curve("x", x=x)
    assert len(thinned) == 2000
    assert thinned["x"].iloc[[0, -1]].tolist() == [0, 1]
    assert len(curve("x", x=x[:5000])) == 5000


def test_a_column_is_written_as_each_of_its_values(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000) * 10.0 ** rng.integers(-14, 12, 20_000)
    values[:6] = [np.nan, np.inf, -np.inf, -0.0, 0.4921875, 0.49218749999999994]
    for digits in (6, 8, 9):
        write_csv(tmp_path / "t.csv", pd.DataFrame({"v": values}), digits=digits)
        lines = (tmp_path / "t.csv").read_text(encoding="utf-8").split("\n")[1:-1]
        expected = ['""' if np.isnan(v) else rounded(v, digits=digits) for v in values]
        assert lines == expected
