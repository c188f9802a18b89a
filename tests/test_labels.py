import numpy as np
import pandas as pd
import pytest

from tmv_lib.network.labels import learned

CASES = pd.DataFrame(
    {"image_id": list("abcdef"), "split": ["train"] * 5 + ["test"], "y_true": [0, 0, 1, 1, 0, 1], "patient_id": "p"}
)


def by(tmp_path, how: str, *readings: tuple[str, str, object], task="binary") -> list[float]:
    path = tmp_path / "readings.csv"
    pd.DataFrame(readings, columns=["image_id", "reader", "y_true"]).to_csv(path, index=False)
    return learned(CASES, how, task=task, readings=path).tolist()


def test_two_readers_who_agree_correct_a_label_and_nobody_else_does(tmp_path):
    readings = [
        *(("a", reader, 1) for reader in "xy"),  # two against the label
        ("b", "x", 1),  # one alone
        *(("c", reader, answer) for reader, answer in (("x", 0), ("y", 1))),  # they differ
        *(("d", reader, 1) for reader in "xyz"),  # they confirm it
    ]
    assert by(tmp_path, "corrected", *readings) == [1, 0, 1, 1, 0, 1]


def test_a_soft_label_is_the_share_of_readings_the_given_one_among_them(tmp_path):
    readings = [("a", "x", 1), ("a", "y", 1), ("a", "z", 0), ("c", "x", 0)]
    assert by(tmp_path, "soft", *readings) == [0.5, 0, 0.5, 1, 0, 1]


def test_given_labels_need_no_reading():
    assert learned(CASES, "given", task="binary", readings="nowhere.csv").tolist() == CASES["y_true"].tolist()


@pytest.mark.parametrize(
    ("reading", "told"),
    [
        (("g", "x", 1), r"readings\.csv: row 3: image_id 'g' is not in the case table"),
        (("f", "x", 1), r"row 3: image_id 'f' is no training case"),
        (("a", "x", 2), r"row 3: y_true is 2, it must be 0 or 1"),
        (("b", "x", 1), r"row 3: reader 'x' has read 'b' twice"),
    ],
)
def test_a_reading_that_cannot_be_used_is_named(tmp_path, reading, told):
    with pytest.raises(ValueError, match=told):
        by(tmp_path, "soft", ("b", "x", 0), reading)


def test_readings_are_asked_for_where_they_are_to_be_learned(tmp_path):
    with pytest.raises(ValueError, match="no reading"):
        by(tmp_path, "corrected")
    with pytest.raises(ValueError, match=r"train\.labels is 'soft': with task: multiclass it must be 'given'"):
        learned(CASES.assign(**{"class": "k"}), "soft", task="multiclass", readings="nowhere.csv")


def test_labels_keep_their_type_where_nothing_is_soft(tmp_path):
    assert np.issubdtype(learned(CASES, "given", task="binary", readings="nowhere.csv").dtype, np.integer)
