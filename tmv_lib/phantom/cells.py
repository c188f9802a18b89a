"""Coloured blood cells of three kinds, or fields of cells with two findings: a tiny phantom of another task.

A template for sources of your own, and for tests of what the radiograph is not: colour, exclusive classes, and findings
of which a case has any number. Nothing is planted in it but the labels; it has no marker, no repairs and no masks.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from tmv_lib.pipeline.question import CLASS, FINDING, Task

CLASSES = ("granulocyte", "lymphocyte", "monocyte")
FINDINGS = ("parasite", "platelets")
PREVALENCE = {"parasite": 0.4, "platelets": 0.3}
UNLABELLED = 0.1  # share of images in which nobody looked for platelets
PLASMA, RED, NUCLEUS = (238, 226, 232), (222, 158, 160), (92, 52, 140)
PARASITE, PLATELET = (60, 30, 120), (150, 90, 170)
CYTOPLASM = {"granulocyte": (232, 190, 196), "lymphocyte": (186, 196, 232), "monocyte": (190, 184, 206)}
LOBES = {"granulocyte": (3, 0.09), "lymphocyte": (1, 0.21), "monocyte": (2, 0.16)}  # of the nucleus, and their radius
NOISE = 9.0  # grey levels, standard deviation


def cells(task: Task, patients: Mapping[str, int], *, size: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A case table with the labels of the task, and uint8 images in colour (n, size, size, 3).

    patients: how many of each split; two images each. Of classes a patient has one, of findings an image its own. An
    image's pixels follow from the seed and its number alone. Raises ValueError for the task binary.
    """
    if task == "binary":
        raise ValueError("cells have three classes or two findings, the task is binary")
    rng = np.random.default_rng(seed)
    split = np.repeat(list(patients), list(patients.values()))
    patient = np.repeat(np.arange(len(split)), 2)
    n = len(patient)
    cases = pd.DataFrame(
        {
            "image_id": [f"cell-{k:06d}" for k in range(n)],
            "patient_id": [f"patient-{k:05d}" for k in patient],
            "split": split[patient],
        }
    )
    if task == "multiclass":
        kind = np.concatenate([rng.permutation(np.arange(count) % 3) for count in patients.values()])[patient]
        cases[CLASS] = np.array(CLASSES)[kind]
        shown: list[tuple[str, tuple[str, ...]]] = [(CLASSES[k], ()) for k in kind]
    else:
        there = {name: rng.random(n) < PREVALENCE[name] for name in FINDINGS}
        for name in FINDINGS:
            cases[f"{FINDING}{name}"] = there[name].astype(float)
        cases.loc[rng.random(n) < UNLABELLED, f"{FINDING}platelets"] = np.nan
        shown = [("", tuple(name for name in FINDINGS if there[name][k])) for k in range(n)]
    seeds = np.random.SeedSequence(seed).spawn(n)
    drawn = [_draw(*of, size, np.random.default_rng(own)) for of, own in zip(shown, seeds, strict=True)]
    return cases.assign(source="cells"), np.stack(drawn)


def _draw(kind: str, findings: tuple[str, ...], size: int, rng: np.random.Generator) -> np.ndarray:
    """One field: red cells, a white cell of a kind or none, parasites in red cells, platelets between them."""
    image = np.broadcast_to(np.array(PLASMA, float), (size, size, 3)).copy()
    reds = rng.uniform(0, 1, (7, 2))
    for centre in reds:
        _disc(image, centre, rng.uniform(0.09, 0.12), RED)
    if "parasite" in findings:
        for centre in reds[:2]:
            _disc(image, np.clip(centre, 0.08, 0.92), 0.04, PARASITE)
    if "platelets" in findings:
        for centre in rng.uniform(0.1, 0.9, (4, 2)):
            _disc(image, centre, 0.035, PLATELET)
    if kind:
        lobes, radius = LOBES[kind]
        centre = rng.uniform(0.4, 0.6, 2)
        _disc(image, centre, rng.uniform(0.26, 0.32), CYTOPLASM[kind])
        angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(lobes) / lobes
        away = 0.0 if lobes == 1 else 0.11
        for turn in angle:
            _disc(image, centre + away * np.array([np.sin(turn), np.cos(turn)]), radius, NUCLEUS)
    smooth = gaussian_filter(image, (size / 90, size / 90, 0))
    return np.clip(smooth + rng.normal(0, NOISE, image.shape), 0, 255).astype(np.uint8)


def _disc(image: np.ndarray, centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
    """Paint a disc; centre and radius are shares of the side."""
    side = len(image)
    row, column = np.ogrid[:side, :side]
    y, x = centre * side
    image[(row - y) ** 2 + (column - x) ** 2 < (radius * side) ** 2] = colour
