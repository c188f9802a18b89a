"""Does ResNet-50 err on different images?"""

from typing import Any

import pandas as pd

from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.record import of_split, read_cases
from tmv_lib.pipeline.stage import run
from tmv_lib.reading.answer import ReadingParams, claim, of_member, performance, roc, together


def main() -> None:
    params = read("params.yaml", "diversity", ReadingParams)
    first, second, *_ = named_members("params.yaml")
    cases = read_cases([first, second])
    pair = {name: of_member(cases, name) for name in (first, second)}

    both = together(pair, params)
    metrics: dict[str, Any] = {"first": first, "second": second, "claim": claim(both, first, second)}
    metrics |= {second: performance(pair[second], params), "together": both}

    curves = [roc(name, of_split(rows, "test")) for name, rows in pair.items()]
    write_csv("plots/diversity/roc.csv", pd.concat(curves), digits=6)
    write_metrics("diversity", {"diversity": metrics})


if __name__ == "__main__":
    run(main)
