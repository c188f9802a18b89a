"""Is it still true?"""

from tmv_lib.monitoring import answer
from tmv_lib.pipeline import log, monitored
from tmv_lib.pipeline.files import naming, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import own_or_default, run


def main() -> None:
    params = read(own_or_default("params.yaml"), "monitor", answer.MonitorParams)
    cases = log.read(monitored.LOG)
    labels = log.read_labels(monitored.LABELS, cases)
    with naming(monitored.LOG):
        look = answer.look(cases, labels, monitored.read_reference(), params)
    write_csv("plots/monitor/evidence.csv", look.evidence, digits=6)
    write_csv("plots/monitor/risk.csv", look.risk, digits=6)
    figures = look.figures | {"log": {"rows": len(cases), "last_digest": log.last_digest(monitored.LOG)[:32]}}
    write_metrics("monitor", {"monitor": figures})


if __name__ == "__main__":
    run(main)
