"""The trust card: a page that tells a clinician when to use a model, and an appendix for whoever answers for that.

Every figure on it is read from the metrics of the stages that have run. A field says one of three things: a value, "not
measured", or "not applicable because ...". What no measurement can say is a person's: `Facts`.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from tmv_lib.card import pages
from tmv_lib.card.answers import ANSWERS
from tmv_lib.card.facts import Facts
from tmv_lib.card.identity import Identity, digest, identify
from tmv_lib.card.in_use import AFTER, warning
from tmv_lib.card.policy import OF_HUNDRED, Run, hundred_cases
from tmv_lib.card.sections import CLINICIAN, Section, sections
from tmv_lib.card.words import NOT_MEASURED, plain
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import AS_WRITTEN, read_csv, whole
from tmv_lib.pipeline.params import Member, read, read_yaml

_FOLDER = Path(__file__).parent
ENDINGS = ("html", "md", "json")
SOURCES = {"phantom", "folder", "medmnist", "table"}
# What is read of a stage beside its metrics: the card says so with the digest of each file.
FILES = {
    "prepare": ["data/prepare/cases.csv", "data/prepare/images.npy"],
    "calibration": ["data/calibration/cases.csv"],
    "site": ["data/site/cases.csv", "data/site/shift.json"],
    "uncertainty": ["data/uncertainty/cases.csv"],
    "explanations": ["data/explanations/cases.csv"],
    "stability": ["data/stability/cases.csv"],
    "failures": ["data/failures/errors.csv"],
}


class Picture(NamedTuple):
    """One image of a kind of failure: PNG as base64 text, its caption, and the sheet of its kind beside the card."""

    png: str
    caption: str
    sheet: str


class Source(NamedTuple):
    """Where figures come from: a stage, the digest of each file read from it, and its parameters, in words."""

    stage: str
    files: str
    params: str


class Item(NamedTuple):
    """What a guideline asks, in our own few words, and where it is answered; "" where it is not."""

    item: str
    abridged: str
    answered: str


class Card(NamedTuple):
    """Everything on the card; `hundred` counts what becomes of 100 cases, empty where that is unknown."""

    title: str
    identity: Identity
    warning: str
    hundred: Mapping[str, int]
    sections: Mapping[str, Section]
    pictures: Sequence[Picture]
    guidelines: Mapping[str, Sequence[Item]]
    sources: Sequence[Source]


def write_card(
    folder: str | Path, members: Mapping[str, Member | None], *, in_use: bool = False, root: str | Path = "."
) -> None:
    """Write the card of the run below root into a folder: `trust_card.html`, `.md`, and `.json` for programs."""
    card = read_card(members, in_use=in_use, root=root)
    for ending in ENDINGS:
        with whole(Path(folder) / f"trust_card.{ending}") as temporary:
            temporary.write_text(render(card, ending), encoding="utf-8")


def read_card(members: Mapping[str, Member | None], *, in_use: bool = False, root: str | Path = ".") -> Card:
    """The card of the run below root.

    in_use: also what acceptance test and monitoring say, which the run itself cannot know.
    """
    root = Path(root)
    metrics = {stage: record.read_metrics(stage, root=root) for stage in (*ANSWERS, *(AFTER if in_use else ()))}
    source = ", ".join(sorted(read_csv(root / record.CASES, ["source"])["source"].unique()))
    facts = read(root / "card.yaml", "card", Facts).about(source)
    pictures = [] if None in members.values() or metrics["failures"] is None else examples(root)
    digests = read_digests(root, members)
    identity = identify(root, {path: md5 for files in digests.values() for path, md5 in files.items()})
    return make(metrics, facts, members, identity, read_sources(root, members, digests), pictures)


def make(
    metrics: Mapping[str, Any],
    facts: Facts,
    members: Mapping[str, Member | None],
    identity: Identity,
    sources: Sequence[Source] = (),
    pictures: Sequence[Picture] = (),
) -> Card:
    """The card as values. metrics: each stage's `Figures`, None where it has not run."""
    run = Run(metrics, facts, {name: in_words(one) for name, one in members.items()})
    made = sections(run, identity)
    return Card(
        title=", ".join(members) if "name" in facts.left_open() else facts.name,
        identity=identity,
        warning=" ".join(filter(None, [facts.warning(), warning(metrics.get("monitor"))])),
        hundred=hundred_cases(run),
        sections={section.key: section for section in made},
        pictures=pictures,
        guidelines=crosswalk(made, facts, has_sources=bool(sources)),
        sources=sources,
    )


def render(card: Card, ending: str) -> str:
    """The card as `html`, one file that needs no network and prints on A4 and Letter, as `md`, or as `json`."""
    if ending == "json":
        return json.dumps(as_values(card), indent=2) + "\n"
    return pages.fill(f"card/trust_card.{ending}.j2", **shown(card))


def shown(card: Card) -> dict[str, Any]:
    """What the templates of the card show."""
    looks = [OF_HUNDRED[name][1] for name in OF_HUNDRED for _ in range(card.hundred.get(name, 0))]
    more = {"looks": looks, "of_hundred": OF_HUNDRED, "not_measured": NOT_MEASURED, "clinician": CLINICIAN}
    return {"card": card, **more}


