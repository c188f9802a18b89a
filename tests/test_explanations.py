from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import pytorch_grad_cam
import torch
import yaml
from captum.attr import IntegratedGradients, LayerGradCam
from pytorch_grad_cam.utils.image import scale_cam_image
from scipy.special import expit
from torch import nn

from studies import shuffled_labels
from tmv_lib.explanations import attribution, map_verdict
from tmv_lib.explanations import attribution as explanations
from tmv_lib.explanations.answer import ExplanationsParams, Material, by_marker, where_it_looks
from tmv_lib.explanations.attribution import Explained, explain, explainer, target_layer
from tmv_lib.explanations.faithfulness import area, deletion_and_insertion, random_order
from tmv_lib.explanations.regions import (
    border,
    border_to_blame,
    by_rule,
    ceiling,
    chance,
    change_inside,
    clear_donors,
    empty,
    energy_inside,
    hide_border,
    interchange,
    pointing_game,
    shares,
)
from tmv_lib.explanations.sanity import agreement, cascade, compare_level, completeness, random_pairs
from tmv_lib.network import classifier
from tmv_lib.pipeline.params import Member
from tmv_lib.statistics.estimate import Estimate, Resampler

METHODS = get_args(attribution.Method)
# The last map, before the mean over cells.
LAST = {"resnet18": "body.layer4", "densenet121": "body.features.relu5"}


def built(architecture: str) -> classifier.Classifier:
    torch.manual_seed(0)
    return classifier.build(architecture, weights="none", dropout=0.3).eval()


@pytest.fixture(scope="module")
def resnet() -> classifier.Classifier:
    return built("resnet18")


@pytest.fixture(scope="module", params=LAST)
def any_network(request) -> tuple[classifier.Classifier, str]:
    return built(request.param), LAST[request.param]


@pytest.fixture
def short_path(monkeypatch) -> None:
    """Fewer steps of integrated gradients, where their number is not the point."""
    monkeypatch.setattr(explanations, "PATH_STEPS", 4)


def batch_of(n: int, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) - 0.5


class ByHand(nn.Module):
    """Two feature maps, x and 2 x; the logit is 3 mean(first) - mean(second) = mean(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1, bias=False)
        self.maps.weight.data = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = self.maps(images).mean((2, 3))
        return 3 * means[:, 0] - means[:, 1]


# The methods in a world small enough to work out: z = mean(x), A = (x, 2 x), dz/dA = (3, -1) / 12.
X = torch.arange(12.0).reshape(1, 1, 3, 4)


@pytest.mark.parametrize("method", METHODS)
def test_methods_by_hand(method):
    # Grad-CAM and HiResCAM: (3 x - 2 x) / 12. Integrated gradients: dz/dx = 1/12 on the whole path.
    found = explain(ByHand(), X, layer="maps", method=method)
    np.testing.assert_allclose(found.maps, X[:, 0] / 12, rtol=1e-5)
    np.testing.assert_allclose(found.logit, X.mean((1, 2, 3)), rtol=1e-6)


class Negated(nn.Module):
    """A network that says the opposite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -self.inner(images)


@pytest.mark.usefixtures("short_path")
@pytest.mark.parametrize("method", METHODS)
def test_the_map_of_the_opposite_is_the_negative_map(resnet, method):
    batch = batch_of(2)
    found = explain(resnet, batch, layer="body.layer1", method=method)
    opposite = explain(Negated(resnet), batch, layer="inner.body.layer1", method=method)
    np.testing.assert_array_equal(opposite.maps, -found.maps)


