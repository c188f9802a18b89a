"""Networks from ONNX files: onnxruntime runs the graph up to the last linear layer, and its weights are torch's.

An ONNX file is a graph of nodes in execution order, and their weights. Where the graph ends as most do, with maps,
their mean and one linear layer, the mean and the layer are done here in torch, so that the logit has a gradient at the
maps: Grad-CAM asks for no more. What lies before the maps has none.
"""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from tmv_lib.network.architectures import Parts, first_line
from tmv_lib.pipeline.files import naming

MOST_BYTES = 2**31  # what one protocol buffer can hold, weights in files of their own included
AFTER_THE_HEAD = ("Sigmoid", "Softmax", "LogSoftmax", "Squeeze", "Flatten", "Reshape", "Identity")  # logits do without
RESHAPES = ("Flatten", "Reshape", "Squeeze", "Identity", "Dropout")  # (n, k, 1, 1) to (n, k)
# Of an untrained network: places of a node's inputs, and what stands there; None: a kernel, drawn by lot.
UNTRAINED: dict[str, dict[int, float | None]] = {
    **{linear: {1: None, 2: 0.0} for linear in ("Conv", "ConvTranspose", "Gemm", "MatMul")},
    "BatchNormalization": {1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0},
    "LayerNormalization": {1: 1.0, 2: 0.0},
}


class Weight(NamedTuple):
    """An initializer of the graph, as the file has it; untrained: what stands there before training, None: by lot."""

    name: str
    value: torch.Tensor
    untrained: float | None
    fan_in: int


class Read(NamedTuple):
    """An ONNX file. model: its graph, cut before the mean of the maps or, where there is none, before the linear layer.

    linear: weight (k, d) and bias (k,) of that layer. one_by_one: whether it takes one image at a time.
    """

    model: onnx.ModelProto
    weights: list[Weight]
    linear: dict[str, torch.Tensor]
    channels: int
    side: int | None
    one_by_one: bool
    has_maps: bool


class Graph(nn.Module):
    """Images (n, channels, h, w) to the last maps (n, k, h, w), or features (n, d), in float32, on the CPU.

    A new one has learned nothing: its kernels are drawn from torch's generator (He et al. 2015).
    """

    def __init__(self, path: str | Path, read: Read) -> None:
        super().__init__()
        self.path, self.read = path, read
        self.weights = nn.ParameterList(_untrained(weight) for weight in read.weights)
        self.session: onnxruntime.InferenceSession | None = None
        self.register_load_state_dict_post_hook(_forget_session)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"session": None}  # a session cannot be copied

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = self.read.side
        if images.requires_grad:
            raise ValueError(
                f"{self.path}: an ONNX file gives no gradient at the image; explanations.method: grad_cam or hires_cam"
            )
        if side is not None and images.shape[2:] != (side, side):
            raise ValueError(
                f"{self.path}: takes images of {side} x {side} pixels, found {images.shape[2]} x {images.shape[3]}:"
                f" prepare.size: {side} fits it"
            )
        array = images.float().cpu().contiguous().numpy()
        parts = np.split(array, len(array)) if self.read.one_by_one else [array]
        return torch.from_numpy(np.concatenate([self._run(part) for part in parts])).to(images.device)

    def _run(self, images: np.ndarray) -> np.ndarray:
        try:
            self.session = self.session or self._start()
            (output,) = self.session.run(None, {self.session.get_inputs()[0].name: images})
        except Exception as error:  # of many kinds, none of them a ValueError
            raise ValueError(f"{self.path}: onnxruntime cannot run it ({first_line(error)})") from None
        return np.asarray(output)

    def _start(self) -> onnxruntime.InferenceSession:
        there = {weight.name: value for weight, value in zip(self.read.weights, self.weights, strict=True)}
        model = onnx.ModelProto()
        model.CopyFrom(self.read.model)
        for initializer in model.graph.initializer:
            if initializer.name in there:
                array = there[initializer.name].detach().cpu().contiguous().numpy()
                initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _forget_session(graph: Graph, _keys: object) -> None:
    graph.session = None  # it was of other weights


def _untrained(weight: Weight) -> nn.Parameter:
    shape = weight.value.shape
    if weight.untrained is None:
        return nn.Parameter(torch.randn(shape) * math.sqrt(2 / weight.fan_in))
    return nn.Parameter(torch.full(shape, weight.untrained))


def of_file(path: str) -> Parts:
    """Body and width of the network in an ONNX file, untrained. Raises ValueError as `read_file`."""
    read = read_file(path)
    body = [("graph", Graph(path, read))]
    tail = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())] if read.has_maps else []
    parts = OrderedDict[str, nn.Module]([*body, *tail])
    return Parts(nn.Sequential(parts), read.linear["linear.weight"].shape[1], None, read.channels)


def weights_of(path: str | Path) -> dict[str, torch.Tensor]:
    """What the file has learned, by the names that `of_file` gives its body, and `linear.weight`, `linear.bias`."""
    read = read_file(path)
    return {f"graph.weights.{k}": weight.value for k, weight in enumerate(read.weights)} | read.linear


def read_file(path: str | Path) -> Read:
    """Read an ONNX file.

    Raises ValueError naming the file for what is no ONNX file or too large, weights that lie outside its folder, other
    inputs than one float32 (n, 1 or 3, h, w), other outputs than one, and a graph that ends in no linear layer.
    """
    with naming(path):
        return _read(Path(path))


