"""Networks by name: of torchvision, of timm, of the user's own, of torchxrayvision; and the tokens of transformers."""

import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from tests.test_dependencies import STAGES, closure
from tests.test_pipeline import ROOT
from tmv_lib.explanations import attribution, sanity
from tmv_lib.network import classifier
from tmv_lib.network.answer import start
from tmv_lib.network.classifier import XRV_FINDINGS, as_grid, blocks, build, predict
from tmv_lib.pipeline.params import Member, read
from tmv_lib.pipeline.question import Question

VIT = "timm/vit_tiny_patch16_224"


def read_of(model, images):
    return predict(model, images, batch_size=8)


def levels(n=3, side=64, colour=False):
    shape = (n, side, side, 3) if colour else (n, side, side)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module of the user's own and return its name."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "networks", None)
    monkeypatch.delitem(sys.modules, "networks")
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks/__init__.py").write_text("")

    def write(text: str) -> str:
        sys.modules.pop("networks.mine", None)
        (tmp_path / "networks/mine.py").write_text(f"from torch import nn\n\n{text}\n")
        return "networks.mine:made"

    yield write
    for name in ("networks", "networks.mine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "architecture", ["resnet18", "timm/resnet18", "timm/convnext_atto", VIT, "networks.small:small"]
)
def test_features_and_head_give_the_outputs(architecture):
    torch.manual_seed(0)
    model = build(architecture, weights="none", dropout=0.3, n_outputs=4).eval()
    logit, features = read_of(model, levels(colour=True))
    assert logit.shape == (3, 4)
    np.testing.assert_allclose(
        features @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy(), logit, atol=1e-4
    )
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p] == [0.3]


def test_a_function_may_return_body_and_head(own):
    head = "nn.Linear(12, k)"
    pair = build(own(f"def made(k):\n    return nn.Flatten(), {head}"), weights="none", dropout=0.0, n_outputs=5)
    assert pair.head.weight.shape == (5, 12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def made(k):\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, k + 1))", "has 6 outputs, needed are 5"),
        ("def made(k):\n    return 'a network'", "returns str, no torch.nn.Module"),
        ("def made(k):\n    return nn.Sequential(nn.Linear(4, k), nn.ReLU())", "does not end in one linear layer"),
        ("def made(k):\n    raise RuntimeError('out of luck')", "RuntimeError: out of luck"),
        ("def other(k):\n    pass", "AttributeError: module 'networks.mine' has no attribute 'made'"),
    ],
)
def test_a_function_that_returns_something_else(own, text, said):
    with pytest.raises(ValueError, match=said) as told:
        build(own(text), weights="none", dropout=0.0, n_outputs=5)
    assert "networks.mine:made" in str(told.value)


@pytest.mark.parametrize(
    ("architecture", "weights", "said"),
    [
        ("os.path:join", "none", "modules lie in networks/, where DVC sees them change"),
        ("networks.small:small", "DEFAULT", "weights 'DEFAULT' of networks.small:small: none, or a file"),
        ("timm/resnet18", "DEFAULT", "weights 'DEFAULT' of timm/resnet18: none, pretrained, or a file"),
        ("timm/resnet1800", "none", "timm has no such model"),
        ("nothing", "none", "torchvision says"),
    ],
)
def test_what_is_no_network(architecture, weights, said):
    with pytest.raises(ValueError, match=said):
        build(architecture, weights=weights, dropout=0.0)


def test_the_folder_of_networks_is_a_dependency_of_every_stage_that_builds_one():
    builds = {
        name for name in STAGES if ROOT / "tmv_lib/network/architectures.py" in closure(ROOT / f"stages/{name}.py")
    }
    declare = {name for name, stage in STAGES.items() if "networks" in stage.get("do", stage)["deps"]}
    assert builds == declare == {"train", "reference", "explanations", "stability"}
    with_files = {name for name, stage in STAGES.items() if "data/weights" in stage.get("do", stage)["deps"]}
    assert with_files == builds - {"reference"}  # the others build members, some of ONNX files


def xrv_like(path, n_outputs=18):
    """torchxrayvision's DenseNet-121, built here with random weights, as its state dict: nothing is downloaded."""
    torch.manual_seed(3)
    import torchvision

    network = torchvision.models.densenet121(num_classes=n_outputs)
    network.features.conv0 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    torch.save({**network.state_dict(), "op_threshs": torch.full((n_outputs,), 0.5)}, path)
    return network.eval()


