"""What only exclusive classes have: which is taken for which, and how far the likeliest one can be believed."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from tmv_lib.calibration.errors import calibration_test
from tmv_lib.pipeline.question import CLASS, output_columns
from tmv_lib.reading.answer import ReadingParams
from tmv_lib.statistics.estimate import Resampler, mean
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.resampling import generator


def of_classes(test: pd.DataFrame, names: list[str], params: ReadingParams) -> dict[str, Any]:
    """Which class of the test cases is taken for which, by the likeliest class of the raw softmax.

    test: `patient_id`, `class` and `logit_<class>` of each of `names`. `accuracy` and the diagonal, `recall`, have
    patients' intervals, each class's `auroc` is against all others by its probability. `top_label` holds the confidence
    in the likeliest class against how often it is right, over all classes: the calibrators of `calibration` are those
    of the question, and play no part here.
    """
    probs = softmax(test[output_columns(names)].to_numpy(dtype=float), axis=1)
    true, called = np.searchsorted(names, test[CLASS]), probs.argmax(axis=1)
    right = (true == called).astype(float)
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    confidence = probs.max(axis=1)
    figures: dict[str, Any] = {
        "n": len(test),
        "accuracy": resampler.estimate(mean, right),
        "top_label": {
            "overconfidence": resampler.estimate(mean, confidence - right, null=0.0),
            **calibration_test(right, confidence, rng=generator(params.seed, "top_label"))._asdict(),
        },
    }
    for k, name in enumerate(names):
        own = true == k
        figures[name] = {
            "n": int(own.sum()),
            "recall": resampler.among(own).estimate(mean, right[own]),
            "auroc": resampler.estimate(auroc, own.astype(int), probs[:, k], stratify=own.astype(int)),
            "called": {other: int((own & (called == j)).sum()) for j, other in enumerate(names)},
        }
    return figures
