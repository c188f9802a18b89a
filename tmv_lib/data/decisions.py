"""A CSV of what a system decided, whoever made it; decisions alone are enough."""

from pathlib import Path

import pandas as pd

from tmv_lib.data.lists import read_list, refuse

NUMBERS = ["y_prob", "certainty", "distance"]
KNOWN = ["image_id", "patient_id", "time", "version", "decision", "deferred", "y_true", *NUMBERS]


def read_decisions(path: str | Path, columns: list[str]) -> pd.DataFrame:
    """A row per image: these columns and `decision`, which must be there, and every other column, as text.

    `decision` is 0 or 1, missing where `deferred` is true and nothing was decided; `deferred` is boolean, false where
    the CSV has no such column; `y_true`, where asked for, 0 or 1; `NUMBERS` are not a number where they are not there.
    Raises ValueError naming file, column, row (the header is row 1) and what is allowed.
    """
    table = read_list(path, KNOWN)
    for name in [*columns, "decision"]:
        if name not in table:
            raise ValueError(f"{path}: column {name} is missing; the columns are {', '.join(table.columns)}")
    for name in columns:
        refuse(path, table[name] == "", table[name], "is empty")
    table = table.assign(deferred=table.get("deferred", pd.Series("0", table.index)))
    refuse(path, ~table["deferred"].isin(["0", "1"]), table["deferred"], "is neither 0 nor 1")
    allowed = table["decision"].isin(["0", "1"]) | ((table["decision"] == "") & (table["deferred"] == "1"))
    refuse(path, ~allowed, table["decision"], "is neither 0 nor 1, nor empty with deferred 1")
    refuse(path, table["image_id"].duplicated(), table["image_id"], "is there already")
    typed = {"decision": pd.to_numeric(table["decision"]).astype("Int64"), "deferred": table["deferred"] == "1"}
    if "y_true" in columns:
        refuse(path, ~table["y_true"].isin(["0", "1"]), table["y_true"], "is neither 0 nor 1")
        typed["y_true"] = table["y_true"].astype(int)
    for name in NUMBERS:
        typed[name] = pd.to_numeric(table.get(name, pd.Series("", table.index)), errors="coerce")
    return table.assign(**typed)
