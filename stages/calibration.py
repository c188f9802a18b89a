"""When it says 87 %, is it right 87 % of the time?"""

import pandas as pd

from tmv_lib.calibration.answer import CalibrationParams, calibrate
from tmv_lib.calibration.calibrators import write_calibrators
from tmv_lib.pipeline.files import join, naming, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.record import read_predictions
from tmv_lib.pipeline.stage import run
from tmv_lib.statistics.estimate import adjust


def main() -> None:
    params = read("params.yaml", "calibration", CalibrationParams)
    answers = {}
    for member in named_members("params.yaml"):
        with naming(f"data/train/{member}/predictions.csv"):
            answers[member] = calibrate(read_predictions(member), params)
    metrics = {member: answer.metrics for member, answer in answers.items()}
    adjust(metrics)

    write_calibrators("data/calibration/calibrators.json", {name: one.calibrator for name, one in answers.items()})
    cases = [one.cases.set_index("image_id").add_suffix(f"_{name}").reset_index() for name, one in answers.items()]
    write_csv("data/calibration/cases.csv", join(*cases))
    for plot in ("reliability", "corp", "calibrators"):
        tables = [answer.plots[plot].assign(series=name) for name, answer in answers.items()]
        write_csv(f"plots/calibration/{plot}.csv", pd.concat(tables), digits=6)
    write_metrics("calibration", {"calibration": metrics})


if __name__ == "__main__":
    run(main)