def as_values(card: Card) -> dict[str, Any]:
    """The card as `trust_card.schema.json` has it: no picture, and with each section the figures that it was made from.

    A figure stands under its file and its keys, "metrics/ensemble.json deferral coverage", as it stands there.
    """
    return {
        "title": card.title,
        "identity": card.identity._asdict(),
        "warning": card.warning,
        "of_hundred": dict(card.hundred),
        "sections": [section._asdict() | {"first_page": key in CLINICIAN} for key, section in card.sections.items()],
        "guidelines": {name: [item._asdict() for item in items] for name, items in card.guidelines.items()},
        "sources": [source._asdict() for source in card.sources],
    }


def in_words(member: Member | None) -> str:
    """What a member is; None where there is no network to ask."""
    if member is None:
        return "known by its predictions alone"
    weights = "random weights" if member.weights == "none" else f"weights {member.weights}"
    origin = f"{'trained here' if member.train else 'taken as it is'} from {weights}"
    return f"{member.architecture}, {origin}, dropout {member.dropout:g}, seed {member.seed}"


def examples(root: Path) -> list[Picture]:
    """The first error of each kind that `failures` lists for the ensemble, with what the policy does with it."""
    errors = record.read_failures(root=root)
    first = errors[errors["model"] == "ensemble"].drop_duplicates("kind")
    images = record.read_images(first["image_id"], root=root)[:]
    cases = pd.read_csv(root / "data/ensemble/cases.csv", **AS_WRITTEN)
    policy = cases.set_index("image_id").loc[first["image_id"]]
    return [
        Picture(
            png(image),
            f"{error.kind}: {('negative', 'positive')[error.y_true]}, p {case.y_prob:.2f},"
            f" {'to a doctor' if case.deferred else 'decided'}",
            f"../failures/cases/{error.kind.replace(' ', '_')}.png",
        )
        for error, image, case in zip(first.itertuples(), images, policy.itertuples(), strict=True)
    ]


def png(image: np.ndarray) -> str:
    """A grey image (h, w) as PNG in base64, at most 128 pixels a side."""
    small = Image.fromarray(image)
    small.thumbnail((128, 128))
    file = BytesIO()
    small.save(file, "png")
    return b64encode(file.getvalue()).decode()


def read_digests(root: Path, members: Mapping[str, Member | None]) -> dict[str, dict[str, str]]:
    """By stage the files that are read of it and are there, each with its MD5."""
    kept = {name: "predictions.csv" if one is None else "weights.safetensors" for name, one in members.items()}
    files = {stage: [*FILES.get(stage, []), f"metrics/{stage}.json"] for stage in ANSWERS}
    first, *others = files
    files = {first: files[first], "train": [f"data/train/{name}/{file}" for name, file in kept.items()]} | files
    *stages, _ = [first, "train", *others]  # the last is where the card is made
    return {stage: {path: digest(root / path) for path in files[stage] if (root / path).exists()} for stage in stages}


def read_sources(
    root: Path, members: Mapping[str, Member | None], digests: Mapping[str, Mapping[str, str]]
) -> list[Source]:
    """Every stage that has run, what is read of it under the digest that dvc.lock knows, and what it was told."""
    params = read_yaml(root / "params.yaml")
    elsewhere = SOURCES - {params["prepare"]["source"]}
    params["prepare"] = {name: value for name, value in params["prepare"].items() if name not in elsewhere}
    params["ensemble"] |= {"deferral": params["deferral"]}
    params["train"] = params.get("train", {}) | {"members": params["members"]}
    sources = []
    for stage, files in digests.items():
        if files:
            words = ", ".join(f"{path} {md5[:10]}" for path, md5 in files.items())
            sources.append(Source(stage, words, _flat(params.get(stage, {})) or NOT_MEASURED))
    last = list(ANSWERS)[-1]
    return [*sources, Source(last, "not applicable because it is where this card is made", _flat(params[last]))]


def _flat(params: Mapping[str, Any], prefix: str = "") -> str:
    """Nested parameters by dotted name, in words."""
    parts = []
    for name, value in params.items():
        if isinstance(value, Mapping):
            parts += [_flat(value, f"{prefix}{name}.")] if value else []
        else:
            text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            parts.append(f"{prefix}{name} {text}")
    return ", ".join(parts)


def crosswalk(made: Iterable[Section], facts: Facts, *, has_sources: bool) -> dict[str, list[Item]]:
    """The items of each reporting guideline with what answers them: parts of the card, or files of the project."""
    titles = {section.key: section.title for section in made if section.answered}
    titles |= {"sources": "Where the numbers come from"} if has_sources else {}
    titles |= {name: plain(name) for name in facts.filled()}
    items: dict[str, list[Item]] = {}
    for row in pd.read_csv(_FOLDER / "crosswalk.csv", dtype=str, keep_default_na=False).itertuples():
        path = row.answered_by.removeprefix("repository:")
        wanted = row.answered_by.split()
        answered = ", ".join(titles[key] for key in wanted) if all(key in titles for key in wanted) else ""
        items.setdefault(row.guideline, []).append(
            Item(row.item, row.abridged, path if path != row.answered_by else answered)
        )
    return items
