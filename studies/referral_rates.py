"""What do referrals of a given share save? The run's test cases, as shipped and calibrated at the site.

Run by `make referral-rates` after `make repro`; prints a table. The share is met exactly, by referring the least
certain cases: it compares with studies that report a share, and is no policy with a threshold fixed beforehand. The
reduction is of the failure cost against the first member as shipped, deciding every case at p > 0.5, paired, with 95 %
intervals over patients.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from studies.rows import columns
from tmv_lib.deferral import combination, costs, evaluation, policy
from tmv_lib.deferral.answer import DeferralParams
from tmv_lib.pipeline import record
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.statistics.arrays import FloatArray
from tmv_lib.statistics.estimate import Resampler

RATES = (0.0, 0.18, 0.35)  # the last two are those of the reference study


def main() -> None:
    prices = read("params.yaml", "deferral", DeferralParams).prices
    members = named_members("params.yaml")
    cases = record.outside_train(record.read_cases(members))
    unlike = {"uncertainty": ["out_of_distribution"]}
    cases = record.read_signal_columns(cases, unlike)
    here = (cases["split"] == "test").to_numpy()
    way = policy.read_policy("data/ensemble/policy.json")
    rows, calibrations = [], record.read_calibrations(cases, list(members))
    alone = expit(calibrations["as_shipped"].to_numpy()[here, 0])
    for name, logits in calibrations.items():
        y_prob = combination.combine(logits.to_numpy()[here], way=way.combine, stack=way.stack)
        rows += [saved(cases[here], y_prob, alone, rate, prices) | {"calibration": name} for rate in RATES]
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f"))


def saved(
    cases: pd.DataFrame, y_prob: FloatArray, alone: FloatArray, rate: float, prices: costs.Prices
) -> dict[str, Any]:
    """Cost per case with this share referred, and the reduction against the first member at p > 0.5."""
    y_true, groups = cases["y_true"].to_numpy(), cases["patient_id"].to_numpy()
    table = policy.decide(
        y_prob,
        costs.certainty(y_prob, **prices.errors),
        cases["out_of_distribution"],
        threshold=0,
        prices=prices.errors,
    )
    referred = evaluation.least_certain(table["certainty"].to_numpy()) <= round(rate * len(cases))
    error = partial(costs.error_cost, **prices.errors)
    cost = np.where(referred, prices.of(y_true)["review"], error(y_true=y_true, y_pred=table["decision"]))
    rival = error(y_true=y_true, y_pred=(alone > 0.5).astype(int))

    def reduction(cost: FloatArray, rival: FloatArray, *, weights: Any = None) -> Any:
        w = np.ones(len(cost)) if weights is None else weights
        return 1 - (w @ cost) / (w @ rival)

    estimate = Resampler(groups, 2000, seed=0).estimate(reduction, cost, rival)
    return {"referred": rate, "cost": cost.mean()} | columns("reduction", estimate)


if __name__ == "__main__":
    main()
