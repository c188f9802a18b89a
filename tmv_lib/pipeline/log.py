"""The log of a system in use: a row per image, appended whole or not at all, each chained to the one before it.

The last column of a row is a digest of the row and of the digest before it, so that an edited, removed or inserted row
breaks the chain where it stands. Nothing is secret: who rewrites every row after it mends the chain, and changes the
last digest, which each look reports.
"""

import csv
import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from tmv_lib.pipeline.files import as_headed

COLUMNS = ["time", "image_id", "patient_id", "y_prob", "certainty", "distance", "decision", "deferred"]
COLUMNS += ["weights", "calibrator", "policy", "chain"]
LABELS = ["image_id", "y_true"]
HEADER = (",".join(COLUMNS) + "\n").encode()
DIGITS = 16  # of a digest, hexadecimal
TAIL = 2**16  # bytes that surely hold the last row


def append(path: str | Path, rows: pd.DataFrame) -> None:
    """Append images (columns as `COLUMNS`, less `chain`; missing where unknown) under one lock, and sync.

    time: ISO 8601, kept in UTC where it has a zone. What a killed writer left of a row is cut first. Raises ValueError
    where a time is none, or earlier than that of the row before, or the file is no log, and OSError where the disk is
    full, with the file as it was.
    """
    times = [_utc(time) for time in rows["time"]]
    with _locked(path) as file:
        end, last = _end(path, file)
        before = next(csv.reader([last]))[0] if last else ""
        chain, lines = last.rpartition(",")[2].encode(), [] if last else [HEADER]
        for time, row in zip(times, rows[COLUMNS[1:-1]].itertuples(index=False), strict=True):
            if time < before:
                raise ValueError(f"{path}: time {time} of image {row[0]} is earlier than {before} of the row before it")
            body = _line([time, *row]).encode()
            before, chain = time, _digest(chain, body)
            lines.append(body + b"," + chain + b"\n")
        _write(path, file, end, b"".join(lines))


def append_row(path: str | Path, columns: list[str], row: tuple[Any, ...]) -> None:
    """Append a row to any CSV of these columns, under a lock, and sync; the file is begun where it is not there.

    What a killed writer left of a row is cut first. Raises ValueError where the file has other columns, and OSError
    where the disk is full, with the file as it was.
    """
    header = (",".join(columns) + "\n").encode()
    with _locked(path) as file:
        content = Path(path).read_bytes()
        end = content.rfind(b"\n") + 1
        if end and not content.startswith(header):
            raise ValueError(f"{path}: its first row is not {','.join(columns)}")
        _write(path, file, end, (b"" if end else header) + _line(list(row)).encode() + b"\n")


