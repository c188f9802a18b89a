"""Can the data be trusted? What is wrong with images and case table, before anything is learned from them."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import laplace
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from tmv_lib.data.cases import labels_in_words
from tmv_lib.pipeline.files import Images, Rows
from tmv_lib.pipeline.grey import luminance
from tmv_lib.pipeline.question import CLASS, FINDING, Task, label_columns

# These sources number their images themselves: such numbers say nothing about where an image comes from.
NUMBERED_HERE = ("phantom", "cells", "medmnist")
FEWEST_PATIENTS = 20
SIMILARITY = 0.975  # from which two images count as one picture, see `near_duplicates`
COMPONENTS = 16  # of the outlines, by which pairs are sought
FLAT = 1.0  # grey levels, 0 to 255: an image of a smaller standard deviation is blank, and no duplicate
NOBODY_KNOWS = (
    "images nobody says whose they are, each counts as a patient of its own: if some patient has several, every"
    " interval is too narrow, and a patient may stand in two splits"
)


class Audit(NamedTuple):
    """What was found.

    findings: `image_id`, `split`, `problem`, `detail`, one row an image and problem (duplicate, near_duplicate,
        duplicate_across_splits, contradicting_label, patient_in_two_splits, blank, unreadable, doubtful). A file of
        the last two has its path as `image_id` and no split.
    counts: nested numbers for a metrics file: problems, sizes, splits, patients and, where it can be told,
        id_blocks.
    """

    findings: pd.DataFrame
    counts: dict[str, Any]


def audit_images(
    images: np.ndarray,
    cases: pd.DataFrame,
    unreadable: pd.DataFrame,
    remarks: pd.DataFrame | None = None,
    *,
    ignored: int = 0,
    converted: Mapping[str, int] = MappingProxyType({}),
    task: Task = "binary",
) -> Audit:
    """Look for pictures that are there twice, patients on both sides of a split, labels that contradict, bad files.

    images: uint8 (n, size, size) or, in colour, (n, size, size, 3), in the row order of `cases`, whose splits are cut.
    unreadable, remarks: `path`, `problem` of the files that were left out, and of those that were read with a doubt.
    ignored: images without a usable label. converted: files read in other channels than their own, by way.
    Duplicates across splits are identical or near; contradicting labels are looked for among identical images.
    Raises ValueError where images and cases differ in number.
    """
    if len(images) != len(cases):
        raise ValueError(f"images and cases must be equally many, found {len(images)} and {len(cases)}")
    table = cases.reset_index(drop=True)
    label = labels_in_words(table, task)
    said = f"{label_columns(task, table)[0]} " + label if task == "binary" else label
    spread = np.array([luminance(pixels[None]).std() for pixels in images])
    blank = spread < FLAT
    picture = _identical(images, blank)
    scene = _alike(images, picture, blank)
    split, image = table["split"], pd.Series(range(len(table)))
    findings, problems = [], {}
    for problem, group, differs in (
        ("duplicate", picture, image),
        ("near_duplicate", scene, picture),
        ("duplicate_across_splits", scene, split),
        ("contradicting_label", picture, label),
        ("patient_in_two_splits", table["patient_id"], split),
    ):
        found = differs.groupby(group).transform("nunique") > 1
        problems[problem] = {"images": int(found.sum()), "groups": int(group[found].nunique())}
        findings.append(_named(table[found], problem, _members(table[found], group[found], said[found])))
    problems["blank"] = {"images": int(blank.sum())}
    problems["unreadable"] = {"files": len(unreadable)}
    if ignored:
        problems["ignored_label"] = {"images": ignored}
    problems |= {way: {"images": count} for way, count in converted.items()}
    findings.append(_named(table[blank], "blank", pd.Series(spread).map("standard deviation {:.2f}".format)[blank]))
    left_out = unreadable.rename(columns={"path": "image_id", "problem": "detail"})
    findings.append(_named(left_out.assign(split=""), "unreadable", left_out["detail"]))
    if remarks is not None and len(remarks):
        problems["doubtful"] = {"files": len(remarks)}
        doubtful = remarks.rename(columns={"path": "image_id", "problem": "detail"}).assign(split="")
        findings.append(_named(doubtful, "doubtful", doubtful["detail"]))
    counts = {"problems": problems, **_counted(table, size=images.shape[1], task=task)}
    return Audit(pd.concat(findings, ignore_index=True), counts)


def near_duplicates(images: Images, *, similarity: float = SIMILARITY) -> np.ndarray:
    """Find pairs of images that are one picture but for compression, scale, brightness or contrast.

    images: uint8 (n, size, size), or in colour, of which the luminance counts. Two images are a pair where their edges,
    the Laplacians of the images reduced to 16 x 16 and to 32 x 32 pixels, correlate by at least `similarity` at both.
    Edges, because radiographs of different people correlate by up to 0.98 in grey levels, but by no more than 0.67
    (5,840 children) in edges; two exposures of one phantom patient reach 0.964, a copy at JPEG quality 50, half size or
    gamma 0.8 has 0.98 and more. A copy that was cropped, turned or moved is not found, even by half a per cent of the
    width. Returns int (m, 2), row numbers in ascending order. Outlines x, y of length 1 that correlate by s are
    sqrt(2 - 2 s) apart, and no farther on their first principal components: a tree over these finds every such pair.
    """
    if len(images) < 2:
        return np.empty((0, 2), dtype=int)
    outline = _edges(images, 16)
    _, _, axes = np.linalg.svd(outline[:: -(-len(outline) // 2000)], full_matrices=False)
    tree = KDTree(outline @ axes[:COMPONENTS].T)
    pairs = tree.query_pairs(np.sqrt(2 - 2 * similarity) + 1e-6, output_type="ndarray")  # the smaller number first
    pairs = pairs[_correlation(outline, pairs) >= similarity]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    rows, place = np.unique(pairs, return_inverse=True)
    detail = _edges(images[rows], 32) if len(rows) else outline
    return pairs[_correlation(detail, place.reshape(-1, 2)) >= similarity]


def _correlation(flat: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Product of each pair (m, 2) of rows of unit length, (m,)."""
    starts = range(0, len(pairs), 4096)
    blocks = [(flat[pairs[at : at + 4096, 0]] * flat[pairs[at : at + 4096, 1]]).sum(axis=1) for at in starts]
    return np.concatenate([np.empty(0), *blocks])


