"""A network of twenty thousand weights, as a template for yours, and for tests that need one in a second."""

from torch import nn


def small(n_outputs: int) -> nn.Module:
    """Images (n, 3, h, w) to n_outputs numbers each; the last layer is linear, the maps before it are h / 4 wide."""
    return nn.Sequential(
        _block(3, 16),
        nn.MaxPool2d(2),
        _block(16, 32),
        nn.MaxPool2d(2),
        _block(32, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, n_outputs),
    )


def _block(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
