"""Networks from ONNX files: exported by torch, they answer and explain as in torch; what cannot be used is named."""

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from networks.small import small
from tmv_lib.explanations import attribution, sanity
from tmv_lib.network import classifier, graph
from tmv_lib.network.answer import start, train
from tmv_lib.pipeline.params import Member
from tmv_lib.pipeline.question import Question

SIDE = 32
QUESTION = Question("multiclass", ["a", "b", "c"], [1])
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


def network(n_outputs: int = 3) -> torch.nn.Module:
    """The template with random weights and batch statistics, as if it had been trained."""
    torch.manual_seed(1)
    model = small(n_outputs)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def export(model: torch.nn.Module, path, *, channels=3, many=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter will go
        names = {"dynamic_axes": {"x": {0: "n"}}} if many else {}
        inputs = (torch.zeros(1, channels, SIDE, SIDE),)
        torch.onnx.export(model, inputs, path, input_names=["x"], output_names=["z"], dynamo=False, **names)
    return str(path)


def read(path, n_outputs=3):
    options = {"weights": "none", "dropout": 0.0, "seed": 0, "precision": "float32"}
    return start(str(path), n_outputs=n_outputs, **options).eval()


def in_torch(n_outputs=3):
    """The same network, built by its own name."""
    model = classifier.build("networks.small:small", weights="none", dropout=0.0, n_outputs=n_outputs)
    state = network(n_outputs).state_dict()
    head = {f"head.{name}": state.pop(f"7.{name}") for name in ("weight", "bias")}
    model.load_state_dict({f"body.{name}": value for name, value in state.items()} | head)
    return model.eval()


@pytest.fixture
def file(tmp_path):
    return export(network(), tmp_path / "mine.onnx")


@pytest.mark.parametrize("many", [True, False], ids=["any number of images", "one image at a time"])
def test_it_answers_as_in_torch(tmp_path, many):
    found = classifier.predict(read(export(network(), tmp_path / "mine.onnx", many=many)), IMAGES, batch_size=2)
    same = classifier.predict(in_torch(), IMAGES, batch_size=2)
    np.testing.assert_allclose(found.logit, same.logit, atol=1e-5)
    np.testing.assert_allclose(found.features, same.features, atol=1e-5)


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam"])
def test_it_is_explained_as_in_torch(file, method):
    ours, theirs = read(file), in_torch()
    maps = []
    for model, layer in ((ours, "body.graph"), (theirs, "body.4")):
        model.question = QUESTION
        assert attribution.target_layer(model, size=SIDE).startswith(layer)
        maps.append(attribution.explainer(model, layer=layer, batch_size=2, method=method)(IMAGES).maps)
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"mine\.onnx: an ONNX file gives no gradient at the image"):
        attribution.explainer(ours, layer="body.graph", batch_size=2, method="integrated_gradients")(IMAGES)


def test_an_untrained_one_is_drawn_and_shares_nothing_with_the_file(file):
    member = Member(architecture=file, weights="none", dropout=0.0, train=False, seed=1)
    trained = read(file)
    trained.question = QUESTION
    draws = [attribution.untrained(member, k, seed=0, precision="float32", question=QUESTION) for k in (0, 1, 0)]
    said = [classifier.predict(model, IMAGES, batch_size=5).logit for model in draws]
    assert np.abs(said[0] - said[1]).min() > 1e-3
    np.testing.assert_array_equal(said[0], said[2])
    kernels = [
        torch.cat([p.flatten() for p in model.body.parameters() if p.ndim == 4]) for model in (trained, draws[0])
    ]
    assert abs(np.corrcoef(*(kernel.detach().numpy() for kernel in kernels))[0, 1]) < 0.05
    levels = {
        name: classifier.predict(hybrid, IMAGES, batch_size=5).logit
        for name, hybrid in sanity.cascade(trained, draws[0])
    }
    assert list(levels) == ["head", "untrained"]
    np.testing.assert_array_equal(levels["untrained"], said[0])
    assert np.abs(levels["head"] - said[0]).min() > 1e-3


def test_it_is_saved_and_read_back_with_its_weights(file, tmp_path):
    model = read(file)
    classifier.save_weights(model, tmp_path / "weights.safetensors")
    again = classifier.build(file, weights="none", dropout=0.0, n_outputs=3).eval()
    before = classifier.predict(again, IMAGES, batch_size=5).logit
    classifier.load_weights(again, tmp_path / "weights.safetensors")
    after = classifier.predict(again, IMAGES, batch_size=5).logit
    np.testing.assert_array_equal(after, classifier.predict(model, IMAGES, batch_size=5).logit)
    assert np.abs(after - before).min() > 1e-3
    np.testing.assert_array_equal(classifier.predict(copy.deepcopy(model), IMAGES, batch_size=5).logit, after)


