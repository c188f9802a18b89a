"""Subgroups are columns of words and numbers; a gap is one at the same class mix, with what it could have shown."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep

from tmv_lib.data.subgroups import adjust_gaps, comparable, find, gap, standardised_gap, subgroup_columns
from tmv_lib.statistics.estimate import Estimate

test_proportions_2indep.__test__ = False  # it is statsmodels', not pytest's


def made(n: int = 600, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """A case table with what hospitals list, and the labels."""
    rng = np.random.default_rng(seed)
    y_true = (rng.random(n) < 0.4).astype(float)
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(n)], "patient_id": [f"p{k // 2}" for k in range(n)]})
    table = table.assign(split="test", y_true=y_true, source="table", sex=rng.integers(0, 2, n), site=1.0)
    table.loc[rng.random(n) < 0.3, "site"] = 2.0
    table["age"] = rng.integers(18, 95, n)
    table["germ"] = np.where(y_true == 0, "none", rng.choice(["virus", "bacteria"], n))
    return table.assign(
        **{"Unnamed: 0": np.arange(n), "number": np.arange(n) * 7, "study_id": 1, "constant": 3}
    ), y_true


def test_numbers_are_subgroups_and_identifiers_are_not():
    table, _ = made()
    assert subgroup_columns(table) == ["sex", "site", "age", "germ"]
    assert subgroup_columns(pd.DataFrame({"germ": [f"g{k}" for k in range(21)]})) == []
    table["case_seed"] = 1000 - table.index // 2  # a number of every patient's own
    table["film"] = 5000 + table.index // 2
    assert subgroup_columns(table) == ["sex", "site", "age", "germ"]


def test_what_only_the_phantoms_maker_knows_is_a_subgroup_nowhere_else():
    table, _ = made()
    table["posterior"] = np.linspace(0.01, 0.99, len(table))
    assert "posterior" in subgroup_columns(table)
    assert "posterior" not in subgroup_columns(table.assign(source="phantom"))


def test_few_numbers_are_levels_and_many_are_thirds_named_by_their_range():
    table, y_true = made()
    found = {one.name: one.inside for one in find(table[["sex", "site", "age"]], y_true)}
    assert {"sex: 0", "sex: 1", "site: 1", "site: 2"} < set(found)
    thirds = [name for name in found if name.startswith("age: ")]
    assert len(thirds) == 3
    assert sum(found[name].sum() for name in thirds) == len(table)
    for name in thirds:
        low, high = (int(end) for end in name.removeprefix("age: ").split(" to "))
        np.testing.assert_array_equal(found[name], table["age"].between(low, high))
        assert 0.25 < found[name].mean() < 0.42
    order = np.random.default_rng(1).permutation(len(table))
    again = {one.name: one.inside for one in find(table[["sex", "site", "age"]].iloc[order], y_true[order])}
    for name, inside in found.items():
        np.testing.assert_array_equal(again[name], inside[order])


def test_the_two_most_populated_columns_are_crossed():
    table, y_true = made()
    table["ward"] = np.where(np.arange(600) % 3 == 0, None, np.where(np.arange(600) % 2 == 0, "a", "b"))  # gaps
    found = find(table[["ward", "sex", "site", "germ"]], y_true)
    crossed = {one.name: one for one in found if ", " in one.name}
    assert set(crossed) == {f"sex: {a}, site: {b}" for a in (0, 1) for b in (1, 2)}
    inside = (table["sex"] == 0) & (table["site"] == 2)
    np.testing.assert_array_equal(crossed["sex: 0, site: 2"].inside, inside)
    assert not any(one.inside[table["ward"].isna()].any() for one in found if one.name.startswith("ward"))


def test_what_the_truth_defines_is_named_even_with_a_few_wrong_labels():
    table, y_true = made()
    rng = np.random.default_rng(1)
    noisy = np.where(rng.random(600) < 0.03, 1 - y_true, y_true)  # the finding is right and some labels are not
    columns = table[["sex", "age", "germ"]].assign(marker=rng.random(600) < np.where(y_true == 1, 0.85, 0.12))
    told = {one.name: one.defined_by_truth for one in find(columns, noisy)}
    assert {name for name, by_truth in told.items() if by_truth} == {"germ: none", "germ: virus", "germ: bacteria"}
    rare = (rng.random(600) < 0.01).astype(float)  # a group without any of the few positives is no definition
    assert not any(one.defined_by_truth for one in find(columns[["sex", "age"]], rare))
    drain = pd.DataFrame({"drain": np.where((y_true == 1) & (np.arange(600) % 3 == 0), "yes", "no")})
    assert {one.name: one.defined_by_truth for one in find(drain, y_true)} == {"drain: no": False, "drain: yes": True}


def test_a_gap_that_is_only_the_mix_of_classes_is_none():
    """Positives are misread in 40 %, negatives in 10 %, in both places; one place sees twice as many positives."""
    y_true = np.repeat([1.0, 0.0, 1.0, 0.0], [200, 100, 100, 200])
    inside = np.arange(600) < 300
    error = np.concatenate([np.arange(m) < r * m for m, r in ((200, 0.4), (100, 0.1), (100, 0.4), (200, 0.1))])
    entry = gap(error, y_true, inside, groups=np.arange(600))
    assert error[inside].mean() - error[~inside].mean() == pytest.approx(0.1)
    assert entry["gap"].value == pytest.approx(0, abs=1e-12)
    assert (entry["gap"].p_value, entry["gap_rests_on"]) == (pytest.approx(1), "both classes")


def test_a_gap_is_the_difference_of_rates_standardised_by_hand_and_in_resamples():
    rng = np.random.default_rng(0)
    y_true, inside, error = (rng.integers(0, 2, 500) for _ in range(3))
    inside, share = inside.astype(bool), y_true.mean()
    rates = {(c, s): error[(y_true == c) & (inside == s)].mean() for c in (0, 1) for s in (False, True)}
    expected = share * (rates[1, True] - rates[1, False]) + (1 - share) * (rates[0, True] - rates[0, False])
    assert gap(error, y_true, inside, groups=np.arange(500))["gap"].value == pytest.approx(expected)
    times = rng.integers(0, 3, (4, 500))
    repeated = [standardised_gap(*(np.repeat(of, t) for of in (error, y_true, inside)), [0, 1]) for t in times]
    np.testing.assert_allclose(standardised_gap(error, y_true, inside, [0, 1], weights=times), repeated)


@pytest.mark.parametrize("k_inside", [0, 3, 12])
def test_within_one_class_it_is_newcombes_interval_and_the_pooled_test(k_inside):
    error = np.concatenate([np.arange(60) < k_inside, np.arange(140) < 35])
    inside = np.arange(200) < 60
    entry = gap(error, np.ones(200), inside, groups=np.arange(200))
    low, high = confint_proportions_2indep(k_inside, 60, 35, 140, method="newcomb")
    assert (entry["gap"].low, entry["gap"].high) == (pytest.approx(low), pytest.approx(high))
    pooled = (k_inside + 35) / 200
    z = (k_inside / 60 - 0.25) / np.sqrt(pooled * (1 - pooled) * (1 / 60 + 1 / 140))
    assert entry["gap"].p_value == pytest.approx(2 * norm.sf(abs(z)))
    score = test_proportions_2indep(k_inside, 60, 35, 140, method="score", correction=False)
    assert entry["gap"].p_value == pytest.approx(score.pvalue, rel=0.01)
    assert entry["gap_rests_on"] == "positives"


def test_the_smallest_gap_is_found_in_four_of_five_samples():
    rng = np.random.default_rng(0)
    y_true, inside = np.tile([0.0, 1.0], 200), np.arange(400) < 200
    smallest = gap(rng.random(400) < 0.3, y_true, inside, groups=np.arange(400))["gap_smallest"]
    rate = 0.3 + smallest * np.where(inside, 0.5, -0.5)
    hits = [
        gap(rng.random(400) < rate, y_true, inside, groups=np.arange(400))["gap"].p_value < 0.05 for _ in range(400)
    ]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.06)


def test_the_interval_covers_and_the_test_keeps_its_level_where_errors_are_rare():
    rng = np.random.default_rng(1)
    y_true, inside = (np.arange(400) % 5 < 2).astype(float), np.arange(400) % 4 == 0
    risk = np.where(y_true == 1, 0.15, 0.03)
    found = [gap(rng.random(400) < risk, y_true, inside, groups=np.arange(400)) for _ in range(400)]
    assert np.mean([one["gap"].low <= 0 <= one["gap"].high for one in found]) > 0.93
    assert np.mean([one["gap"].p_value < 0.05 for one in found]) < 0.08


def test_images_of_one_patient_are_no_more_than_the_patient():
    rng = np.random.default_rng(2)
    y_true, inside, error = (rng.integers(0, 2, 200) for _ in range(3))
    once = gap(error, y_true, inside.astype(bool), groups=np.arange(200))
    four = gap(*(np.repeat(of, 4) for of in (error, y_true, inside.astype(bool))), groups=np.repeat(np.arange(200), 4))
    assert four["gap"].ends == pytest.approx(once["gap"].ends)
    assert four["gap"].p_value == pytest.approx(once["gap"].p_value)
    assert four["gap_smallest"] == pytest.approx(once["gap_smallest"])


def test_too_few_patients_of_a_class_leave_the_other_or_nothing():
    y_true = np.repeat([1.0, 0.0], [100, 100])
    inside = np.r_[np.arange(100) < 19, np.arange(100) < 30]
    error = np.random.default_rng(0).random(200) < 0.3
    groups = np.arange(200)
    assert comparable(y_true, inside, groups, np.ones(200, bool)) == [0]
    assert gap(error, y_true, inside, groups=groups)["gap_rests_on"] == "negatives"
    inside[100 + 19 :] = False
    assert gap(error, y_true, inside, groups=groups) == {
        "gap": Estimate(absent="no class has 20 patients inside this subgroup and as many outside")
    }


def test_a_subgroup_and_its_complement_are_one_test():
    table, y_true = made()
    error = np.random.default_rng(3).random(600) < np.where(table["sex"] == 1, 0.3, 0.2)
    named = [one for one in find(table[["sex", "germ"]], y_true) if ", " not in one.name]
    found = {one.name: gap(error, y_true, one.inside, groups=table["patient_id"].to_numpy()) for one in named}
    adjust_gaps(found, named, y_true)
    for name in ("sex: 0", "sex: 1"):  # alone in its family; those that the truth defines have their own
        assert found[name]["gap"].p_value_holm == found[name]["gap"].p_value
    assert found["germ: virus"]["gap"].p_value_holm == pytest.approx(found["germ: virus"]["gap"].p_value)
    assert found["sex: 0"]["gap"].value == pytest.approx(-found["sex: 1"]["gap"].value)
