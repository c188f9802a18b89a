"""Where a network comes from: torchvision, timm, an ONNX file, a function of the user's own; its body and its head."""

from collections import OrderedDict
from importlib import import_module
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torchvision
from torch import nn

OWN = "networks"  # the package of the user's own, which is a dependency of every stage that builds a network

ONNX = ".onnx"


class Parts(NamedTuple):
    """A body that returns features (n, n_features), and the linear head that came with it, or None for a new one.

    channels: how many it takes, where its first convolution does not tell.
    """

    body: nn.Module
    n_features: int
    head: nn.Linear | None
    channels: int | None = None


def parts(architecture: str, *, weights: str, n_outputs: int, one_channel: bool) -> Parts:
    """The parts of a torchvision network, `timm/<name>`, `<file>.onnx`, or what `networks.<module>:<function>` returns.

    weights: `none`, or what is downloaded: a torchvision entry such as `DEFAULT`, of timm `pretrained`; what an ONNX
    file has learned `classifier.load_weights` reads. one_channel: whether the first convolution takes one channel,
    where the network is torchvision's or timm's. Dropout inside the body is turned off. Raises ValueError for what is
    unknown, cannot be downloaded or does not end in one linear layer, and for a function that returns something else.
    """
    if ":" in architecture:
        if weights != "none":
            raise ValueError(f"weights {weights!r} of {architecture}: none, or a file below data/weights")
        found = _of_function(architecture, n_outputs)
    elif architecture.startswith("timm/"):
        found = _of_timm(architecture, weights, one_channel)
    elif architecture.endswith(ONNX):
        # Here and not above: onnxruntime takes half a second to import, and most networks do not need it.
        from tmv_lib.network import graph

        found = graph.of_file(architecture)
    else:
        found = _of_torchvision(architecture, weights, one_channel)
    for module in found.body.modules():
        # Dropout stands before our head alone; another one inside would be left out of the saved features.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return found


def channels_of(body: nn.Module) -> int:
    """How many channels the first convolution takes; 3 where there is none."""
    return next((module.in_channels for module in body.modules() if isinstance(module, nn.Conv2d)), 3)


def _of_torchvision(architecture: str, weights: str, one_channel: bool) -> Parts:
    try:
        network = torchvision.models.get_model(architecture, weights=None if weights == "none" else weights)
    except (ValueError, KeyError) as error:
        raise ValueError(f"architecture {architecture!r} with weights {weights!r}: torchvision says: {error}") from None
    except (OSError, RuntimeError, UnpicklingError) as error:  # the last two where the file in torch's cache is damaged
        raise ValueError(
            f"weights {weights!r} of {architecture}: download failed, or the file in torch's cache is damaged"
            f" ({first_line(error)}); weights: none trains from scratch"
        ) from None
    if hasattr(network, "aux_logits"):
        raise ValueError(f"architecture {architecture!r} does not end in one linear layer; densenet121 and resnet50 do")
    found = _without_head(network, architecture)._replace(head=None)
    if one_channel:
        _take_one_channel(found.body)
    if isinstance(network, torchvision.models.DenseNet):
        return found._replace(body=_densenet_of_modules(network))
    return found


def _of_timm(architecture: str, weights: str, one_channel: bool) -> Parts:
    # Here and not above: it takes a second to import, and most networks do not need it.
    import timm

    name = architecture.removeprefix("timm/")
    if weights not in ("none", "pretrained"):
        raise ValueError(f"weights {weights!r} of {architecture}: none, pretrained, or a file below data/weights")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ValueError(
            f"architecture {architecture!r}: timm has no such model{f'; it has {near}, ...' if near else ''}"
        )
    options: dict[str, Any] = {"num_classes": 0, "in_chans": 1 if one_channel else 3}
    options["pretrained"] = weights == "pretrained"
    try:
        try:
            network = timm.create_model(name, dynamic_img_size=True, **options)  # of transformers: any size of image
        except TypeError:
            network = timm.create_model(name, **options)
    except Exception as error:  # a hub that is not reached answers with errors of many kinds
        raise ValueError(f"weights {weights!r} of {architecture}: download failed ({first_line(error)})") from None
    width: Any = getattr(network, "head_hidden_size", network.num_features)
    return Parts(network, int(width), None)


def _of_function(architecture: str, n_outputs: int) -> Parts:
    module, _, function = architecture.partition(":")
    if module.split(".")[0] != OWN:
        raise ValueError(f"architecture {architecture!r}: modules lie in {OWN}/, where DVC sees them change")
    try:
        made = getattr(import_module(module), function)(n_outputs)
    except Exception as error:  # it is the user's code
        raise ValueError(f"architecture {architecture!r}: {type(error).__name__}: {first_line(error)}") from error
    pair = made if isinstance(made, tuple) else None
    if pair is not None and len(pair) == 2 and isinstance(pair[0], nn.Module) and isinstance(pair[1], nn.Linear):
        found = Parts(pair[0], pair[1].in_features, pair[1])
    elif isinstance(made, nn.Module):
        found = _without_head(made, architecture)
    else:
        raise ValueError(f"architecture {architecture!r} returns {type(made).__name__}, no torch.nn.Module")
    if found.head is None or found.head.out_features != n_outputs:
        has = 0 if found.head is None else found.head.out_features
        raise ValueError(f"architecture {architecture!r} has {has} outputs, needed are {n_outputs}")
    return found


def _without_head(network: nn.Module, architecture: str) -> Parts:
    """The network with its last layer, which must be the only linear one at its end, taken off."""
    names = [name for name, _ in network.named_modules()]
    head = network.get_submodule(names[-1])
    if not isinstance(head, nn.Linear) or head is network:
        raise ValueError(f"architecture {architecture!r} does not end in one linear layer; densenet121 and resnet50 do")
    network.set_submodule(names[-1], nn.Identity())
    return Parts(network, head.in_features, head)


def _take_one_channel(body: nn.Module) -> None:
    name, first = next((name, module) for name, module in body.named_modules() if isinstance(module, nn.Conv2d))
    same: dict[str, Any] = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding}
    body.set_submodule(name, nn.Conv2d(1, first.out_channels, bias=first.bias is not None, **same))


def _densenet_of_modules(network: torchvision.models.DenseNet) -> nn.Module:
    """DenseNet ends in an in-place ReLU that is no module; as one it can be named and its map explained."""
    network.features.add_module("relu5", nn.ReLU())
    pool, flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(OrderedDict(features=network.features, pool=pool, flatten=flatten))


def first_line(error: Exception) -> str:
    """The first line of what an error says, cut to 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
