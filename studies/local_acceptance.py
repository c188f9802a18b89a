"""Would an acceptance test have caught it? The test split of real cases, played in random patient order.

Run by `make local-acceptance FOLDER=<train/ and test/ of two class folders>`, and writes docs/local_acceptance.csv. A
logistic regression on 48 x 48 pixels stands for the network (a minute instead of an hour); instead of a folder
`python -m studies.local_acceptance densenet121.csv resnet50.csv` takes predictions of networks, as `make evaluate`
does. The policy is fitted and certified on other patients of the source, as shipped and calibrated at the site. Each of
200 orders of the patients of test is an acceptance test of its own.
"""

import argparse
import re
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from commands.evaluate import lay_out
from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.prediction_files import read_predictions
from tmv_lib.monitoring import betting, losses
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.params import read

SIDE, COMPONENTS = 48, 100
CUT = {"train": 0.8, "val": 0.1, "cal": 0.1}
ORDERS = 200
LIMITS = {"false_alarms": (0.05, 0.1, 0.2), "missed_positives": (0.05, 0.1)}
ALPHA = 0.05


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path, nargs="+", help="a folder of images, or a CSV a member")
    given = options.parse_args()
    with TemporaryDirectory() as folder:
        files = given.source
        if files[0].is_dir():
            files = [Path(folder) / "pixels.csv"]
            write_csv(files[0], of_pixels(given.source[0]), digits=9)
        members = read_predictions(files)
        rows = []
        for calibration in ("shipped", "site"):
            cases = judged(members, calibration, Path(folder) / calibration)
            rows += [
                played(cases, name, limit) | {"calibration": calibration} for name in LIMITS for limit in LIMITS[name]
            ]
    table = pd.DataFrame(rows).set_index("calibration").reset_index()
    write_csv("docs/local_acceptance.csv", table, digits=4)
    print(table.to_string(index=False))


def of_pixels(root: Path) -> pd.DataFrame:
    """Predictions of a logistic regression on principal components of small images; train is cut in three."""
    params = read("params.yaml", "prepare", PrepareParams).folder
    pattern, rows, images = re.compile(params.patient or ""), [], []
    for path in tqdm(sorted(path for path in root.glob("*/*/*.jpeg") if path.parts[-3] in ("train", "test"))):
        found = pattern.search(path.name)
        label = int(path.parent.name == params.positive)
        rows.append((path.name, found["patient"] if found else path.name, path.parts[-3], label))
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("L").resize((SIDE, SIDE)), dtype=np.float32).ravel() / 255)
    table = pd.DataFrame(rows, columns=["image_id", "patient_id", "split", "y_true"])
    train = table["split"] == "train"
    patients = table.loc[train, "patient_id"].unique()
    lot = pd.Series(np.random.default_rng(0).choice(list(CUT), len(patients), p=list(CUT.values())), index=patients)
    table.loc[train, "split"] = table.loc[train, "patient_id"].map(lot)
    pixels, fit = np.stack(images), (table["split"] == "train").to_numpy()
    model = make_pipeline(
        StandardScaler(), PCA(COMPONENTS, random_state=0), StandardScaler(), LogisticRegression(C=0.1)
    )
    model.fit(pixels[fit], table["y_true"][fit])
    return table.assign(logit=model.decision_function(pixels))


def judged(members: dict[str, pd.DataFrame], calibration: str, folder: Path) -> pd.DataFrame:
    """The cases of test as the policy judges them."""
    folder.mkdir()
    lay_out(folder, members)
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["deferral"]["calibration"] = calibration
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    with chdir(folder):
        for stage in ("calibration", "site", "uncertainty", "ensemble"):
            import_module(f"stages.{stage}").main()
    said = pd.read_csv(folder / "data/ensemble/cases.csv")[["image_id", "decision", "deferred"]]
    truth = next(iter(members.values())).query("split == 'test'")[["image_id", "patient_id", "y_true"]]
    return truth.merge(said, on="image_id", validate="one_to_one").assign(time="")


def played(cases: pd.DataFrame, name: str, limit: float) -> dict[str, Any]:
    """What acceptance tests of one promise come to. Patients are those of whom it speaks: their labels are counted."""
    visits = losses.first_visits(cases.astype({"deferred": bool}))
    everybody = np.ones(visits["patient"].nunique(), dtype=bool)
    loss = losses.of_patients(visits, name, due=everybody, rate=1.0)["low"].to_numpy()
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(loss) for _ in range(ORDERS)])
    row: dict[str, Any] = {"promise": name, "limit": limit, "patients": loss.size, "risk": float(loss.mean())}
    ends: dict[str, tuple[betting.Against, float]] = {"rejected": ("at_most", ALPHA), "accepted": ("at_least", ALPHA)}
    n = {}
    for end, (against, alpha) in ends.items():
        there = betting.wealth(orders, limit, against=against) >= -np.log(alpha)
        n[end] = np.where(there.any(axis=1), there.argmax(axis=1) + 1.0, np.inf)
    for end, other in (("rejected", "accepted"), ("accepted", "rejected")):
        first = np.isfinite(n[end]) & (n[end] < n[other])
        row[end] = float(first.mean())
        row[f"{end}_median"] = float(np.median(n[end][first])) if first.any() else np.nan
        row[f"{end}_within_60"] = float((first & (n[end] <= 60)).mean())
    return row | {"fewest_to_accept": betting.fewest(limit, ALPHA)}


if __name__ == "__main__":
    main()
