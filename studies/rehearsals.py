"""Does monitoring notice a planted shift, and is it quiet without one? Twenty rehearsed years of the phantom, twice.

Run by `make rehearsals` after `make repro`; writes docs/rehearsals.csv and docs/rehearsal.png, the first year. The
policy on disk judges a pool of new patients of the phantom once, as they are and with the shift of `make rehearse`;
each year draws its patients, and their order, from that pool. What the policy said lies in `.studies/rehearsals`: a
killed run goes on there, so delete the folder after another training or policy.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from commands.rehearse import PER_WEEK, draw, of_phantom
from tmv_lib.monitoring import answer, rehearsal
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.params import read
from tmv_lib.prediction import identity, system

FOLDER = Path(".studies/rehearsals")
YEARS, WEEK = 20, 27
POOL = {False: 1800, True: 900}  # patients, as they are and shifted
NAMES = ["missed_positives", "false_alarms", "referrals", "inputs"]


def main() -> None:
    pool = pd.concat([judged(shifted, n) for shifted, n in POOL.items()])
    params = read("params.yaml", "monitor", answer.MonitorParams)
    rows = []
    for week, year in tqdm([(week, year) for week in (WEEK, None) for year in range(YEARS)], desc="years"):
        played = rehearsal.play(pool, per_week=PER_WEEK, shift_week=week, rng=np.random.default_rng(year))
        weeks = rehearsal.looks(played, reference(), params)
        if (week, year) == (WEEK, 0):
            draw(weeks, NAMES, week, params).savefig("docs/rehearsal.png", dpi=120)
        found = rehearsal.alarms(weeks, NAMES)
        rows.append({"shift_week": week, "year": year} | found)
    table = pd.DataFrame(rows).astype("Int64")
    write_csv("docs/rehearsals.csv", table)
    shifted = table["shift_week"].notna()
    print(table.assign(shifted=shifted).groupby("shifted")[[*NAMES, "stop"]].agg(["count", "median"]).to_string())


def judged(shifted: bool, patients: int) -> pd.DataFrame:
    """What the policy on disk says of so many patients of the pool."""
    path = FOLDER / f"{'shifted' if shifted else 'as_they_are'}_{patients}.csv"
    if not path.exists():
        write_csv(path, of_phantom(system.load(), patients, 1, shifted=shifted))
    return pd.read_csv(path)


def reference() -> pd.DataFrame:
    """Signals of the patients calibrated on."""
    path = FOLDER / "reference.csv"
    if not path.exists():
        write_csv(path, identity.reference(system.load()))
    return pd.read_csv(path)


if __name__ == "__main__":
    main()
