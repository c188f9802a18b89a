from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from tmv_lib.network import classifier, training
from tmv_lib.network.answer import RECIPE, digest, set_aside_damaged
from tmv_lib.network.training import Augmentation, TrainParams, augment
from tmv_lib.pipeline.params import read, read_members

STILL = Augmentation(rotation=0, translation=0, scale=0, brightness=0, contrast=0)
LIVELY = Augmentation(rotation=10, translation=0.1, scale=0.1, brightness=0.1, contrast=0.2)


def bright_or_dark(n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Images of 32 pixels whose brightness tells the class."""
    rng = np.random.default_rng(0)
    y_true = np.arange(n) % 2
    levels = rng.normal(100 + 60 * y_true[:, None, None], 20, (n, 32, 32))
    return levels.clip(0, 255).astype(np.uint8), y_true


def fit(model, train, val, checkpoint, *, report=lambda epoch: None, seed=5, **changes):
    params = TrainParams(
        **{
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "positive_weight": "none",
            "augmentation": LIVELY,
            "patience": 3,
            "precision": "float32",
        }
        | changes
    )
    return training.fit(model, train, val, params, seed=seed, checkpoint=checkpoint, report=report)


def fresh() -> classifier.Classifier:
    torch.manual_seed(0)
    return classifier.build("resnet18", weights="none", dropout=0.2)


def weights(model: classifier.Classifier) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def test_it_learns_and_keeps_the_best_epoch(tmp_path):
    data, model = bright_or_dark(), fresh()
    history = fit(model, data, data, tmp_path / "c.pt", epochs=4)
    best = min(entry.val_loss for entry in history)
    assert best < 0.5
    assert history[-1].val_auroc == 1.0
    logit = classifier.predict(model, data[0], batch_size=8).logit
    assert np.logaddexp(0, (1 - 2 * data[1]) * logit).mean() == pytest.approx(best, rel=1e-4)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    data, whole, killed, resumed = bright_or_dark(), fresh(), fresh(), fresh()
    history = fit(whole, data, data, tmp_path / "a.pt")

    def kill(epoch: training.Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(killed, data, data, tmp_path / "b.pt", report=kill)
    seen = []
    again = fit(resumed, data, data, tmp_path / "b.pt", report=seen.append)
    assert [epoch.epoch for epoch in seen] == [3]
    assert again == history
    assert weights(resumed) == weights(whole)


@pytest.mark.parametrize("damaged", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_set_aside_and_training_begins_anew(tmp_path, damaged, capsys):
    data, whole, again = bright_or_dark(16), fresh(), fresh()
    history = fit(whole, data, data, tmp_path / "a.pt", epochs=1)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(content[:-200] if damaged is None else damaged)
    assert fit(again, data, data, tmp_path / "b.pt", epochs=1) == history
    assert weights(again) == weights(whole)
    assert "b.pt: damaged" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.damaged", "b.pt"]


def test_a_damaged_log_is_set_aside(tmp_path, capsys):
    log = tmp_path / "net"
    log.mkdir()
    (log / "metrics.json").write_text('{"train_loss": 0.')
    set_aside_damaged(log)
    assert [path.name for path in tmp_path.iterdir()] == ["net.damaged"]
    assert "metrics.json: damaged" in capsys.readouterr().out
    log.mkdir()
    (log / "metrics.json").write_text("{}")
    set_aside_damaged(log)
    assert log.exists()


def test_another_seed_is_another_network(tmp_path):
    data, one, other = bright_or_dark(), fresh(), fresh()
    fit(one, data, data, tmp_path / "a.pt", epochs=1)
    fit(other, data, data, tmp_path / "b.pt", epochs=1, seed=6)
    assert weights(one) != weights(other)


def test_the_loss_of_weighted_positives_is_undone_in_the_bias(tmp_path):
    """Three negatives to a positive: the mean probability is the share of positives, weighted or not."""
    images, y_true = bright_or_dark(64)
    few = np.flatnonzero((y_true == 0) | (np.arange(64) % 6 == 1))
    data, shares = (images[few], y_true[few]), []
    for seed in range(3):  # one so short a training follows the rounding
        model = fresh()
        fit(model, data, data, tmp_path / f"{seed}.pt", epochs=6, positive_weight="balanced", seed=seed)
        logit = classifier.predict(model, data[0], batch_size=8).logit
        shares.append((1 / (1 + np.exp(-logit))).mean())
    assert np.mean(shares) == pytest.approx(data[1].mean(), abs=0.12)


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    images, y_true = bright_or_dark(6)
    with pytest.raises(ValueError, match="6 training images are fewer than batch_size = 8"):
        fit(fresh(), (images, y_true), (images, y_true), tmp_path / "c.pt")


def test_the_recipe_has_a_number(tmp_path):
    """Checkpoints are named by RECIPE and not by the code: where these losses change, RECIPE must be raised."""
    data = bright_or_dark()
    first, second, _ = (epoch.train_loss for epoch in fit(fresh(), data, data, tmp_path / "c.pt"))
    assert (RECIPE, first, second) == (1, pytest.approx(0.4907, rel=0.03), pytest.approx(0.2332, rel=0.1))


def test_it_stops_when_validation_no_longer_gets_better(tmp_path):
    train, (images, y_true) = bright_or_dark(), bright_or_dark()
    history = fit(fresh(), train, (images, 1 - y_true), tmp_path / "c.pt", epochs=12, patience=2)
    losses = [entry.val_loss for entry in history]
    assert len(history) < 12
    assert min(losses) not in losses[-2:]


def test_augmentation_without_width_changes_nothing():
    levels = torch.rand(4, 20, 20)
    changed = augment(levels, STILL, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed, levels, atol=1e-5, rtol=0)


def test_augmentation_stays_in_range_and_follows_its_generator():
    levels = torch.rand(4, 20, 20)
    draw = partial(augment, levels, LIVELY)
    one, same, other = (draw(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.min() >= 0
    assert one.max() <= 1


def test_augmentation_moves_by_at_most_its_share():
    levels = torch.zeros(64, 40, 40)
    levels[:, 20, 20] = 1.0
    shift = STILL.model_copy(update={"translation": 0.1})
    moved = augment(levels, shift, generator=torch.Generator().manual_seed(0)).numpy()
    rows, columns = (moved.sum(axis) @ np.arange(40) / moved.sum((1, 2)) for axis in (2, 1))
    assert np.abs(rows - 20).max() <= 4.01
    assert np.abs(columns - 20).max() > 2


def test_a_training_is_the_same_whatever_else_is_there_to_be_read():
    images, y_true = bright_or_dark(12)
    splits = np.repeat(["train", "val", "cal", "test"], 3)
    cases = pd.DataFrame({"image_id": list("abcdefghijkl"), "split": splits, "y_true": y_true})
    member, params = read_members("params.yaml")["densenet121"], read("params.yaml", "train", TrainParams)

    def name(*, rows: slice = slice(None), turned: int | None = None, brighter: int | None = None) -> str:
        labels, levels = y_true.copy(), images.copy()
        if turned is not None:
            labels[turned] = 1 - labels[turned]
        if brighter is not None:
            levels[brighter, 0, 0] += 1
        given = cases.assign(y_true=labels)[rows]
        return digest(fresh(), member, params, given, levels[rows], labels=given["y_true"].to_numpy())

    assert name() == name(rows=slice(9)) == name(turned=8) == name(brighter=11)  # cal, test, and none of test at all
    others = {name(), name(rows=slice(1, None)), name(turned=0), name(turned=4), name(brighter=2), name(brighter=5)}
    assert len(others) == 6


def test_what_is_learned_names_a_training_too():
    images, y_true = bright_or_dark(8)
    splits = np.repeat(["train", "val"], 4)
    cases = pd.DataFrame({"image_id": list("abcdefgh"), "split": splits, "y_true": y_true})
    member, params = read_members("params.yaml")["densenet121"], read("params.yaml", "train", TrainParams)
    given = params.model_copy(update={"labels": "given"})
    soft = params.model_copy(update={"labels": "soft"})
    hidden = params.model_copy(update={"augmentation": params.augmentation.model_copy(update={"border": 0.1})})
    names = [
        digest(fresh(), member, knobs, cases, images, labels=labels)
        for knobs, labels in ((given, y_true), (soft, y_true / 2), (soft, y_true / 3), (hidden, y_true))
    ]
    assert len(set(names)) == 4


def test_a_border_of_another_image_tells_nothing_and_the_inside_stays():
    levels = torch.linspace(0, 1, 64)[:, None, None].expand(64, 20, 20)
    swapped = augment(
        levels, STILL.model_copy(update={"border": 0.15}), generator=torch.Generator().manual_seed(0)
    ).numpy()
    inside, edge = swapped[:, 3:-3, 3:-3], swapped[:, :3]
    np.testing.assert_allclose(inside, levels[:, 3:-3, 3:-3].numpy(), atol=1e-6)
    assert (np.ptp(edge, axis=(1, 2)) < 1e-6).all()  # all of a border is one image's
    assert sorted(edge[:, 0, 0]) == pytest.approx(sorted(levels[:, 0, 0].tolist()), abs=1e-6)
    assert abs(np.corrcoef(edge[:, 0, 0], levels[:, 0, 0].numpy())[0, 1]) < 0.3


def test_a_border_of_its_own_draws_nothing():
    """Otherwise every training on record would be another one."""
    levels = torch.rand(4, 20, 20)
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    augment(levels, LIVELY, generator=one)
    torch.rand(6, 4, generator=other)
    assert torch.equal(one.get_state(), other.get_state())


def test_colour_is_varied_like_three_grey_images_but_for_their_common_mean():
    rng = np.random.default_rng(0)
    colour = torch.from_numpy(rng.random((4, 16, 16, 3), dtype=np.float32))
    still = LIVELY.model_copy(update={"contrast": 0.0, "brightness": 0.0})
    varied = augment(colour, still, generator=torch.Generator().manual_seed(1))
    for channel in range(3):
        alone = augment(colour[..., channel], still, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(varied[..., channel], alone)
    same = colour[..., :1].expand(-1, -1, -1, 3)
    torch.testing.assert_close(
        augment(same, LIVELY, generator=torch.Generator().manual_seed(2))[..., 1],
        augment(same[..., 1], LIVELY, generator=torch.Generator().manual_seed(2)),
    )
