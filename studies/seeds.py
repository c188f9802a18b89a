"""How much do the figures move when nothing but the training seed changes?

Run by `make seeds`; writes docs/seeds.csv, docs/seeds.md and docs/seeds.png. A seed is a member: a copy of the project
in `.studies/seeds` names every member once a seed, and DVC trains there what is not trained yet. The copy shares the
cache of the project, so that what the project has trained is not trained again; a killed run goes on where it was.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import seaborn.objects as so
import yaml
from matplotlib.figure import Figure
from scipy.special import expit
from scipy.stats import t, ttest_ind
from tqdm import tqdm

from commands import copies
from commands.copies import dvc
from studies.rows import columns
from tmv_lib.calibration.errors import expected_calibration_error
from tmv_lib.pipeline.files import join, read_csv, whole, write_csv
from tmv_lib.pipeline.pictures import save
from tmv_lib.statistics.classification import accuracy, brier_score, logistic_miscalibration, negative_log_likelihood
from tmv_lib.statistics.estimate import Resampler, difference
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.tests import Z_95

FOLDER = Path(".studies/seeds")


class Measure(NamedTuple):
    """A metric, what it takes of a member, what stays fixed in a resample, and which end is the better one."""

    metric: Callable[..., Any]
    takes: str
    fixed: str
    better: str


# Probabilities and decisions are the calibrated ones, but for `_raw`: before calibration.
MEASURES = {
    "auroc": Measure(auroc, "logit_raw", "class", "higher"),
    "accuracy": Measure(accuracy, "decided", "none", "higher"),
    "brier_score": Measure(brier_score, "y_prob", "none", "lower"),
    "nll": Measure(negative_log_likelihood, "logit", "none", "lower"),
    "nll_raw": Measure(negative_log_likelihood, "logit_raw", "none", "lower"),
    "ece": Measure(expected_calibration_error, "y_prob", "none", "lower"),
    "ece_raw": Measure(expected_calibration_error, "y_prob_raw", "none", "lower"),
    "logistic_miscalibration": Measure(logistic_miscalibration, "logit", "none", "lower"),
    "logistic_miscalibration_raw": Measure(logistic_miscalibration, "logit_raw", "none", "lower"),
}
# docs/intervals.md: of these, only the difference of two members' miscalibration may carry an interval
ALONE_WITHOUT = {"ece", "ece_raw", "logistic_miscalibration", "logistic_miscalibration_raw"}
PAIRED_WITHOUT = {"ece", "ece_raw"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3], help="whole numbers (1 2 3)")
    seeds = options.parse_args().seeds
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    members = list(params["members"])
    names = lay_out(FOLDER, params, seeds)
    for seed in tqdm(seeds, desc="seeds"):
        dvc("repro", *(f"train@{names[seed, member]}" for member in members), folder=FOLDER)
    dvc("repro", "calibration", folder=FOLDER)

    tables = []
    for seed in tqdm(seeds, desc="intervals"):
        test = test_cases(FOLDER, members={member: names[seed, member] for member in members})
        resampling = {"n_resamples": params["diversity"]["resamples"], "seed": params["diversity"]["seed"]}
        rows = measured(test, members, **resampling)
        tables.append(rows.assign(seed=seed))
    table = pd.concat(tables)[["seed", *rows.columns]]
    write_csv("docs/seeds.csv", table)
    save(picture(table, members), "docs/seeds.png")
    with whole("docs/seeds.md") as temporary:
        temporary.write_text(page(table, members), encoding="utf-8")


def with_seeds(
    members: dict[str, dict[str, Any]], seeds: list[int]
) -> tuple[dict[str, Any], dict[tuple[int, str], str]]:
    """Members, once a seed, and their names by (seed, member); a member keeps its name for the seed it has.

    Raises ValueError for fewer than two seeds, a seed twice, and a member that is not trained.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be two or more different whole numbers from 0, found {seeds}")
    if untrained := [name for name, member in members.items() if not member["train"]]:
        raise ValueError(f"members.{untrained[0]}.train is false: a seed changes nothing")
    names = {
        (seed, name): name if seed == member["seed"] else f"{name}_seed{seed}"
        for seed in seeds
        for name, member in members.items()
    }
    return {names[seed, name]: members[name] | {"seed": seed} for seed, name in names}, names


def lay_out(folder: Path, params: dict[str, Any], seeds: list[int]) -> dict[tuple[int, str], str]:
    """Bring a copy of the project with these seeds up to date in `folder`. Names by (seed, member)."""
    members, names = with_seeds(params["members"], seeds)
    copies.lay_out(folder, params | {"members": members})
    return names


