"""Log what somebody else's system said: decisions alone are enough to monitor it.

Run by `make log DECISIONS=<CSV>`: a row per image with `image_id`, `patient_id`, `time` (ISO 8601, in order),
`decision` (0 or 1) and `version`, and where they are known `deferred` (1: a doctor decides), `y_prob` and `certainty`.
A new version starts a new stream.
"""

import argparse
from pathlib import Path

from tmv_lib.data.decisions import read_decisions
from tmv_lib.pipeline import log, monitored
from tmv_lib.pipeline.stage import run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("decisions", type=Path, help="the CSV to log")
    given = options.parse_args()
    rows = read_decisions(given.decisions, ["image_id", "patient_id", "time", "version"])
    rows = rows.assign(deferred=rows["deferred"].astype(int), weights=rows["version"], calibrator="", policy="")
    log.append(monitored.LOG, rows)
    print(f"{len(rows)} rows appended to {monitored.LOG}")


if __name__ == "__main__":
    run(main)
