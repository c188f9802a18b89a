"""Who is to be read, and what did the readers say?

`make -s label > due.csv` prints the images of a system in use that are due to be read and have no label yet: those of
patients drawn by lot and of patients with an image that went to a doctor. What the system said is left out, so that it
sways nobody. `make label ANSWERS=<CSV>` takes the labels, `image_id` and `y_true` (0 or 1, empty where not read).
"""

import argparse
import sys
from pathlib import Path

from tmv_lib.monitoring import answer, losses
from tmv_lib.pipeline import log, monitored
from tmv_lib.pipeline.files import for_spreadsheets
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import own_or_default, run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("answers", type=Path, nargs="?", help="a CSV with the columns image_id and y_true")
    given = options.parse_args()
    params = read(own_or_default("params.yaml"), "monitor", answer.MonitorParams)
    cases = log.read(monitored.LOG)
    if given.answers is not None:
        print(f"{log.append_labels(monitored.LABELS, cases, given.answers)} new labels", file=sys.stderr)
        return
    labels = log.read_labels(monitored.LABELS, cases)
    visits = losses.first_visits(answer.in_use(cases))
    due = losses.due(visits, rate=params.audit_rate, salt=params.salt)
    wanted = visits[due[visits["patient"]] & ~visits["image_id"].isin(labels["image_id"])]
    table = wanted[["image_id", "patient_id", "time"]].assign(y_true="")
    for_spreadsheets(table).to_csv(sys.stdout, index=False, lineterminator="\n")


if __name__ == "__main__":
    run(main)
