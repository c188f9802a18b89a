"""Should it be used? The verdict of the last run, as `make repro` ends with it."""

import json
from pathlib import Path

from tmv_lib.card.facts import Facts
from tmv_lib.deferral import guarantee, verdict
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import run

METRICS = Path("metrics/ensemble.json")
CARD = "plots/ensemble/trust_card.html"


def main() -> None:
    if not METRICS.is_file():
        raise ValueError(f"{METRICS}: no such file; `make repro` makes it")
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    facts = read("card.yaml", "card", Facts)
    head, *rest = verdict.sentences(metrics["verdict"], cases=facts.cases, positive=facts.positive)
    print(f"\nVerdict: {head}")
    print("\n".join([*rest, *guarantee.sentences(metrics["guarantee"])]))
    print(f"The whole answer, on one page: {CARD}")


if __name__ == "__main__":
    run(main)
