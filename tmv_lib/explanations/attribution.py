"""Where a network looks: three ways to attribute its logit to places in the image, under one contract.

A map is signed and raw: min-max scaling turns noise into structure and is for pictures only. Every method answers on
the grid of the explained layer and is linear in the score: the map of -z is the negative of the map of z.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import nn

from tmv_lib.network import classifier
from tmv_lib.network.classifier import Classifier, Precision, as_grid, as_levels, blocks, over_batches, token_layers
from tmv_lib.pipeline.files import Images
from tmv_lib.pipeline.params import Member
from tmv_lib.pipeline.question import BINARY, Question

Method = Literal["grad_cam", "hires_cam", "integrated_gradients"]

MINIMUM_GRID = 7
PATH_STEPS = 32  # Gauss-Legendre nodes of integrated gradients


class Explained(NamedTuple):
    """logit (n,) and signed maps (n, h, w) of the same forward pass."""

    logit: np.ndarray
    maps: np.ndarray


class Seen(NamedTuple):
    """A network's pass over images: logit z (n,), maps A of the explained layer (n, k, h, w), and dz/dA like A."""

    model: nn.Module
    images: torch.Tensor
    logit: torch.Tensor
    features: torch.Tensor
    gradient: torch.Tensor


def explain(model: nn.Module, images: torch.Tensor, *, layer: str, method: Method = "grad_cam") -> Explained:
    """Logits (n,) and signed maps (n, h, w) of the logit on the grid of `layer`, without a final ReLU.

    model: returns one logit a case, (n,) or (n, 1). images: what it takes, (n, channels, height, width). layer: name of
    a module whose output is (n, k, h, w), or tokens of a square grid (n, e + h * w, k). Raises ValueError for an
    unknown layer or method, a layer without spatial maps, and a network of several logits.

    >>> explain(nn.Sequential(nn.Identity(), nn.Flatten()), torch.ones(1, 1, 1, 1), layer="0").maps
    array([[[1.]]], dtype=float32)
    """
    if method not in _FORMULAS:
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, found {method!r}")
    seen = _look(model, images, layer=layer)
    return Explained(seen.logit.cpu().numpy(), _FORMULAS[method](seen).cpu().numpy())


def _grad_cam(seen: Seen) -> torch.Tensor:
    """Grad-CAM: map_ij = sum_k alpha_k A_kij, alpha_k = mean_ij dz/dA_kij.

    Selvaraju et al. 2017, without the final ReLU. Costs a forward pass and the backward pass behind the layer.
    """
    return (seen.gradient.mean((2, 3), keepdim=True) * seen.features).sum(1)  # no product of matrices, so in float32


def _hires_cam(seen: Seen) -> torch.Tensor:
    """HiResCAM: map_ij = sum_k dz/dA_kij A_kij.

    Draelos & Carin 2020: the gradient is not averaged over the image first, so that no cell is credited with what
    another one did. Costs what Grad-CAM does.
    """
    return (seen.gradient * seen.features).sum(1)


def _integrated_gradients(seen: Seen) -> torch.Tensor:
    """Integrated gradients: x times the mean of dz/dx over the straight path from 0 to x.

    Sundararajan et al. 2017. The start is the input 0, for a normalised image a uniform mid-grey. Pixels are summed
    over channels and over the cells of the layer's grid, which leaves their sum: z(x) - z(0). Costs
    32 forward and full backward passes.
    """
    total = torch.zeros_like(seen.images)
    nodes, weights = np.polynomial.legendre.leggauss(PATH_STEPS)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        with torch.enable_grad():
            along = (float(node) * seen.images).requires_grad_()
            (gradient,) = torch.autograd.grad(seen.model(along).sum(), along)
        total += float(weight) * gradient
    maps = (total * seen.images).sum(1)
    for axis, cells in ((1, seen.features.shape[2]), (2, seen.features.shape[3])):
        maps = torch.stack([part.sum(axis) for part in maps.tensor_split(cells, axis)], axis)
    return maps


_FORMULAS: dict[str, Callable[[Seen], torch.Tensor]] = {
    "grad_cam": _grad_cam,
    "hires_cam": _hires_cam,
    "integrated_gradients": _integrated_gradients,
}


