import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from tmv_lib import explanations, network
from tmv_lib.explanations import (
    border,
    energy_inside,
    grad_cam,
    hide_border,
    perturbation_curve,
    pointing_game,
    resized,
)


@pytest.fixture(scope="module")
def resnet() -> network.Classifier:
    torch.manual_seed(0)
    return network.build("resnet18", weights="none", dropout=0.3).eval()


class ByHand(nn.Module):
    """Two feature maps, x and 2 x; the logit is 3 mean(first) - mean(second) = mean(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1, bias=False)
        self.maps.weight.data = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = self.maps(images).mean((2, 3))
        return 3 * means[:, 0] - means[:, 1]


def test_weights_set_by_hand():
    x = np.arange(12, dtype="float32").reshape(1, 1, 3, 4)
    # alpha = (3, -1) / 12, A = (x, 2 x): the map is (3 x - 2 x) / 12
    np.testing.assert_allclose(grad_cam(ByHand(), x, layer="maps", target=1), x[:, 0] / 12, rtol=1e-6)


def test_the_other_class_has_the_opposite_map():
    x = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype("float32")
    both = grad_cam(ByHand(), x, layer="maps", target=[1, -1])
    np.testing.assert_array_equal(both[1], -grad_cam(ByHand(), x, layer="maps", target=1)[1])


@pytest.mark.parametrize("layer", ["body.layer2", "body.layer4"])
def test_equal_to_captum(resnet, layer):
    batch = torch.rand(3, 3, 64, 64)
    reference = LayerGradCam(resnet, resnet.get_submodule(layer)).attribute(batch, relu_attributions=False)
    found = grad_cam(resnet, batch, layer=layer, target=1)
    np.testing.assert_allclose(found, reference.detach().numpy()[:, 0], atol=1e-6, rtol=1e-4)


def test_densenets_last_map_is_explained_behind_its_relu():
    torch.manual_seed(0)
    model = network.build("densenet121", weights="none", dropout=0.2).eval()
    batch = torch.rand(2, 3, 64, 64)
    kept = []
    model.get_submodule("body.features.relu5").register_forward_hook(lambda _m, _i, output: kept.append(output))
    found = grad_cam(model, batch, layer="body.features.relu5", target=1)
    assert (kept[0] >= 0).all()
    # Behind the map there is only the mean over pixels and the head: alpha = w / pixels.
    expected = (model.head.weight.detach()[0][:, None, None] * kept[0].detach()).sum(1) / kept[0][0, 0].numel()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_a_case_does_not_depend_on_its_batch(resnet):
    batch = torch.rand(4, 3, 64, 64)
    together = grad_cam(resnet, batch, layer="body.layer3", target=1)
    alone = np.concatenate([grad_cam(resnet, batch[[k]], layer="body.layer3", target=1) for k in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "target", "message"),
    [
        ("body.layer9", 1, "has no layer 'body.layer9'"),
        ("head", 1, "'head' has no spatial maps"),
        ("body.layer3", 0, "target must be"),
    ],
)
def test_bad_requests_are_named(resnet, layer, target, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(resnet, torch.rand(1, 3, 64, 64), layer=layer, target=target)


def test_the_default_layer_has_a_grid_of_seven(resnet):
    assert explanations.default_layer(resnet, size=64) == "body.layer2"
    assert explanations.default_layer(resnet, size=112) == "body.layer3"
    assert explanations.default_layer(resnet, size=224) == "body.layer4"
    with pytest.raises(ValueError, match="no block has a map of 7 x 7 at 12 px"):
        explanations.default_layer(resnet, size=12)


def test_the_cascade_ends_in_the_untrained_network(resnet):
    torch.manual_seed(1)
    untrained = network.build("resnet18", weights="none", dropout=0.3).eval()
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    batch = torch.rand(2, 3, 64, 64)
    levels = []
    for level, hybrid in explanations.cascade(resnet, untrained):
        levels.append(level)
        last = hybrid.eval()(batch)
    assert levels == ["head", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
    assert torch.equal(last, untrained(batch))
    assert all(torch.equal(before[key], value) for key, value in resnet.state_dict().items())


def test_energy_is_a_share_and_chance_is_the_area():
    maps = np.ones((1, 8, 8))
    frame = border(80, share=0.25)
    assert energy_inside(maps, frame)[0] == pytest.approx(frame.mean())
    maps[0, 0, 0] = 64.0  # 64 of 127 in a corner
    assert energy_inside(maps, frame)[0] == pytest.approx((64 + 47) / 127)
    assert np.isnan(energy_inside(-maps, frame)[0])


def test_energy_shares_a_cell_between_inside_and_outside():
    left_third = np.zeros((1, 12, 12), dtype=bool)
    left_third[:, :, :4] = True
    # Cells are 6 pixels wide: the left column lies inside by 4 of 6, the right one not at all.
    assert energy_inside(np.ones((1, 2, 2)), left_third)[0] == pytest.approx(1 / 3)


def test_pointing_game():
    maps, masks = np.zeros((2, 7, 7)), np.zeros((2, 70, 70), dtype=bool)
    maps[:, 1, 5] = 1
    masks[0, 10:20, 50:60] = True
    assert pointing_game(maps, masks).tolist() == [True, False]


def test_a_map_of_what_matters_beats_the_opposite_order():
    images = np.zeros((1, 32, 32), dtype=np.uint8)
    images[0, :8, :8] = 255
    maps = np.zeros((1, 8, 8))
    maps[0, :2, :2] = 1

    def probability(levels: np.ndarray) -> np.ndarray:
        return levels[:, :8, :8].mean((1, 2))

    fractions = [0.0, 1 / 16, 0.5, 1.0]
    deleted = perturbation_curve(probability, images, maps, fractions=fractions, insert=False)[:, 0]
    wrong = perturbation_curve(probability, images, -maps, fractions=fractions, insert=False)[:, 0]
    inserted = perturbation_curve(probability, images, maps, fractions=fractions, insert=True)[:, 0]
    assert deleted[0] == inserted[-1] == 1.0
    assert deleted[1] == pytest.approx(deleted[-1])
    assert inserted[1] == 1.0
    assert wrong[1] == 1.0


def test_hiding_the_border_changes_the_frame_alone():
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 20), dtype=np.uint8)
    hidden = hide_border(images, np.full((20, 20), 7, np.uint8), share=0.1)
    assert (hidden[:, :2] == 7).all()
    np.testing.assert_array_equal(hidden[:, 2:-2, 2:-2], images[:, 2:-2, 2:-2])


def test_resizing_to_the_same_grid_changes_nothing():
    maps = np.random.default_rng(0).normal(size=(2, 7, 7)).astype("float32")
    np.testing.assert_allclose(resized(maps, (7, 7)), maps, atol=1e-6)
    assert resized(maps, (14, 14)).shape == (2, 14, 14)
