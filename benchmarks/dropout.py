"""MC dropout of ResNet-50, 50 passes over 8 images of 112 px, beside full passes and the caching module of `baal`."""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from baal.bayesian.caching_utils import MCCachingModule
from baal.bayesian.dropout import MCDropoutModule
from scipy.special import expit, logit
from torch import nn

from benchmarks.measure import Measured, side_by_side
from tmv_lib.network.classifier import Classifier, as_levels, build, predict
from tmv_lib.uncertainty.entropy import mc_dropout_probs

IMAGES, SIDE = 8, 112
PASSES, RATE = 50, 0.2


def measure() -> Iterator[Measured]:
    images = np.random.default_rng(0).integers(0, 256, size=(IMAGES, SIDE, SIDE), dtype=np.uint8)
    model, inputs = settled_resnet(as_levels(images, torch.device("cpu")))
    features = predict(model, images, batch_size=IMAGES).features

    def from_features(features: np.ndarray, passes: int = PASSES) -> np.ndarray:
        weight, bias = model.head.weight.detach().numpy()[0], model.head.bias.item()
        rng = np.random.default_rng(1)
        return mc_dropout_probs(features, weight, bias, rate=RATE, passes=passes, generator=rng)

    dropping = deepcopy(model)
    dropping.dropout.train()
    head, whole, full, cached = side_by_side(
        lambda: from_features(features),
        lambda: from_features(predict(model, images, batch_size=IMAGES).features),
        lambda: repeated(dropping, inputs),
        lambda: repeated(MCCachingModule(MCDropoutModule(deepcopy(model))).eval(), inputs),  # an empty cache
        repeats=2,
    )
    yield Measured("`uncertainty.mc_dropout_probs` on saved features", head.seconds, "s")
    yield Measured("with the pass of the body that makes the features", whole.seconds, "s")
    yield Measured("full passes of the network", full.seconds, "s")
    yield Measured("`baal`, `MCCachingModule`", cached.seconds, "s")
    # Each draws its own masks: passes agree in distribution, which a hundred times as many of ours show sharply.
    many = from_features(features, 100 * PASSES)
    for name, peer, bound in (("full passes", full, 25), ("`baal`", cached, 5)):
        yield Measured(f"ours is faster than {name} by", peer.seconds / head.seconds, "times", at_least=bound)
        yield Measured("with the pass of the body", peer.seconds / whole.seconds, "times", at_least=bound)
        yield Measured("mean logits differ by, in standard errors", gap(many, peer.result), "", at_most=5)
        ratio = spread(many) / spread(peer.result)
        yield Measured("ratio of their standard deviations", ratio, "", at_least=0.87, at_most=1.15)


def settled_resnet(levels: torch.Tensor) -> tuple[Classifier, torch.Tensor]:
    """ResNet-50 with random weights, its batch normalisation fitted to its inputs as a trained one's is; and these."""
    torch.manual_seed(0)
    model = build("resnet50", weights="none", dropout=RATE)
    inputs = model.normalise(levels)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(inputs)
    return model.eval(), inputs


@torch.no_grad()
def repeated(model: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """Probabilities (passes, images) of passes through a network that draws new masks in each."""
    return expit(torch.stack([model(inputs) for _ in range(PASSES)]).double().numpy())


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over images of the two mean logits, in standard errors of that difference."""
    a, b = logit(ours), logit(theirs)
    error = np.sqrt(a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b))
    return float((np.abs(a.mean(axis=0) - b.mean(axis=0)) / error).max())


def spread(member_probs: np.ndarray) -> float:
    """Standard deviation of the logits over passes, averaged over images."""
    return float(logit(member_probs).std(axis=0, ddof=1).mean())