def _look(model: nn.Module, images: torch.Tensor, *, layer: str) -> Seen:
    """One forward pass, and a backward pass through the part of the network behind the last use of `layer` alone."""
    kept: list[torch.Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        if as_grid(output, images) is None:
            raise ValueError(f"layer {layer!r} has no spatial maps (n, k, h, w)")
        # Only what lies behind the layer is recorded, from a fresh leaf; the copy lets what follows work in place.
        torch.set_grad_enabled(True)
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    handle = _module(model.eval(), layer).register_forward_hook(cut)
    try:
        with torch.no_grad():
            logit = model(images).reshape(len(images), -1)
            if logit.shape[1] != 1:
                raise ValueError(f"one logit a case is explained, the network returns {logit.shape[1]}")
            (gradient,) = torch.autograd.grad(logit.sum(), kept[-1])
    finally:
        handle.remove()
    maps = [as_grid(of, images) for of in (kept[-1].detach().float(), gradient.float())]
    return Seen(model, images, logit[:, 0].detach().float(), *(of for of in maps if of is not None))


def logit_at_the_start(model: Classifier, images: Images, *, layer: str, method: Method) -> float:
    """The logit z0 from which a method's map counts: sum of the map = z - z0 for every case (completeness).

    Integrated gradients: z of the input 0. Grad-CAM and HiResCAM: the head's bias, where nothing but the mean over
    cells and the linear head lies behind the layer, so that dz/dA_kij = w_k / cells; two of `images` (n, height,
    width), uint8, tell. Raises ValueError with the reason where no such sum is promised.
    """
    some = model.normalise(as_levels(images[:2], next(model.parameters()).device))
    if method == "integrated_gradients":
        with torch.no_grad():
            return model.eval()(torch.zeros_like(some[:1])).item()
    asked = 0 if model.question is None else model.question.positive[0]
    if model.question is not None and model.question.others:
        raise ValueError("the question's logit is no linear output: it weighs several classes")
    gradient, weight = _look(model, some, layer=layer).gradient, model.head.weight.detach()[asked]
    share = (weight / gradient[0, 0].numel())[:, None, None]
    if len(weight) != gradient.shape[1] or not torch.allclose(gradient, share.expand_as(gradient), rtol=1e-4):
        raise ValueError(f"more than the mean over cells and the linear head lies behind {layer}")
    return model.head.bias[asked].item()


def _module(model: nn.Module, layer: str) -> nn.Module:
    try:
        return model.get_submodule(layer)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        raise ValueError(f"the network has no layer {layer!r}; it has {', '.join(names[:8])}, ...") from None


def explainer(
    model: Classifier,
    *,
    layer: str,
    batch_size: int,
    method: Method = "grad_cam",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Callable[[Images], Explained]:
    """Return `explain(levels)` for levels in [0, 1], (n, height, width[, 3]), uint8 images or float arrays."""
    model.requires_grad_(False)

    def one(images: torch.Tensor) -> Explained:
        return explain(model, images, layer=layer, method=method)

    def explain_all(images: Images) -> Explained:
        parts = over_batches(one, model, images, batch_size=batch_size, progress=progress)
        return Explained(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    return explain_all


def target_layer(model: Classifier, *, size: int, wished: str = "auto") -> str:
    """Name of the layer to explain for images of `size` pixels: the one wished for, else the last block that serves.

    It serves when its map is at least 7 x 7: rank measures on a coarser grid mean nothing. Blocks are the children of
    the body's `features` where it has them, else of the body. The activation inside a block, as DenseNet's transitions
    have one, shows the map before it as the next layers see it, and is asked too. Raises ValueError for a layer that
    does not exist, has no spatial maps or too coarse a grid, for a network without spatial maps, and for images too
    small.
    """
    names = _candidates(model) if wished == "auto" else [wished]
    grids = _grids(model, names, size=size)
    large = [name for name, grid in grids.items() if min(grid) >= MINIMUM_GRID]
    if large:
        return large[-1]
    needed = f"{MINIMUM_GRID} x {MINIMUM_GRID}"
    if wished != "auto" and grids:
        h, w = grids[wished]
        raise ValueError(
            f"layer {wished!r} has a grid of {h} x {w} at {size} px, too coarse: at least {needed} is needed; "
            "take an earlier layer or larger images"
        )
    if not grids:
        what = "the network" if wished == "auto" else f"layer {wished!r}"
        raise ValueError(f"{what} has no spatial maps (n, k, h, w) of at least {needed} to explain")
    raise ValueError(f"no block has a map of {needed} at {size} px, found {grids}")


def _candidates(model: Classifier) -> list[str]:
    """The blocks, and the ReLUs that are children of a block of several layers; of a transformer its tokens."""
    if tokens := token_layers(model):
        return tokens
    inner = [
        f"{block}.{name}"
        for block in blocks(model)
        for name, child in model.get_submodule(block).named_children()
        if isinstance(child, nn.ReLU)
    ]
    return [*blocks(model), *inner]


def _grids(model: Classifier, names: Sequence[str], *, size: int) -> dict[str, tuple[int, ...]]:
    """Grid of each of these modules that has spatial maps, in the order of their use, for images of `size` pixels."""
    grids: dict[str, tuple[int, ...]] = {}
    blank = model.normalise(torch.zeros(1, size, size, device=next(model.parameters()).device))

    def note(name: str, output: Any) -> None:
        if (maps := as_grid(output, blank)) is not None:
            grids[name] = tuple(maps.shape[2:])

    handles = [
        _module(model, name).register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name in names
    ]
    with torch.no_grad():
        model.eval()(blank)
    for handle in handles:
        handle.remove()
    return grids


def load_trained(member: Member, weights: str | Path, question: Question = BINARY) -> Classifier:
    """A member's network with the weights of a file, asked a question, in evaluation mode on the device there is."""
    if not Path(weights).is_file():
        raise ValueError(f"{weights}: no such file; `make repro` trains the members")
    with torch.random.fork_rng():  # what a network is built with is overwritten, and nobody's numbers are used up
        model = _built(member, question)
    classifier.load_weights(model, weights)
    return _ready(model)


def untrained(
    member: Member, draw: int = 0, *, seed: int, precision: Precision, question: Question = BINARY
) -> Classifier:
    """A network of a member's architecture that learned nothing, in evaluation mode on the device that is there.

    Its initial values follow from seed and draw and lie far from any member's own seed, so that training has not
    started from these very weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1_000_003 + seed + draw)
        # the second one that the seed makes: figures on record are of it
        _, model = (_built(member, question) for _ in range(2))
    model.precision = precision
    return _ready(model)


def _built(member: Member, question: Question) -> Classifier:
    n_outputs = max(len(question.names), 1)
    options: dict[str, Any] = {"dropout": member.dropout, "n_outputs": n_outputs, "normalise": member.normalise}
    model = classifier.build(member.architecture, weights="none", **options)
    model.question = question
    return model


def _ready(model: Classifier) -> Classifier:
    return model.to(classifier.available_device()).to(memory_format=torch.channels_last).eval()
