"""Pictures of the most and the least stable maps."""

import numpy as np
import pandas as pd

from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import Images
from tmv_lib.stability.answer import AS_IS, UNTRAINED, Answer
from tmv_lib.stability.perturbations import Perturbation


def gallery(name: str, images: Images, answer: Answer, changes: dict[str, Perturbation]) -> dict[str, pictures.Figure]:
    """The most and the least stable right and wrong test cases: beside an untrained network, and under each change.

    images: uint8 (n, side, side) of the answer's cases. No picture where every map is constant.
    """
    titles = f"{name}: the most and the least stable maps", f"{name}: the same images and maps under each mild change"
    chosen, compared = most_and_least_stable(answer.cases), answer.compared
    if chosen.empty:
        return {}
    levels = images[chosen.index].astype(np.float32) / 255.0
    flips = set(compared.loc[compared["flipped"], ["perturbation", "case"]].itertuples(index=False, name=None))
    panels: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    for label, (logit, maps) in answer.explained.items():
        words = [f"logit {logit[case]:+.2f}{', flipped' if (label, case) in flips else ''}" for case in chosen.index]
        changed = changes[label].apply(levels) if label in changes else levels
        sign = np.where(logit > 0, 1, -1)[chosen.index] if label == UNTRAINED else chosen["target"].to_numpy()
        panels[label] = list(zip(words, changed * 255, maps[chosen.index] * sign[:, None, None], strict=True))
    moved = compared[compared["case"].isin(chosen.index)].dropna(subset="rank_correlation")
    worst = moved.loc[moved.groupby("case")["rank_correlation"].idxmin()].set_index("case")
    rows = []
    for place, (case, facts) in enumerate(chosen["facts"].items()):
        shown = {"its map": AS_IS, f"{UNTRAINED},\nfor the class it names": UNTRAINED}
        label, like = worst.loc[case, ["perturbation", "rank_correlation"]]
        shown |= {f"{label}:\nrank correlation {like:.2f}": label}
        rows.append((facts, images[case], [(words, *panels[label][place][1:]) for words, label in shown.items()]))
    first = [place for place, again in enumerate(chosen["kind"].duplicated()) if not again]
    columns = [(label, [row[place] for place in first]) for label, row in panels.items()]
    return {
        f"{name}_cases": pictures.case_rows(rows, title=titles[0]),
        f"{name}_changes": pictures.case_columns(list(chosen["facts"].iloc[first]), columns, title=titles[1]),
    }


def most_and_least_stable(cases: pd.DataFrame) -> pd.DataFrame:
    """Up to two test cases of each kind, the extreme one first, with their kind and their facts in words."""
    there = cases[(cases["split"] == "test") & cases["instability"].notna()].sort_values("instability", kind="stable")
    parts = []
    for words, part in (("right", there[there["error"] == 0]), ("wrong", there[there["error"] == 1])):
        half = (len(part) + 1) // 2
        parts += [
            part[:half][:2].assign(kind=f"stable, {words}"),
            part[half:][::-1][:2].assign(kind=f"unstable, {words}"),
        ]
    chosen = pd.concat(parts)
    facts = [
        f"{row.kind}\n{row.image_id.rpartition('/')[2][-24:]}\n"
        f"truth {row.y_true}, says {int(row.y_prob > 0.5)} (P {row.y_prob:.2f})\ninstability {row.instability:.2f}"
        for row in chosen.itertuples()
    ]
    return chosen.assign(facts=facts)
