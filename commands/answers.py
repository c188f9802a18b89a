"""Every question with its answer in a sentence, from the last run; what `make repro` ends with."""

from textwrap import fill

from tmv_lib.card.answers import answer, questions
from tmv_lib.card.facts import Facts
from tmv_lib.deferral import verdict
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.record import read_metrics
from tmv_lib.pipeline.stage import run

CARD = "plots/ensemble/trust_card.html"
WIDTH = 110


def main() -> None:
    for stage, question in questions().items():
        print(question)
        print(fill(answer(stage), WIDTH, initial_indent="    ", subsequent_indent="    "))
    ensemble = read_metrics("ensemble")
    if ensemble is None:
        raise ValueError("metrics/ensemble.json: no such file; `make repro` makes it")
    facts = read("card.yaml", "card", Facts)
    head, *reasons = verdict.sentences(ensemble["verdict"], cases=facts.cases, positive=facts.positive)
    print(f"\nVerdict: {head}")
    for sentence in reasons:
        print(fill(sentence, WIDTH, initial_indent="    ", subsequent_indent="    "))
    print(f"What is promised, and the whole answer on one page: {CARD}")


if __name__ == "__main__":
    run(main)
