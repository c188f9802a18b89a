"""What would mending each kind of failure buy, and what did it buy?"""

import pandas as pd

from tmv_lib.deferral.answer import read_prices
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import AS_WRITTEN, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import run
from tmv_lib.repairs import answer
from tmv_lib.repairs.change import KINDS


def main() -> None:
    params, prices = read("params.yaml", "repair", answer.RepairParams), read_prices("params.yaml")
    evidence, errors = (pd.read_csv(f"data/failures/{name}.csv", **AS_WRITTEN) for name in ("evidence", "errors"))
    measured = {kind: record.read_measured_repair(kind) for kind in KINDS}
    figures = answer.answer(evidence, errors, measured, prices, params)

    write_csv("plots/repair/gains.csv", answer.rows(figures), digits=6)
    write_metrics("repair", {"repair": figures})


if __name__ == "__main__":
    run(main)
