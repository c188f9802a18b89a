import numpy as np
import pandas as pd
import pytest

from tmv_lib.data.cases import check_cases, cut_splits, name_local

SHARES = {"val": 0.1, "cal": 0.2, "test": 0.2}


def made(n_patients: int = 300, **splits: int) -> pd.DataFrame:
    """Two images a patient, a third of the patients positive; the first patients stand in the named splits."""
    patient = np.repeat(np.arange(n_patients), 2)
    split = np.array([""] * n_patients, dtype=object)
    start = 0
    for name, n in splits.items():
        split[start : start + n] = name
        start += n
    return pd.DataFrame(
        {
            "image_id": [f"image-{row}" for row in range(2 * n_patients)],
            "patient_id": [f"patient-{number}" for number in patient],
            "split": split[patient],
            "y_true": (patient % 3 == 0).astype(int),
            "source": "made",
        }
    )


def cut(cases: pd.DataFrame, seed: int = 0) -> pd.Series:
    return cut_splits(cases, rng=np.random.default_rng(seed), **SHARES)


def test_no_patient_lies_in_two_splits():
    cases = made()
    assert cut(cases).groupby(cases["patient_id"]).nunique().max() == 1


def test_shares_hold_in_each_class():
    cases = made()
    split = cut(cases)
    for label in (0, 1):
        shares = split[cases["y_true"] == label].value_counts(normalize=True)
        for name, share in SHARES.items():
            assert shares[name] == pytest.approx(share, abs=0.02)


def test_what_the_source_has_set_stays():
    cases = made(test=60, val=40)
    split = cut(cases)
    assert (split[cases["split"] == "test"] == "test").all()
    assert (split == "test").sum() == (cases["split"] == "test").sum()
    assert set(split[cases["split"] == "val"]) == {"val"}


def test_a_tiny_validation_split_is_dissolved_and_cut_anew():
    cases = made(test=60, val=4)
    split = cut(cases)
    assert (split == "val").sum() == pytest.approx(0.1 * 480, abs=6)
    assert set(split[cases["split"] == "val"]) != {"val"}


def test_same_seed_same_cut_and_another_seed_another():
    cases = made()
    assert cut(cases).equals(cut(cases))
    assert not cut(cases).equals(cut(cases, seed=1))


def test_too_few_patients_for_a_split():
    with pytest.raises(ValueError, match=r"4 patients with y_true = 0 are too few to cut cal \(0.2\)"):
        cut(made(6))


@pytest.mark.parametrize("shares", [{"val": 0.5, "cal": 0.3, "test": 0.2}, {"val": 0.0, "cal": 0.1, "test": 0.1}])
def test_shares_that_leave_nothing(shares):
    with pytest.raises(ValueError, match=f"together below 1, found test {shares['test']:g}, val {shares['val']:g}"):
        cut_splits(made(), rng=np.random.default_rng(0), **shares)


def test_only_the_shares_that_are_cut_count():
    cut_splits(made(test=60), val=0.1, cal=0.1, test=0.9, rng=np.random.default_rng(0))


def test_an_empty_table_is_named():
    with pytest.raises(ValueError, match=r"split train must hold both classes, it holds y_true = \[\]"):
        check_cases(made().head(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_id": None}, "image image-0 has no patient_id"),
        ({"y_true": np.nan}, "y_true must be 0 or 1"),
        ({"y_true": 2}, "y_true must be 0 or 1"),
        ({"split": "holdout"}, "unknown split 'holdout'"),
        ({"image_id": "twice"}, "image_id twice stands there more than once"),
        ({"split": "train"}, "split val must hold both classes"),
    ],
)
def test_a_bad_case_table_is_named(change, message):
    cases = made().assign(split=cut(made()))
    with pytest.raises(ValueError, match=message):
        check_cases(cases.assign(**change))


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="column patient_id is missing"):
        check_cases(made().drop(columns="patient_id"))


