"""Is the verdict true of the population? The policy of the default run, as it lies on disk, on phantoms new to it.

Run by `make fresh-phantoms` after `make repro`; writes docs/fresh_phantoms.csv and prints the table. Each seed draws
600 patients by the recipe of the test split. No network is trained. What a seed said lies in `.studies/fresh_phantoms`;
a killed run goes on where it was, so delete the folder after another training or policy.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import ArrayLike
from tqdm import tqdm

from tmv_lib.data.answer import PrepareParams
from tmv_lib.deferral import costs, doubt, guarantee, verdict
from tmv_lib.deferral.answer import DeferralParams
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.metrics import plain
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.record import Figures, read_metrics
from tmv_lib.prediction import system
from tmv_lib.statistics.arrays import FloatArray
from tmv_lib.statistics.estimate import Resampler

FOLDER = Path(".studies/fresh_phantoms")
SEEDS = (71, 72, 73, 74, 75, 76)
PATIENTS = 600


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--patients", type=int, default=PATIENTS, help="of each phantom")
    options.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    asked = options.parse_args()
    prices = read("params.yaml", "deferral", DeferralParams).prices
    everybody = {str(seed): judged(seed, asked.patients) for seed in asked.seeds}
    everybody["all"] = pd.concat(everybody, ignore_index=True)
    everybody["all"]["patient_id"] = everybody["all"]["phantom"].astype(str) + everybody["all"]["patient_id"]
    rows = [row for name, cases in everybody.items() for row in compared(name, cases, prices)]
    table = pd.DataFrame(rows)
    write_csv("docs/fresh_phantoms.csv", table)
    print(table[table["phantom"] == "all"].to_string(index=False))
    for line in promises(everybody["all"]):
        print(line)
    resampler = Resampler(everybody["all"]["patient_id"].to_numpy(), 1000, seed=0)
    found = plain(verdict.judge(everybody["all"], prices, resampler))
    print("\n".join(["The population itself:", *verdict.sentences(Figures(found, "the population"))]))


def judged(seed: int, patients: int) -> pd.DataFrame:
    """The cases of one fresh phantom as the policy on disk judges them."""
    path = FOLDER / f"{seed}_{patients}.csv"
    if not path.exists():
        prepare = read("params.yaml", "prepare", PrepareParams)
        counts = {"train": 10, "val": 10, "cal": 10, "test": patients}
        plan = plan_cases(seed=seed, **prepare.phantom.model_dump() | {"patients": counts})
        cases = plan[plan["split"] == "test"].reset_index(drop=True)
        images = render(cases, size=prepare.size, progress=partial(tqdm, desc=f"phantom {seed}")).images
        scored = system.score(system.load(), images, progress=partial(tqdm, desc="scoring")).cases
        write_csv(path, cases[["patient_id", "y_true"]].join(scored).assign(phantom=seed))
    table = pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)
    first = next(iter(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["members"]))
    prices = read("params.yaml", "deferral", DeferralParams).prices
    return table.assign(baseline=costs.cheapest_decision(table[f"y_prob_{first}"].astype(float), **prices.errors))


def compared(name: str, cases: pd.DataFrame, prices: costs.Prices) -> list[dict[str, Any]]:
    """What the policy costs per case beside its rivals, with the paired difference and its interval over patients."""
    y_true, deferred = cases["y_true"].to_numpy(), cases["deferred"].to_numpy(dtype=bool)
    review = prices.of(y_true)["review"]

    def error(y_pred: ArrayLike) -> FloatArray:
        return costs.error_cost(y_true, y_pred, **prices.errors)

    own = error(cases["decision"])
    rivals = {
        "a doctor reads every case": review,
        "the first member alone decides every case": error(cases["baseline"]),
        "all called positive": error(np.ones(len(cases))),
        "all called negative": error(np.zeros(len(cases))),
    }
    for margin, certainty in costs.margins(cases, prices).items():
        like = costs.least_certain(certainty) <= deferred.sum()
        rivals[f"{margin.replace('_', ' ')} at the same referral rate"] = np.where(like, review, own)
    cost = np.where(deferred, review, own)
    rows = [{"phantom": name, "policy": "this policy", "cost": float(cost.mean())}]
    for rival, of_rival in rivals.items():
        difference = doubt.mean_difference(cost - of_rival, cases["patient_id"])
        rows.append(
            {"phantom": name, "policy": rival, "cost": float(of_rival.mean())} | plain({"difference": difference})
        )
    return rows


def promises(cases: pd.DataFrame) -> list[str]:
    """Each promise of the run, and the share that breaks it in this population."""
    ensemble = read_metrics("ensemble")
    if ensemble is None:
        raise ValueError("metrics/ensemble.json: no such file; `make repro` makes it")
    made = ensemble["guarantee"]
    lines = []
    for name, rule in guarantee.PROMISES.items():
        if "threshold" in made[name]:
            own, wrong = rule(cases, made[name]["threshold"])
            share = wrong.sum() / max(own.sum(), 1)
            lines.append(f"{guarantee.SAYS[name](made[name]['limit'])}: {share:.1%} break it, {own.sum()} cases")
    return lines


if __name__ == "__main__":
    main()
