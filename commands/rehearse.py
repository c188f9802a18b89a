"""What does an alarm look like? A year of cases with a shift planted in a chosen week, before there is a real one.

Run by `make rehearse` in a project that has run: the phantom is played through the system on disk, from the chosen week
on with a tube that gives less light and more noise. With `CASES=<CSV>` it is your own cases instead: `image_id`,
`patient_id`, `y_true`, `decision`, and where they are known `deferred`, `certainty`, `distance`, `y_prob` and `shifted`
(1: comes from the chosen week on). Draws the year, and prints when each alarm went off.
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from tqdm import tqdm

from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.decisions import read_decisions
from tmv_lib.monitoring import answer, losses, rehearsal
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.files import whole
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import run
from tmv_lib.prediction import identity
from tmv_lib.prediction import system as prediction

plt.switch_backend("agg")
SHIFT = {"test_exposure": 0.5, "test_noise": 2.0}
PER_WEEK = 25  # patients of the phantom
CURVES = {  # of the picture, by column of evidence
    "missed_positives": ("missed positives", "#D55E00"),
    "false_alarms": ("false alarms", "#0072B2"),
    "referrals": ("referrals", "#888888"),
    "inputs": ("inputs, without any label", "#009E73"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=Path, help="a CSV of cases whose truth is known; default: the phantom")
    options.add_argument("--week", type=int, choices=range(2, rehearsal.WEEKS + 1), default=27, metavar="2 to 52")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path("rehearsal.png"))
    given = options.parse_args()
    params, rng = read("params.yaml", "monitor", answer.MonitorParams), np.random.default_rng(given.seed)
    if given.cases is None:
        system = prediction.load()
        n_weeks = {False: given.week - 1, True: rehearsal.WEEKS + 1 - given.week}
        parts = [of_phantom(system, n * PER_WEEK, given.seed, shifted=shifted) for shifted, n in n_weeks.items()]
        cases = pd.concat(parts)
        reference, week, per_week = identity.reference(system), given.week, PER_WEEK
    else:
        cases = read_cases(given.cases)
        reference, week = pd.DataFrame(columns=answer.SIGNALS), given.week if cases["shifted"].any() else None
        per_week = most_per_week(cases, week)
    weeks = rehearsal.looks(rehearsal.play(cases, per_week=per_week, shift_week=week, rng=rng), reference, params)
    names = [name for name in CURVES if name in weeks and weeks[name].notna().any()]
    with whole(given.out) as temporary:
        draw(weeks, names, week, params).savefig(temporary, dpi=120)
    for name, at in rehearsal.alarms(weeks, names).items():
        print(f"{name.replace('_', ' ')}: {'no alarm' if at is None else f'alarm at the end of week {at}'}")
    print(f"{per_week} patients a week, {given.out}")


def of_phantom(system: prediction.System, patients: int, seed: int, *, shifted: bool) -> pd.DataFrame:
    """What the system says of so many new patients of the phantom, drawn by the recipe of the test split."""
    prepare = read(system.root / "params.yaml", "prepare", PrepareParams)
    changed = prepare.phantom.model_dump() | {"patients": {"train": 10, "val": 10, "cal": 10, "test": patients}}
    plan = plan_cases(seed=10_000 + 2 * seed + shifted, **changed | (SHIFT if shifted else {}))
    cases = plan[plan["split"] == "test"].reset_index(drop=True)
    images = render(cases, size=prepare.size, progress=partial(tqdm, desc="drawing")).images
    scored = prediction.score(system, images, progress=partial(tqdm, desc="scoring")).cases
    kind = "after_" if shifted else "before_"
    table = scored[["y_prob", "certainty", "decision", "deferred"]].assign(
        distance=scored[f"distance_{system.policy.members[0]}"], shifted=shifted, y_true=cases["y_true"]
    )
    return table.assign(image_id=kind + cases["image_id"], patient_id=kind + cases["patient_id"])


def read_cases(path: Path) -> pd.DataFrame:
    """A person's own cases."""
    table = read_decisions(path, ["image_id", "patient_id", "y_true"])
    return table.assign(shifted=table.get("shifted", pd.Series("0", table.index)) == "1")


def most_per_week(cases: pd.DataFrame, week: int | None) -> int:
    """As many patients a week as there are for."""
    each = cases.groupby("shifted")["patient_id"].nunique()
    before = rehearsal.WEEKS if week is None else week - 1
    shares = [each[False] // before] + ([each.get(True, 0) // (rehearsal.WEEKS - before)] if week else [])
    if min(shares) < 1:
        raise ValueError(f"a year needs a patient a week at least, found {each.to_dict()} by `shifted`")
    return int(min(shares))


def draw(weeks: pd.DataFrame, names: list[str], shift_week: int | None, params: answer.MonitorParams) -> plt.Figure:
    """The year: above, what is known of the risk; below, the evidence against each promise."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for name in names:
        label, colour = CURVES[name]
        below.plot(weeks["week"], weeks[name].clip(lower=0), color=colour, label=label, linewidth=2)
        if (reached := weeks.loc[weeks[name] >= 1, "week"]).size:
            below.plot(reached.iloc[0], weeks[name][reached.index[0]], "o", color=colour, clip_on=False)
    for promise, limit in params.promises.items():
        if promise in losses.NO_LABEL:
            continue
        label, colour = CURVES[promise]
        ends = np.array(weeks[f"{promise}_risk"].tolist(), dtype=float)
        above.plot(weeks["week"], ends[:, 0], color=colour, linewidth=1.5, label=f"{label}, at least and at most")
        above.plot(weeks["week"], ends[:, 1], color=colour, linewidth=1.5)
        above.axhline(limit, color=colour, linestyle="--", linewidth=1, label="promised")
    below.axhline(1, color="black", linestyle=":", linewidth=1)
    below.text(1, 1.03, "alarm", va="bottom")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        if shift_week is not None:
            axis.axvline(shift_week, color="black", linewidth=1)
    if shift_week is not None:
        below.text(shift_week - 0.4, 0.98, "shift planted", va="top", ha="right", transform=below.get_xaxis_transform())
    above.set(ylabel="Risk, as labels allow", ylim=(0, 1), title="A rehearsed year")
    below.set(xlabel="Week", ylabel="Evidence", xlim=(1, rehearsal.WEEKS), ylim=(0, 3))
    above.legend(frameon=False, loc="upper right")
    below.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.95))
    return figure


if __name__ == "__main__":
    run(main)
