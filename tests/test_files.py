import json

import numpy as np
import pandas as pd
import pytest

from demo.tally import Readings
from tmv_lib.data.lists import read_list
from tmv_lib.data.prediction_files import ALL, read_questions
from tmv_lib.pipeline import log
from tmv_lib.pipeline.files import Pile, for_spreadsheets, join, read_csv, read_npy, read_rows, whole, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.readers.readings import read_readings


def test_nothing_half_written_is_left(tmp_path):
    (tmp_path / "table.csv").write_text("old")

    def fail_half_way() -> None:
        with whole(tmp_path / "table.csv") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_text() == "old"


def test_of_many_processes_each_writes_a_file_of_its_own_and_the_first_ones_counts(tmp_path, monkeypatch):
    seen = []
    for rank in range(21):
        monkeypatch.setenv("RANK", str(rank))
        with whole(tmp_path / "table.csv") as temporary:
            temporary.write_text(str(rank))
        seen.append(temporary.name)
    assert len(set(seen)) == 21
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_text() == "0"


def test_a_table_comes_back_as_it_was(tmp_path):
    table = pd.DataFrame({"image_id": ["007", "8"], "logit": np.float32([1 / 3, -2e-4])})
    write_csv(tmp_path / "deep" / "table.csv", table, digits=9)
    back = read_csv(tmp_path / "deep" / "table.csv", ["image_id", "logit"])
    assert back["image_id"].tolist() == ["007", "8"]
    assert (back["logit"].astype(np.float32) == table["logit"]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id\na\n", "column logit is missing; the columns are image_id"),
        ("image_id,logit\na,1\nb,\n", "column logit is empty in row 3"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"bad\.csv: {message}"):
        read_csv(tmp_path / "bad.csv", ["image_id", "logit"])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.csv: no such file"):
        read_csv(tmp_path / "nowhere.csv", [])


def test_join_goes_by_id_and_not_by_row():
    left = pd.DataFrame({"image_id": ["a", "b"], "x": [1, 2]})
    right = pd.DataFrame({"image_id": ["b", "c", "a"], "y": [20, 30, 10]})
    assert join(left, right)["y"].tolist() == [10, 20]
    with pytest.raises(ValueError, match="1 images, c among them, have no row"):
        join(right, left)
    with pytest.raises(ValueError, match="both have a column y"):
        join(left.assign(y=0), right)


def test_metrics_are_numbers_and_words_only(tmp_path):
    write_metrics("m", {"a": {"b": np.float32(0.5), "n": np.int64(3), "ok": np.bool_(True)}}, root=tmp_path)
    assert json.loads((tmp_path / "metrics/m.json").read_text()) == {"a": {"b": 0.5, "n": 3, "ok": True}}
    for bad, word in ((float("nan"), "is nan"), ([1, 2], "is a list"), (None, "is a NoneType")):
        with pytest.raises(ValueError, match=rf"metric a\.b {word}"):
            write_metrics("n", {"a": {"b": bad}}, root=tmp_path)
    assert not (tmp_path / "metrics/n.json").exists()


def test_figures_that_differ_in_their_last_digits_alone_are_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=1000), rng.integers(0, 129, 1000) / 128, [0, 1e-6]])
    for name, noise in (("one", 0), ("other", rng.uniform(-1e-14, 1e-14, len(values)))):
        table = pd.DataFrame({"figure": values * (1 + noise) + noise / 100})
        write_metrics(name, dict(enumerate(table["figure"])), root=tmp_path)
        for digits in (6, 8):
            write_csv(tmp_path / f"{name}{digits}.csv", table, digits=digits)
    for file in ("metrics/{}.json", "{}6.csv", "{}8.csv"):
        assert (tmp_path / file.format("one")).read_bytes() == (tmp_path / file.format("other")).read_bytes()
    back = pd.read_csv(tmp_path / "one6.csv")["figure"]
    assert json.loads((tmp_path / "metrics/one.json").read_text()) == {str(k): value for k, value in enumerate(back)}
    np.testing.assert_allclose(back, values, rtol=5.1e-6)
    assert (back == 0).sum() == (values == 0).sum()


def test_rows_of_an_array_go_by_id(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([[1.0], [2.0], [3.0]]))
    ids = pd.Series(["a", "b", "c"])
    rows = read_rows(tmp_path / "rows.npy", image_id=ids, wanted=pd.Series(["c", "a"]))
    assert (len(rows), rows.shape, rows.ndim, rows.size, rows.dtype) == (2, (2, 1), 2, 2, float)
    assert rows[:].tolist() == rows[np.array([True, True])].tolist() == [[3.0], [1.0]]
    assert rows[1].tolist() == [1.0]
    assert rows[::2].tolist() == [[3.0]]
    with pytest.raises(ValueError, match=r"rows\.npy: no row for image d"):
        read_rows(tmp_path / "rows.npy", image_id=ids, wanted=pd.Series(["a", "d"]))
    with pytest.raises(ValueError, match=r"rows\.npy: 3 rows for 2 images"):
        read_rows(tmp_path / "rows.npy", image_id=ids[:2], wanted=ids)


def test_a_pile_is_what_stacking_would_hold_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arrays, pile = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8), Pile()
    for array in arrays:
        pile.put(array.T)
    np.testing.assert_array_equal(pile.stacked(), arrays.transpose(0, 2, 1))
    assert not list(tmp_path.iterdir())


def test_a_pile_on_a_full_disk_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pile = Pile()
    pile._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(OSError, match=rf"{tmp_path}: cannot be written \(No space left on device\); TMPDIR"):
        pile.put(np.zeros((300, 300)))


def test_a_cell_that_a_spreadsheet_takes_for_a_formula_is_told_apart():
    table = pd.DataFrame({"image_id": ["=1+1", "@a", "-5.png", "a=1"], "y_prob": [-0.5, 1.0, 0.0, 2.0]})
    safe = for_spreadsheets(table)
    assert safe["image_id"].tolist() == ["'=1+1", "'@a", "'-5.png", "a=1"]
    assert safe["y_prob"].tolist() == [-0.5, 1.0, 0.0, 2.0]


def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path):
    write_csv(
        tmp_path / "a.csv", pd.DataFrame({"image_id": ["NA", "001", "1e5", "nan"], "logit": [0.5, 1.0, 2.0, 3.0]})
    )
    assert read_csv(tmp_path / "a.csv", ["image_id", "logit"])["image_id"].tolist() == ["NA", "001", "1e5", "nan"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"nothing"])
def test_an_array_that_is_cut_is_named(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy: not a whole \.npy file"):
        read_npy(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_csv(path, ["image_id"]),
        lambda path: read_list(path, ["image_id"]),
        lambda path: read_questions([path], ALL),
        lambda path: log.read_labels(path, pd.DataFrame({"image_id": ["a"]})),
        read_readings,
        Readings,
    ],
    ids=["table between stages", "list", "predictions", "labels", "readings", "readings of the viewer"],
)
def test_rows_of_more_cells_than_the_header_are_refused_before_they_shift(tmp_path, read):
    """pandas takes the first cell of each for its name, and every other stands under the header beside its own."""
    path = tmp_path / "mine.csv"
    path.write_text("image_id,y_true\na,1,0\nb,0,1\n")
    with pytest.raises(ValueError, match=r"mine\.csv: .*\(the rows have more cells than the header\)"):
        read(path)
