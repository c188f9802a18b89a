"""1,000 bootstrap resamples of AUROC at n = 624, beside the package `confidenceinterval`."""

from collections.abc import Iterator

import confidenceinterval
import numpy as np

from benchmarks.measure import Measured, side_by_side
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.resampling import bootstrap

NEGATIVE, POSITIVE = 234, 390  # the test split of the public pneumonia radiographs
RESAMPLES = 1000


def measure() -> Iterator[Measured]:
    rng = np.random.default_rng(0)
    y_true = np.repeat([0, 1], [NEGATIVE, POSITIVE])
    score = rng.normal(2.0 * y_true)

    ours, theirs = side_by_side(
        lambda: bootstrap(
            auroc,
            y_true,
            score,
            groups=np.arange(y_true.size),  # the peer knows no patients: each image is one here
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(1),
        ),
        # its default, BCa, costs another n evaluations
        lambda: confidenceinterval.roc_auc_score(
            y_true,
            score,
            method="bootstrap_percentile",
            n_resamples=RESAMPLES,
            random_state=np.random.default_rng(2),
        ),
        repeats=5,
    )
    yield Measured("`statistics.bootstrap`", ours.seconds, "s")
    yield Measured("`confidenceinterval`, percentile", theirs.seconds, "s")
    yield Measured("ours is faster by", theirs.seconds / ours.seconds, "times", at_least=30)

    peer_auroc, ends = theirs.result
    apart = np.abs(np.subtract(ends, ours.result[:2])).max() / np.ptp(ends)
    yield Measured("AUROCs differ by", abs(peer_auroc - auroc(y_true, score)), "", at_most=1e-12)
    yield Measured("ends of the intervals differ by, in widths of the interval", apart, "", at_most=0.1)