def test_of_two_outputs_the_difference_is_the_logit_and_a_softmax_behind_them_is_left_off(tmp_path):
    path = export(torch.nn.Sequential(network(2), torch.nn.Softmax(1)), tmp_path / "two.onnx")
    z = classifier.predict(in_torch(2), IMAGES, batch_size=5).logit
    np.testing.assert_allclose(
        classifier.predict(read(path, 1), IMAGES, batch_size=5).logit, z[:, 1] - z[:, 0], atol=1e-5
    )


def shaped(model, *, kind=None, **dims):
    """Another declared shape of the input."""
    tensor = model.graph.input[0].type.tensor_type
    tensor.elem_type = kind or tensor.elem_type
    for place, size in dims.items():
        tensor.shape.dim[int(place[1:])].dim_value = size


def in_half(model):
    """Kernels in float16."""
    for one in model.graph.initializer:
        if len(one.dims) == 4:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float16), one.name))


def activated(model):
    """A ReLU behind the last layer."""
    model.graph.node.append(helper.make_node("Relu", ["z"], ["y"]))
    model.graph.output[0].name = "y"


def moved_out(model):
    """The weights in a file outside the folder."""
    one = model.graph.initializer[0]
    one.data_location, one.raw_data = TensorProto.EXTERNAL, b""
    one.external_data.add(key="location", value="../elsewhere.bin")


def lost(model):
    moved_out(model)
    model.graph.initializer[0].external_data[0].value = "lost.bin"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: shaped(m, d2=48, d3=48), "takes images of 48 x 48 pixels, found 32 x 32: prepare.size: 48 fits it"),
        (lambda m: shaped(m, d3=48), r"square images of shape .* its input is \['n', 3, 32, 48\]"),
        (lambda m: shaped(m, d1=4), r"\(n, 1 or 3, h, w\) are needed, its input is \['n', 4, 32, 32\]"),
        (lambda m: shaped(m, d0=8), r"images in float32 of shape .* its input is float \[8, 3, 32, 32\]"),
        (lambda m: shaped(m, kind=TensorProto.FLOAT16), "images in float32 .* its input is float16"),
        (
            lambda m: m.graph.output.append(m.graph.input[0]),
            "one input and one output are needed, found 1 inputs and 2",
        ),
        (activated, "does not end in one linear layer"),
        (in_half, "holds no kernel in float32"),
        (lambda m: setattr(m.opset_import[0], "version", 99), "its opset is 99, at most 2. is read"),
        (moved_out, r"its weights lie in \.\./elsewhere\.bin, outside its folder"),
        (lost, r"its weights lie in lost\.bin, and there is no such file beside it"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(file, change, said):
    model = onnx.load(file)
    change(model)
    Path(file).write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=said) as told:
        classifier.predict(read(file), IMAGES, batch_size=5)
    assert str(told.value).startswith(f"{file}: ")
    assert "\n" not in str(told.value)


def test_outputs_that_are_not_those_of_the_task(file):
    with pytest.raises(ValueError, match=r"mine\.onnx: a head of 5 outputs is needed, found 3 outputs"):
        read(file, 5)


def test_a_file_that_is_cut_short_too_large_or_missing(file, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"none\.onnx: no such file"):
        read(tmp_path / "none.onnx")
    whole = (tmp_path / "mine.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.onnx: no whole ONNX file"):
        read(tmp_path / "cut.onnx")
    monkeypatch.setattr(graph, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"mine\.onnx: .* GB, at most .* are read"):
        read(file)


def test_weights_beside_the_file_are_read_and_count_as_its_size(file, tmp_path, monkeypatch):
    same = classifier.predict(read(file), IMAGES, batch_size=5).logit
    apart = str(tmp_path / "apart.onnx")
    onnx.save(onnx.load(file), apart, save_as_external_data=True, location="apart.data", size_threshold=0)
    np.testing.assert_array_equal(classifier.predict(read(apart), IMAGES, batch_size=5).logit, same)
    monkeypatch.setattr(graph, "MOST_BYTES", 20_000)
    with pytest.raises(ValueError, match=r"apart\.onnx: .* GB with its weights, at most"):
        read(apart)


def test_one_channel_takes_grey_images_and_refuses_colour(tmp_path):
    grey = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)
    )
    model = read(export(grey.eval(), tmp_path / "grey.onnx", channels=1))
    assert classifier.predict(model, IMAGES[..., 0], batch_size=5).logit.shape == (5, 3)
    with pytest.raises(ValueError, match="the network takes one channel, the images are in colour"):
        classifier.predict(model, IMAGES, batch_size=5)


def test_it_is_not_trained(file):
    member = Member(architecture=file, weights="none", dropout=0.0, train=True, seed=1)
    with pytest.raises(ValueError, match=r"mine\.onnx, of mine, is taken as it is, it cannot be trained"):
        train("mine", read(file), None, IMAGES, None, member=member, labels=np.zeros(len(IMAGES)))
