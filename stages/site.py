"""Is the place where it is used like the place it learned from?"""

from typing import Any

from tmv_lib.pipeline.files import naming, write_csv, write_json
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.record import (
    CASES,
    has_features,
    of_split,
    outside_train,
    read_case_table,
    read_cases,
    read_features,
)
from tmv_lib.pipeline.stage import run
from tmv_lib.site import answer
from tmv_lib.site.columns import compare_columns


def main() -> None:
    params, members = read("params.yaml", "site", answer.SiteParams), list(named_members("params.yaml"))
    first, *_ = members
    table = read_case_table()
    cases = outside_train(read_cases(members))
    if has_features(first):
        train, own = (read_features(first, rows["image_id"]) for rows in (of_split(table, "train"), cases))
        cases = answer.add_components(cases, train, own, params)
    with naming(CASES):
        places = answer.find_places(cases)

        looks: dict[str, Any] = answer.compare_looks(places, members, params)
        looks["training_patients_at_the_site"] = answer.known_patients(places, table)
        ids = places.source["image_id"], places.local["image_id"]
        looks["columns"] = compare_columns(table, *ids, n_permutations=params.permutations, seed=params.seed)
        looks["id_blocks"] = answer.file_numbers(table, looks["name"])
        prevalence = answer.prevalence(places, first, looks["name"], params)
        calibrated, logits = answer.calibrate(places, cases, members, params)
        learned, bands = answer.learn(places, first, params)
        certificate = answer.certify(places, first, params)

    write_csv("data/site/cases.csv", logits.reset_index())
    write_json("data/site/shift.json", {"name": looks["name"], "shifted": looks["name"] != "none"})
    write_json("data/site/blame.json", {name: calibrated[name]["interaction"]["blame"] for name in members})
    write_csv("plots/site/learning_curve.csv", bands, digits=6)
    write_csv("plots/site/reliability.csv", answer.reliability(cases, members, logits), digits=6)
    write_csv("plots/site/logits.csv", answer.logit_distributions(places, first), digits=6)
    metrics: dict[str, Any] = {"labels_from": "test" if places.local is places.test else "local", "shift": looks}
    metrics |= {"local_patients_left_out": places.left_out} if places.left_out else {}
    metrics |= {"prevalence": prevalence, **calibrated, "learning_curve": learned, "certificate": certificate}
    write_metrics("site", {"site": metrics})


if __name__ == "__main__":
    run(main)
