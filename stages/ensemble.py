"""Which cases go to a doctor, and what does that buy?"""

from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit

from tmv_lib.deferral import combination, evaluation, verdict
from tmv_lib.deferral import policy as fitted_policy
from tmv_lib.deferral.answer import (
    KEPT,
    NO_SITE,
    THRESHOLD_PROBS,
    THRESHOLDS,
    DeferralParams,
    EnsembleParams,
    answers,
    combined,
    draw_card,
    fit,
    judge,
    promises,
    read_material,
)
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.stage import run


def main() -> None:
    params = read("params.yaml", "ensemble", EnsembleParams)
    knobs = read("params.yaml", "deferral", DeferralParams)
    members = named_members("params.yaml")
    used = "site_calibrated" if knobs.calibration == "site" else "as_shipped"
    rng = np.random.default_rng(params.seed)
    lots = rng.spawn(1)[0]  # what a promise rests on must not hang on what else is drawn
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    material = read_material(members, used, params.folds)

    fitted = fit(material, list(members), params, knobs, rng)
    judged = {name: judge(material, fitted, name) for name in material.logits}
    test = judged[used][material.test]
    summaries = {
        name: evaluation.summary(cases[material.test], knobs.prices, **resampling) for name, cases in judged.items()
    }
    by = fitted.policy
    logits = material.logits[used][material.test]
    probs = {name: expit(logits[name].to_numpy()) for name in members}
    ways = {way: combination.combine(logits, way=way, stack=by.stack) for way in combination.WAYS[1:]}
    sweep = partial(evaluation.sweep, prices=knobs.prices, thresholds=THRESHOLDS)
    sweeps = {"validation": sweep(fitted.validation), "test": sweep(test)}
    metrics = {
        "ensemble": evaluation.ways_to_combine(test, probs | ways | {"in_use": test["y_prob"].to_numpy()}, **resampling)
        | combined(fitted.choice, by.combine),
        "deferral": answers(test, sweeps, probs, fitted, members, params, knobs, resampling) | summaries,
        "guarantee": promises(judged[used][material.cal], test, fitted, knobs, lots),
        "verdict": verdict.judge(test, knobs.prices, **resampling),
    }
    if len(summaries) == 1:
        metrics["deferral"]["site_calibrated_absent"] = NO_SITE

    write_csv("data/ensemble/cases.csv", judged[used][KEPT])
    fitted_policy.write_policy("data/ensemble/policy.json", by)
    write_csv("plots/ensemble/threshold.csv", evaluation.swept(sweeps, test, knobs.prices), digits=6)
    scores = evaluation.margins(test, knobs.prices) | {"this policy": test["kappa"].to_numpy()}
    write_csv("plots/ensemble/risk_coverage.csv", evaluation.risk_coverage(test, scores), digits=6)
    net_benefits = evaluation.net_benefits(test, knobs.prices, threshold_probs=THRESHOLD_PROBS)
    write_csv("plots/ensemble/net_benefit.csv", net_benefits, digits=6)
    write_metrics("metrics/ensemble.json", metrics)
    draw_card(metrics, members, test)


if __name__ == "__main__":
    run(main)