def test_torchxrayvisions_densenet_answers_a_finding_by_its_own_output(tmp_path):
    network = xrv_like(tmp_path / "xrv.pt")
    findings = ["Effusion", "Mass"]
    options = {
        "dropout": 0.0,
        "seed": 0,
        "precision": "float32",
        "n_outputs": 2,
        "normalise": "xrv",
        "findings": findings,
    }
    model = start("densenet121", weights=str(tmp_path / "xrv.pt"), **options)
    images = levels()
    said = read_of(model, images).logit
    with torch.no_grad():
        theirs = network((torch.from_numpy(images).float()[:, None] / 255 * 2 - 1) * 1024).numpy()
    np.testing.assert_allclose(said, theirs[:, [XRV_FINDINGS.index(name) for name in findings]], atol=2e-3)
    model.question = Question("multilabel", findings, [1])
    np.testing.assert_allclose(read_of(model, images).logit, said[:, 1])
    with pytest.raises(ValueError, match="no output for Oedema; its 18 are Atelectasis"):
        start("densenet121", weights=str(tmp_path / "xrv.pt"), **options | {"findings": ["Effusion", "Oedema"]})


def test_a_network_of_one_channel_refuses_colour():
    model = build("densenet121", weights="none", dropout=0.0, normalise="xrv")
    with pytest.raises(ValueError, match="the network takes one channel, the images are in colour"):
        read_of(model, levels(colour=True))


def test_weights_of_other_outputs_are_refused(tmp_path):
    model = build("resnet18", weights="none", dropout=0.0, n_outputs=3)
    state = {
        name.removeprefix("body."): value for name, value in model.state_dict().items() if name.startswith("body.")
    }
    save_file({**state, "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"two\.safetensors: a head of 3 outputs is needed"):
        classifier.load_weights(model, tmp_path / "two.safetensors")


@pytest.mark.parametrize(("normalise", "mean"), [("imagenet", 0.485), ("xrv", 0.5), ([0.25, 0.5], 0.25)])
def test_levels_are_brought_to_what_the_network_expects(normalise, mean):
    model = build("resnet18", weights="none", dropout=0.0, normalise=normalise)
    assert float(model.normalise(torch.full((1, 8, 8), mean))[0, 0].abs().max()) < 1e-6
    assert model.normalise(torch.zeros(1, 8, 8)).shape[1] == (1 if normalise == "xrv" else 3)


@pytest.mark.parametrize(
    ("normalise", "said"), [("resnet", "normalise"), ([0.5], "normalise"), ([0.5, 0.2, 0.1], "normalise")]
)
def test_a_normalisation_that_is_none(tmp_path, normalise, said):
    member = {"architecture": "a", "weights": "none", "dropout": 0.0, "train": True, "seed": 0, "normalise": normalise}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"members": {"one": member}}))
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "params.yaml", "members.one", Member)


def test_tokens_are_a_grid_in_the_order_of_the_image():
    images, grid = torch.zeros(2, 3, 64, 64), torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    tokens = torch.cat([torch.full((2, 1, 3), -1), grid.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(as_grid(tokens, images), grid)
    assert as_grid(torch.zeros(2, 60, 3), images) is None  # 7 x 7 and 11 more
    assert as_grid(torch.zeros(2, 3), images) is None


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return build(VIT, weights="none", dropout=0.0).eval()


def test_a_transformers_map_is_that_of_the_tokens_that_enter_its_last_block(vit):
    layer = attribution.target_layer(vit, size=112)
    assert layer == "body.blocks.11.norm1"
    images = vit.normalise(torch.from_numpy(levels(2, 112)) / 255.0)
    found = attribution.explain(vit, images, layer=layer, method="hires_cam")
    assert found.maps.shape == (2, 7, 7)
    # by hand: the tokens before the last block as leaves, and what is left of the network behind them
    kept = []
    handle = vit.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out.detach()) or None)
    with torch.no_grad():
        vit(images)
    handle.remove()
    leaf = kept[0].requires_grad_()
    handle = vit.get_submodule(layer).register_forward_hook(lambda *_: leaf)
    vit(images).sum().backward()
    handle.remove()
    by_hand = (leaf.grad * leaf.detach()).sum(2)[:, 1:].reshape(2, 7, 7)
    np.testing.assert_allclose(found.maps, by_hand.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="no block has a map of 7 x 7 at 64 px"):
        attribution.target_layer(vit, size=64)


def test_a_transformer_is_randomised_block_by_block_its_places_last(vit):
    assert "body.blocks.0" in blocks(vit)
    torch.manual_seed(1)
    fresh = build(VIT, weights="none", dropout=0.0).eval()
    names = []
    for name, hybrid in sanity.cascade(vit, fresh):
        names.append(name)
        moved = not torch.equal(hybrid.state_dict()["body.pos_embed"], vit.state_dict()["body.pos_embed"])
        assert moved == (name == "untrained")
    assert names == ["head", "norm", *map(str, range(11, -1, -1)), "untrained"]
