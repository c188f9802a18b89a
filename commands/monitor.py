"""Say what the last look found, and print it on a copy of the trust card, monitor/trust_card.html.

The second half of `make monitor`; the first is the stage `monitor`, which DVC runs, or this where there is none.
"""

from importlib import import_module
from pathlib import Path

from tmv_lib.card.card import write_card
from tmv_lib.card.in_use import monitor
from tmv_lib.pipeline.params import named_members
from tmv_lib.pipeline.record import read_metrics
from tmv_lib.pipeline.stage import run


def main() -> None:
    if not Path(".dvc").is_dir():
        import_module("stages.monitor").main()
    figures = read_metrics("monitor")
    if figures is None:
        raise ValueError("metrics/monitor.json: no such file; `make monitor` makes it")
    print("\n".join(monitor(figures)))
    if read_metrics("ensemble") is not None:  # of a vendor's system there is no card
        write_card(Path("monitor"), named_members("params.yaml"), in_use=True)


if __name__ == "__main__":
    run(main)
