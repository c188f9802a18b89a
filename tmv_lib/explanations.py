"""Where a network looks: Grad-CAM, and whether its maps deserve belief.

Maps are signed and raw: min-max scaling turns noise into structure and is for pictures only.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from tmv_lib.network import Classifier, Precision, as_levels, blocks, is_spatial, normalise

MINIMUM_GRID = 7


class Explained(NamedTuple):
    """logit (n,) and signed maps (n, h, w) of the same forward pass."""

    logit: np.ndarray
    maps: np.ndarray


def grad_cam(
    model: nn.Module,
    images: torch.Tensor | np.ndarray,
    *,
    layer: str,
    target: np.ndarray | Sequence[int] | int,
) -> np.ndarray:
    """Signed Grad-CAM maps (n, h, w) on the grid of `layer`, Selvaraju et al. 2017, without the final ReLU.

    model: returns one logit a case, (n,) or (n, 1). images: what it takes, (n, channels, height, width).
    layer: name of a module whose output is (n, k, h, w). target: +1 explains the logit, -1 its negative, one
    for all or one a case. Raises ValueError for an unknown layer, one without spatial maps, another target.

    >>> grad_cam(nn.Sequential(nn.Identity(), nn.Flatten()), np.ones((1, 1, 1, 1), "float32"), layer="0", target=-1)
    array([[[-1.]]], dtype=float32)
    """
    sign = np.broadcast_to(np.asarray(target), len(images))
    if not np.isin(sign, (-1, 1)).all():
        raise ValueError(f"target must be +1 or -1, found {sorted(set(sign.tolist()))}")
    maps = explain(model, torch.as_tensor(images), layer=layer).maps
    # The map is linear in the explained score, so explaining -z is the negative of explaining z.
    return maps * sign[:, None, None].astype(maps.dtype)


def explain(model: nn.Module, images: torch.Tensor, *, layer: str) -> Explained:
    """Logits and the signed Grad-CAM maps of the logit, in one forward pass.

    alpha_k = mean_ij ds/dA_kij;  map_ij = sum_k alpha_k A_kij.
    """
    kept: list[torch.Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not is_spatial(output, images):
            raise ValueError(f"layer {layer!r} has no spatial maps (n, k, h, w)")
        # A fresh leaf here leaves the gradient only the part of the network behind the layer; the copy lets
        # what follows work in place.
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    try:
        module = model.get_submodule(layer)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        raise ValueError(f"the network has no layer {layer!r}; it has {', '.join(names[:8])}, ...") from None
    model.eval()
    handle = module.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logit = model(images).reshape(len(images), -1)
            if logit.shape[1] != 1:
                raise ValueError(f"one logit a case is explained, the network returns {logit.shape[1]}")
            (gradient,) = torch.autograd.grad(logit.sum(), kept[0])
    finally:
        handle.remove()
    weight = gradient.float().mean((2, 3), keepdim=True)
    maps = (weight * kept[0].detach().float()).sum(1)
    return Explained(logit[:, 0].detach().float().cpu().numpy(), maps.cpu().numpy())


def explainer(
    model: Classifier, *, layer: str, batch_size: int, precision: Precision
) -> Callable[[np.ndarray], Explained]:
    """Return `explain(levels)` for grey levels in [0, 1], (n, height, width), uint8 images or float arrays."""
    device = next(model.parameters()).device
    model.requires_grad_(False)

    def over_batches(images: np.ndarray) -> Explained:
        done = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            levels = as_levels(batch, device) if batch.dtype == np.uint8 else torch.from_numpy(batch).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                done.append(explain(model, normalise(levels.float()), layer=layer))
        return Explained(*(np.concatenate(part) for part in zip(*done, strict=True)))

    return over_batches


def default_layer(model: Classifier, *, size: int) -> str:
    """Name of the last block whose map for images of `size` pixels is at least 7 x 7.

    Blocks are the children of the body's `features` where it has them, else of the body. Raises ValueError for
    a network without spatial maps, or images too small for a grid on which rank measures mean something.
    """
    grids: dict[str, tuple[int, ...]] = {}
    blank = normalise(torch.zeros(1, size, size, device=next(model.parameters()).device))

    def note(name: str, output: Any) -> None:
        if is_spatial(output, blank):
            grids[name] = tuple(output.shape[2:])

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name in blocks(model)
    ]
    with torch.no_grad():
        model.eval()(blank)
    for handle in handles:
        handle.remove()
    large = [name for name, grid in grids.items() if min(grid) >= MINIMUM_GRID]
    if not large:
        raise ValueError(f"no block has a map of {MINIMUM_GRID} x {MINIMUM_GRID} at {size} px, found {grids}")
    return large[-1]


def cascade(trained: Classifier, untrained: Classifier) -> Iterator[tuple[str, Classifier]]:
    """Networks randomised from the head down (Adebayo et al. 2018): the deepest block, and one more at each step.

    Yields the name of the block that was added and a network that has the weights of `untrained` in all blocks so
    far and those of `trained` elsewhere. It is one network that changes: use it before the next step.
    """
    fresh, hybrid = untrained.state_dict(), copy.deepcopy(trained)
    with_weights = [name for name in blocks(trained) if list(trained.get_submodule(name).parameters())]
    # What lies behind the blocks (hidden layers of a classifier, the head itself) goes first, as one level.
    behind = [key for key in fresh if not key.startswith(tuple(f"{name}." for name in with_weights))]
    levels = {name: [key for key in fresh if key.startswith(f"{name}.")] for name in reversed(with_weights)}
    for name, keys in {"head": behind, **levels}.items():
        hybrid.load_state_dict({key: fresh[key] for key in keys}, strict=False)
        yield name.rpartition(".")[2], hybrid


def perturbation_curve(
    probability: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    maps: np.ndarray,
    *,
    fractions: Sequence[float],
    insert: bool,
) -> np.ndarray:
    """Mean probability (fractions, n) as cells are taken away (or put in), the highest of `maps` first.

    probability: of the explained class, from grey levels (n, height, width). maps (n, h, w): their cells are the
    units. What is taken away becomes the blurred image, sigma a tenth of the side. Deletion and insertion of
    Petsiuk et al. 2018; a good map makes deletion fall and insertion rise faster than a random order does.
    """
    levels = images.astype(np.float32) / 255.0
    side = levels.shape[1]
    blurred = gaussian_filter(levels, sigma=(0, side / 10, side / 10))
    n, h, w = maps.shape
    rank = np.argsort(np.argsort(-maps.reshape(n, -1), axis=1, kind="stable"), axis=1).reshape(n, h, w)
    rows, columns = (np.arange(side) * h) // side, (np.arange(side) * w) // side
    pixel_rank = rank[:, rows[:, None], columns[None, :]]
    curve = []
    for fraction in fractions:
        reached = pixel_rank < round(fraction * h * w)
        curve.append(probability(np.where(reached == insert, levels, blurred)))
    return np.stack(curve)


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the positive attribution that lies inside each mask, (n,); NaN where the map has none.

    maps: (n, h, w), already of the sign that is asked about. masks: (n, height, width) or (height, width), a
    share of each cell in [0, 1] or boolean, averaged down to the grid. Chance is the mask's share of the image.
    """
    positive = np.maximum(maps, 0)
    cells = _on_grid(np.broadcast_to(masks, (len(maps), *np.shape(masks)[-2:])), maps.shape[1:])
    total = positive.sum((1, 2))
    return np.divide((positive * cells).sum((1, 2)), total, out=np.full(len(maps), np.nan), where=total > 0)


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether the centre of each map's highest cell lies in its mask, (n,) boolean (Zhang et al. 2018)."""
    n, h, w = maps.shape
    height, width = masks.shape[1:]
    row, column = np.divmod(maps.reshape(n, -1).argmax(1), w)
    return masks[np.arange(n), ((row + 0.5) * height / h).astype(int), ((column + 0.5) * width / w).astype(int)]