def id_blocks(cases: pd.DataFrame, *, by: str = "y_true") -> dict[str, dict[str, float]]:
    """Is the test split a block of numbers, class by class (a column), rather than a sample among train's?

    The number is read from the last part of `image_id`; ids that differ only in their digits make a series, and
    of several numbers the one with most values counts. Two signs, since a block may lie inside train's range:
    `outside_train_range`, the share of test images beyond train's smallest or largest number, and `among_test`,
    the share of test patients whose two neighbours, in the order of numbers, are test patients too; beside it
    `among_test_by_chance`. Both shares are means over the series weighted by test images and patients.

    A class is left out where no series has 20 patients in train and in test, and so are sources whose numbers
    are this library's own.
    """
    told = cases[cases["split"].isin(["train", "test"]) & ~cases["source"].isin(NUMBERED_HERE)]
    if {"train", "test"} - set(told["split"].unique()):
        return {}
    name = told["image_id"].str.rsplit("/", n=1).str[-1]
    told = told.assign(series=name.str.replace(r"\d+", "#", regex=True), numbers=name.str.findall(r"\d+"))
    found: dict[str, dict[str, float]] = {}
    for label, rows in told[told["numbers"].str.len() > 0].groupby(by):
        parts = [
            _block(series)
            for _, series in rows.groupby("series")
            if min(series.loc[series["split"] == split, "patient_id"].nunique() for split in ("train", "test"))
            >= FEWEST_PATIENTS
        ]
        if parts:
            total = pd.DataFrame(parts).sum()
            found[f"{by}_{label}"] = {
                "test_images": int(total["images"]),
                "outside_train_range": float(total["outside"] / total["images"]),
                "among_test": float(total["among"] / total["patients"]),
                "among_test_by_chance": float(total["by_chance"] / total["patients"]),
            }
    return found


def is_block(block: dict[str, float]) -> bool:
    """Whether a class of `id_blocks` is a block of its own.

    It is where most of test lies beyond train's numbers, or where the share of test patients between test patients lies
    nearer to all of them than to chance.
    """
    return block["outside_train_range"] > 0.5 or block["among_test"] > (1 + block["among_test_by_chance"]) / 2


def _block(series: pd.DataFrame) -> dict[str, float]:
    """Count test images outside train's range, and test patients between test patients, in one series of ids."""
    numbers = np.array(series["numbers"].tolist(), dtype=float)
    number = numbers[:, np.argmax([len(np.unique(column)) for column in numbers.T])]
    test = (series["split"] == "test").to_numpy()
    train_low, train_high = number[~test].min(), number[~test].max()
    # In the order of patients, not of images: a patient's own images always stand side by side.
    first = pd.DataFrame({"patient": series["patient_id"].to_numpy(), "number": number, "test": test})
    ordered = first.sort_values("number", kind="stable").drop_duplicates("patient")["test"].to_numpy()
    # The patients at the two ends have one neighbour; it stands for both.
    padded = np.concatenate([ordered[1:2], ordered, ordered[-2:-1]])
    return {
        "images": int(test.sum()),
        "outside": int(((number[test] < train_low) | (number[test] > train_high)).sum()),
        "patients": int(ordered.sum()),
        "among": int((padded[:-2] & ordered & padded[2:]).sum()),
        "by_chance": ordered.sum() * ordered.mean() ** 2,
    }