@pytest.mark.usefixtures("short_path")
@pytest.mark.parametrize("method", METHODS)
def test_a_case_does_not_depend_on_its_batch(resnet, method):
    batch = batch_of(3)
    together = explain(resnet, batch, layer="body.layer1", method=method).maps
    alone = np.concatenate([explain(resnet, batch[[k]], layer="body.layer1", method=method).maps for k in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=1e-3)


# Agreement with captum and pytorch-grad-cam.


@pytest.mark.parametrize("layer", ["body.layer2", "body.layer4"])
def test_grad_cam_is_captums(resnet, layer):
    batch = batch_of(3, 64)
    reference = LayerGradCam(resnet, resnet.get_submodule(layer)).attribute(batch, relu_attributions=False)
    found = explain(resnet, batch, layer=layer).maps
    np.testing.assert_allclose(found, reference.detach().numpy()[:, 0], atol=1e-6, rtol=1e-4)


def test_integrated_gradients_are_captums_in_cells(resnet):
    batch = batch_of(2)
    reference = IntegratedGradients(resnet).attribute(batch, n_steps=attribution.PATH_STEPS).sum(1)
    cells = reference.reshape(2, 4, 8, 4, 8).sum((2, 4)).detach().numpy()
    found = explain(resnet, batch, layer="body.layer2", method="integrated_gradients").maps
    np.testing.assert_allclose(found, cells, rtol=1e-4, atol=1e-5 * np.abs(cells).max())


PEERS = {"grad_cam": "GradCAM", "hires_cam": "HiResCAM"}


@pytest.mark.parametrize("method", PEERS)
def test_equal_to_pytorch_grad_cam_after_its_scaling(any_network, method):
    model, layer = any_network
    layer, side = {"body.layer4": "body.layer3"}.get(layer, layer), 64  # where HiResCAM is not Grad-CAM
    image = batch_of(1, side)
    batch = torch.cat([image, image])
    model.requires_grad_(True)
    with getattr(pytorch_grad_cam, PEERS[method])(model, [model.get_submodule(layer)]) as cam:
        theirs = cam(batch, targets=[lambda z: z, lambda z: -z])
    assert theirs.max() > 0.9
    maps = explain(model, batch, layer=layer, method=method).maps
    ours = np.maximum(maps * np.array([1, -1])[:, None, None], 0)
    scaled = scale_cam_image(scale_cam_image(ours, (side, side)))  # they do so twice
    np.testing.assert_allclose(scaled, theirs, atol=1e-5)


def test_densenets_last_map_is_explained_behind_its_relu():
    model = built("densenet121")
    batch = batch_of(2, 64)
    kept = []
    model.get_submodule("body.features.relu5").register_forward_hook(lambda _m, _i, output: kept.append(output))
    found = explain(model, batch, layer="body.features.relu5").maps
    assert (kept[0] >= 0).all()
    # Behind the map there is only the mean over pixels and the head: alpha = w / pixels.
    expected = (model.head.weight.detach()[0][:, None, None] * kept[0].detach()).sum(1) / kept[0][0, 0].numel()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


class UsedTwice(ByHand):
    """Its maps run through one ReLU twice: the second time z = mean(x), as in ByHand, for x >= 0."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = self.relu(self.maps(self.relu(images.clone()))).mean((2, 3))
        return 3 * means[:, 0] - means[:, 1]


def test_of_a_module_used_twice_the_last_use_is_explained():
    found = explain(UsedTwice(), X, layer="relu")
    np.testing.assert_allclose(found.maps, X[:, 0] / 12, rtol=1e-5)


# What a map must add up to.


def levels_of(n: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (n, side, side), dtype=np.uint8)


def complete(model: classifier.Classifier, *, layer: str, method: attribution.Method) -> dict:
    images = levels_of(3, 64 if method != "integrated_gradients" else 32)
    seen = explainer(model, layer=layer, batch_size=3, method=method)(images)
    return completeness(model, images, seen.logit, seen.maps, layer=layer, method=method)


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam"])
def test_behind_the_last_map_there_is_the_mean_and_the_head_alone(any_network, method):
    model, layer = any_network
    found = complete(model, layer=layer, method=method)
    assert found["mean_effect"] > 0.01
    assert found["largest_gap"] < 1e-5 * max(1, found["mean_effect"])


def test_a_path_ends_where_the_logit_is(resnet):
    found = complete(resnet, layer="body.layer2", method="integrated_gradients")
    assert found["largest_gap"] < 0.05 * found["mean_effect"]


@pytest.mark.parametrize(
    ("layer", "method", "reason"),
    [
        ("body.layer3", "grad_cam", "more than the mean over cells and the linear head lies behind body.layer3"),
        ("body.layer3", "hires_cam", "more than the mean"),
    ],
)
def test_no_sum_is_claimed_where_none_is_promised(resnet, layer, method, reason):
    images = levels_of(2)
    found = completeness(resnet, images, np.zeros(2), np.zeros((2, 7, 7)), layer=layer, method=method)
    assert reason in found.absent


# Bad input.


@pytest.mark.parametrize(
    ("layer", "method", "message"),
    [
        ("body.layer9", "grad_cam", "has no layer 'body.layer9'"),
        ("head", "grad_cam", "'head' has no spatial maps"),
        ("body.layer3", "saliency", "method must be one of grad_cam, .* found 'saliency'"),
    ],
)
def test_bad_requests_are_named(resnet, layer, method, message):
    with pytest.raises(ValueError, match=message):
        explain(resnet, batch_of(1), layer=layer, method=method)


def test_the_layer_has_a_grid_of_seven(resnet):
    assert target_layer(resnet, size=64) == "body.layer2"
    assert target_layer(resnet, size=112) == "body.layer3"
    assert target_layer(resnet, size=224) == "body.layer4"
    assert target_layer(resnet, size=112, wished="body.layer2") == "body.layer2"


def test_densenets_map_is_that_behind_its_relu():
    model = built("densenet121")
    for size, layer in ((112, "body.features.transition3.relu"), (224, "body.features.relu5")):
        assert target_layer(model, size=size) == layer
    seen = attribution._look(model, torch.rand(2, 3, 112, 112), layer="body.features.transition3.relu")
    assert seen.features.shape == (2, 1024, 7, 7)
    assert seen.features.min() == 0  # and what lies below 0 before the activation is gone
    torch.testing.assert_close(seen.logit, model(seen.images))


@pytest.mark.parametrize(
    ("size", "wished", "message"),
    [
        (12, "auto", "no block has a map of 7 x 7 at 12 px"),
        (112, "body.layer4", "layer 'body.layer4' has a grid of 4 x 4 at 112 px, too coarse: at least 7 x 7"),
        (112, "body.layer7", "the network has no layer 'body.layer7'"),
        (112, "head", "layer 'head' has no spatial maps"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_named(resnet, size, wished, message):
    with pytest.raises(ValueError, match=message):
        target_layer(resnet, size=size, wished=wished)


def test_a_network_without_spatial_maps_is_named():
    flat = classifier.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)), n_features=5, dropout=0.0)
    with pytest.raises(ValueError, match="the network has no spatial maps"):
        target_layer(flat, size=8)


@pytest.mark.usefixtures("short_path")
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_image_has_a_map_of_numbers(resnet, method):
    seen = explainer(resnet, layer="body.layer1", batch_size=2, method=method)
    images = np.stack([np.full((32, 32), level, np.uint8) for level in (0, 128)])
    assert np.isfinite(seen(images).maps).all()


# Networks, trained and not.


def test_reading_is_explaining_without_the_map(resnet):
    images = levels_of(5)
    options = {"batch_size": 2}
    seen = explainer(resnet, layer="body.layer3", **options)(images)
    for levels in (images, images.astype(np.float32) / 255):
        np.testing.assert_allclose(classifier.predict(resnet, levels, **options).logit, seen.logit, atol=1e-6)


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "integrated_gradients"])
def test_maps_of_a_network_in_bfloat16_are_nearly_those_in_float32(method):
    torch.manual_seed(0)
    model = classifier.build("resnet18", weights="none", dropout=0.0).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    seen = {}
    for model.precision in ("float32", "bfloat16"):
        seen[model.precision] = explainer(model, layer="body.layer2", batch_size=2, method=method)(images)
    assert all(of.dtype == np.float32 for one in seen.values() for of in one)
    for exact, rounded in zip(*(one.maps for one in seen.values())):
        assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.95
    assert not np.array_equal(seen["float32"].maps, seen["bfloat16"].maps)


def test_trained_and_untrained(resnet, tmp_path):
    classifier.save_weights(resnet, tmp_path / "weights.safetensors")
    member = Member(architecture="resnet18", weights="none", dropout=0.3, train=True, seed=1)
    before = torch.random.get_rng_state()
    trained = attribution.load_trained(member, tmp_path / "weights.safetensors")
    draws = ((0, 0), (0, 0), (1, 0), (0, 2))
    untrained = [
        attribution.untrained(member, draw, seed=seed, precision="float32").head.weight.cpu() for seed, draw in draws
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value.cpu(), resnet.state_dict()[key]) for key, value in trained.state_dict().items())
    first, again, other_seed, other_draw = untrained
    assert torch.equal(first, again)
    for other in (other_seed, other_draw, resnet.head.weight):
        assert not torch.equal(first, other)
    with pytest.raises(ValueError, match=r"nowhere: no such file; `make repro` trains the members"):
        attribution.load_trained(member, "nowhere")


def test_the_cascade_ends_in_the_untrained_network(resnet):
    torch.manual_seed(1)
    untrained = classifier.build("resnet18", weights="none", dropout=0.3).eval()
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    levels = []
    for level, hybrid in cascade(resnet, untrained):
        levels.append(level)
        last = hybrid.eval()(batch_of(2))
    assert levels == ["head", "layer4", "layer3", "layer2", "layer1", "bn1", "untrained"]
    assert torch.equal(last, untrained(batch_of(2)))
    assert all(torch.equal(before[key], value) for key, value in resnet.state_dict().items())


# Are maps of other weights less alike than maps of other cases?


def test_random_pairs_are_of_different_cases():
    rng, groups = np.random.default_rng(0), np.arange(40)
    shared, own = rng.normal(size=(1, 7, 7)), rng.normal(size=(40, 7, 7))
    np.testing.assert_allclose(random_pairs(np.repeat(shared, 40, 0), groups=groups, pairs=3, rng=rng), 1.0)
    assert abs(random_pairs(own, groups=groups, pairs=3, rng=rng).mean()) < 0.05
    # Two components of equal variance, one of them common to all: the correlation of two cases is a half.
    common = shared * 1.0 / shared.std() + own / own.std((1, 2), keepdims=True)
    assert random_pairs(common, groups=groups, pairs=5, rng=rng).mean() == pytest.approx(0.48, abs=0.06)


def test_random_pairs_are_of_different_patients():
    maps = np.repeat(np.random.default_rng(0).normal(size=(10, 7, 7)), 2, axis=0)  # two equal maps a patient
    found = random_pairs(maps, groups=np.repeat(np.arange(10), 2), pairs=30, rng=np.random.default_rng(0))
    assert (~np.isnan(found)).sum(0).tolist() == [18] * 20
    assert np.nanmax(found) < 0.9


def test_random_pairs_leave_out_constant_maps_and_ask_for_no_more_than_there_are():
    maps = np.random.default_rng(0).normal(size=(4, 7, 7))
    maps[2] = 1.0
    found = random_pairs(maps, groups=np.arange(4), pairs=10, rng=np.random.default_rng(0))
    assert (~np.isnan(found)).sum(0).tolist() == [2, 2, 0, 2]
    ranks = np.corrcoef(maps[[0, 1, 3]].reshape(3, -1).argsort(1).argsort(1))
    np.testing.assert_allclose(np.nansum(found, 0)[[0, 1, 3]], ranks.sum(1) - 1)


@pytest.mark.parametrize(
    ("level", "passes"), [(0.0, "yes"), (0.3, "undecided"), (0.6, "no"), (-0.2, "yes"), (-0.7, "no, mirrored")]
)
def test_a_level_passes_below_random_pairs(level, passes):
    rng = np.random.default_rng(0)
    reference, similarity = 0.3 + 0.1 * rng.normal(size=50), level + 0.1 * rng.normal(size=50)
    similarity[0] = np.nan
    found = compare_level(similarity, reference, Resampler(np.arange(50), 200, seed=0))
    assert found["passes"] == passes
    assert found["constant_maps"] == 1
    assert found["above_random_pairs"].value == pytest.approx(np.mean(similarity[1:] - reference[1:]))


def test_constant_maps_alone_are_not_judged():
    nothing = np.full(5, np.nan)
    found = compare_level(nothing, np.ones(5), Resampler(np.arange(5), 100, seed=0))
    assert found["constant_maps"] == 5
    assert "passes" not in found
    assert "no such case" in found["similarity"].absent


def test_maps_that_never_change_do_not_pass():
    # Not even where every case has the same map, so that random pairs are as alike.
    for reference in (np.ones((5, 12)), np.full((5, 12), 0.2)):
        found = compare_level(np.ones((3, 12)), reference, Resampler(np.arange(12), 100, seed=0))
        assert found["passes"] == "no"
        assert found["similarity_spread"] == 0


def test_a_difference_of_no_case_is_undecided():
    similarity = np.full(12, 0.3)
    found = compare_level(similarity, similarity, Resampler(np.arange(12), 100, seed=0))
    assert found["passes"] == "undecided"
    assert found["above_random_pairs"].low <= 0 < found["above_random_pairs"].high


def test_draws_are_averaged_and_one_that_turns_maps_over_does_not_excuse_another():
    rng = np.random.default_rng(0)
    reference = 0.2 + 0.05 * rng.normal(size=(5, 40))
    draws = np.array([0.8, -0.8, 0.0])[:, None] + 0.05 * rng.normal(size=(3, 40))
    found = compare_level(draws, reference, Resampler(np.arange(40), 200, seed=0))
    assert found["similarity"].value == pytest.approx(draws.mean())
    assert found["similarity_spread"] == pytest.approx(np.ptp(draws.mean(1)))
    assert found["passes"] == "no, mirrored"


def test_agreement_is_symmetric_and_on_the_coarser_grid():
    maps = np.random.default_rng(0).normal(size=(2, 14, 14)).astype("float32")
    coarse = maps.reshape(2, 7, 2, 7, 2).mean((2, 4))
    np.testing.assert_allclose(agreement(coarse, coarse), 1.0)
    np.testing.assert_allclose(agreement(coarse, -coarse), -1.0)
    np.testing.assert_allclose(agreement(maps, coarse), 1.0)
    other = np.random.default_rng(1).normal(size=(2, 10, 10)).astype("float32")
    np.testing.assert_array_equal(agreement(maps, other), agreement(other, maps))


# Where a map points.


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


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
def test_regions_by_rule_tile_the_image(share):
    regions = by_rule(200, share=share)
    assert (sum(region.astype(int) for region in regions.values()) == 1).all()
    assert all((region == region[:, ::-1]).all() for region in regions.values())
    # The strip takes a fifth of the side, less what the frame has of it.
    assert regions["midline"].mean() == pytest.approx(0.2 * (1 - 2 * share))


def test_shares_of_a_map_add_up_and_an_empty_map_has_none():
    rng = np.random.default_rng(0)
    maps = np.concatenate([rng.random((3, 7, 7)), -rng.random((1, 7, 7)), np.zeros((1, 7, 7))])
    masks = {"lungs": rng.random((5, 56, 56)) < 0.3, "masks": np.zeros((5, 56, 56), dtype=bool)}
    masks["masks"][[0, 1, 3], 10:20, 10:20] = True
    found = shares(maps, masks, share=0.15, positive=np.array([True, False, True, True, True]))
    assert found["empty"].tolist() == empty(maps).tolist() == [False, False, False, True, True]
    np.testing.assert_allclose((found["border"] + found["midline"] + found["fields"])[:3], 1.0)
    for name in ("border", "midline", "fields", "lungs"):
        assert np.isnan(found[name]).tolist() == [False, False, False, True, True]
    # A finding that is there, named, and looked for with a map that is not empty: the first case alone.
    for name in ("finding", "pointing"):
        assert np.isnan(found[name]).tolist() == [False, True, True, True, True]
    levels = chance(masks, share=0.15, n=5)
    assert levels["finding"][0] == levels["pointing"][0] == pytest.approx(100 / 56**2)
    assert set(levels) == set(found) - {"empty"}


def test_without_masks_the_rule_alone_is_told():
    assert set(chance({}, share=0.15, n=2)) == {"border", "midline", "fields"}


def test_no_map_has_more_inside_than_the_ceiling():
    masks = np.zeros((2, 56, 56), dtype=bool)
    masks[0, 8:16, 8:16] = True  # a cell of 7 x 7, exactly
    masks[1, 12:20, 12:20] = True  # a quarter of each of four cells
    np.testing.assert_allclose(ceiling(masks, (7, 7)), [1.0, 0.25])
    best = np.zeros((2, 7, 7))
    best[:, 1, 1] = 1
    np.testing.assert_allclose(energy_inside(best, masks), ceiling(masks, (7, 7)))


def test_pointing_game():
    maps, masks = np.zeros((2, 7, 7)), np.zeros((2, 70, 70), dtype=bool)
    maps[:, 1, 5] = 1
    masks[0, 10:20, 50:60] = True
    assert pointing_game(maps, masks).tolist() == [True, False]


def test_hiding_the_border_changes_the_frame_alone():
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 20), dtype=np.uint8)
    hidden = hide_border(images, np.full((20, 20), 7, np.uint8), share=0.1)
    assert (hidden[:, :2] == 7).all()
    np.testing.assert_array_equal(hidden[:, 2:-2, 2:-2], images[:, 2:-2, 2:-2])


# Deletion and insertion.


def test_a_changed_inside_keeps_the_frame():
    rng = np.random.default_rng(0)
    images, insides = rng.integers(0, 256, (2, 4, 20, 20), dtype=np.uint8)
    mixed = change_inside(images, insides, share=0.15)
    assert (mixed[:, 3:-3, 3:-3] == insides[:, 3:-3, 3:-3]).all()
    frame = border(20, share=0.15)
    assert (mixed[:, frame] == images[:, frame]).all()
    np.testing.assert_array_equal(change_inside(images, images, share=0.15), images)


def test_donors_are_clear_cases_of_the_label_and_of_other_patients():
    rng = np.random.default_rng(0)
    n = 200
    y_true, groups, witness = rng.integers(0, 2, n), np.arange(n) // 2, rng.normal(size=n)
    among, asked = np.arange(n) < 60, rng.random(n) < 0.5
    drawn = clear_donors(y_true, groups, witness, asked=asked, among=among, number=6, rng=rng)
    np.testing.assert_array_equal(drawn >= 0, np.repeat(asked[:, None], 6, axis=1))
    donors, label = drawn[asked], y_true[asked]
    assert among[donors].all()
    assert (y_true[donors] == label[:, None]).all()
    assert (groups[donors] != groups[asked][:, None]).all()
    assert all(len(set(row)) == 6 for row in donors.tolist())
    for kind, sign in ((0, -1), (1, 1)):
        of_label = sign * witness[among & (y_true == kind)]
        assert (sign * witness[donors[label == kind]]).min() >= np.median(of_label)
    assert len(np.unique(donors[label == 1])) > 6  # each case has a draw of its own
    nobody = clear_donors(y_true, np.zeros(n), witness, asked=asked, among=among, number=6, rng=rng)
    assert (nobody == -1).all()


def test_a_map_of_what_matters_beats_the_opposite_order():
    images = np.zeros((1, 32, 32), dtype=np.uint8)
    images[0, :8, :8] = 255
    maps = np.zeros((1, 8, 8))
    maps[0, :2, :2] = 1
    asked = []

    def probability(levels: np.ndarray) -> np.ndarray:
        asked.append(levels)
        return levels[:, :8, :8].mean((1, 2))

    fractions = [0.0, 1 / 16, 0.5, 1.0]
    curves = deletion_and_insertion(probability, images, {"map": maps, "opposite": -maps}, fractions=fractions)
    deleted, inserted = curves["deletion", "map"][:, 0], curves["insertion", "map"][:, 0]
    assert deleted[0] == inserted[-1] == 1.0
    assert deleted[-1] == inserted[0] < 1.0
    assert deleted[1] == pytest.approx(deleted[-1])
    assert inserted[1] == 1.0
    assert curves["deletion", "opposite"][1, 0] == 1.0
    assert len(asked) == 2 + 2 * 2 * 2  # both ends once, two steps in two orders and two directions
    assert area(curves["deletion", "map"], fractions) < area(curves["deletion", "opposite"], fractions)


def test_area_is_the_mean_of_a_line():
    fractions = (0.0, 0.3, 1.0)
    assert area(np.array(fractions)[:, None], fractions)[0] == pytest.approx(0.5)


def test_fractions_run_from_nothing_to_all():
    with pytest.raises(ValueError, match=r"fractions must run from 0 to 1, found 0\.1 to 1"):
        deletion_and_insertion(lambda levels: levels, np.zeros((1, 8, 8)), {}, fractions=(0.1, 1))


def test_a_random_order_ranks_every_cell_once():
    found = random_order(np.zeros((50, 3, 4)), rng=np.random.default_rng(0))
    assert (np.sort(found.reshape(50, 12)) == np.arange(12)).all()
    assert abs(found.mean(0) - 5.5).max() < 2.5


# The instruments see what was planted: a network that reads the marker is caught, one that reads the finding is not.


class WhiteAndGrey(nn.Module):
    """Two maps of 8 x 8 cells: how much of the marker's white (above 0.85) and of the finding's grey (0.6 to 0.8)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images[:, :1] * classifier.IMAGENET_STD[0] + classifier.IMAGENET_MEAN[0]
        white = (level - 0.85).relu()
        grey = (level - 0.6).relu() - 2 * (level - 0.7).relu() + (level - 0.8).relu()
        return nn.functional.avg_pool2d(torch.cat([white, grey], 1), 8)


def reads(channel: int) -> classifier.Classifier:
    """A network with one weight: the logit is 2000 times the mean of the marker's map (0) or the finding's (1), - 1."""
    body = nn.Sequential()
    for name, module in {"maps": WhiteAndGrey(), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}.items():
        body.add_module(name, module)
    model = classifier.Classifier(body, n_features=2, dropout=0.0)
    model.head.weight.data, model.head.bias.data = 2000 * torch.eye(2)[[channel]], torch.tensor([-1.0])
    return model.eval()


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Dark films of 64 px; the first 20 of 50 have a grey finding in the middle and a white marker in a corner."""
    rng = np.random.default_rng(0)
    images, finding = rng.integers(0, 30, (50, 64, 64), dtype=np.uint8), np.zeros((50, 64, 64), dtype=bool)
    for case, (row, column) in enumerate(rng.integers(20, 36, (20, 2))):
        finding[case, row : row + 8, column : column + 8] = True
    images[finding] = 178
    images[:20, 2:8, 56:62] = 250
    return images, finding


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("channel", "caught"), [(0, True), (1, False)])
def test_who_reads_the_marker_is_caught(planted, method, channel, caught):
    images, finding = planted
    model, options = reads(channel), {"batch_size": 16}
    seen = explainer(model, layer="body.maps", method=method, **options)(images)
    says = seen.logit > 0
    assert says.tolist() == [True] * 20 + [False] * 30
    maps = seen.maps * np.where(says, 1, -1)[:, None, None]
    found = shares(maps, {"masks": finding}, share=0.15, positive=says)
    bare = hide_border(images, np.median(images, 0).astype(np.uint8), share=0.15)
    hidden = classifier.predict(model, bare, **options).logit
    flipped = (hidden > 0) != says
    assert flipped.tolist() == [caught] * 20 + [False] * 30
    assert ((found["border"][:20] > 0.9) == caught).all()
    assert ((found["border"][:20] < 0.1) != caught).all()
    assert ((found["pointing"][:20] == 1) != caught).all()


def section(**changes) -> ExplanationsParams:
    known = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))["explanations"]
    return ExplanationsParams.model_validate(known | {"resamples": 100} | changes)


def film_cases(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ids = {"patient_id": np.arange(n), "split": "test"}
    return pd.DataFrame({**ids, "y_true": np.tile([0, 1], n // 2), "y_prob_net": rng.random(n)})


@pytest.mark.parametrize(("channel", "caught"), [(0, True), (1, False)])
def test_who_reads_the_marker_is_misled_by_it_and_mended_by_another_border(planted, channel, caught):
    images, finding = planted
    y_true = finding.any(axis=(1, 2)).astype(int)
    images, faint = images.copy(), np.isin(np.arange(50), [5, 6])
    images[:5, 2:8, 56:62] = images[20:25, 2:8, 56:62]  # five lose the marker, and five others get it
    images[20:25, 2:8, 56:62] = 250
    images[faint & (y_true == 1)] = np.where(finding, 15, images)[faint & (y_true == 1)]  # two lose the finding
    conflict = np.isin(np.arange(50), [*range(5), *range(20, 25)])
    everybody, clear = np.ones(50, dtype=bool), ~conflict & ~faint
    donors = clear_donors(
        y_true, np.arange(50), y_true - 0.5, asked=everybody, among=clear, number=4, rng=np.random.default_rng(0)
    )
    model = reads(channel)

    def found() -> dict[str, np.ndarray]:
        def probability(mixed: np.ndarray) -> np.ndarray:
            return expit(classifier.predict(model, mixed, batch_size=16).logit)

        return border_to_blame(interchange(probability, images, donors, share=0.15), y_true)

    np.testing.assert_array_equal(found()["border_misleads"], np.where(conflict & caught, 1.0, 0.0))
    np.testing.assert_array_equal(found()["border_mends"], np.where(faint & (not caught), 0.0, 1.0))
    donors[0] = -1
    for share in found().values():
        assert np.isnan(share).tolist() == [True] + [False] * 49


def test_figures_and_their_chance_rest_on_the_same_cases():
    cases, lungs = film_cases(4), np.zeros((4, 56, 56), dtype=bool)
    finding = lungs.copy()
    lungs[:, 10:30], finding[:2, 8:16, 8:16], finding[2, :28] = True, True, True
    maps = np.ones((4, 7, 7))
    positive = np.array([True, True, False, False])  # the large finding is not named
    columns = shares(maps, {"lungs": lungs, "masks": finding}, share=0.15, positive=positive)
    columns |= {"border_flips": np.zeros(4, bool)}
    material = Material(cases, np.zeros((4, 56, 56)), {"lungs": lungs, "masks": finding}, np.zeros((56, 56)))
    options = (material, (7, 7), section())
    found = where_it_looks(columns, *options)
    assert found["finding"]["chance"] == pytest.approx(1 / 49)
    assert found["finding"]["energy"].value == pytest.approx(found["finding"]["chance"])
    assert found["finding"]["ceiling"] == 1
    none = where_it_looks(columns | {"finding": np.full(4, np.nan), "pointing": np.full(4, np.nan)}, *options)
    assert none["finding"].absent == none["pointing"].absent == "no finding of the test split is named on a map"


def test_markers_are_told_apart_among_those_named_positive():
    cases = film_cases(40).assign(marker=np.repeat([1, 0], 20))
    positive = np.arange(40) % 2 == 0
    columns = {"border": np.full(40, 0.3), "border_flips": (cases["marker"] == 1).to_numpy() & positive}
    columns["border_flips"][1::2] = True  # not named positive: must not count
    found = by_marker(columns, cases, positive, section())
    assert [found[kind]["flip_rate"].value for kind in ("with_marker", "without_marker")] == [1, 0]
    assert found["with_marker"]["n"] == found["without_marker"]["n"] == 10


DELETION, INSERTION = Estimate(-0.02, -0.03, -0.01), Estimate(0.02, 0.01, 0.03)


@pytest.mark.parametrize(
    ("passes", "deletion", "insertion", "reasons"),
    [
        ("yes", DELETION, INSERTION, ""),
        ("yes", replace(DELETION, high=0.01), INSERTION, "deletion"),
        ("yes", DELETION, replace(INSERTION, low=-0.01), "insertion"),
        ("no, mirrored", replace(DELETION, high=0.0), INSERTION, "no_dependence deletion"),
        ("undecided", DELETION, INSERTION, "dependence_undecided"),
    ],
)
def test_the_verdict_is_the_gate(passes, deletion, insertion, reasons):
    found = map_verdict.judge({"passes": passes}, deletion, insertion)
    assert found == {"usable": not reasons, "because_of": reasons}
    said = map_verdict.sentence(found)
    assert said.startswith("These maps deserve a look" if found["usable"] else "Do not use these maps")
    assert all(map_verdict.REASONS[name] in said for name in reasons.split())


def test_what_was_not_measured_is_not_usable():
    absent = Estimate(absent="there is no such case")
    nothing = map_verdict.judge({}, absent, absent)
    assert nothing == {"usable": False, "because_of": "dependence_undecided deletion insertion"}


def shuffled_table(cases: pd.DataFrame, second: np.ndarray, maps: np.ndarray) -> pd.DataFrame:
    logit = np.random.default_rng(1).normal(4 * cases["y_true"] - 2.0)
    explained = {"own": Explained(logit, maps), "shuffled": Explained(np.zeros(60), second)}
    return shuffled_labels.compared(explained, cases, {}, "net", section()).set_index(["network", "figure"])


def test_the_study_of_shuffled_labels_tells_which_maps_depend_on_labels():
    rng, cases = np.random.default_rng(0), film_cases(60)
    maps, other = rng.normal(size=(2, 60, 7, 7)).astype("float32")
    alike = maps + 2 * rng.normal(size=(1, 7, 7)).astype("float32")  # what every map of the first has in common
    worlds = ((maps, other, "undecided"), (maps, maps, "no"), (maps, -maps, "no, mirrored"), (alike, other, "yes"))
    for first, second, passes in worlds:
        table = shuffled_table(cases, second, first)
        assert table.loc[("both", "similarity"), "passes"] == passes
        assert table.loc[("own", "auroc"), "value"] > 0.9
        assert table.loc[("shuffled", "auroc"), "value"] == 0.5
        assert table.loc[("own", "border"), "chance"] == pytest.approx(0.51, abs=0.01)


def test_no_verdict_hangs_on_the_classes_named():
    rng, cases = np.random.default_rng(0), film_cases(60)
    maps, other = rng.normal(size=(2, 60, 7, 7)).astype("float32")
    common = rng.normal(size=(1, 7, 7)).astype("float32")
    turned = cases.assign(y_prob_net=np.where(np.arange(60) < 25, 1 - cases["y_prob_net"], cases["y_prob_net"]))
    for second in (other, maps + common, -maps):
        tables = [shuffled_table(some, second, maps + common) for some in (cases, turned)]
        first, again = (table.loc[["both", "random pairs"]] for table in tables)
        pd.testing.assert_frame_equal(first, again)
