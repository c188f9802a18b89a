"""What the system on disk says of images that it has never seen.

A new image goes the way that the test split went: the same networks, calibrators, signals and policy, each from the
files that the stages left, so that its certainty is the same score. Nothing is fitted here. Doubts that one look at
the image cannot tell (dropout, hidden border, mild changes) are measured only where the policy weighs them.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import ArrayLike
from scipy.special import expit

from tmv_lib.calibration import calibrators
from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.data.images import How
from tmv_lib.deferral.policy import FittedPolicy, judge, read_policy
from tmv_lib.explanations import attribution, regions
from tmv_lib.explanations.attribution import Explained
from tmv_lib.network import classifier
from tmv_lib.pipeline.files import join, read_csv, read_rows
from tmv_lib.pipeline.params import read_members
from tmv_lib.site.shift import LEVEL, Shift, domain_test, feature_space, kolmogorov_smirnov
from tmv_lib.stability import perturbations, similarity
from tmv_lib.statistics.tests import holm
from tmv_lib.uncertainty import entropy, out_of_distribution
from tmv_lib.uncertainty.distance import nearest_neighbour_distance

FEWEST = 20  # patients of a batch that are compared with the cases calibrated on
AT_ONCE = 32  # images whose signals are measured together: seconds, so that progress shows
LOGIT_TOLERANCE, KAPPA_TOLERANCE = 0.05, 0.05  # between two machines, or processor and graphics card
LOOKS = (  # 1 - 0.95^14 = 0.51
    "This is one look: of batches that are no different one in twenty is called different, and of fourteen in a row at"
    " least one as likely as not."
)
REPEATED = 8  # cases on record that `check` scores again


class Reader(NamedTuple):
    """One member, and what turns what it says into signals.

    calibrate: raw to calibrated logit, as shipped. decide: to the calibrated logit that decides, as shipped or of the
    site. recalibrate: raw probabilities of dropout passes to calibrated ones. dropped: features (n, d) to raw
    probabilities (passes, n). distance: features to (n,). read: uint8 images to logit and features. explain, hidden,
    shaken: uint8 images to maps, to logits without the image's border, to instability given what `explain` said.
    """

    read: Callable[[np.ndarray], classifier.Outputs]
    calibrate: Callable[[np.ndarray], np.ndarray]
    decide: Callable[[np.ndarray], np.ndarray]
    recalibrate: Callable[[np.ndarray], np.ndarray]
    dropped: Callable[[np.ndarray], np.ndarray]
    distance: Callable[[np.ndarray], np.ndarray]
    explain: Callable[[np.ndarray], Explained]
    hidden: Callable[[np.ndarray], np.ndarray]
    shaken: Callable[[np.ndarray, Explained], np.ndarray]


class System(NamedTuple):
    """Members and policy as they lie below `root`; images are brought to (size, size) as `how` says.

    pixels, usual: what the stage `uncertainty` left to tell what is unlike the training images: the detectors that look
    at the pixels, and a column per detector, those of the networks too, of the validation images.
    """

    root: Path
    readers: dict[str, Reader]
    policy: FittedPolicy
    pixels: out_of_distribution.PixelDetectors
    usual: pd.DataFrame
    size: int
    how: How


class Scored(NamedTuple):
    """cases: a row an image, see `score`. features: of the first member, (n, d)."""

    cases: pd.DataFrame
    features: np.ndarray


def load(root: str | Path = ".") -> System:
    """Load what the pipeline left in a project's folder.

    Raises ValueError naming the first file that is missing, and the command that makes it.
    """
    root = Path(root)
    policy = read_policy(root / "data/ensemble/policy.json")
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    members = read_members(root / "params.yaml")
    if list(members) != policy.members:
        raise ValueError(f"params.yaml: members are {', '.join(members)}, the policy on disk is of {policy.members}")
    cases = read_csv(root / "data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    images = np.load(root / "data/prepare/images.npy", mmap_mode="r")
    typical = np.median(images[(cases["split"] != "train").to_numpy()], axis=0).astype(np.uint8)
    readers = {name: _reader(root, name, member, policy, params, typical) for name, member in members.items()}
    pixels = out_of_distribution.read_pixel_detectors(root / "data/uncertainty/pixels.npz")
    usual = read_csv(root / "data/uncertainty/usual.csv", _detectors(list(members)))
    return System(root, readers, policy, pixels, usual, images.shape[1], params["prepare"]["square"])


def score(system: System, images: np.ndarray, *, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> Scored:
    """Score uint8 images (n, size, size), prepared as `prepare` would.

    Returns cases with columns `logit_<member>` (raw), `y_prob_<member>` (calibrated, the one that decides), every
    signal that was measured, `y_prob`, `kappa`, `decision`, `deferred`, `reason`, `oddity` (the share of usual images
    that is as odd, by whichever detector finds the image oddest), `out_of_distribution` (whether that is so small that
    the image counts as unlike the training images) and `not_measured` (signals that this image lacks, in words).
    """
    if images.dtype != np.uint8 or images.shape[1:] != (system.size, system.size) or not len(images):
        raise ValueError(
            f"images must be uint8 (n, {system.size}, {system.size}), at least one, found {images.dtype} {images.shape}"
        )
    parts = [_score(system, images[start : start + AT_ONCE]) for start in progress(range(0, len(images), AT_ONCE))]
    return Scored(
        pd.concat([part.cases for part in parts], ignore_index=True), np.concatenate([part.features for part in parts])
    )


def check(system: System) -> None:
    """Score a few cases on record again. Raises ValueError where the system does not say what it said of them.

    It does not where code, parameters, weights or libraries are no longer those of the run that left the policy.
    """
    cases = read_csv(system.root / "data/prepare/cases.csv", ["image_id", "split"])
    record = read_csv(system.root / "data/ensemble/cases.csv", ["image_id", "kappa"])
    rows = np.flatnonzero(cases["split"] == "cal")[:REPEATED]
    images = np.load(system.root / "data/prepare/images.npy", mmap_mode="r")[rows]
    again = score(system, np.ascontiguousarray(images)).cases.assign(image_id=cases["image_id"].to_numpy()[rows])
    for name in system.readers:
        told = read_csv(system.root / f"data/train/{name}/predictions.csv", ["image_id", "logit"])
        _agree(again, told.rename(columns={"logit": f"logit_{name}"}), f"logit_{name}", LOGIT_TOLERANCE)
    if system.policy.calibration == "shipped":  # those of the site are cross-fitted, a new case's are not
        _agree(again, record, "kappa", KAPPA_TOLERANCE)


class Likeness(NamedTuple):
    """Whether a batch looks like the cases that were calibrated on: the tests by name, and the verdict in words."""

    tests: dict[str, Shift]
    words: str


def likeness(system: System, scored: Scored, groups: ArrayLike) -> Likeness:
    """Compare new images, of the patients `groups` (n,), with those that calibrators and threshold come from.

    They are `val` and `cal`, patients of the source that no network was trained on, or the site's own cases where the
    policy was calibrated there. The tests of the stage `site` that need no label, with its parameters: the features and
    the distribution of each member's logit; p by permuting patients, Holm over the tests of this batch. Batches that
    were looked at before are not known here, and no correction is made for them: the words say what that means.
    """
    cases = read_csv(system.root / "data/prepare/cases.csv", ["image_id", "patient_id", "split"])
    splits = {"val", "cal"}
    if system.policy.calibration == "site":
        splits = {"local"} if "local" in set(cases["split"]) else {"test"}
    cases = cases[cases["split"].isin(splits)]
    new = scored.cases.assign(patient_id=np.asarray(groups, dtype=str))
    fresh = ~new["patient_id"].isin(cases["patient_id"]).to_numpy()
    params = yaml.safe_load((system.root / "params.yaml").read_text(encoding="utf-8"))["site"]
    n_patients = new.loc[fresh, "patient_id"].nunique()
    if n_patients < FEWEST:
        return Likeness(
            {},
            f"Too few to say whether they look like the cases calibrated on: {n_patients} patients that "
            f"are not among those; {FEWEST} are needed.",
        )
    home = system.root / "data/train" / system.policy.members[0]
    known = read_csv(home / "predictions.csv", ["image_id", "split"])
    rows = partial(read_rows, home / "features.npy", image_id=known["image_id"])
    train = rows(wanted=known.loc[known["split"] == "train", "image_id"])
    space = feature_space(train, n_components=params["components"])
    site, who = np.repeat([0, 1], [len(cases), fresh.sum()]), [*cases["patient_id"], *new.loc[fresh, "patient_id"]]
    dealt = {"n_permutations": params["permutations"], "rng": np.random.default_rng(params["seed"])}
    features = np.vstack([space(rows(wanted=cases["image_id"])), space(scored.features[fresh])])
    folded = {"n_folds": params["folds"], "n_foldings": params["foldings"]}
    tests = {"features": domain_test(features, site, who, **folded, **dealt)}
    for name in system.policy.members:
        told = read_csv(system.root / f"data/train/{name}/predictions.csv", ["image_id", "logit"])
        # to four decimals: what rounding and the size of a batch leave is no difference
        logits = np.round([*join(cases[["image_id"]], told)["logit"], *new.loc[fresh, f"logit_{name}"]], 4)
        tests[f"logit_{name}"] = kolmogorov_smirnov(logits, site, who, **dealt)
    adjusted = holm([test.p_value for test in tests.values()])
    tests = {name: test._replace(p_value=float(p)) for (name, test), p in zip(tests.items(), adjusted, strict=True)}
    return Likeness(tests, _likeness_in_words(tests, n_patients))


def _likeness_in_words(tests: dict[str, Shift], n_patients: int) -> str:
    least = min(test.p_value for test in tests.values())
    tested = (
        f"AUC of telling them apart {tests['features'].observed:.2f}; least p {least:.2g} by Holm over"
        f" {len(tests)} tests"
    )
    if least < LEVEL:
        differ = ", ".join(name.replace("_", " of ", 1) for name, test in tests.items() if test.p_value < LEVEL)
        return (
            f"Looks different, harm unknown: these {n_patients} patients and the cases calibrated on differ in {differ}"
            f" ({tested}). Another share of positives alone also looks different, and without labels nobody can say"
            f" whether probabilities, threshold and guarantee hold. {LOOKS}"
        )
    return (
        f"No difference from the cases calibrated on was shown in {n_patients} patients ({tested}). That is no proof:"
        f" a smaller difference goes unnoticed, and so does one that only labels can show. {LOOKS}"
    )


def _agree(again: pd.DataFrame, record: pd.DataFrame, name: str, tolerance: float) -> None:
    before = join(again[["image_id"]], record)[name].to_numpy()
    apart = np.abs(again[name].to_numpy() - before)
    worst = int(apart.argmax())
    if not apart[worst] <= tolerance:
        raise ValueError(
            f"{name} of image {again['image_id'][worst]} is {again[name][worst]:.3f} now and {before[worst]:.3f} on"
            " record: parameters, code or weights are not those of the last run; `make repro` brings them together"
        )


def _score(system: System, images: np.ndarray) -> Scored:
    raw, shipped, deciding, signals = {}, {}, {}, {}
    first = None
    for name, reader in system.readers.items():
        said = reader.read(images)
        first = said.features if first is None else first
        raw[f"logit_{name}"], deciding[name] = said.logit, reader.decide(said.logit)
        shipped[name] = expit(reader.calibrate(said.logit))
        signals[f"distance_{name}"] = reader.distance(said.features)
        # what costs further passes is measured only where the policy weighs it
        if "mutual_information" in system.policy.weights:
            passes = reader.recalibrate(reader.dropped(said.features))
            signals[f"mutual_information_{name}"] = entropy.entropy_decomposition(passes).mutual_information
        if "border_reliance" in system.policy.weights:
            signals[f"border_effect_{name}"] = said.logit - reader.hidden(images)
        if "instability" in system.policy.weights:
            signals[f"instability_{name}"] = reader.shaken(images, reader.explain(images))
    signals["disagreement"] = np.ptp(np.stack(list(shipped.values())), axis=0)
    table = pd.DataFrame(signals)
    seen = pd.DataFrame(out_of_distribution.pixel_oddity(images, system.pixels), columns=[*out_of_distribution.PIXELS])
    oddity = out_of_distribution.joint_p_value(seen.join(table)[system.usual.columns], system.usual)
    foreign = oddity <= out_of_distribution.REFUSED
    found = pd.DataFrame({**raw, **{f"y_prob_{name}": expit(z) for name, z in deciding.items()}})
    found = found.join([table, judge(system.policy, pd.DataFrame(deciding), table, foreign)]).assign(oddity=oddity)
    found["not_measured"] = [", ".join(table.columns[row]) for row in table.isna().to_numpy()]
    return Scored(found, np.asarray(first))


def _detectors(members: list[str]) -> list[str]:
    return [*out_of_distribution.PIXELS, *(f"distance_{name}" for name in members)]


def _reader(
    root: Path, name: str, member: Any, policy: FittedPolicy, params: dict[str, Any], typical: np.ndarray
) -> Reader:
    home = root / "data/train" / name
    predictions = read_csv(home / "predictions.csv", ["image_id", "split", "logit"])
    calibrated = read_csv(root / "data/calibration/cases.csv", ["image_id", f"y_prob_{name}"])
    known = join(predictions, calibrated)
    model = _network(member, home / "weights.safetensors")
    train = known[known["split"] == "train"]
    calibrate = read_calibrators(root / "data/calibration/calibrators.json")[name]
    update = _metrics(root, "site")[name]["update"] if policy.calibration == "site" else {"intercept": 0, "slope": 1}
    reference = read_rows(home / "features.npy", image_id=known["image_id"], wanted=train["image_id"])
    doubt, look, shake, fit = (params[key] for key in ("uncertainty", "explanations", "stability", "train"))
    layers = read_csv(root / "data/explanations/layers.csv", ["member", "layer", "method"]).set_index("member")
    precision = fit["precision"]
    explainer = partial(
        attribution.explainer,
        model,
        layer=layers.loc[name, "layer"],
        method=layers.loc[name, "method"],
        precision=precision,
    )
    read_logits = attribution.reader(model, batch_size=look["batch_size"], precision=precision)
    shaken, changes = explainer(batch_size=shake["batch_size"]), perturbations.mild(shake, seed=shake["seed"])

    def instability(images: np.ndarray, seen: Explained) -> np.ndarray:
        # the sign of both maps and where the answer flips play no part in a rank correlation
        compared = similarity.stability(shaken, images, changes, target=np.ones(len(images), int), original=seen)
        return 1 - similarity.per_case(compared)["rank_correlation"].to_numpy()

    return Reader(
        read=partial(classifier.predict, model, batch_size=fit["batch_size"], precision=precision),
        calibrate=calibrate,
        decide=lambda raw: update["intercept"] + update["slope"] * calibrate(raw),
        recalibrate=partial(
            calibrators.recalibrated, raw=expit(known["logit"].to_numpy()), calibrated=known[f"y_prob_{name}"]
        ),
        dropped=lambda features: entropy.mc_dropout_probs(
            features,
            model.head.weight.detach().cpu().numpy()[0],
            float(model.head.bias.detach()),
            rate=member.dropout,
            passes=doubt["passes"],
            generator=np.random.default_rng(doubt["seed"]),
        ),
        distance=lambda features: nearest_neighbour_distance(features, reference, k=doubt["neighbours"]),
        explain=explainer(batch_size=look["batch_size"]),
        hidden=lambda images: read_logits(regions.hide_border(images, typical, share=look["border"])),
        shaken=instability,
    )


def _network(member: Any, weights: Path) -> classifier.Classifier:
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; `make repro` trains the members")
    with torch.random.fork_rng():  # what a network is built with is overwritten, and nobody's numbers are used up
        model = classifier.build(member.architecture, weights="none", dropout=member.dropout)
    classifier.load_weights(model, weights)
    return model.to(classifier.available_device()).to(memory_format=torch.channels_last).eval()


def _metrics(root: Path, name: str) -> dict[str, Any]:
    path = root / f"metrics/{name}.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `make repro` makes it")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))[name]
    return found
