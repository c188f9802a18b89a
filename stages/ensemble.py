"""Which cases go to a doctor, and what does that buy?"""

import numpy as np

from tmv_lib.card.card import write_card
from tmv_lib.deferral import answer, verdict
from tmv_lib.deferral.policy import write_policy
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import naming, write_csv, write_json
from tmv_lib.pipeline.metrics import plain, write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.stage import run
from tmv_lib.statistics.estimate import Estimate, Resampler


def main() -> None:
    params, members = read("params.yaml", "ensemble", answer.EnsembleParams), named_members("params.yaml")
    knobs = read("params.yaml", "deferral", answer.DeferralParams)
    networks = None not in members.values()
    cases = record.outside_train(record.read_cases(members))
    table = record.read_signal_columns(cases, answer.signal_columns(list(members), networks=networks))
    material = answer.gather(cases, table, record.read_calibrations(cases, list(members)))
    with naming(record.CASES):
        answer.require_cases(material, params, knobs)
    rng = np.random.default_rng(params.seed)
    lots = rng.spawn(1)[0]  # what a promise rests on must not hang on what else is drawn

    fitted = answer.fit(material, list(members), params, knobs, rng)  # on val
    judged = answer.judge(material, fitted.policy, knobs.in_force)
    cal, test = (judged[material.rows(split)] for split in ("cal", "test"))
    shift = record.read_shift()
    promises = answer.promises(cal, test, fitted, knobs, lots, shift=shift)
    prices, resampler = knobs.prices, Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    in_each = answer.summaries(material, fitted.policy, prices, resampler)
    ensemble = answer.ways(material, fitted, test, knobs, resampler)
    swept = answer.sweeps(fitted, test, prices)
    deferral = answer.measure(material, test, swept, fitted, params, knobs, resampler) | in_each
    deferral["subgroups"] = answer.subgroups(test, record.read_case_table(), resampler)
    deferral["failures"] = {"absent": answer.NO_NETWORK}
    if networks:
        deferral["failures"] = answer.failures(test, record.read_failures(), fitted.policy, prices, resampler)
    deferral |= {"site_calibrated": Estimate(absent=record.NO_SITE)} if len(in_each) == 1 else {}
    metrics = {"ensemble": ensemble, "deferral": deferral, "guarantee": promises}
    metrics["verdict"] = verdict.judge(test, prices, resampler)

    write_csv("data/ensemble/cases.csv", judged[answer.KEPT])
    write_policy("data/ensemble/policy.json", fitted.policy)
    for name, plot in answer.plots(test, swept, prices).items():
        write_csv(f"plots/ensemble/{name}.csv", plot, digits=6)
    write_metrics("ensemble", metrics)
    write_json("metrics/summary.json", plain({"summary": answer.summary(metrics, shift)}))
    write_card("plots/ensemble", members)


if __name__ == "__main__":
    run(main)
