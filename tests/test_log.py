"""The log is whole or not there, in order, and what was changed by hand is named; labels must fit it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import process_time, sleep

import pandas as pd
import pytest

from tmv_lib.pipeline import log

ROOT = Path(__file__).parents[1]


def rows(*ids, time="2026-03-01T09:00", **changes):
    values = {"time": time, "patient_id": "p", "y_prob": 0.25, "certainty": 0.5, "distance": 1.5, "decision": 0}
    return pd.DataFrame(
        {"image_id": ids, **values, "deferred": 0, "weights": "w", "calibrator": "c", "policy": "q"} | changes
    )


@pytest.fixture
def path(tmp_path):
    log.append(tmp_path / "log.csv", rows("a", "b", "c"))
    return tmp_path / "log.csv"


def test_what_was_appended_is_read(path):
    log.append(
        path, rows("NA", '=1,\n"2"', time="2026-03-01T10:30+01:00", decision=pd.NA, y_prob=float("nan"), deferred=1)
    )
    table = log.read(path)
    assert table["image_id"].tolist() == ["a", "b", "c", "NA", '=1,\\n"2"']
    assert table["time"].tolist()[-1] == "2026-03-01T09:30:00"
    assert table["deferred"].tolist() == [False] * 3 + [True] * 2
    assert table[["decision", "y_prob"]].isna().sum().tolist() == [2, 2]
    assert table["certainty"].eq(0.5).all()
    assert pd.read_csv(path).shape == (5, 12)
    assert log.last_digest(path) == path.read_text().rstrip().rpartition(",")[2]


@pytest.mark.parametrize(
    ("harm", "row"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(",0.5,", ",0.9,"), *lines[3:]], 3),
        (lambda lines: [*lines[:1], *lines[2:]], 2),
        (lambda lines: [*lines[:2], lines[3], lines[2]], 3),
        (lambda lines: [*lines[:3], lines[2], lines[3]], 4),
    ],
    ids=["edited", "removed", "turned round", "inserted"],
)
def test_a_row_that_was_changed_by_hand_is_named(path, harm, row):
    path.write_text("".join(harm(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=f"log.csv: row {row} is not as it was written"):
        log.read(path)


def test_what_a_killed_writer_left_of_a_row_is_no_row(path):
    whole = path.read_bytes()
    path.write_bytes(whole + b"2026-03-01T09:00:00,torn,p,0.2")
    assert log.read(path)["image_id"].tolist() == ["a", "b", "c"]
    log.append(path, rows("d"))
    assert log.read(path)["image_id"].tolist() == ["a", "b", "c", "d"]
    assert path.read_bytes().startswith(whole)


def test_a_full_disk_leaves_the_file_as_it_was(path, monkeypatch):
    before = path.read_bytes()
    half = os.write
    monkeypatch.setattr(os, "write", lambda file, content: half(file, content[: len(content) // 2]))
    with pytest.raises(OSError, match=r"log.csv: cannot be written \(the disk is full\)"):
        log.append(path, rows("d", "e"))
    assert path.read_bytes() == before


def test_two_writers_do_not_mix(path):
    code = (
        "import sys; from tests.test_log import rows; from tmv_lib.pipeline import log\n"
        "for k in range(40): log.append(sys.argv[1], rows(*(f'{sys.argv[2]}{k}_{j}' for j in range(3))))"
    )

    def write(name):
        return subprocess.run([sys.executable, "-c", code, str(path), name], cwd=ROOT, check=True)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, "xy"))
    table = log.read(path)
    assert len(table) == 3 + 2 * 120
    assert not table["image_id"].duplicated().any()
    triples = [[name[:-1] for name in table["image_id"][start : start + 3]] for start in range(3, len(table), 3)]
    assert all(len(set(triple)) == 1 for triple in triples)


def test_a_kill_leaves_whole_rows(path):
    code = (
        "import sys; from tests.test_log import rows; from tmv_lib.pipeline import log; print(flush=True)\n"
        "while True: log.append(sys.argv[1], rows(*(f'i{j}' for j in range(400))))"
    )
    for wait in (0.05, 0.08, 0.13):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            sleep(wait)
            writer.kill()
        before = len(log.read(path))
        log.append(path, rows("after"))
        assert len(log.read(path)) == before + 1
    assert before > 400


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("2026-02-28T23:59", "time 2026-02-28T23:59:00 of image d is earlier than 2026-03-01"),
        ("noon", "time is 'noon'; allowed is"),
    ],
)
def test_a_time_out_of_order_is_refused(path, time, message):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        log.append(path, rows("d", time=time))
    assert path.read_bytes() == before


def test_another_file_is_no_log(tmp_path):
    for content in ("a,b\n1,2\n", "a picture"):
        (tmp_path / "other.csv").write_text(content)
        with pytest.raises(ValueError, match="not a log"):
            log.append(tmp_path / "other.csv", rows("a"))
        with pytest.raises(ValueError, match="not a log"):
            log.read(tmp_path / "other.csv")
        assert (tmp_path / "other.csv").read_text() == content


def test_a_row_is_appended_in_a_blink_however_long_the_log(path):
    log.append(path, rows(*(f"i{k}" for k in range(20_000))))
    took = []
    for k in range(20):
        one, start = rows(f"later{k}"), process_time()
        log.append(path, one)
        took.append(process_time() - start)
    assert min(took) < 0.01


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("image_id,y_true\na,1\nz,0\n", "row 3: image z was never logged"),
        ("image_id,y_true\na,1\nb,0\na,0\n", "row 4: y_true of image a is 0, and another in a row above"),
        ("image_id,y_true\na,\nb,maybe\n", "row 3: y_true of image b is 'maybe', neither 0 nor 1"),
        ("image_id,y_true\nc,1\n", "row 2: image c has another label from before"),
        ("image_id,label\na,1\n", "column y_true is missing; the columns are image_id, label"),
    ],
)
def test_labels_that_cannot_be_are_refused_and_none_of_them_is_taken(path, answers, message):
    labels, file = path.with_name("labels.csv"), path.with_name("answers.csv")
    file.write_text("image_id,y_true\nc,0\n")
    assert log.append_labels(labels, log.read(path), file) == 1
    before = labels.read_bytes()
    file.write_text(answers)
    with pytest.raises(ValueError, match=message):
        log.append_labels(labels, log.read(path), file)
    assert labels.read_bytes() == before


def test_labels_that_are_there_already_are_not_taken_twice(path):
    labels, file = path.with_name("labels.csv"), path.with_name("answers.csv")
    file.write_text("image_id,patient_id,y_true\na,p,1\nb,p,\nc,p,0\n")
    cases = log.read(path)
    assert [log.append_labels(labels, cases, file) for _ in range(2)] == [2, 0]
    assert log.read_labels(labels, cases).to_dict("list") == {"image_id": ["a", "c"], "y_true": [1, 0]}
    assert log.read_labels(path.with_name("none.csv"), cases).empty
