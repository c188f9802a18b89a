"""What do the verdicts say of networks that others trained, finding by finding and tissue by tissue?

Run by `make public-predictions FOLDER=<folder>`, which holds `chexnet_nih` (preds.csv.gz, test_list.txt.gz) and
`pathmnist_resnet50` (scores.npy.gz, targets.npy); writes docs/verdicts.csv and docs/verdicts.md. Each is one test set,
written as a wide CSV and given to `evaluate`, which cuts it: a fifth of the patients stand for validation, a fifth
certify, and the others are evaluated.
"""

import argparse
import gzip
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from commands.evaluate import evaluate
from tmv_lib.data.prediction_files import Asked
from tmv_lib.pipeline.files import whole, write_csv

FINDINGS = [
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
]
TISSUES = ["adipose", "background", "debris", "lymphocytes", "mucus", "smooth_muscle", "normal_mucosa"]
TISSUES += ["cancer_associated_stroma", "adenocarcinoma_epithelium"]
HEAD = """# What the verdicts say of networks that others trained

Only their predictions are known. `make public-predictions FOLDER=<folder>` writes each file as a wide CSV and asks
`evaluate` of every finding, or class against the others, at the default prices (5 a miss, 1 a false alarm, 0.25 a
review); a fifth of the patients fits, a fifth certifies, three fifths are evaluated. No finding was named beforehand.

- `chexnet`: a DenseNet-121 that reproduces CheXNet (J. Zech) on the public test split of NIH ChestX-ray14, 22,433
  radiographs of 6,187 patients, labels of 2017.
- `pathmnist`: a ResNet-50 on the test split of PathMNIST, 7,180 patches of colon tissue in nine classes; patients are
  not told.

The command for a file of one's own is `make evaluate PREDICTIONS=chexnet.csv OUT=<folder>`.
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where chexnet_nih and pathmnist_resnet50 lie")
    folder = options.parse_args().folder
    tables, pages = [], [HEAD]
    with TemporaryDirectory() as room:
        for name, table in (
            ("chexnet", read(folder / "chexnet_nih")),
            ("pathmnist", read_tissues(folder / "pathmnist_resnet50")),
        ):
            write_csv(Path(room) / f"{name}.csv", table, digits=9)
            evaluate([Path(room) / f"{name}.csv"], Path(room) / name, Asked())
            tables.append(pd.read_csv(Path(room) / name / "findings.csv").assign(model=name))
            page = (Path(room) / name / "findings.md").read_text(encoding="utf-8")
            pages.append(page.replace("\n## ", "\n### ").replace("# Findings: ", "## ", 1))
    write_csv("docs/verdicts.csv", pd.concat(tables), digits=6)
    with whole("docs/verdicts.md") as temporary:
        temporary.write_text("\n".join(pages), encoding="utf-8")


def read(folder: Path) -> pd.DataFrame:
    """A row per image: `image_id`, `patient_id`, and for each finding `prob_<finding>` and its `y_true_<finding>`."""
    names = ["Image Index", *FINDINGS]
    truth = pd.read_csv(folder / "test_list.txt.gz", sep=r"\s+", header=None, names=names)
    truth["Image Index"] = truth["Image Index"].str.rpartition("/")[2]
    truth = truth.rename(columns={name: f"y_true_{name}" for name in FINDINGS})
    table = pd.read_csv(folder / "preds.csv.gz").merge(truth, on="Image Index", validate="one_to_one")
    return table.rename(columns={"Image Index": "image_id"}).assign(
        patient_id=table["Image Index"].str.partition("_")[0]
    )


def read_tissues(folder: Path) -> pd.DataFrame:
    """A row per patch: `image_id`, `y_true`, the tissue's name, and `logit_<tissue>`, its log-probability."""
    scores = np.load(io.BytesIO(gzip.decompress((folder / "scores.npy.gz").read_bytes())), allow_pickle=False)
    targets = np.load(folder / "targets.npy", allow_pickle=False).ravel()
    table = pd.DataFrame(scores.astype(float), columns=[f"logit_{name}" for name in TISSUES])
    return table.assign(image_id=[f"patch_{k:04d}" for k in range(len(table))], y_true=np.array(TISSUES)[targets])


if __name__ == "__main__":
    main()