def _identical(images: np.ndarray, blank: np.ndarray) -> pd.Series:
    """A number for each image, the same for images of the same bytes; a blank one has a number of its own."""
    digest = [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images]
    return pd.Series(pd.factorize(pd.Series(digest).where(~blank, pd.Series(range(len(images))).astype(str)))[0])


def _alike(images: np.ndarray, picture: pd.Series, blank: np.ndarray) -> pd.Series:
    """A number for each image, the same for images that identity or nearness links."""
    first = np.flatnonzero(~picture.duplicated() & ~blank)
    pairs = picture.to_numpy()[first[near_duplicates(Rows(images, first))]]
    n = picture.max() + 1
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return pd.Series(connected_components(links, directed=False)[1][picture])


def _edges(images: Images, side: int) -> np.ndarray:
    """Laplacians of the images reduced to side x side (at most their size), flat and of unit length, float32."""
    size = images.shape[1]
    side, pixel = min(side, size), np.arange(size)
    # Row i of `area` averages the stretch [i, i + 1) size / side of the pixels.
    ends = np.linspace(0, size, side + 1)[:, None]
    overlap = np.minimum(ends[1:], pixel + 1) - np.maximum(ends[:-1], pixel)
    area = (overlap.clip(0) * side / size).astype(np.float32)
    edges = []
    for start in range(0, len(images), 256):
        small = area @ luminance(images[start : start + 256]).astype(np.float32) @ area.T
        edges.append(laplace(small, axes=(1, 2))[:, 1:-1, 1:-1].reshape(len(small), -1))
    flat = np.concatenate(edges)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-6)


def _members(table: pd.DataFrame, group: pd.Series, label: pd.Series) -> pd.Series:
    """Name each row's group: up to four images, one of every split and label first. label: of each row, in words."""
    text = table["image_id"] + " (" + table["split"] + ", " + label + ")"
    known = table.assign(group=group, label=label)
    again = known.duplicated(["group", "split", "label"]).sort_values(kind="stable").index
    names = text[again].groupby(group[again]).agg(lambda name: ", ".join(name[:4]) + (", ..." if len(name) > 4 else ""))
    return group.map(names)


def _named(rows: pd.DataFrame, problem: str, detail: pd.Series) -> pd.DataFrame:
    return rows[["image_id", "split"]].assign(problem=problem, detail=detail)


def _counted(table: pd.DataFrame, size: int, task: Task) -> dict[str, Any]:
    totals = {"images": ("image_id", "size"), "positives": ("y_true", "sum"), "patients": ("patient_id", "nunique")}
    if task != "binary":
        del totals["positives"]
    images = table["patient_id"].value_counts()
    patients = {"all": len(images), "with_several_images": int((images > 1).sum()), "most_images": int(images.max())}
    if alone := int((table["patient_id"] == table["image_id"]).sum()):
        patients["unknown"] = alone
    sides = table[["width", "height"]]
    sizes = {f"{side}_{end}": int(sides[side].agg(end)) for side in sides for end in ("min", "max")}
    sizes["not_square"] = int((sides["width"] != sides["height"]).sum())
    sizes["enlarged"] = int((sides < size).any(axis=1).sum())
    splits = {
        split: rows | _labels_of(table[table["split"] == split], task)
        for split, rows in table.groupby("split").agg(**totals).to_dict("index").items()
    }
    counts = {"splits": splits, "patients": patients, "sizes": sizes}
    of_findings = table.assign(images="all"), "images"  # an image is not of one class
    rows, by = {"binary": (table, "y_true"), "multiclass": (table, CLASS), "multilabel": of_findings}[task]
    blocks = id_blocks(rows, by=by)
    return counts | ({"id_blocks": blocks} if blocks else {})


def _labels_of(rows: pd.DataFrame, task: Task) -> dict[str, Any]:
    """How many images of each class, or of each finding with it, without it and not labelled; binary is counted."""
    if task == "multiclass":
        return {"classes": rows[CLASS].value_counts().sort_index().to_dict()}
    if task == "multilabel":
        findings = {}
        for name in label_columns(task, rows):
            there = rows[name].notna()
            positive = int((rows[name] == 1).sum())
            counted = {
                "positive": positive,
                "negative": int(there.sum()) - positive,
                "not_labelled": int((~there).sum()),
            }
            findings[name.removeprefix(FINDING)] = counted
        return {"findings": findings}
    return {}