def border(side: int, *, share: float) -> np.ndarray:
    """Boolean (side, side): the frame whose width is `share` of the side."""
    width = round(side * share)
    frame = np.ones((side, side), dtype=bool)
    frame[width : side - width, width : side - width] = False
    return frame


def _on_grid(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean of each mask over the pixels of every cell, (n, h, w)."""
    edges = [np.linspace(0, side, cells + 1).round().astype(int)[:-1] for side, cells in zip(masks.shape[1:], grid)]
    sums = np.add.reduceat(np.add.reduceat(masks.astype(np.float32), edges[0], axis=1), edges[1], axis=2)
    ones = np.ones((1, *masks.shape[1:]), dtype=np.float32)
    return sums / np.add.reduceat(np.add.reduceat(ones, edges[0], axis=1), edges[1], axis=2)


def resized(maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Maps (n, h, w) brought bilinearly to another grid."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps))[:, None]
    return nn.functional.interpolate(tensor, size=grid, mode="bilinear", align_corners=False)[:, 0].numpy()


def hide_border(images: np.ndarray, typical: np.ndarray, *, share: float) -> np.ndarray:
    """Images (n, side, side) whose frame is replaced by that of a typical image (side, side), same type."""
    return np.where(border(typical.shape[0], share=share), typical, images)