def test_cases(folder: Path, *, members: dict[str, str]) -> pd.DataFrame:
    """Test cases with truth and patient, and for each member logit and y_prob, raw and calibrated, and decision.

    members: what each is called in the table, and its name in the copy of the project.
    """
    tables = []
    for member, name in members.items():
        cases = read_csv(
            folder / f"data/train/{name}/predictions.csv", ["image_id", "patient_id", "split", "y_true", "logit"]
        )
        calibrated = read_csv(folder / "data/calibration/cases.csv", ["image_id", f"logit_{name}"])
        both = join(cases.rename(columns={"logit": "logit_raw"}), calibrated.rename(columns={f"logit_{name}": "logit"}))
        both = both.assign(y_prob_raw=expit(both["logit_raw"]), y_prob=expit(both["logit"]), decided=both["logit"] > 0)
        said = both[["logit_raw", "logit", "y_prob_raw", "y_prob", "decided"]].astype(float).add_suffix(f"_{member}")
        tables.append(said.assign(image_id=both["image_id"]))
    cases = join(cases[["image_id", "patient_id", "split", "y_true"]], *tables)
    return cases[cases["split"] == "test"]


def measured(test: pd.DataFrame, members: list[str], *, n_resamples: int, seed: int) -> pd.DataFrame:
    """A row a member, and one for the difference of the first two: every measure with its interval over patients."""
    y_true, groups = test["y_true"].to_numpy(), test["patient_id"].to_numpy()
    rows = []
    for member in (*members, pair(members)):
        paired = member not in members
        row: dict[str, Any] = {"member": member}
        for name, (metric, takes, fixed, _) in MEASURES.items():
            arrays = [test[f"{takes}_{one}"].to_numpy() for one in (members[:2] if paired else [member])]
            estimate = Resampler(groups, n_resamples, seed).estimate(
                partial(difference, metric) if paired else metric,
                y_true,
                *arrays,
                interval=name not in (PAIRED_WITHOUT if paired else ALONE_WITHOUT),
                stratify=y_true if fixed == "class" else None,
            )
            row |= columns(name, estimate)
        rows.append(row)
    return pd.DataFrame(rows)


def pair(members: list[str]) -> str:
    """How the difference of the first two members is named."""
    return f"{members[0]} - {members[1]}"


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Per member (or difference) and measure: mean and standard deviation over seeds, standard error over patients.

    The standard error is that of one training: half the width of the 95 % interval over 1.96, averaged over seeds;
    missing for a measure without an interval.
    """
    rows = []
    for (member, of_member), name in (
        (group, name) for group in table.groupby("member", sort=False) for name in MEASURES
    ):
        row = {
            "member": member,
            "measure": name,
            "mean": of_member[name].mean(),
            "seed_sd": of_member[name].std(ddof=1),
        }
        if f"{name}_low" in of_member:
            row["patient_se"] = ((of_member[f"{name}_high"] - of_member[f"{name}_low"]) / (2 * Z_95)).mean()
        rows.append(row)
    return pd.DataFrame(rows).sort_values("measure", key=lambda s: s.map(list(MEASURES).index), kind="stable")


def versus(table: pd.DataFrame, members: list[str]) -> pd.DataFrame:
    """Per measure: in how many seeds the first member is the better one, and the p-value of Welch's t-test over seeds.

    Unpaired, because the same number as a seed gives two architectures nothing in common.
    """
    first, second = (table[table["member"] == member].set_index("seed") for member in members[:2])
    rows = []
    for name, measure in MEASURES.items():
        gap = (first[name] - second[name]) * (1 if measure.better == "higher" else -1)
        p_value = float(ttest_ind(first[name], second[name], equal_var=False).pvalue) if gap.std() > 0 else 1.0
        rows.append({"measure": name, "seeds": gap.size, "first_better": int((gap > 0).sum()), "p_value": p_value})
    return pd.DataFrame(rows)


def picture(table: pd.DataFrame, members: list[str]) -> Figure:
    """Each seed a dot with its interval over patients as a bar: the members above, their difference below."""
    shown = {"auroc": "AUROC", "accuracy": "Accuracy", "nll": "NLL (nats)", "ece": "ECE, no interval"}
    parts = [
        table[["member", "seed"]].assign(
            measure=label, value=table[name], low=table.get(f"{name}_low"), high=table.get(f"{name}_high")
        )
        for name, label in shown.items()
    ]
    rows = pd.concat(parts, ignore_index=True).astype({"low": float, "high": float})
    rows = rows.assign(seed=lambda rows: rows["seed"].astype(str))
    drawing = plt.figure(figsize=(3 * len(shown), 4.6), layout="constrained")
    drawing.suptitle("Dots: training seeds, a colour each. Bars: 95 % over patients, of one training", fontsize=10)
    above, below = drawing.subfigures(2, height_ratios=[2, 1.2], squeeze=False)[:, 0]
    for part, names, title in ((above, members, str), (below, [pair(members)], lambda _: "")):
        (
            so.Plot(rows[rows["member"].isin(names)], x="value", y="member", color="seed")
            .facet(col="measure")
            .share(x=False)
            .add(so.Range(linewidth=2, alpha=0.4), so.Dodge(), xmin="low", xmax="high", orient="y", legend=False)
            .add(so.Dot(pointsize=5), so.Dodge(), orient="y", legend=False)
            .label(x="", y="", title=title)
            .theme(sns.axes_style("whitegrid") | {"xtick.labelsize": 8})
            .on(part)
            .plot()
        )
    for axis in below.axes:
        axis.axvline(0, color="0.4", linewidth=0.8, linestyle="--")
    return drawing


PAGE = """# What the training seed does

