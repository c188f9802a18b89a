"""Which training labels readers should look at again: the probably wrong ones, and those that no reading will settle.

Confident learning (Northcutt, Jiang & Chuang 2021) on probabilities by heads that other patients fitted on what the
witness sees: the evidence that sorts errors, asked about the cases that taught.
"""

from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.failures.oddity import confident_guess, out_of_fold_probs
from tmv_lib.statistics.resampling import generator

RELABEL, SECOND_READER = "relabel_train", "second_reader_train"
SHARE = 0.1  # of the training cases, at most, in either queue


def out_of_fold(train: pd.DataFrame, features: np.ndarray, params: Any) -> np.ndarray:
    """The probability (n,) of each training case by heads fitted on other patients' features (n, d)."""
    options = {"n_folds": params.folds, "rng": generator(params.seed, "train")}
    return out_of_fold_probs(features, train["y_true"].to_numpy(), groups=train["patient_id"].to_numpy(), **options)


def queues(train: pd.DataFrame, y_prob: np.ndarray) -> dict[str, pd.DataFrame]:
    """The training cases to read again, by queue, the most urgent first.

    train: `image_id`, `patient_id`, `y_true`; y_prob (n,): out of fold. relabel_train: another label is confidently
    predicted, the least probable given label first. second_reader_train: neither label is, the most even first.
    """
    guess, y_true = confident_guess(train["y_true"], y_prob), train["y_true"].to_numpy()
    given = np.where(y_true == 1, y_prob, 1 - y_prob)
    table = train[["image_id", "patient_id", "y_true"]].assign(out_of_fold_prob=y_prob)
    most = int(np.ceil(SHARE * len(table)))

    def queue(here: np.ndarray, urgency: np.ndarray) -> pd.DataFrame:
        rows = np.flatnonzero(here)
        return table.iloc[rows[np.argsort(urgency[rows], kind="stable")][:most]]

    return {
        RELABEL: queue((guess >= 0) & (guess != y_true), given),
        SECOND_READER: queue(guess < 0, np.abs(y_prob - 0.5)),
    }
