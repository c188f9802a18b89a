"""What the system on disk says of images that it has never seen.

A new image goes the way that the test split went: the same networks, calibrators, signals and policy, each from the
files that the stages left, so that its certainty is the same score. Nothing is fitted here. Doubts that one look at
the image cannot tell (dropout, hidden border, mild changes) are measured only where the policy weighs them.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from tmv_lib.calibration.calibrators import Calibrator, read_calibrators
from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.images import Channels, How
from tmv_lib.deferral.policy import FittedPolicy, apply, read_policy
from tmv_lib.explanations import attribution, regions
from tmv_lib.explanations.answer import ExplanationsParams
from tmv_lib.explanations.attribution import Explained
from tmv_lib.network import classifier
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import join, read_csv
from tmv_lib.pipeline.params import Member, read, read_members
from tmv_lib.stability.answer import StabilityParams, instability
from tmv_lib.stability.perturbations import mild
from tmv_lib.uncertainty import entropy, out_of_distribution, refusal
from tmv_lib.uncertainty.answer import UncertaintyParams, dropout_logits
from tmv_lib.uncertainty.distance import nearest_neighbour_distance

AT_ONCE = 32  # images whose signals are measured together: seconds, so that progress shows
LOGIT_TOLERANCE, CERTAINTY_TOLERANCE = 0.05, 0.05  # between two machines, or processor and graphics card
REPEATED = 8  # cases on record that `check` scores again


class Questions(NamedTuple):
    """The parameters of the stages that an image passes."""

    uncertainty: UncertaintyParams
    explanations: ExplanationsParams
    stability: StabilityParams


class Network(NamedTuple):
    """One member as it lies on disk.

    update: intercept and slope of the site's calibration on top of the calibrator's; 0 and 1 as shipped. reference:
    features (n, d) of train. explain: uint8 images or levels (n, height, width[, 3]) to their maps.
    """

    model: classifier.Classifier
    calibrator: Calibrator
    update: tuple[float, float]
    head: record.Head
    dropout: float
    reference: np.ndarray
    explain: Callable[[np.ndarray], Explained]


class System(NamedTuple):
    """Members and policy as they lie below `root`; images are brought to (size, size) as `how` says, in their channels.

    typical: the image, shaped like any other, that fills a hidden border. pixels, usual: what the stage `uncertainty`
    left to tell what is unlike the training images.
    """

    root: Path
    networks: dict[str, Network]
    policy: FittedPolicy
    params: Questions
    typical: np.ndarray
    pixels: out_of_distribution.PixelDetectors
    usual: pd.DataFrame
    size: int
    how: How
    channels: Channels


class Scored(NamedTuple):
    """cases: a row per image, see `score`. features: of the first member, (n, d)."""

    cases: pd.DataFrame
    features: np.ndarray


def load(root: str | Path = ".") -> System:
    """Load what the pipeline left in a project's folder.

    Raises ValueError naming the first file that is missing, and the command that makes it.
    """
    root = Path(root)
    file, policy = root / "params.yaml", read_policy(root / "data/ensemble/policy.json")
    members = read_members(file)
    if list(members) != policy.members:
        raise ValueError(f"params.yaml: members are {', '.join(members)}, the policy on disk is of {policy.members}")
    params = Questions(*(read(file, name, model) for name, model in Questions.__annotations__.items()))
    cases = record.read_labelled(root=root)
    images = record.read_images(record.outside_train(cases)["image_id"], root=root)
    typical = regions.typical_image(images)
    train = record.reference_cases(cases)["image_id"]
    networks = {name: _network(root, name, member, policy, params, train) for name, member in members.items()}
    pixels = out_of_distribution.read_pixel_detectors(root / "data/uncertainty/pixels.npz")
    usual = read_csv(root / "data/uncertainty/usual.csv", refusal.detectors(list(members)))
    prepare = read(file, "prepare", PrepareParams)
    shared = typical, pixels, usual, images.shape[1], prepare.square, prepare.channels
    return System(root, networks, policy, params, *shared)


def score(system: System, images: np.ndarray, *, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> Scored:
    """Score uint8 images (n, size, size), or in colour (n, size, size, 3), prepared as `prepare` would.

    Returns cases with columns `logit_<member>` (raw), `y_prob_<member>` (calibrated, the one that decides), every
    signal that was measured, `y_prob`, `certainty`, `decision`, `deferred`, `reason`, `oddity` (the share of usual
    images that is as odd, by whichever detector finds the image oddest), `out_of_distribution` (whether that is so
    small that the image counts as unlike the training images) and `not_measured` (signals that this image lacks).
    """
    shape = system.typical.shape
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"images must be uint8 (n, {wanted}), at least one, found {images.dtype} {images.shape}")
    parts = [_score(system, images[start : start + AT_ONCE]) for start in progress(range(0, len(images), AT_ONCE))]
    return Scored(
        pd.concat([part.cases for part in parts], ignore_index=True), np.concatenate([part.features for part in parts])
    )


def check(system: System) -> None:
    """Score a few cases on record again. Raises ValueError where the system does not say what it said of them.

    It does not where code, parameters, weights or libraries are no longer those of the run that left the policy.
    """
    cases = record.of_split(record.read_labelled(root=system.root), "cal")[:REPEATED]
    again = score(system, record.read_images(cases["image_id"], root=system.root)[:]).cases
    again["image_id"] = cases["image_id"]
    for name in system.networks:
        known = record.read_predictions(name, root=system.root).rename(columns={"score": f"logit_{name}"})
        _agree(again, known, f"logit_{name}", LOGIT_TOLERANCE)
    if system.policy.calibration == "shipped":  # those of the site are cross-fitted, a new case's are not
        known = read_csv(system.root / "data/ensemble/cases.csv", ["image_id", "certainty"])
        _agree(again, known, "certainty", CERTAINTY_TOLERANCE)


def _agree(again: pd.DataFrame, known: pd.DataFrame, name: str, tolerance: float) -> None:
    before = join(again[["image_id"]], known[["image_id", name]])[name].to_numpy()
    apart = np.abs(again[name].to_numpy() - before)
    worst = int(apart.argmax())
    if not apart[worst] <= tolerance:
        raise ValueError(
            f"{name} of image {again['image_id'][worst]} is {again[name][worst]:.3f} now and {before[worst]:.3f} on"
            " record: parameters, code or weights are not those of the last run; `make repro` brings them together"
        )


def _score(system: System, images: np.ndarray) -> Scored:
    outputs = {name: _read(network, images) for name, network in system.networks.items()}
    raw = pd.DataFrame({name: of.logit for name, of in outputs.items()})
    calibrated = pd.DataFrame({name: system.networks[name].calibrator(raw[name].to_numpy()) for name in raw})
    updates = {name: network.update for name, network in system.networks.items()}
    deciding = calibrated.apply(lambda logit: updates[logit.name][0] + updates[logit.name][1] * logit)
    measured = [_signals(system, name, images, of) for name, of in outputs.items()]
    signals = pd.concat(measured, axis=1).assign(disagreement=np.ptp(expit(calibrated.to_numpy()), axis=1))
    unlike = refusal.refuse(refusal.oddities(images, signals, system.pixels), system.usual)
    answers = apply(system.policy, deciding, signals, unlike["out_of_distribution"] == 1)
    columns = [raw.add_prefix("logit_"), expit(deciding).add_prefix("y_prob_"), signals, answers, unlike[["oddity"]]]
    cases = pd.concat(columns, axis=1)
    cases["not_measured"] = [", ".join(signals.columns[row]) for row in signals.isna().to_numpy()]
    return Scored(cases, next(iter(outputs.values())).features)


def _signals(system: System, name: str, images: np.ndarray, outputs: classifier.Outputs) -> pd.DataFrame:
    """One member's signals of these images; what costs further passes only where the policy weighs it."""
    network, params, weighed = system.networks[name], system.params, system.policy.weights
    signals = {
        "distance": nearest_neighbour_distance(outputs.features, network.reference, k=params.uncertainty.neighbours)
    }
    if "mutual_information" in weighed:
        passes = dropout_logits(outputs.features, network.head, network.dropout, params.uncertainty)
        decomposed = entropy.entropy_decomposition(network.calibrator.probability(passes))
        signals["mutual_information"] = decomposed.mutual_information
    if "border_reliance" in weighed:
        bare = regions.hide_border(images, system.typical, share=params.explanations.border)
        signals["border_effect"] = outputs.logit - _read(network, bare).logit
    if "instability" in weighed:
        changes = mild(params.stability.model_dump(), seed=params.stability.seed)
        signals["instability"] = instability(network.explain, images, network.explain(images), changes)
    return pd.DataFrame(signals).add_suffix(f"_{name}")


def _read(network: Network, images: np.ndarray) -> classifier.Outputs:
    return classifier.predict(network.model, images, batch_size=AT_ONCE)


def _network(
    root: Path, name: str, member: Member, policy: FittedPolicy, params: Questions, train: pd.Series
) -> Network:
    weights, question = record.weights(name, root=root), record.read_question(root=root)
    model = attribution.load_trained(member.below(root), weights, question)
    update = (0.0, 1.0)
    if policy.calibration == "site":
        site = record.read_metrics("site", root=root)
        if site is None:
            raise ValueError(f"{root / 'metrics/site.json'}: no such file; `make repro` makes it")
        update = (site["site"][name]["update"]["intercept"], site["site"][name]["update"]["slope"])
    options: dict[str, Any] = {"batch_size": params.explanations.batch_size}
    options |= record.read_layers(root=root)[name]
    return Network(
        model,
        read_calibrators(root / record.CALIBRATORS)[name],
        update,
        record.read_head(name, root=root),
        member.dropout,
        record.read_features(name, train, root=root),
        attribution.explainer(model, **options),
    )
