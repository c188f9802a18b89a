import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tmv_lib.network import classifier


def built(name: str = "resnet18", seed: int = 0) -> classifier.Classifier:
    torch.manual_seed(seed)
    return classifier.build(name, weights="none", dropout=0.3).eval()


def images(n: int = 3, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size), dtype=np.uint8)


@pytest.mark.parametrize("name", ["densenet121", "resnet50", "efficientnet_b0", "mobilenet_v3_small", "convnext_tiny"])
def test_body_and_head_are_the_torchvision_network(name):
    model = built(name)
    torch.manual_seed(0)
    plain = torchvision.models.get_model(name, weights=None).eval()
    linear = [module for module in plain.modules() if isinstance(module, torch.nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    batch = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain(batch)
        torch.testing.assert_close(model.body(batch), seen[0])


def test_logits_are_the_head_on_saved_features():
    model = built()
    logit, features = classifier.predict(model, images(), batch_size=2)
    weight, bias = model.head.weight.detach().numpy()[0], model.head.bias.item()
    np.testing.assert_allclose(logit, features @ weight + bias, atol=1e-6)


def test_bfloat16_keeps_the_head_in_float32():
    model = built()
    exact = classifier.predict(model, images(), batch_size=3).features
    model.precision = "bfloat16"
    logit, features = classifier.predict(model, images(), batch_size=3)
    weight, bias = model.head.weight.detach().numpy()[0], model.head.bias.item()
    np.testing.assert_allclose(logit, features @ weight + bias, atol=1e-6)
    np.testing.assert_allclose(features, exact, atol=0.05)
    assert (features != exact).any()


def test_a_network_is_read_back_in_the_precision_that_it_was_saved_in(tmp_path):
    model, again, elsewhere = built(), built(), built()
    model.precision = "bfloat16"
    classifier.save_weights(model, tmp_path / "w.safetensors")
    classifier.load_weights(again, tmp_path / "w.safetensors")
    assert again.precision == "bfloat16"
    save_file(model.state_dict(), tmp_path / "x.safetensors", metadata={"precision": "float13"})
    classifier.load_weights(elsewhere, tmp_path / "x.safetensors")
    assert elsewhere.precision == "float32"


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx512_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "bf16": True}, "bfloat16"),
        ({"avx2": True}, "float32"),
    ],
)
def test_bfloat16_is_taken_where_the_processor_has_instructions_for_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert classifier.fastest_precision(torch.device("cpu")) == precision


def test_dropout_lives_before_the_head_alone():
    model = built("efficientnet_b0").train()
    rates = {module.p for module in model.body.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.0}
    assert model.dropout.p == 0.3


def test_saved_weights_come_back(tmp_path):
    model, other = built(), built(seed=1)
    classifier.save_weights(model, tmp_path / "w.safetensors")
    classifier.load_weights(other, tmp_path / "w.safetensors")
    batch = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(batch), other(batch))


@pytest.mark.parametrize("outputs", [1, 2])
def test_torchvision_weights_of_one_or_two_outputs(tmp_path, outputs):
    plain = torchvision.models.resnet18(num_classes=outputs).eval()
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    model = built()
    classifier.load_weights(model, tmp_path / "w.pth")
    batch = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        said = plain(batch)
        expected = said[:, 0] if outputs == 1 else said[:, 1] - said[:, 0]
        torch.testing.assert_close(model(batch), expected)


def test_weights_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pth: no such weights file"):
        classifier.load_weights(built(), tmp_path / "nowhere.pth")
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "three.pth")
    with pytest.raises(ValueError, match=r"three\.pth: a head of one or two outputs is needed"):
        classifier.load_weights(built(), tmp_path / "three.pth")
    save_file({"head.weight": torch.zeros(1, 7)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd\.safetensors: does not fit the architecture"):
        classifier.load_weights(built(), tmp_path / "odd.safetensors")


def spoiled(**changes) -> dict[str, torch.Tensor]:
    return torchvision.models.resnet18(num_classes=1).state_dict() | changes


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ([1, 2], "holds list, needed is a state dict"),
        (torch.zeros(3), "holds Tensor, needed is a state dict"),
        ({}, "holds dict, needed is a state dict"),
        ({"epoch": 3}, "holds dict, needed is a state dict"),
        (torchvision.models.resnet18(num_classes=1), "holds more than tensors, as a pickled model does"),
        (spoiled(**{"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}), "body.conv1.weight does not hold finite"),
        (spoiled(**{"conv1.weight": torch.ones((64, 3, 7, 7), dtype=torch.int8)}), "body.conv1.weight does not hold"),
        (
            spoiled(**{"conv1.weight": torch.ones(64, 3, 3, 3)}),
            r"does not fit the architecture: body.conv1.weight has shape",
        ),
        ({name: torch.zeros_like(value) for name, value in spoiled().items()}, "every weight is 0"),
    ],
)
def test_weights_that_are_none_are_refused_in_one_short_line(tmp_path, stored, words):
    torch.save(stored, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth: {words}") as told:
        classifier.load_weights(built(), tmp_path / "w.pth")
    assert len(str(told.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 100, -100])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_cut_file_of_weights_is_named(tmp_path, cut, suffix):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(spoiled(), path)
    else:
        classifier.save_weights(built(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"w\.{suffix}: not a whole file of weights"):
        classifier.load_weights(built(), path)


def test_what_training_wraps_around_weights_comes_off(tmp_path):
    plain = torchvision.models.resnet18(num_classes=1).eval()
    wrapped = {f"module.{name}": value for name, value in plain.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "w.pth")
    model = built().eval()
    classifier.load_weights(model, tmp_path / "w.pth")
    batch = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), plain(batch)[:, 0])


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("nonsense", "none", "architecture 'nonsense'"),
        ("resnet18", "NO_SUCH_ENTRY", "weights 'NO_SUCH_ENTRY'"),
        ("squeezenet1_0", "none", "does not end in one linear layer"),
    ],
)
def test_what_cannot_be_built_is_named(name, weights, message):
    with pytest.raises(ValueError, match=message):
        classifier.build(name, weights=weights, dropout=0.1)


def test_a_failed_download_says_what_to_do(monkeypatch):
    def refuse(*_args, **_options):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models.get_model", refuse)
    with pytest.raises(ValueError, match=r"download failed.*weights: none trains from scratch"):
        classifier.build("resnet18", weights="DEFAULT", dropout=0.1)
