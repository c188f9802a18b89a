"""What does the verdict say of a network that others trained? Predictions for NIH ChestX-ray14, finding by finding.

Run by `make public-predictions FOLDER=<folder with preds.csv.gz and test_list.txt.gz>`; writes docs/verdicts.csv and
docs/verdicts.md. The files hold one split only, so that a fifth of the patients, drawn by lot, stand for validation, a
fifth certify, and the others are evaluated.
"""

import argparse
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from scipy.special import logit

from commands.evaluate import lay_out, read_predictions
from tmv_lib.deferral import verdict
from tmv_lib.pipeline.files import whole, write_csv
from tmv_lib.pipeline.record import Figures, read_metrics

FINDINGS = [
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
]
CUT = {"val": 0.2, "cal": 0.2, "test": 0.6}
SEED = 0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where preds.csv.gz and test_list.txt.gz lie")
    options.add_argument("--findings", nargs="+", default=FINDINGS, choices=FINDINGS)
    asked = options.parse_args()
    table = read(asked.folder)
    rows, pages = [], []
    for finding in asked.findings:
        metrics = answered(table, finding)
        found, ranking = metrics["verdict"], metrics["ensemble"]["in_use"]
        rows.append(
            {
                "finding": finding,
                "positives": metrics["deferral"]["n_positive"],
                "auroc": ranking["auroc"],
                "answer": found["answer"],
                "because_of": found["because_of"],
                "cost": found["cost"],
                **{f"minus_{name}": entry["difference"] for name, entry in found["against"].items()},
                "called_negative": found["good_for"]["called_negative"]["share"],
                "called_positive": found["good_for"]["called_positive"]["share"],
            }
        )
        name = finding.replace("_", " ").lower()
        words = verdict.sentences(found, cases="chest radiographs", positive=name)
        pages.append(f"## {name.capitalize()}\n\nAUROC {ranking['auroc']:.3f}. " + " ".join(words))
    write_csv("docs/verdicts.csv", pd.DataFrame(rows))
    with whole("docs/verdicts.md") as temporary:
        temporary.write_text("\n\n".join([HEAD, *pages]) + "\n", encoding="utf-8")


HEAD = """# What the verdict says of a network that others trained

A DenseNet-121 that reproduces CheXNet (J. Zech) on the public test split of NIH ChestX-ray14, 22,433 radiographs of
6,187 patients, each finding on its own, at the default prices (5 a miss, 1 a false alarm, 0.25 a review). Only its
predictions are known: `make public-predictions FOLDER=<folder>`. Three fifths of the patients are evaluated."""


def read(folder: Path) -> pd.DataFrame:
    """A row per image: `image_id`, `patient_id`, `split`, and for each finding `prob_<finding>` and its 0 or 1."""
    names = ["Image Index", *FINDINGS]
    truth = pd.read_csv(folder / "test_list.txt.gz", sep=r"\s+", header=None, names=names)
    truth["Image Index"] = truth["Image Index"].str.rpartition("/")[2]
    table = pd.read_csv(folder / "preds.csv.gz").merge(truth, on="Image Index", validate="one_to_one")
    patient = table["Image Index"].str.partition("_")[0]
    patients = np.sort(patient.unique())
    lot = np.random.default_rng(SEED).permutation(len(patients))
    ends = np.cumsum([round(share * len(patients)) for share in CUT.values()])[:-1]
    split = pd.Series(np.array(list(CUT))[np.searchsorted(ends, lot, side="right")], index=patients)
    return table.rename(columns={"Image Index": "image_id"}).assign(patient_id=patient, split=patient.map(split))


def answered(table: pd.DataFrame, finding: str) -> Figures:
    """The metrics of `ensemble` for one finding, by the stages that a verdict needs."""
    prob = table[f"prob_{finding}"].clip(1e-7, 1 - 1e-7)
    member = table[["image_id", "patient_id", "split"]].assign(y_true=table[finding].astype(int), logit=logit(prob))
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{finding.lower()}.csv"
        write_csv(path, member, digits=9)
        lay_out(Path(folder) / "run", read_predictions([path]))
        with chdir(Path(folder) / "run"):
            for stage in ("calibration", "uncertainty", "ensemble"):
                import_module(f"stages.{stage}").main()
            found = read_metrics("ensemble")
    assert found is not None  # the stage has just written it
    return found


if __name__ == "__main__":
    main()
