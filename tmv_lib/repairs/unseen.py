"""Cases on which a repair may be judged: those that no queue, no training and no threshold has seen."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd


def require_unseen(unseen: pd.DataFrame, images: np.ndarray, seen: pd.DataFrame, seen_images: Iterable) -> None:
    """Raise ValueError where a case, by its name, its patient or its pixels, is one that the run has seen.

    unseen, seen: `image_id`, `patient_id`. images, seen_images: uint8 (n, side, side[, 3]) in their order.
    """
    for column in ("image_id", "patient_id"):
        if (twice := unseen[column].isin(seen[column])).any():
            name = unseen.loc[twice, column].iloc[0]
            raise ValueError(f"{column} {name} is in data/prepare/cases.csv: {WHY}")
    known = {hashlib.sha256(image.tobytes()).digest() for image in seen_images}
    for name, image in zip(unseen["image_id"], images, strict=True):
        if hashlib.sha256(image.tobytes()).digest() in known:
            raise ValueError(f"image {name} has the very pixels of a case in data/prepare/cases.csv: {WHY}")


WHY = "a repair is judged by cases from which no queue was made"
