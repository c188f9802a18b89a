"""Does dropout inside the body find confident mistakes that dropout before the head does not?

Run after `make repro`: python -m studies.body_dropout [--passes 20] [--rate 0.1]. A pass is one of the whole network,
so that this costs `passes` times what reading the cases costs. Prints one line per member.
"""

import argparse
import json
from functools import partial

import numpy as np
import torch
from scipy.special import expit
from tqdm import tqdm

from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.network import classifier
from tmv_lib.pipeline.files import read_csv
from tmv_lib.pipeline.params import read_members
from tmv_lib.statistics.ranking import auroc, rank_among
from tmv_lib.uncertainty.detection import adjusted_auroc
from tmv_lib.uncertainty.entropy import entropy_decomposition

CONFIDENT, DOUBTED = 0.9, 0.9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.1)
    asked = parser.parse_args()
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    rows = np.flatnonzero(cases["split"].isin(["val", "test"]))
    images = np.load("data/prepare/images.npy", mmap_mode="r")[rows]
    cases = cases.iloc[rows].reset_index(drop=True)
    val, test = ((cases["split"] == split).to_numpy() for split in ("val", "test"))
    for name, member in read_members("params.yaml").items():
        model = classifier.build(member.architecture, weights="none", dropout=member.dropout)
        classifier.load_weights(model, f"data/train/{name}/weights.safetensors")
        calibrator = read_calibrators("data/calibration/calibrators.json")[name]
        score = read_csv(f"data/train/{name}/predictions.csv", ["image_id", "logit"]).set_index("image_id")["logit"]
        y_prob = expit(calibrator(score.loc[cases["image_id"]].to_numpy()))
        logits = classifier.body_dropout_logits(
            model.eval(), images, rate=asked.rate, passes=asked.passes, batch_size=32, precision="float32",
            generator=torch.Generator().manual_seed(0), progress=partial(tqdm, desc=name),
        )  # fmt: skip
        body = entropy_decomposition(expit([calibrator(row) for row in logits])).mutual_information
        table = read_csv("data/uncertainty/cases.csv", ["image_id", f"mutual_information_{name}"]).set_index("image_id")
        head = table.loc[cases["image_id"], f"mutual_information_{name}"].to_numpy()
        error = ((y_prob > 0.5) != cases["y_true"]).to_numpy().astype(int)
        called, margin = (y_prob > 0.5).astype(int), np.minimum(y_prob, 1 - y_prob)
        surely_wrong = test & (error == 1) & (margin <= 1 - CONFIDENT)
        found = {"member": name, "errors": int(error[test].sum()), "confident_errors": int(surely_wrong.sum())}
        for signal, values in (("head", head), ("body", body), ("margin", margin)):
            found[f"{signal}_adjusted_auroc"] = round(float(adjusted_auroc(error[test], values[test], called[test])), 3)
            sure = test & (margin <= 1 - CONFIDENT)
            if 0 < error[sure].sum() < sure.sum():
                found[f"{signal}_auroc_among_confident"] = round(float(auroc(error[sure], values[sure])), 3)
            doubted = rank_among(values, values[val]) > DOUBTED
            found[f"{signal}_flags_confident_errors"] = int((doubted & surely_wrong).sum())
            found[f"{signal}_flags_test_cases"] = int((doubted & test).sum())
        print(json.dumps(found))


if __name__ == "__main__":
    main()
