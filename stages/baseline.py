"""How well does DenseNet-121 read unseen images?"""

from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.record import of_split, read_cases
from tmv_lib.pipeline.stage import run
from tmv_lib.reading.answer import ReadingParams, of_member, performance, precision_recall, roc


def main() -> None:
    params = read("params.yaml", "baseline", ReadingParams)
    member, *_ = named_members("params.yaml")  # the first member is the baseline
    cases = of_member(read_cases([member]), member)

    write_csv("plots/baseline/roc.csv", roc(member, of_split(cases, "test")), digits=6)
    write_csv("plots/baseline/precision_recall.csv", precision_recall(member, of_split(cases, "test")), digits=6)
    write_metrics("metrics/baseline.json", {"baseline": {"member": member, **performance(cases, params)}})


if __name__ == "__main__":
    run(main)
