"""Grad-CAM of DenseNet-121's last map beside pytorch-grad-cam's, batched as it batches."""

from collections.abc import Iterator

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from torch import nn

from benchmarks.measure import Measured, side_by_side
from tmv_lib.explanations.attribution import explain
from tmv_lib.network.classifier import Classifier, build

IMAGES, SIDE = 32, 224
LAYER = "body.features.relu5"


def measure() -> Iterator[Measured]:
    torch.manual_seed(0)
    images = torch.randn(IMAGES, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    model = settled_densenet(images[:8])

    def theirs() -> np.ndarray:
        with GradCAM(model, [model.get_submodule(LAYER)]) as cam:
            return cam(images, targets=[lambda logit: logit] * IMAGES)

    ours, peer = side_by_side(lambda: explain(model, images, layer=LAYER).maps, theirs, repeats=3)
    what = f"Grad-CAM, {IMAGES} images of {SIDE} px, DenseNet-121's last map"
    yield Measured(f"{what}: `explanations.explain`", ours.seconds, "s")
    yield Measured("the same by pytorch-grad-cam 1.5.7", peer.seconds, "s")
    yield Measured("ours is faster by", peer.seconds / ours.seconds, "times", at_least=3)
    # Their scaling, twice as they do: to [0, 1], and bilinearly to the image's size.
    scaled = scale_cam_image(scale_cam_image(np.maximum(ours.result, 0), (SIDE, SIDE)))
    yield Measured("scaled maps differ by at most", float(np.abs(scaled - peer.result).max()), "", at_most=1e-5)


def settled_densenet(images: torch.Tensor) -> Classifier:
    """DenseNet-121 with random weights, its batch normalisation fitted to the images, so that maps are not flat."""
    model = build("densenet121", weights="none", dropout=0.2).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(images)
    return model.eval()
