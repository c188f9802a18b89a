"""The picture of `explanations`: the cases that the first member is surest of, and where every member looks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tmv_lib.explanations import map_verdict
from tmv_lib.explanations.answer import Answer
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import Images


def most_confident(cases: pd.DataFrame, name: str) -> np.ndarray:
    """Rows of the two test cases each, right and wrong, positive and negative, of which a member is surest."""
    test, y_prob = cases["split"] == "test", cases[f"y_prob_{name}"]
    surest = (y_prob - 0.5).abs().sort_values(ascending=False, kind="stable").index
    right = (y_prob > 0.5) == (cases["y_true"] == 1)
    kinds = [test & (right == answer) & (cases["y_true"] == truth) for answer in (True, False) for truth in (1, 0)]
    return np.concatenate([[row for row in surest if kind[row]][:2] for kind in kinds]).astype(int)


def overlays(
    cases: pd.DataFrame, images: Images, answers: Mapping[str, Answer], *, method: str, asked: str
) -> pictures.Figure:
    """Every member's map of these cases, and an untrained network's beside it. asked: what a positive is called."""
    first, rows = next(iter(answers)), []
    for case in most_confident(cases, first):
        image, truth = images[case], cases["y_true"][case]
        right = (cases[f"y_prob_{first}"][case] > 0.5) == (truth == 1)
        panels = []
        for name, answer in answers.items():
            border = answer.columns["border"][case]
            facts = f"P({asked}) {cases[f'y_prob_{name}'][case]:.2f}"
            facts += "" if np.isnan(border) else f", border {border:.0%}"
            panels += [
                (f"{name}\n{facts}", image, answer.maps[case] * answer.target[case]),
                (
                    f"{name}, untrained,\nfor the class it names",
                    image,
                    answer.untrained_maps[case] * answer.blank[case],
                ),
            ]
        rows.append((f"{'right' if right else 'wrong'}, truth {truth}\n{cases['image_id'][case]}", image, panels))
    verdicts = [f"{name}: {map_verdict.sentence(one.metrics['verdict'])}" for name, one in answers.items()]
    title = f"Where each network looks for the class it names ({method}): the surest answers of {first}"
    return pictures.case_rows(rows, title="\n".join([title, *verdicts]))
