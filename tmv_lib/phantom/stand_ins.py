"""People that the phantom stands in for: readers who look at its films again, and somebody who collects new ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tmv_lib.phantom.plan import plan_cases
from tmv_lib.phantom.radiograph import render

READER = "phantom_reader_"  # how the names of these readers begin
SLIP = 0.03  # chance that a reader errs on a film that shows its class clearly


def read_again(cases: pd.DataFrame, *, n_readers: int, rng: np.random.Generator) -> pd.DataFrame:
    """A row a case and reader, `image_id`, `reader`, `y_true`: what readers say who know no label.

    cases: of the plan. Of an ambiguous film each reader says yes with the panel's probability; of any other what it
    shows, `y_clean`, but for a slip.
    """
    clear = np.where(cases["y_clean"] == 1, 1 - SLIP, SLIP)
    says_yes = np.where(cases["cause"] == "ambiguous", cases["posterior"], clear)
    answers = rng.random((n_readers, len(cases))) < says_yes
    tables = [
        pd.DataFrame({"image_id": cases["image_id"], "reader": f"{READER}{k}", "y_true": answer.astype(int)})
        for k, answer in enumerate(answers, start=1)
    ]
    return pd.concat(tables, ignore_index=True)


def draw(name: str, recipe: dict[str, Any], *, patients: int, seed: int, size: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Plan and images (n, size, size) of a test split of other patients, whose ids begin with `name`."""
    counts = {"train": 10, "val": 10, "cal": 10, "test": patients}
    plan = plan_cases(seed=seed, **recipe | {"patients": counts})
    plan = plan[plan["split"] == "test"].reset_index(drop=True)
    renamed = {column: f"{name}-" + plan[column] for column in ("image_id", "patient_id")}
    return plan.assign(**renamed), render(plan, size=size).images


def save_list(path: Path, cases: pd.DataFrame, images: np.ndarray) -> None:
    """A CSV as `prepare.collected` takes it, and its images beside it in a folder of the same name."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, image in zip(cases["image_id"], images, strict=True):
        Image.fromarray(image).save(folder / f"{image_id}.png")
    listed = cases.drop(columns=["image_id", "split", "source"])
    listed.insert(0, "path", folder.name + "/" + cases["image_id"] + ".png")
    listed.to_csv(path, index=False)
