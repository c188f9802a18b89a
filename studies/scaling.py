"""What do time and memory do when the images become more?

Run by `make scaling`; writes docs/scaling.csv, docs/scaling.png and the table of docs/scaling.md. The phantom at 32 px
with two small networks, one epoch each, from 2,700 images up; every stage is a process of its own, of which the system
tells CPU seconds and peak memory. Wants an idle machine. A size whose rows stand in the table already is not run again:
remove docs/scaling.csv to begin anew.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.figure import Figure
from tqdm import tqdm

from commands.copies import copy_project
from studies.pages import write_between
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.pictures import save

SIZES = (2_700, 10_000, 30_000, 100_000)
IMAGES_PER_PATIENT = 1.55
SHARES = {"train": 0.6, "val": 0.1, "cal": 0.1, "test": 0.2}
STAGES: tuple[str, ...] = ("prepare", "train one", "train two", "reference", "calibration", "site", "baseline")
STAGES = (*STAGES, "diversity", "explanations", "stability", "uncertainty", "failures", "ensemble")
BEGINS, ENDS = "<!-- make scaling writes what follows -->", "<!-- up to here -->"
PAGE, TABLE = Path("docs/scaling.md"), Path("docs/scaling.csv")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of images")
    sizes = options.parse_args().sizes
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    for size in sizes:
        if any(row["size"] == size for row in rows):
            continue
        with TemporaryDirectory() as folder:
            project = laid_out(Path(folder) / "project", size)
            for stage in tqdm(STAGES, desc=f"{size:,} images"):
                used = measured(project, stage)
                n = len(pd.read_csv(project / "data/prepare/cases.csv", usecols=["image_id"]))
                rows.append({"size": size, "n": n, "stage": stage, **used})
        write_csv(TABLE, pd.DataFrame(rows), digits=4)
    table = pd.DataFrame(rows)
    save(picture(table), "docs/scaling.png")
    write_between(PAGE, BEGINS, ENDS, lines(table))


def laid_out(folder: Path, size: int) -> Path:
    """A copy of the project whose phantom has about so many images."""
    copy_project(folder)
    shutil.copy("card.yaml", folder)
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["prepare"]["size"] = 32
    patients = {split: round(share * size / IMAGES_PER_PATIENT) for split, share in SHARES.items()}
    params["prepare"]["phantom"]["patients"] = patients
    member = next(iter(params["members"].values())) | {"architecture": "resnet18"}
    params["members"] = {"one": member, "two": member | {"seed": 2}}
    params["train"]["epochs"] = params["reference"]["epochs"] = 1
    params["explanations"]["layers"] = dict.fromkeys(params["members"], "body.layer1")
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    return folder


def measured(project: Path, stage: str) -> dict[str, float]:
    """CPU seconds and peak memory (GB) of a stage. Raises RuntimeError with what it printed where it fails."""
    name, *member = stage.split()
    with (project / "log.txt").open("w+") as log:
        command = [sys.executable, "-m", f"stages.{name}", *member]
        process = subprocess.Popen(command, cwd=project, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{stage}: exit {process.returncode}\n{log.read()[-2000:]}")
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / 2**20}


def exponent(table: pd.DataFrame, what: str) -> float:
    """b of what = a n^b between the two largest n."""
    last = table.sort_values("n")[-2:]
    rise = np.diff(np.log(last[what]))[0] / np.diff(np.log(last["n"]))[0]
    return float(rise)


def lines(table: pd.DataFrame) -> list[str]:
    """The table of the page: a row a stage, CPU seconds and peak memory at each n, and both exponents."""
    sizes = sorted(table["n"].unique())
    heads = [f"{n:,} images" for n in sizes]
    text = [f"| stage | {' | '.join(heads)} | exponents |", f"|{' --- |' * (len(sizes) + 2)}"]
    for stage, of in table.groupby("stage", sort=False):
        cells = [f"{row.cpu_seconds:.0f} s, {row.peak_gb:.2f} GB" for row in of.sort_values("n").itertuples()]
        both = f"{exponent(of, 'cpu_seconds'):.2f}, {exponent(of, 'peak_gb'):.2f}" if len(of) > 1 else ""
        text.append(f"| `{stage}` | {' | '.join(cells)} | {both} |")
    return text


def picture(table: pd.DataFrame) -> Figure:
    """Time and memory against n, a line a stage, both axes logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    labels: dict[str, Any] = {"cpu_seconds": "CPU seconds", "peak_gb": "Peak memory (GB)"}
    for axis, (what, label) in zip(axes, labels.items(), strict=True):
        sns.lineplot(table, x="n", y=what, hue="stage", style="stage", markers=True, dashes=False, ax=axis)
        axis.set(xscale="log", yscale="log", xlabel="Images", ylabel=label)
        axis.get_legend().remove()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False)
    return figure


if __name__ == "__main__":
    main()
