"""How many cases will the acceptance test take? Run by `make plan`, before anybody reads one.

Prints the labels that each promise of protocol.yaml takes at several true risks, and writes acceptance/plan.html, to be
signed.
"""

import sys

import numpy as np

from commands.accept import FOLDER, PROTOCOL, digest, read_protocol
from tmv_lib.card import signed
from tmv_lib.monitoring import betting
from tmv_lib.monitoring.acceptance import plan
from tmv_lib.pipeline.files import whole
from tmv_lib.pipeline.stage import run


def main() -> None:
    protocol = read_protocol()
    for name, limit in protocol.promises.items():
        if (needed := betting.fewest(limit, protocol.alpha)) > protocol.most_patients:
            raise ValueError(
                f"{PROTOCOL}: protocol.most_patients is {protocol.most_patients}, and {name} cannot be confirmed with"
                f" so few: without an error it takes {needed}"
            )
    table = plan(protocol, np.random.default_rng(0))
    with whole(FOLDER / "plan.html") as temporary:
        origin = f"protocol.yaml, SHA-256 {digest(PROTOCOL)}."
        temporary.write_text(signed.planned(protocol, table, origin), encoding="utf-8")
    print(table.to_string(index=False, na_rep=f"> {protocol.most_patients}", float_format=lambda value: f"{value:g}"))
    print(f"Patients are those of whom a promise speaks. {FOLDER / 'plan.html'} is to be signed.", file=sys.stderr)


if __name__ == "__main__":
    run(main)
