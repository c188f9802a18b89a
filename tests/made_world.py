"""A small made-up run on disk, for the viewer: every file that it reads, with noise for images and maps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.special import expit

from tmv_lib.deferral import costs
from tmv_lib.failures import taxonomy
from tmv_lib.pipeline.files import write_csv, write_npy
from tmv_lib.stability import perturbations

ROOT = Path(__file__).parents[1]
MEMBERS = ("densenet121", "resnet50")
SPLITS = {"train": 30, "val": 20, "cal": 20, "test": 40}
SIDE, GRID, FEATURES = 32, 7, 8


def make(root: Path) -> Path:
    """Write the run below `root`; its metrics and diagrams are those of the repository."""
    rng = np.random.default_rng(0)
    for name in ("params.yaml", "dvc.yaml", "card.yaml"):
        shutil.copy(ROOT / name, root / name)
    for name in ("metrics", "plots", ".dvc/plots"):
        shutil.copytree(ROOT / name, root / name)
    split = np.repeat(list(SPLITS), list(SPLITS.values()))
    n = len(split)
    y_true = rng.permutation(np.arange(n) % 2)
    prefix = np.where(y_true == 1, "person", "NORMAL")  # as in real file names, which give the truth away
    ids = pd.Series([f"{split[k]}/{prefix[k]}_{k}" for k in range(n)], name="image_id")
    cause = rng.choice(["none", "ambiguous", "mislabelled", "blind", "spurious"], n)
    cases = pd.DataFrame(
        {"image_id": ids, "patient_id": [f"p{k // 2}" for k in range(n)], "split": split, "y_true": y_true}
    ).assign(source="phantom", finding=np.where(y_true == 1, "lobar", "none"), cause=cause, y_clean=y_true)
    write_csv(root / "data/prepare/cases.csv", cases)
    write_npy(root / "data/prepare/images.npy", rng.integers(0, 256, (n, SIDE, SIDE), dtype=np.uint8))
    later = cases[cases["split"] != "train"]["image_id"].reset_index(drop=True)
    tables = {name: later.to_frame() for name in ("calibration", "uncertainty", "explanations", "stability")}
    tables["calibration"] = ids.to_frame()
    logits, probs = [], []
    sizes = section(root, "stability")
    changes = list(perturbations.mild(sizes, seed=0))
    for name in MEMBERS:
        logit = np.where(y_true == 1, 2.0, -2.0) + rng.normal(0, 3, n)
        logit[split == "train"] *= 2
        probs.append(expit(0.8 * logit))
        said = cases[["image_id", "patient_id", "split", "y_true"]].assign(logit=logit)
        write_csv(root / f"data/train/{name}/predictions.csv", said)
        features = rng.normal(0, 1, (n, FEATURES)) + y_true[:, None]
        write_npy(root / f"data/train/{name}/features.npy", features.astype(np.float32))
        own = {f"logit_{name}": 0.8 * logit, f"y_prob_{name}": expit(0.8 * logit)}
        tables["calibration"] = tables["calibration"].assign(**own)
        m = len(later)
        doubt = {f"{kind}_{name}": rng.uniform(0, 0.3, m) for kind in ("expected_entropy", "mutual_information")}
        tables["uncertainty"] = tables["uncertainty"].assign(**doubt)
        tables["explanations"] = tables["explanations"].assign(**{f"untrained_logit_{name}": rng.normal(0, 1, m)})
        tables["stability"] = tables["stability"].assign(**{f"instability_{name}": rng.uniform(0, 0.5, m)})
        for kind, scale in (("maps", 1.0), ("untrained", 0.1)):
            maps = rng.normal(0, scale, (m, GRID, GRID)).astype(np.float32)
            write_npy(root / f"data/explanations/{kind}_{name}.npy", maps)
        moved = rng.normal(0, 1, (m, len(changes), GRID, GRID)).astype(np.float16)
        write_npy(root / f"data/stability/maps_{name}.npy", moved)
        for change in changes:
            row = {"image_id": later, "member": name, "perturbation": change, "logit": rng.normal(0, 2, m)}
            logits.append(pd.DataFrame(row | {"rank_correlation": rng.uniform(0, 1, m)}))
    tables["uncertainty"] = tables["uncertainty"].assign(members_mutual_information=rng.uniform(0, 0.1, len(later)))
    write_csv(root / "data/stability/logits.csv", pd.concat(logits))
    for name, table in tables.items():
        write_csv(root / f"data/{name}/cases.csv", table)
    decide(root, np.mean(probs, axis=0)[split != "train"], later)
    return root


def section(root: Path, name: str) -> dict:
    """A section of the run's `params.yaml`."""
    return yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))[name]


def decide(root: Path, y_prob: np.ndarray, later: pd.Series) -> None:
    """What `ensemble` and `failures` leave, from the calibrated probabilities of the cases outside train."""
    knobs = section(root, "deferral")
    prices = {"cost_fn": knobs["cost"]["false_negative"], "cost_fp": knobs["cost"]["false_positive"]}
    certainty = costs.certainty(y_prob, **prices)
    threshold = costs.chow_threshold(knobs["cost"]["review"], **prices)
    deferred = costs.decide(certainty, threshold=threshold)
    (root / "data/ensemble").mkdir()
    (root / "data/ensemble/policy.json").write_text(json.dumps({"threshold": threshold}), encoding="utf-8")
    reason = np.where(deferred, "members disagree", "")
    decision = costs.cheapest_decision(y_prob, **prices)
    table = later.to_frame().assign(y_prob=y_prob, certainty=certainty, decision=decision, out_of_distribution=False)
    table = table.assign(deferred=deferred, reason=reason)
    write_csv(root / "data/ensemble/cases.csv", table)
    cases = pd.read_csv(root / "data/prepare/cases.csv").set_index("image_id").loc[later]
    wrong = ((y_prob > 0.5) != (cases["y_true"] == 1).to_numpy()) & (cases["split"] == "test").to_numpy()
    kinds = [taxonomy.KINDS[k % len(taxonomy.KINDS)] for k in range(wrong.sum())]
    errors = later[wrong].to_frame().assign(model="ensemble", kind=kinds, reason="told by the evidence")
    write_csv(root / "data/failures/errors.csv", errors.assign(needs=errors["kind"].map(taxonomy.NEEDS)))
