"""Any classifier as body, dropout and one linear head, of one output or one per class or finding."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tmv_lib.network import processes
from tmv_lib.network.architectures import ONNX, channels_of, first_line, parts
from tmv_lib.pipeline.files import Images
from tmv_lib.pipeline.params import Normalise
from tmv_lib.pipeline.question import Question

Precision = Literal["float32", "bfloat16"]
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # as torch names them on x86 and ARM

# What ImageNet weights expect, and as good as anything from scratch.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_EXTRA_TOKENS = 5  # that stand for no place in the image: of the class, of distillation, registers
XRV = (0.5, 1 / 2048)  # torchxrayvision: levels from -1024 to 1024
# The outputs of torchxrayvision's networks of 18, in their order.
XRV_FINDINGS = (
    *("Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis", "Effusion"),
    *("Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion", "Fracture"),
    *("Lung Opacity", "Enlarged Cardiomediastinum"),
)


class Classifier(nn.Module):
    """The logit of a question, (n,), or all k > 1 outputs, (n, k), from normalised images (n, 3, h, w).

    The outputs are `head(dropout(body(images)))`: the features that `body` returns, (n, d), are all that the head
    sees, so that dropout before the head can be repeated on saved features without the network. question: what the
    outputs are asked; None, as in training, for the outputs as they are. precision: what every pass computes in; it is
    saved with the weights, since in another one each answer would move by that alone.
    """

    precision: Precision = "float32"

    def __init__(self, body: nn.Module, *, n_features: int, dropout: float, n_outputs: int = 1) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(n_features, n_outputs)
        self.question: Question | None = None
        self.channels = 3
        self.mean: tuple[float, ...] = IMAGENET_MEAN
        self.std: tuple[float, ...] = IMAGENET_STD

    def normalise(self, levels: torch.Tensor) -> torch.Tensor:
        """Levels in [0, 1], (n, h, w[, 3]), to what the network takes, (n, k, h, w), channels last in memory.

        Raises ValueError for images in colour and a network of one channel.
        """
        if self.channels < (1 if levels.ndim == 3 else 3):
            raise ValueError("the network takes one channel, the images are in colour: prepare.channels: grey fits it")
        mean, std = (levels.new_tensor(of)[:, None, None] for of in (self.mean, self.std))
        return ((planes(levels) - mean) / std).contiguous(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.answer(self.dropout(self.body(images).float()))

    def answer(self, features: torch.Tensor) -> torch.Tensor:
        """What the head says of features (n, d) to the question, as `Question.logit` has it."""
        # The head stays in float32 under autocast: a logit must equal features @ weight + bias to the last digits.
        with torch.autocast(features.device.type, enabled=False):
            outputs = self.head(features)
            if self.question is None:
                return outputs.squeeze(1)  # (n, k) where there are several
            yes, no = self.question.positive, self.question.others
            return outputs[:, yes].logsumexp(1) - outputs[:, no].logsumexp(1) if no else outputs[:, yes[0]]


def build(
    architecture: str,
    *,
    weights: str,
    dropout: float,
    n_outputs: int = 1,
    normalise: Normalise = "imagenet",
) -> Classifier:
    """Build a network by name, see `architectures.parts`, its last linear layer replaced by a head of ours.

    normalise: the mean and standard deviation of levels in [0, 1] that it expects; `xrv` is that of torchxrayvision,
    whose networks take one channel. Raises ValueError as `parts`.
    """
    made = parts(architecture, weights=weights, n_outputs=n_outputs, one_channel=normalise == "xrv")
    model = Classifier(made.body, n_features=made.n_features, dropout=dropout, n_outputs=n_outputs)
    if made.head is not None:
        model.head.load_state_dict({"bias": model.head.bias, **made.head.state_dict()})
    model.channels = made.channels or channels_of(made.body)
    model.mean, model.std = _mean_and_std(normalise, model.channels)
    return model


def _mean_and_std(normalise: Normalise, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if normalise == "imagenet":
        if channels == len(IMAGENET_MEAN):
            return IMAGENET_MEAN, IMAGENET_STD
        return (float(np.mean(IMAGENET_MEAN)),) * channels, (float(np.mean(IMAGENET_STD)),) * channels
    mean, std = XRV if normalise == "xrv" else normalise
    return (mean,) * channels, (std,) * channels


def load_weights(model: Classifier, path: str | Path, *, findings: Sequence[str] = ()) -> None:
    """Load what `save_weights` saved, or a torchvision state dict (.safetensors, .pt, .pth) of this architecture.

    Or what the ONNX file that is this architecture has learned. A head of as many outputs as needed is taken as it is;
    one of two (negative, positive) as their difference where one is needed. Of torchxrayvision's 18 outputs those are
    taken that `findings` names, in its order.
    Training wraps it at times: the entry `state_dict` of a checkpoint is taken, and a prefix `module.` off every name.
    The model's precision becomes the one that was saved.
    Raises ValueError naming the file and what does not fit, and for weights that are not finite numbers or all 0.
    """
    path = Path(path)
    state = _stored(path)
    if "head.weight" not in state:
        state = _with_head(state, set(model.state_dict()), model.head.out_features, findings, path)
    wanted = model.state_dict()
    missing, strange = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or strange:
        raise ValueError(
            f"{path}: does not fit the architecture: {len(missing)} of {len(wanted)} entries are missing"
            f" ({', '.join(missing[:3])}), {len(strange)} are not known ({', '.join(strange[:3])})"
        )
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            found, needed = tuple(value.shape), tuple(wanted[name].shape)
            raise ValueError(f"{path}: does not fit the architecture: {name} has shape {found}, needed is {needed}")
        if value.is_floating_point() != wanted[name].is_floating_point() or not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} does not hold finite floating-point numbers")
    if not any(value.any() for name, value in state.items() if name.startswith("body.") and value.is_floating_point()):
        raise ValueError(f"{path}: every weight is 0")
    model.load_state_dict(state)
    model.precision = _stored_precision(path) or model.precision


def _stored_precision(path: Path) -> Precision | None:
    """What `save_weights` noted; None for a file from elsewhere."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as stored:
        told = (stored.metadata() or {}).get("precision")
    return told if told in get_args(Precision) else None


