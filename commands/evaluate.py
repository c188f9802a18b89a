"""When should one use a model of which only the predictions are known?

Run by `make evaluate PREDICTIONS="a.csv b.csv" OUT=<folder>` in a project, which need not have run. Each CSV is a
member, named after its file: `image_id, patient_id, split, y_true, logit`, a row an image; further columns of the first
one are subgroups. The stages that need no network answer in OUT, a folder with metrics/, plots/ and the trust card, by
the knobs of params.yaml and the words of card.yaml, or of those that come with the package where the folder has none.
Needs no images, no GPU and no torch.
"""

import argparse
import os
import shutil
from contextlib import chdir
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from tmv_lib.data.cases import SPLITS
from tmv_lib.data.lists import check_header
from tmv_lib.pipeline.files import AS_WRITTEN, read_csv, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import check_name, read_yaml
from tmv_lib.pipeline.stage import own_or_default, run

SOURCE = "predictions"  # what cases.csv says of where they come from
COLUMNS = ["image_id", "patient_id", "split", "y_true", "logit"]
NEEDED = {"val": "it fits calibrator and policy", "cal": "it certifies", "test": "it is what the answers are about"}
STAGES = ("calibration", "site", "baseline", "diversity", "uncertainty", "ensemble")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("predictions", type=Path, nargs="+", help="a CSV a member")
    options.add_argument("--out", type=Path, required=True, help="the folder to make")
    given = options.parse_args()
    evaluate(given.predictions, given.out)
    print(f"{given.out}: metrics/, plots/ and plots/ensemble/trust_card.html")


def evaluate(predictions: list[Path], out: Path) -> None:
    """Put the questions to these members; `out` is there when all are answered, or not at all."""
    if out.exists():
        raise ValueError(f"{out}: is there already; name another folder, or remove this one")
    members = read_predictions(predictions)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")  # of this run alone
    part.mkdir(parents=True)
    try:
        lay_out(part, members)
        with chdir(part):
            asked = [stage for stage in STAGES if stage != "diversity" or len(members) > 1]
            bar = tqdm(asked)
            for stage in bar:
                bar.set_description(stage)
                import_module(f"stages.{stage}").main()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_predictions(paths: list[Path]) -> dict[str, pd.DataFrame]:
    """The members by name, rows in the order of the first. Raises ValueError naming file, row and what is wrong."""
    members: dict[str, pd.DataFrame] = {}
    for path in paths:
        check_name(path.stem, where=f"{path}: the file's name, {path.stem}, names the member")
        if path.stem in members:
            raise ValueError(f"{path}: two files are named {path.stem}; a file's name names the member")
        members[path.stem] = read_member(path)
        first = next(iter(members.values())).set_index("image_id")
        own = members[path.stem].set_index("image_id")
        if odd := sorted(set(first.index) ^ set(own.index)):
            raise ValueError(
                f"{path}: {len(odd)} images, {odd[0]} among them, stand in it or in {paths[0]}, not in both"
            )
        own = own.loc[first.index]
        for column in ("patient_id", "split", "y_true"):
            if (differ := own[column] != first[column]).any():
                image = differ.idxmax()
                raise ValueError(
                    f"{path}: {column} of image {image} is {own.loc[image, column]}, {paths[0]} has"
                    f" {first.loc[image, column]}"
                )
        members[path.stem] = own.reset_index()
    return members


def read_member(path: Path) -> pd.DataFrame:
    """One CSV, checked; rows are counted as in the file, the header being row 1."""
    check_header(path, COLUMNS)
    read_csv(path, COLUMNS)
    table = pd.read_csv(path, **AS_WRITTEN)
    table = table.loc[:, ~table.columns.str.startswith("Unnamed: ")]  # the index of a saved table
    logit, y_true = pd.to_numeric(table["logit"], errors="coerce"), pd.to_numeric(table["y_true"], errors="coerce")
    for column, wrong, allowed in (
        ("image_id", table["image_id"].duplicated(), "stands there already"),
        ("split", ~table["split"].isin(SPLITS), f"is none of {', '.join(SPLITS)}"),
        ("y_true", ~y_true.isin([0, 1]), "is neither 0 nor 1"),
        ("logit", ~np.isfinite(logit), "is no finite number"),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(f"{path}: row {row + 2}: {column} '{table[column].iloc[row]}' {allowed}")
    if logit.between(0, 1).all():
        raise ValueError(
            f"{path}: every value of column logit lies in [0, 1], as probabilities do; log(p / (1 - p)) makes logits"
        )
    for split, use in NEEDED.items():
        labels = set(table.loc[table["split"] == split, "y_true"])
        if labels != {0, 1}:
            raise ValueError(f"{path}: split {split} must hold both classes, found y_true {sorted(labels)}: {use}")
    fixed = table[table["split"].isin(["train", *NEEDED])].groupby("patient_id")["split"].nunique()
    if (fixed > 1).any():
        raise ValueError(
            f"{path}: {int((fixed > 1).sum())} patients, {fixed.idxmax()} among them, stand in two of the splits train,"
            f" {', '.join(NEEDED)}: what one fits the other must not evaluate"
        )
    return table.assign(logit=logit, y_true=y_true.astype(int))


def lay_out(folder: Path, members: dict[str, pd.DataFrame]) -> None:
    """The files that the stages look for, as `prepare` and `train` would have left them."""
    params = read_yaml(own_or_default("params.yaml"))
    kept = {name: params[name] for name in (*STAGES, "deferral")}
    told = {"prepare": {"source": SOURCE}, "members": dict.fromkeys(members), **kept}
    (folder / "params.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    shutil.copy(own_or_default("card.yaml"), folder)
    cases = next(iter(members.values())).drop(columns="logit").assign(source=SOURCE)
    write_csv(folder / "data/prepare/cases.csv", cases)
    splits = {
        split: {"images": len(rows), "positives": int(rows["y_true"].sum()), "patients": rows["patient_id"].nunique()}
        for split, rows in cases.groupby("split")
    }
    torn = cases.groupby("patient_id")["split"].transform("nunique") > 1  # by local alone: others are refused
    problems = {"patient_in_two_splits": {"images": int(torn.sum())}}
    write_metrics(folder / "metrics/prepare.json", {"prepare": {"splits": splits, "problems": problems}})
    for name, table in members.items():
        write_csv(folder / f"data/train/{name}/predictions.csv", table[COLUMNS], digits=9)


if __name__ == "__main__":
    run(main)
