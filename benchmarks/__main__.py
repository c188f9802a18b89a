"""`make bench`: run every benchmark, write the tables of `docs/speed.md`, and fail where a bound is missed."""

import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from benchmarks.measure import Measured, measured

SUBJECTS: tuple[str, ...] = ("prepare", "training", "predict", "bootstrap", "dropout", "calibration", "site")
SUBJECTS = (*SUBJECTS, "evaluate", "policy", "grad_cam", "stability", "monitoring")
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "confidenceinterval", "baal", "grad-cam", "mapie")
PAGE = Path("docs/speed.md")
MARK = "<!-- make bench writes what follows -->\n"


def in_own_process(subject: str) -> tuple[str, list[Measured]]:
    """Heading and numbers from a process of its own, so that the peak memory of one subject is not that of another."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, subject).result()


def table(heading: str, numbers: list[Measured]) -> str:
    rows = [f"| {n.what} | {n.value:.3g} {n.unit} | {n.bound}{' **missed**' * n.missed} |" for n in numbers]
    return "\n".join([f"## {heading}", "", "| | measured | bound |", "| --- | --- | --- |", *rows, ""])


def machine() -> str:
    """The processor's own name where Linux tells it, its cores, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
    return f"{os.cpu_count()} cores of {[*names, platform.machine()][0]}; {', '.join(versions)}.\n"


def main() -> int:
    sections, missed = [machine()], False
    for subject in SUBJECTS:
        heading, numbers = in_own_process(subject)
        sections.append(table(heading, numbers))
        missed |= any(number.missed for number in numbers)
        print(sections[-1], flush=True)
    prose, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text("\n".join([prose + MARK, *sections]), encoding="utf-8")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
