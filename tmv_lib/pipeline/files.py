"""The files that stages pass on: read with a check, written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a formula may begin with

# How tables are read: ids stay what they are, `NA` is a name, and only an empty cell is missing.
AS_WRITTEN: dict[str, Any] = {
    "dtype": {"image_id": str, "patient_id": str, "split": str, "class": str},
    "keep_default_na": False,
    "na_values": [""],
}


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` once the block ends without an error.

    Raises OSError naming `path` where the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    # of several processes that do the same the first one's files count
    rank = os.environ.get("RANK", "0")
    temporary = path.with_name(f".{path.name}.part{'' if rank == '0' else rank}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if rank == "0":
            temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file that an error is about in front of a ValueError which does not know it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def write_csv(path: str | Path, table: pd.DataFrame, *, digits: int = 8) -> None:
    """Write a table without its index, floats as `rounded`.

    digits: 8 for signals and logits that another stage reads, 9, which give back a float32, for what a network said,
    and 6 for a diagram.
    """
    with whole(path) as temporary:
        floats = [name for name, column in table.items() if pd.api.types.is_float_dtype(column)]
        text = {name: _texts(table[name].to_numpy(), digits) for name in floats}
        table.assign(**text).to_csv(temporary, index=False, lineterminator="\n")


def _texts(values: np.ndarray, digits: int) -> list[str]:
    """Each value as `rounded`, all at once; what is missing is an empty cell."""
    cut = np.round(values, digits + 4) + 0.0
    text = ((f"%.{digits}g\n" * len(cut)) % tuple(cut.tolist())).split("\n")[:-1]
    return np.where(np.isnan(cut), "", np.array(text, dtype=object)).tolist() if np.isnan(cut).any() else text


def for_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before every text that a spreadsheet would take for a formula.

    File names and ids come from anywhere, and people open these tables.
    """
    return table.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell)


def rounded(value: float, *, digits: int) -> str:
    """A float to so many significant digits and at most four more decimals, the same text on every processor.

    Another processor adds in another order, which changes the last digits of a sum, and all digits of a difference that
    should be 0. Decimals are cut first, so that what is one tie but for the last digits is rounded one way.

    >>> rounded(0.4921875, digits=6), rounded(0.49218749999999994, digits=6), rounded(-1e-17, digits=6)
    ('0.492188', '0.492188', '0')
    """
    return f"{round(float(value), digits + 4) + 0.0:.{digits}g}"  # no minus before a 0


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Write a dictionary as JSON, every number in full."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write one array, memory-mappable."""
    with whole(path) as temporary:
        np.save(temporary, array)


def read_npy(path: str | Path) -> np.ndarray:
    """Read one array, memory-mapped. Raises ValueError naming the file where it is not there, cut or another."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `dvc repro` makes it") from None
    except Exception as error:  # a damaged header raises errors of many kinds
        raise ValueError(f"{path}: not a whole .npy file ({error})") from error


def as_headed(table: pd.DataFrame) -> pd.DataFrame:
    """A table as pandas has just read it. Raises ValueError where its rows have more cells than its header.

    pandas would take the first cells for names of the rows then, and put every other under the header beside its own.
    """
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("the rows have more cells than the header")
    return table


def read_csv(path: str | Path, columns: list[str]) -> pd.DataFrame:
    """Read these columns of a table, ids as text. Raises ValueError naming the file and a column missing or empty."""
    try:
        table = as_headed(pd.read_csv(path, **AS_WRITTEN))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `dvc repro` makes it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    for name in columns:
        if name not in table:
            raise ValueError(f"{path}: column {name} is missing; the columns are {', '.join(table.columns)}")
        if table[name].isna().any():
            raise ValueError(f"{path}: column {name} is empty in row {int(table[name].isna().argmax()) + 2}")
    return table[columns]


class Rows:
    """Rows of an array on disk, read when they are asked for: by one number, a slice, a mask or an array of numbers."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self._array, self._rows = array, rows
        self.dtype, self.shape = array.dtype, (len(rows), *array.shape[1:])
        self.ndim, self.size = array.ndim, int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> np.ndarray:
        return np.asarray(self._array[self._rows[place]])


Images = np.ndarray | Rows  # uint8 (n, side, side), in memory or not


class Pile:
    """Arrays of one shape and type, put one after another into a file that has no name and goes with the process.

    Raises OSError naming the folder of temporary files where its disk is full.
    """

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 (it is mapped until nobody needs it)
        self._first, self._n = np.empty(0), 0

    def put(self, array: np.ndarray) -> None:
        with self._told():
            self._file.write(array.tobytes())
        self._first, self._n = array, self._n + 1

    def stacked(self) -> np.ndarray:
        """All of them, (n, ...), mapped from the file: what is read alone needs memory."""
        with self._told():
            self._file.flush()
        return np.memmap(self._file, self._first.dtype, "c", shape=(self._n, *self._first.shape))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"{gettempdir()}: cannot be written ({error.strerror}); TMPDIR names another") from error


def read_rows(path: str | Path, *, image_id: pd.Series, wanted: pd.Series) -> Rows:
    """Rows of the array in `path`, whose row k belongs to `image_id` k, in the order of `wanted`.

    Raises ValueError naming the file where the numbers of rows differ or a wanted image has none.
    """
    array = read_npy(path)
    if len(array) != len(image_id):
        raise ValueError(f"{path}: {len(array)} rows for {len(image_id)} images")
    place = pd.Index(image_id).get_indexer(wanted)
    if (place < 0).any():
        raise ValueError(f"{path}: no row for image {wanted.iloc[int((place < 0).argmax())]}")
    return Rows(array, place)


def join(*tables: pd.DataFrame) -> pd.DataFrame:
    """Join tables on `image_id`, in the row order of the first.

    Raises ValueError where an image of the first is missing in another, or two tables share a column.
    """
    joined = tables[0]
    for table in tables[1:]:
        if shared := set(joined) & set(table) - {"image_id"}:
            raise ValueError(f"two tables that are joined both have a column {sorted(shared)[0]}")
        ids = joined["image_id"].to_numpy(), table["image_id"].to_numpy()
        if joined["image_id"].is_unique and np.array_equal(*ids):  # the same rows: a million need no search
            parts = (part.reset_index(drop=True) for part in (joined, table.drop(columns="image_id")))
            joined = pd.concat(parts, axis=1)
            continue
        missing = set(joined["image_id"]) - set(table["image_id"])
        if missing:
            columns = ", ".join(table.columns[1:])
            raise ValueError(
                f"{len(missing)} images, {sorted(missing)[0]} among them, have no row in the table of {columns}"
            )
        joined = joined.merge(table, on="image_id", how="left", validate="one_to_one")
    return joined
