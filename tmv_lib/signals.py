"""The signals of each case that a stage left for later ones."""

from pathlib import Path

import pandas as pd

from tmv_lib.files import read_csv


def read_signals(path: str | Path, columns: list[str]) -> pd.DataFrame:
    """`image_id` and these columns, whose fields may be empty: a constant map has no stability, say.

    Raises ValueError naming a file or column that is not there.
    """
    read_csv(path, ["image_id"])
    table = pd.read_csv(path, dtype={"image_id": str})
    if lacking := [name for name in columns if name not in table]:
        raise ValueError(f"{path}: signal {lacking[0]} is missing; the columns are {', '.join(table.columns)}")
    return table[["image_id", *columns]]