def with_test(tmp_path, text: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table whose first 100 patients are test, before and after the CSV of this text."""
    cases = made(test=100)
    cases["split"] = cut(cases)
    (tmp_path / "local.csv").write_text(text)
    return cases, name_local(cases, tmp_path / "local.csv")


def test_named_cases_become_local_with_all_their_patient_has(tmp_path):
    before, after = with_test(tmp_path, "image_id\nimage-0\n image-5 \n")
    assert after.index[after["split"] == "local"].tolist() == [0, 1, 4, 5]
    pd.testing.assert_frame_equal(before.drop([0, 1, 4, 5]), after.drop([0, 1, 4, 5]))
    assert (before["y_true"] == after["y_true"]).all()
    check_cases(after)


def test_the_sites_own_reading_counts_where_it_gives_one(tmp_path):
    before, after = with_test(tmp_path, "image_id,y_true\nimage-0,0\nimage-2,1\nimage-4,\n")
    assert before["y_true"][:6].tolist() == [1, 1, 0, 0, 0, 0]
    assert after["y_true"][:6].tolist() == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\nimage-0\n", "columns must be image_id and, at will, y_true"),
        ("image_id,label\nimage-0,1\n", "found image_id, label"),
        ("image_id\n", "no row below the header"),
        ("", r"local\.csv: not a readable CSV"),
        ("image_id\nimage-0\nnobody\n", "row 3: image_id 'nobody' is not in the case table"),
        ("image_id\nimage-599\n", "row 2: image_id 'image-599' is not in the test split"),
        ("image_id\nimage-0\nimage-0\n", "row 3: image_id 'image-0' is named twice"),
        ("image_id,y_true\nimage-0,2\n", "row 2: y_true '2' is none of 0, 1 and empty"),
    ],
)
def test_a_list_of_local_cases_that_cannot_be_used_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        with_test(tmp_path, text)


def test_a_test_split_that_all_becomes_local_is_refused(tmp_path):
    names = "\n".join(f"image-{k}" for k in range(0, 200, 2))
    with pytest.raises(ValueError, match="split test must hold both classes, it holds y_true = "):
        check_cases(with_test(tmp_path, f"image_id\n{names}\n")[1])


def several(n_patients: int = 300) -> pd.DataFrame:
    """The same with three classes, one in ten patients of the rarest, or two findings that exclude nothing."""
    cases = made(n_patients).drop(columns="y_true")
    patient = np.arange(len(cases)) // 2
    kind = np.where(patient % 10 == 0, "rare", np.where(patient % 2 == 0, "even", "odd"))
    return cases.assign(
        **{"class": kind, "y_true_even": 1.0 * (patient % 2 == 0), "y_true_rare": 1.0 * (kind == "rare")}
    )


def test_every_class_and_the_rarest_finding_get_their_share_of_every_split():
    rng = np.random.default_rng(0)
    for task in ("multiclass", "multilabel"):
        cases = several()
        cases["split"] = cut_splits(cases, rng=rng, task=task, **SHARES)
        check_cases(cases, task)
        shares = (cases["split"] == "cal").groupby(cases["class"]).mean()
        np.testing.assert_allclose(shares, 0.2, atol=0.05)
        assert cases.groupby("patient_id")["split"].nunique().max() == 1


def test_a_split_without_a_class_is_named():
    cases = several()
    with pytest.raises(ValueError, match="3 patients with class = even are too few to cut val"):
        cut_splits(
            several().iloc[:16],
            rng=np.random.default_rng(0),
            val=0.01,
            cal=0.01,
            test=0.01,
            task="multiclass",
        )
    drawn = np.random.default_rng(0).choice(["train", "val", "cal", "test"], len(cases))
    cases["split"] = np.where(cases["class"] == "rare", "train", drawn)
    with pytest.raises(ValueError, match="split val holds no case of class rare"):
        check_cases(cases, "multiclass")
    with pytest.raises(ValueError, match=r"split val must hold both classes, it holds y_true_rare = \[0\]"):
        check_cases(cases, "multilabel")


def test_a_site_may_read_a_class_or_a_finding_itself(tmp_path):
    cases = several(20).assign(split="test")
    (tmp_path / "local.csv").write_text("image_id,class\nimage-0,odd\nimage-2,\n")
    local = name_local(cases, tmp_path / "local.csv", "multiclass")
    assert local.loc[local["split"] == "local", "class"].tolist() == ["odd", "rare", "odd", "odd"]
    (tmp_path / "local.csv").write_text("image_id,y_true_rare\nimage-0,0\n")
    assert name_local(cases, tmp_path / "local.csv", "multilabel")["y_true_rare"].iloc[:2].tolist() == [0, 1]
    (tmp_path / "local.csv").write_text("image_id,class\nimage-0,strange\n")
    with pytest.raises(ValueError, match="row 2: class 'strange' is none of even, odd, rare and empty"):
        name_local(cases, tmp_path / "local.csv", "multiclass")
