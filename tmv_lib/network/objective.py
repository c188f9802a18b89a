"""What training minimises, for one output, one per class, or one per finding, and how well it ranks."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from tmv_lib.pipeline.question import Task


class Objective(NamedTuple):
    """loss(outputs, target), on one device, and auroc(target, outputs), for outputs (n,), or (n, k).

    weights: what the loss of a positive of each output counts. Trained with weight w an output is too high by log w.
    """

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    auroc: Callable[[np.ndarray, np.ndarray], float]
    weights: list[float]


def objective(task: Task, target: np.ndarray, *, n_outputs: int, balanced: bool, device: torch.device) -> Objective:
    """The objective of a task, weighed by the training labels `target` where it is balanced.

    binary: -[w y log s(z) + (1 - y) log(1 - s(z))], w = negatives / positives. multiclass: cross-entropy,
    -w_y log softmax(z)_y over the sum of weights, w_c = n / (k n_c); AUROC is the mean over classes, each against all
    others. multilabel: the binary loss per finding, the mean over what is labelled: what is not (NaN) costs nothing and
    is no negative; AUROC is the mean over the findings that have both labels.
    """
    if task == "multiclass":
        counts = np.bincount(target, minlength=n_outputs)
        weights = [float(len(target) / (n_outputs * count)) if balanced else 1.0 for count in counts]
        cross_entropy = nn.CrossEntropyLoss(weight=torch.tensor(weights, device=device))
        return Objective(lambda outputs, y: cross_entropy(outputs, y.long()), _of_classes, weights)
    labels = target.reshape(len(target), -1)
    positives, negatives = np.nansum(labels, axis=0), np.nansum(1 - labels, axis=0)
    weights = [float(n / p) if balanced else 1.0 for n, p in zip(negatives, positives, strict=True)]
    if task == "binary":
        return Objective(
            nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights[0], device=device)), roc_auc_score, weights
        )
    each = torch.tensor(weights, device=device)
    return Objective(lambda outputs, y: _masked(outputs, y, each), _of_findings, weights)


def _masked(outputs: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    there = ~y.isnan()
    outputs = outputs.reshape(y.shape)  # of one finding they are (n,)
    losses = functional.binary_cross_entropy_with_logits(outputs, y.nan_to_num(), pos_weight=weights, reduction="none")
    return (losses * there).sum() / there.sum().clamp(min=1)


def _of_classes(target: np.ndarray, outputs: np.ndarray) -> float:
    if outputs.shape[1] == 2:
        return float(roc_auc_score(target, outputs[:, 1] - outputs[:, 0]))
    probs = softmax(outputs.astype(float), axis=1)
    return float(roc_auc_score(target, probs, multi_class="ovr", average="macro", labels=np.arange(outputs.shape[1])))


def _of_findings(target: np.ndarray, outputs: np.ndarray) -> float:
    ranked = []
    for y, z in zip(target.T, outputs.reshape(target.shape).T, strict=True):
        there = ~np.isnan(y)
        if len(np.unique(y[there])) == 2:
            ranked.append(roc_auc_score(y[there], z[there]))
    return float(np.mean(ranked))