def _stored(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights by name; nothing in it is executed."""
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    if path.suffix == ONNX:
        from tmv_lib.network import graph  # as in `architectures`

        return graph.weights_of(path)
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, weights_only=True, map_location="cpu")
    except UnpicklingError:
        raise ValueError(f"{path}: holds more than tensors, as a pickled model does: save its state_dict()") from None
    except Exception as error:  # a damaged file raises errors of many kinds
        raise ValueError(f"{path}: not a whole file of weights ({first_line(error)})") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path}: holds {type(state).__name__}, needed is a state dict, tensors by name")
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in state.items()}


def _with_head(
    state: dict[str, torch.Tensor], wanted: set[str], n_outputs: int, findings: Sequence[str], path: Path
) -> dict[str, torch.Tensor]:
    state = {name: value for name, value in state.items() if name != "op_threshs"}  # thresholds of torchxrayvision
    head = {name for name in state if f"body.{name}" not in wanted}
    weight = next((state[name] for name in head if name.endswith("weight")), torch.empty(0))
    bias = next((state[name] for name in head if name.endswith("bias")), torch.empty(0))
    allowed = (1, 2) if n_outputs == 1 and not findings else (n_outputs,)
    if findings and len(weight) == len(XRV_FINDINGS):
        if unknown := sorted(set(findings) - set(XRV_FINDINGS)):
            raise ValueError(f"{path}: no output for {unknown[0]}; its 18 are {', '.join(XRV_FINDINGS)}")
        places = [XRV_FINDINGS.index(name) for name in findings]
        weight, bias = weight[places], bias[places]
    if len(head) != 2 or weight.ndim != 2 or len(weight) not in allowed:
        needed = "one or two outputs" if len(allowed) == 2 else f"{n_outputs} outputs"
        found = f"{len(weight)} outputs" if len(head) == 2 and weight.ndim == 2 else sorted(head) or "none"
        raise ValueError(f"{path}: a head of {needed} is needed, found {found}")
    if len(weight) != n_outputs:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    body = {f"body.{name}": value for name, value in state.items() if name not in head}
    return {**body, "head.weight": weight, "head.bias": bias}


def save_weights(model: Classifier, path: str | Path) -> None:
    """Write all weights and buffers as safetensors, under the names `body.*` and `head.*`, and the precision."""
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    try:
        save_file(state, path, metadata={"precision": model.precision})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def available_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fastest_precision(device: torch.device) -> Precision:
    """bfloat16 where the device has instructions for it, and float32 where it would be emulated, far slower."""
    if device.type == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        there = any(known.get(name) for name in BFLOAT16_INSTRUCTIONS)
    return "bfloat16" if there else "float32"


def planes(images: torch.Tensor) -> torch.Tensor:
    """Grey levels (n, h, w) as (n, 1, h, w), colour (n, h, w, 3) as (n, 3, h, w)."""
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def as_levels(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 images (n, h, w[, 3]), or float levels, to float levels in [0, 1] on `device`."""
    levels = torch.from_numpy(np.array(images)).to(device).float()  # a copy: mapped files are read-only
    return levels / 255.0 if images.dtype == np.uint8 else levels


def in_precision(model: Classifier, device: torch.device) -> torch.autocast:
    """Within this, passes of the model are computed in its precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=model.precision == "bfloat16")


def over_batches(
    one: Callable[[torch.Tensor], Any],
    model: Classifier,
    images: Images,
    *,
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Any]:
    """What `one` makes of each normalised batch (n, k, h, w) of uint8 images or float levels (n, h, w[, 3])."""
    device = next(model.parameters()).device

    def of_batch(start: int) -> Any:
        batch = model.normalise(as_levels(images[start : start + batch_size], device))
        with in_precision(model, device):
            return one(batch)

    return processes.over(range(0, len(images), batch_size), of_batch, progress=progress)


def blocks(model: Classifier) -> list[str]:
    """Names of the body's blocks, from the image to the head: children of its `features`, else of the body.

    A child of the name `blocks`, as transformers have it, stands for its own children.
    """
    stem = "body.features" if hasattr(model.body, "features") else "body"
    names = []
    for name, child in model.get_submodule(stem).named_children():
        inner = [f".{each}" for each, _ in child.named_children()] if name == "blocks" else [""]
        names += [f"{stem}.{name}{each}" for each in inner]
    return names


def token_layers(model: Classifier) -> list[str]:
    """The layer whose tokens are explained where the body is a transformer: what enters the last block, normalised.

    What leaves it is, but for the token that the head reads, read by nobody.
    """
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    return [name for name in norms if name.endswith((".norm1", ".ln_1"))][-1:]


def as_grid(output: Any, images: torch.Tensor) -> torch.Tensor | None:
    """A layer's output as maps (n, k, h, w): as it is, or of tokens (n, e + h * h, k) all but the first e; or None."""
    if is_spatial(output, images):
        return output
    if not isinstance(output, torch.Tensor) or output.ndim != 3 or images.shape[2] != images.shape[3]:
        return None
    side = math.isqrt(output.shape[1])
    extra = output.shape[1] - side**2
    if extra > MOST_EXTRA_TOKENS:
        return None
    return output[:, extra:].transpose(1, 2).unflatten(2, (side, side))


def is_spatial(output: Any, images: torch.Tensor) -> bool:
    """Whether this is (n, k, h, w): square images have square maps, which channels-last transformers do not show."""
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        return False
    return images.shape[2] != images.shape[3] or output.shape[2] == output.shape[3]


class Outputs(NamedTuple):
    """logit (n,), or outputs (n, k), and pooled features (n, d), float32."""

    logit: np.ndarray
    features: np.ndarray


@torch.no_grad()
def predict(
    model: Classifier,
    images: Images,
    *,
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Outputs:
    """Run the network in evaluation mode over uint8 images, or levels in [0, 1], (n, h, w) or (n, h, w, 3)."""
    model.eval()

    def one(batch: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        features = model.body(batch).float()
        # copies: a tensor that is kept, however small, keeps the memory of its pass from being used again
        return model.answer(features).cpu().numpy().copy(), features.cpu().numpy().copy()

    parts = over_batches(one, model, images, batch_size=batch_size, progress=progress)
    return Outputs(*(np.concatenate(part) for part in zip(*parts, strict=True)))