Two networks that were trained once each are two draws, not two architectures. Here each member is trained with the
seeds {seeds} on the same images, calibrated on the same validation patients and judged on the same test
patients. `make seeds` writes this page, its table `seeds.csv` and its picture from the parameters in `params.yaml`.

![Figures of each seed](seeds.png)

## One training, and the next

The standard deviation over seeds beside the standard error over patients, of which the interval of one training speaks.
A dash stands where no interval over patients can be trusted (`intervals.md`). AUROC ranks raw logits; `_raw` is before
calibration, the others after it; logistic miscalibration is the part of the NLL that the best shift and slope of the
logit would take away.

{spread}

What tells {first} from {second} is the architecture and the luck of the seed. Their AUROCs differ by {mean:.4f} on
average, with a standard deviation of {seed_sd:.4f} over seeds and a standard error of {patient_se:.4f} over patients.
Who asks about architectures, and not about two trained networks, needs both: an interval {wider:.2f} times as wide as
that of one training.

## Who is better, in how many seeds

{versus}

{n} seeds show little. A t-test at 5 % needs members {needed:.1f} standard deviations over seeds apart, and a
sign test in which all {n} agree has p = {agree:.3g}. Each row is a test of its own: of {rows}, one below 0.05 is no
surprise. Seeds that agree say that the order does not hang on the seed. They say nothing about other images: for these
stands the standard error over patients.
"""


def page(table: pd.DataFrame, members: list[str]) -> str:
    """The page of this study in Markdown."""
    spreads, verdicts = spread(table), versus(table, members)
    auroc_difference = spreads[(spreads["member"] == pair(members)) & (spreads["measure"] == "auroc")].iloc[0]
    n = table["seed"].nunique()
    return PAGE.format(
        seeds=", ".join(map(str, table["seed"].unique())),
        spread=_spread_table(spreads),
        versus=_versus_table(verdicts, members),
        first=members[0],
        second=members[1],
        **auroc_difference[["mean", "seed_sd", "patient_se"]],
        wider=np.hypot(1, auroc_difference["seed_sd"] / auroc_difference["patient_se"]),
        n=n,
        needed=t.ppf(0.975, 2 * n - 2) * np.sqrt(2 / n),
        agree=2.0 ** (1 - n),
        rows=len(verdicts),
    )


def _spread_table(spreads: pd.DataFrame) -> str:
    lines = [
        "| figure | of | mean | sd over seeds | se over patients | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for _, row in spreads.iterrows():
        error, ratio = f"{row['patient_se']:.4f}", f"{row['seed_sd'] / row['patient_se']:.2f}"
        if np.isnan(row["patient_se"]):
            error = ratio = "-"
        cells = (row["measure"], row["member"], f"{row['mean']:.4f}", f"{row['seed_sd']:.4f}", error, ratio)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _versus_table(verdicts: pd.DataFrame, members: list[str]) -> str:
    lines = [f"| figure | {members[0]} better in | Welch's t-test over seeds |", "| --- | --- | --- |"]
    for _, row in verdicts.iterrows():
        lines.append(f"| {row['measure']} | {row['first_better']} of {row['seeds']} | p = {row['p_value']:.3g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