def _read(path: Path) -> Read:
    model = _load(path)
    channels, side, one_by_one = _input(model)
    alias = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    values = {one.name: one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}

    def value(node: onnx.NodeProto, place: int) -> onnx.TensorProto | None:
        name = node.input[place] if place < len(node.input) else ""
        while name in alias:
            name = alias[name]
        return values.get(name)

    made_by = {name: node for node in model.graph.node for name in node.output}
    head = _before(made_by, model.graph.output[0].name, AFTER_THE_HEAD)
    weight, bias = (value(head, place) if head is not None else None for place in (1, 2))
    told = head is not None and head.op_type == "Gemm" and (bias is not None or len(head.input) < 3)
    if head is None or weight is None or not told or _attribute(head, "transA", 0):
        raise ValueError("its graph does not end in one linear layer (Gemm) with weights in float32")
    if (_attribute(head, "alpha", 1.0), _attribute(head, "beta", 1.0)) != (1.0, 1.0):
        raise ValueError("its last linear layer has factors alpha or beta, which are not read")
    matrix = _tensor(weight) if _attribute(head, "transB", 0) else _tensor(weight).T.contiguous()
    pool = _before(made_by, head.input[0], RESHAPES)
    has_maps = pool is not None and _is_mean_over_places(pool, model)
    last = pool if pool is not None and has_maps else head
    model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name=last.input[0]))
    del model.graph.node[list(model.graph.node).index(head) :]
    weights = {
        one.name: Weight(one.name, _tensor(one), untrained, _fan_in(node, one))
        for node in model.graph.node
        for place, untrained in UNTRAINED.get(node.op_type, {}).items()
        if (one := value(node, place)) is not None
    }
    if not any(one.untrained is None for one in weights.values()):
        raise ValueError("holds no kernel in float32; a quantised network is not read")
    linear = {
        "linear.weight": matrix,
        "linear.bias": torch.zeros(len(matrix)) if bias is None else _tensor(bias).flatten(),
    }
    return Read(model, list(weights.values()), linear, channels, side, one_by_one, has_maps)


def _load(path: Path) -> onnx.ModelProto:
    """The file with all its weights."""
    if not path.is_file():
        raise ValueError("no such file")
    total = path.stat().st_size
    if total > MOST_BYTES:
        raise ValueError(f"{total / 1e9:.1f} GB, at most {MOST_BYTES / 1e9:.1f} are read")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ValueError(f"no whole ONNX file ({first_line(error)})") from None
    known = onnx.defs.onnx_opset_version()
    if newer := [one.version for one in model.opset_import if one.domain == "" and one.version > known]:
        raise ValueError(f"its opset is {newer[0]}, at most {known} is read")
    folder = path.parent.resolve()
    for name in sorted({_location(one) for one in model.graph.initializer} - {""}):
        beside = (folder / name).resolve()
        if not beside.is_relative_to(folder):
            raise ValueError(f"its weights lie in {name}, outside its folder")
        if not beside.is_file():
            raise ValueError(f"its weights lie in {name}, and there is no such file beside it")
        total += beside.stat().st_size
    if total > MOST_BYTES:
        raise ValueError(f"{total / 1e9:.1f} GB with its weights, at most {MOST_BYTES / 1e9:.1f} are read")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except Exception as error:
        raise ValueError(f"its weights cannot be read ({first_line(error)})") from None
    try:
        onnx.checker.check_model(model)  # that values are made before they are used, among others
    except Exception as error:
        raise ValueError(f"not valid ONNX ({first_line(error)})") from None
    return model


def _location(initializer: onnx.TensorProto) -> str:
    return next((entry.value for entry in initializer.external_data if entry.key == "location"), "")


def _input(model: onnx.ModelProto) -> tuple[int, int | None, bool]:
    """Channels, the side of an image where the file fixes it, and whether it takes one image at a time."""
    stored = {initializer.name for initializer in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in stored]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        found = f"{len(inputs)} inputs and {len(model.graph.output)} outputs"
        raise ValueError(f"one input and one output are needed, found {found}")
    of = inputs[0].type.tensor_type
    shape = [dim.dim_value or dim.dim_param or "?" for dim in of.shape.dim]  # 0 and "" where nothing is said
    fixed = [one if isinstance(one, int) else None for one in shape]
    if of.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4 or fixed[0] not in (None, 1):
        kind = onnx.TensorProto.DataType.Name(of.elem_type).lower()
        raise ValueError(f"images in float32 of shape (n, 1 or 3, h, w) are needed, its input is {kind} {shape}")
    if fixed[1] not in (None, 1, 3) or fixed[2] != fixed[3]:
        raise ValueError(f"square images of shape (n, 1 or 3, h, w) are needed, its input is {shape}")
    return fixed[1] or 3, fixed[2], fixed[0] == 1


def _before(made_by: dict[str, onnx.NodeProto], name: str, skipped: tuple[str, ...]) -> onnx.NodeProto | None:
    """The node that makes this value, or the one before it that is of none of these kinds."""
    node = made_by.get(name)
    while node is not None and node.op_type in skipped:
        node = made_by.get(node.input[0])
    return node


def _attribute(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == name), otherwise)


def _is_mean_over_places(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether the node makes the mean over rows and columns of maps (n, k, h, w)."""
    if node.op_type != "ReduceMean":
        return node.op_type == "GlobalAveragePool"
    stored = {one.name: one for one in model.graph.initializer}
    given = len(node.input) > 1 and node.input[1] in stored  # an attribute before opset 18
    axes = numpy_helper.to_array(stored[node.input[1]]) if given else _attribute(node, "axes", [])
    return sorted(int(axis) % 4 for axis in axes) == [2, 3]


def _tensor(initializer: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(initializer)))


def _fan_in(node: onnx.NodeProto, kernel: onnx.TensorProto) -> int:
    """How many inputs each output of a kernel has."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return math.prod(kernel.dims[1:])
    return int(kernel.dims[-1 if _attribute(node, "transB", 0) else 0]) if kernel.dims else 1
