"""What did the doctors make of it? Run by `make readers READINGS="<CSV or folder> ..."` after a study.

The CSVs have a row per reading, as `make demo STUDY=plan.yaml` writes them; docs/readers.md has the columns. One that
the viewer saved tells neither truth nor deferral: these are read from the run in this folder, and its name is the
reader's. Writes readers/readers.json, readers.html and readers.png, and prints the answer with the lines for
`params.yaml`.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from tmv_lib.card import readers
from tmv_lib.pipeline.files import join, read_csv, whole, write_json
from tmv_lib.pipeline.metrics import plain
from tmv_lib.pipeline.pictures import save
from tmv_lib.pipeline.record import Figures, read_labelled
from tmv_lib.pipeline.stage import run
from tmv_lib.readers.answer import analyse
from tmv_lib.readers.readings import ARMS, is_of_viewer, of_viewer, read_readings, together

plt.switch_backend("agg")
FOLDER = Path("readers")
SHARES = ("sensitivity", "specificity", "auroc")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("readings", type=Path, nargs="+", help="CSVs of readings, or folders of them")
    given = options.parse_args()
    found = plain(analyse(together({path: readings(path) for path in files(given.readings)})))
    figures = Figures(found, str(FOLDER / "readers.json"))
    write_json(FOLDER / "readers.json", found)
    save(draw(figures), FOLDER / "readers.png")
    with whole(FOLDER / "readers.html") as temporary:
        temporary.write_text(readers.reader_page(figures, "readers.png"), encoding="utf-8")
    print("\n".join([*readers.answers(figures), readers.on_deferred(figures)]))
    if lines := readers.params_lines(figures):
        print("\n".join(["For params.yaml:", *lines]))
    print(FOLDER / "readers.html")


def files(given: list[Path]) -> list[Path]:
    """The CSVs themselves. Raises ValueError for a folder that holds none."""
    found = []
    for path in given:
        inside = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path}: holds no CSV of readings")
        found += inside
    return found


def readings(path: Path) -> pd.DataFrame:
    """The readings of a CSV, whoever saved it."""
    if not is_of_viewer(path):
        return read_readings(path)
    decided = read_csv("data/ensemble/cases.csv", ["image_id", "deferred"])
    cases = read_labelled()
    return of_viewer(path, join(cases[cases["image_id"].isin(decided["image_id"])], decided))


def draw(figures: Figures) -> plt.Figure:
    """A panel per figure, a line per arm: the mean over readers with its interval, and each reader beside it."""
    arms = figures["arms"]
    picture, panels = plt.subplots(
        1, len(SHARES), figsize=(10, 1.2 + 0.6 * len(arms)), sharey=True, layout="constrained"
    )
    for panel, name in zip(panels, SHARES, strict=True):
        for place, of in enumerate(arms.values()):
            own = [reader[name] for reader in of["by_reader"].values() if name in reader]
            panel.plot(own, [place + 0.18] * len(own), "o", color="#999999", markersize=4, clip_on=False)
            estimate = of.estimate(name)
            if estimate.value is None:
                panel.text(0.5, place, "not measured", transform=panel.get_yaxis_transform(), ha="center", va="center")
                continue
            panel.plot([estimate.low, estimate.high], [place, place], color="#0072B2", linewidth=2)
            panel.plot(estimate.value, place, "D", color="#0072B2", clip_on=False)
        panel.set(title=readers.HEADS[name], xlim=(panel.get_xlim()[0], min(1.0, panel.get_xlim()[1])))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panels[0].set(yticks=range(len(arms)), yticklabels=[ARMS[arm].capitalize() for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    return picture


if __name__ == "__main__":
    run(main)
