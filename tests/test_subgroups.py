"""Subgroups are columns of words, and are compared with the rest of their own class."""

import numpy as np
import pandas as pd
import pytest

from tmv_lib.subgroups import above_the_rest, subgroup_columns


def test_columns_of_few_words_are_subgroups_and_names_are_not():
    cases = pd.DataFrame({"patient_id": ["a", "b"], "cause": ["x", "y"], "germ": ["x", "y"], "age": [1, 2], "one": "w"})
    assert subgroup_columns(cases) == ["germ"]
    many = pd.DataFrame({"germ": [f"g{k}" for k in range(21)]})
    assert subgroup_columns(many) == []


# Positives are misread in 4 of 8 (2 of 4 inside), negatives in 1 of 4.
Y = np.array([1] * 8 + [0] * 4)
ERROR = np.array([1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0], float)


def test_a_subgroup_of_one_class_is_compared_with_that_class():
    inside = np.arange(12) < 4
    assert above_the_rest(ERROR, Y, inside) == 0  # half of both; all of the rest together are misread in 3 of 8
    worse = ERROR.copy()
    worse[:4] = 1
    assert above_the_rest(worse, Y, inside) == pytest.approx(1 - 0.5)


def test_a_mixed_subgroup_is_compared_with_the_rest_in_its_own_mixture():
    inside = np.isin(np.arange(12), [0, 2, 3, 8])  # positives 1 of 3, negatives 1 of 1
    expected = (3 * 3 / 5 + 1 * 0 / 3) / 4
    assert above_the_rest(ERROR, Y, inside) == pytest.approx(2 / 4 - expected)
    weights = np.array([[1.0] * 12, [2.0] * 12, [1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1]])
    found = above_the_rest(ERROR, Y, inside, weights=weights)
    np.testing.assert_allclose(found, [2 / 4 - expected, 2 / 4 - expected, 1 / 3 - 3 / 5])


def test_without_anybody_of_its_class_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="outside this subgroup no case has y_true = 0"):
        above_the_rest(ERROR, Y, Y == 0)
