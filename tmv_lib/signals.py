"""What earlier stages left of each case for later ones: signals, and logits in up to three calibrations."""

from pathlib import Path

import pandas as pd

from tmv_lib.files import join, read_csv


def read_signals(path: str | Path, columns: list[str]) -> pd.DataFrame:
    """`image_id` and these columns, whose fields may be empty: a constant map has no stability, say.

    Raises ValueError naming a file or column that is not there.
    """
    read_csv(path, ["image_id"])
    table = pd.read_csv(path, dtype={"image_id": str})
    if lacking := [name for name in columns if name not in table]:
        raise ValueError(f"{path}: signal {lacking[0]} is missing; the columns are {', '.join(table.columns)}")
    return table[["image_id", *columns]]


def read_calibrations(cases: pd.DataFrame, members: list[str], *, site: str | Path) -> dict[str, pd.DataFrame]:
    """Each member's calibrated logits of the cases, a column a member: as shipped, calibrated at the site, the ceiling.

    cases: with `image_id` and `logit_<member>`. site: the table of the stage `site`; as shipped alone where there is
    none. Raises ValueError naming the file where it lacks a column or a case.
    """
    logits = {"as_shipped": cases[[f"logit_{name}" for name in members]].set_axis(members, axis=1)}
    if not Path(site).exists():
        return logits
    kinds = {"site_calibrated": "site_logit", "ceiling": "ceiling_logit"}
    table = read_csv(site, ["image_id", *(f"{kind}_{name}" for kind in kinds.values() for name in members)])
    table = join(cases[["image_id"]], table)
    for name, kind in kinds.items():
        logits[name] = table[[f"{kind}_{member}" for member in members]].set_axis(members, axis=1)
    return logits
