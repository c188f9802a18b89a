"""What kinds of mistakes are these, and what does each need?"""

import numpy as np

from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.failures import answer, evidence, sheets, taxonomy, training_labels
from tmv_lib.pipeline import pictures, record
from tmv_lib.pipeline.files import for_spreadsheets, naming, read_csv, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read, read_members
from tmv_lib.pipeline.stage import run
from tmv_lib.statistics.estimate import Estimate


def main() -> None:
    params, members = read("params.yaml", "failures", answer.FailuresParams), list(read_members("params.yaml"))
    rng, calibrators = np.random.default_rng(params.seed), read_calibrators(record.CALIBRATORS)
    everything = record.read_cases(members)
    train, cases = record.reference_cases(everything), record.outside_train(everything)
    columns = evidence.signal_columns(members, lungs=record.has_signal("explanations", f"lungs_{members[0]}"))
    cases = record.read_signal_columns(cases, columns)
    healthy = record.few(train[train["y_true"] == 0], evidence.MOST_NORMALS)
    images, normals = (record.read_images(rows["image_id"]) for rows in (cases, healthy))
    features, reference = (record.read_features("reference", rows["image_id"]) for rows in (cases, train))
    witness, y_true = record.read_witness(cases["image_id"]), train["y_true"].to_numpy()
    material = evidence.Material(cases, images, normals, witness, features, reference, y_true)

    cases, joint = evidence.of_cases(material, calibrators, params, rng)
    logits, blame = record.read_calibrations(cases, members), record.read_blame()
    by_calibration = evidence.of_calibrations(cases, logits, blame)
    shipped = by_calibration["as_shipped"]
    if truth := record.read_planted_truth():
        repairs = {name: record.read_repairs(name) for name in members}
        shipped["cause"] = evidence.oracle(shipped, truth[0], repairs, calibrators)
    errors = {name: answer.sort_errors(one) for name, one in by_calibration.items()}
    metrics, shares = answer.count(errors, shipped, params)
    metrics["ensemble"]["subgroups"] = answer.subgroups(shipped, record.read_case_table(), params)
    metrics |= {"site_calibrated": Estimate(absent=record.NO_SITE)} if len(errors) == 1 else {}
    metrics["confident_joint"] = {f"given {i} found {j}": int(joint[i, j]) for i in (0, 1) for j in (0, 1)}
    with naming(record.ADJUDICATION):
        if len(readers := read_csv(record.ADJUDICATION, ["image_id", "kind"])):
            metrics["adjudication"] = answer.adjudicate(errors["as_shipped"], readers)
    taxonomy_checked = {"taxonomy": answer.against_oracle(errors["as_shipped"], shipped, params)} if truth else {}

    write_csv("data/failures/evidence.csv", shipped)
    write_csv("data/failures/errors.csv", errors["as_shipped"])
    queues = {taxonomy.QUEUES[kind]: queue for kind, queue in answer.queues(errors["as_shipped"]).items()}
    again = training_labels.queues(train, training_labels.out_of_fold(train, reference, params))
    for name, queue in (queues | again).items():
        write_csv(f"data/failures/queues/{name}.csv", for_spreadsheets(queue))
    write_csv("plots/failures/shares.csv", shares, digits=6)
    write_csv("plots/failures/confusion.csv", answer.confusion(errors["as_shipped"]), digits=6)
    maps = {name: record.read_maps(name)[0] for name in members}
    pictures.save_all(sheets.sheets(errors["as_shipped"], cases["image_id"], images, maps), "plots/failures/cases")
    write_metrics("failures", {"failures": metrics} | taxonomy_checked)


if __name__ == "__main__":
    run(main)
