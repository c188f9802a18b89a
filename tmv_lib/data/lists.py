"""CSV files that people write: read as text, and refused with the row that cannot be used."""

import re
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from tmv_lib.pipeline.files import as_headed

MOST_COLUMNS = 10_000


def read_list(path: str | Path, known: Collection[str]) -> pd.DataFrame:
    """The named columns of a CSV as text without blanks around it; the index is the row, the header being row 1.

    known: the columns that are asked for by name. Raises ValueError naming a file that cannot be read or has no row
    below the header, a column that is there twice, and one that is nearly a known one.
    """
    check_header(path, known)
    try:
        text = as_headed(pd.read_csv(path, dtype=str, na_filter=False))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    if text.empty:
        raise ValueError(f"{path}: no row below the header")
    named = text.loc[:, ~text.columns.str.startswith("Unnamed: ")]
    return named.apply(lambda column: column.str.strip()).set_axis(range(2, len(text) + 2))


def check_header(path: str | Path, known: Collection[str]) -> None:
    """Refuse a header that names a column twice, or one that differs from a known one by case or blanks alone.

    To ignore it would put a user's test cases into training, say, without a word.
    """
    try:
        header = pd.read_csv(path, dtype=str, na_filter=False, header=None, nrows=1).iloc[0].tolist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    if len(header) > MOST_COLUMNS:
        raise ValueError(f"{path}: {len(header)} columns, at most {MOST_COLUMNS:,} are read")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"{path}: column {twice[0]!r} is there {header.count(twice[0])} times")
    plain = {_plain(name): name for name in known}
    for name in header:
        if name not in known and _plain(name) in plain and plain[_plain(name)] not in header:
            raise ValueError(f"{path}: column {name!r} is nearly {plain[_plain(name)]!r}; rename it")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def is_file(path: Path) -> bool:
    """Whether there is such a regular file; there is none by a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def printable(name: str) -> str:
    """A file name as UTF-8 text, bytes that are none as `\\udcff`: so it can stand in a table, though not be opened."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def refuse(path: str | Path, wrong: pd.Series, told: pd.Series, problem: str) -> None:
    """Raise ValueError naming the first row that is wrong and what stands there, unless none is."""
    if wrong.any():
        row, several = int(wrong.idxmax()), f" ({wrong.sum()} such rows)" if wrong.sum() > 1 else ""
        raise ValueError(f"{path}: row {row}: {told.name} {told[row]!r} {problem}{several}")