def read(path: str | Path) -> pd.DataFrame:
    """The whole rows of the log, in their order, less `chain`, with `deferred` boolean and ids as text.

    Raises ValueError naming the first row that breaks the chain (the header is row 1), and the file where it is none.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `make predict` and `make log` write it") from None
    content = content[: content.rfind(b"\n") + 1]  # a row without its end is one that was not appended
    if not content.startswith(HEADER):
        raise ValueError(f"{path}: not a log: its first row is not {','.join(COLUMNS)}")
    chain = b""
    for number, line in enumerate(islice(io.BytesIO(content), 1, None), 2):
        body, _, told = line.rpartition(b",")
        chain = _digest(chain, body)
        if chain != told[:-1]:
            shown = body[:80].decode(errors="replace")
            raise ValueError(f"{path}: row {number} is not as it was written, or one before it is gone: {shown}")
    texts = dict.fromkeys(("image_id", "patient_id"), object)
    kinds = texts | dict.fromkeys(("time", "weights", "calibrator", "policy"), "category")
    empty = {name: [""] for name in ("y_prob", "certainty", "distance", "decision")}
    table = pd.read_csv(io.BytesIO(content), usecols=COLUMNS[:-1], dtype=kinds, keep_default_na=False, na_values=empty)
    return table.assign(deferred=table["deferred"] == 1)


def last_digest(path: str | Path) -> str:
    """The digest of the last whole row, which stands for all rows; "" where there is none."""
    with open(path, "rb") as file:
        return _end(path, file)[1].rpartition(",")[2]


def append_labels(path: str | Path, log: pd.DataFrame, answers: str | Path) -> int:
    """Append the labels of a CSV, `image_id` and `y_true`, that are not there yet; returns how many.

    Raises ValueError as `read_labels`, for labels of the CSV and what they contradict; then nothing is appended.
    """
    with _locked(path) as file:
        known = read_labels(path, log)
        new = _check_labels(Path(answers), log, known)
        new = new[~new["image_id"].isin(known["image_id"])]
        end = file.seek(0, os.SEEK_END)
        _write(path, file, end, new.to_csv(index=False, header=end == 0, lineterminator="\n").encode())
    return len(new)


def read_labels(path: str | Path, log: pd.DataFrame) -> pd.DataFrame:
    """The labels, `image_id` and `y_true`; empty where there are none.

    Raises ValueError naming the row of a label that is none, that contradicts another one, or whose image was never
    logged.
    """
    path = Path(path)
    if not path.exists() or not path.stat().st_size:
        return pd.DataFrame(columns=LABELS)
    return _check_labels(path, log, pd.DataFrame(columns=LABELS))


def _check_labels(path: Path, log: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The labels of a CSV with the columns `image_id` and `y_true`, checked against log and labels that are known."""
    try:
        table = as_headed(pd.read_csv(path, dtype=object, keep_default_na=False))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    if lacking := [name for name in LABELS if name not in table]:
        raise ValueError(f"{path}: column {lacking[0]} is missing; the columns are {', '.join(table.columns)}")
    ids = table["image_id"].str.replace(r"^'(?=[=+\-@])", "", regex=True)  # `for_spreadsheets` has put it there
    filled = table.assign(image_id=ids).loc[table["y_true"] != "", LABELS]
    first, earlier = (of.drop_duplicates("image_id").set_index("image_id")["y_true"] for of in (filled, known))
    above, before = (filled["image_id"].map(of).astype(str) for of in (first, earlier))
    for wrong, what in (
        (~filled["y_true"].isin(["0", "1"]), "y_true of image {image_id} is '{y_true}', neither 0 nor 1"),
        (~filled["image_id"].isin(log["image_id"]), "image {image_id} was never logged"),
        (above != filled["y_true"], "y_true of image {image_id} is {y_true}, and another in a row above"),
        (before.isin(["0", "1"]) & (before != filled["y_true"]), "image {image_id} has another label from before"),
    ):
        if wrong.any():
            row = filled[wrong].iloc[0]
            raise ValueError(f"{path}: row {int(wrong.idxmax()) + 2}: {what.format(**row)}")
    return filled.drop_duplicates("image_id").astype({"y_true": int}).reset_index(drop=True)


@contextmanager
def _locked(path: str | Path) -> Iterator[BinaryIO]:
    """The file, made where it is not there, while nobody else appends to it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file  # type: ignore[misc]


def _end(path: str | Path, file: BinaryIO) -> tuple[int, str]:
    """Where the last whole row ends, and that row, "" where there is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    whole = tail[: tail.rfind(b"\n") + 1]
    end = size - len(tail) + len(whole)
    last = whole[:-1].rpartition(b"\n")[2] + b"\n" if whole else b""
    torn = not end and not HEADER.startswith(tail)
    if torn or (end and last != HEADER and last.count(b",") < len(COLUMNS) - 1):
        raise ValueError(f"{path}: not a log: it ends in {(last or tail).decode(errors='replace')[:80]!r}")
    return end, "" if last in (b"", HEADER) else last[:-1].decode()


def _write(path: str | Path, file: BinaryIO, end: int, content: bytes) -> None:
    """Put the content at the end of the whole rows, all of it or, with an OSError that names the file, none."""
    try:
        os.ftruncate(file.fileno(), end)
        if os.write(file.fileno(), content) < len(content):
            raise OSError(None, "the disk is full")
        os.fsync(file.fileno())
    except OSError as error:
        os.ftruncate(file.fileno(), end)
        raise OSError(f"{path}: cannot be written ({error.strerror})") from error


def _utc(time: str) -> str:
    try:
        moment = datetime.fromisoformat(time)
    except (TypeError, ValueError):
        raise ValueError(f"time is {time!r}; allowed is ISO 8601, such as 2026-03-01T09:30") from None
    return (moment.astimezone(UTC) if moment.tzinfo else moment).replace(tzinfo=None).isoformat(timespec="seconds")


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    shown = ("" if pd.isna(cell) else f"{cell:.9g}" if isinstance(cell, float) else str(cell) for cell in cells)
    flat = [cell.replace("\r", "\\r").replace("\n", "\\n") for cell in shown]  # a row is a line
    csv.writer(text, lineterminator="").writerow(flat)
    return text.getvalue()


def _digest(before: bytes, body: bytes) -> bytes:
    return hashlib.sha256(before + b"," + body).hexdigest()[:DIGITS].encode()
