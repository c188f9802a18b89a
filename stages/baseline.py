"""How well does DenseNet-121 read unseen images?"""

from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.record import count_asked, of_split, read_cases, read_outputs, read_question
from tmv_lib.pipeline.stage import run
from tmv_lib.reading.answer import ReadingParams, of_member, performance, precision_recall, roc
from tmv_lib.reading.classes import of_classes


def main() -> None:
    params = read("params.yaml", "baseline", ReadingParams)
    member, *_ = named_members("params.yaml")  # the first member is the baseline
    cases = of_member(read_cases([member]), member)

    write_csv("plots/baseline/roc.csv", roc(member, of_split(cases, "test")), digits=6)
    write_csv("plots/baseline/precision_recall.csv", precision_recall(member, of_split(cases, "test")), digits=6)
    metrics = {"member": member, **count_asked(), **performance(cases, params)}
    if (question := read_question()).task == "multiclass":
        test = of_split(read_outputs(member), "test")
        metrics["classes"] = of_classes(test, question.names, params)
    write_metrics("baseline", {"baseline": metrics})


if __name__ == "__main__":
    run(main)
