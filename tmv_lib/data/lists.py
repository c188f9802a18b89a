"""CSV files that people write: read as text, and refused with the row that cannot be used."""

from pathlib import Path

import pandas as pd


def read_list(path: str | Path) -> pd.DataFrame:
    """The named columns of a CSV as text without blanks around it; the index is the row, the header being row 1.

    Raises ValueError naming a file that cannot be read or has no row below the header.
    """
    try:
        text = pd.read_csv(path, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    if text.empty:
        raise ValueError(f"{path}: no row below the header")
    named = text.loc[:, ~text.columns.str.startswith("Unnamed: ")]
    return named.apply(lambda column: column.str.strip()).set_axis(range(2, len(text) + 2))


def refuse(path: str | Path, wrong: pd.Series, told: pd.Series, problem: str) -> None:
    """Raise ValueError naming the first row that is wrong and what stands there, unless none is."""
    if wrong.any():
        row, several = int(wrong.idxmax()), f" ({wrong.sum()} such rows)" if wrong.sum() > 1 else ""
        raise ValueError(f"{path}: row {row}: {told.name} {told[row]!r} {problem}{several}")
