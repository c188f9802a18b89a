"""What becomes of bad input, at every way in?

Run by `make fuzz`; writes docs/fuzz.csv. Every way in has a good sample, made here, of which hostile copies are made:
cut, with bytes flipped, removed, doubled and put in, and where the file is text with words of a kind that break parsers
in place of its own. Each distinct copy is read as the pipeline would read it, within `SECONDS` and `MOST_MEMORY`. It is
`refused` where one line of a ValueError or OSError names the file, `read` where it still makes sense, and a failure of
ours where it ends in another error (`traceback`), in a refusal that does not say of which file (`nameless`), or not in
time (`hang`).
"""

import hashlib
import io
import json
import random
import re
import resource
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pydicom
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)
from safetensors.torch import save_file
from tqdm import tqdm

from networks.small import small
from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.card.facts import Facts
from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.cases import name_local
from tmv_lib.data.decisions import read_decisions
from tmv_lib.data.images import content_of, read_image
from tmv_lib.data.medmnist import load_medmnist
from tmv_lib.data.prediction_files import ALL, read_questions
from tmv_lib.data.table import load_table
from tmv_lib.data.unlabelled import load_unlabelled
from tmv_lib.deferral.answer import DeferralParams
from tmv_lib.deferral.policy import read_policy
from tmv_lib.monitoring.acceptance import Protocol
from tmv_lib.network import classifier
from tmv_lib.network.answer import start
from tmv_lib.pipeline import log
from tmv_lib.pipeline.files import read_csv, read_npy, write_csv
from tmv_lib.pipeline.params import read, read_members
from tmv_lib.readers.plan import StudyParams
from tmv_lib.readers.readings import ARMS, read_readings
from tmv_lib.readers.readings import COLUMNS as READING
from tmv_lib.site.answer import SiteParams

SECONDS, MOST_MEMORY = 20, 6 * 2**30
COPIES = 150  # hostile copies of each sample
OURS = ("traceback", "nameless", "hang")  # outcomes that are failures of ours
WORDS = [
    *(
        "",
        " ",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e308",
        "1e-308",
        "5e-05",
        "1_000",
        "0x10",
        "\u0663",
        "true",
        "~",
    ),
    *("null", "NA", "=1+1", "'", '"', ",", ";", "\t", "\n", "\x00", "\ufeff", "..", "../../etc/passwd", "/dev/zero"),
    *(
        "${HOME}",
        "`id`",
        "$(id)",
        "!!python/object/apply:os.system [id]",
        "<script>alert(1)</script>",
        "%s%n",
        "[",
        "{",
    ),
    *("&a [*a, *a]", "9" * 400, "x" * 5000),
]


class TooLateError(BaseException):
    """Not an Exception, which a reader would take for one of its library's."""


class Way(NamedTuple):
    """A way in: the name of its file, a good sample, how it is read, and whether the file is text."""

    file: str
    sample: bytes
    read: Callable[[Path], Any]
    is_text: bool = False


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    write_csv("docs/fuzz.csv", fuzzed(copies=COPIES, seed=0))


def fuzzed(*, copies: int, seed: int) -> pd.DataFrame:
    """A row per way in: how many distinct hostile copies, and what became of them."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_late)
    rows = []
    with TemporaryDirectory() as folder:
        for name, way in tqdm(ways(Path(folder)).items(), desc="ways in"):
            outcomes: Counter[str] = Counter()
            examples: dict[str, str] = {}
            for content in hostile(way, copies=copies, rng=random.Random(f"{seed} {name}")):
                outcome, words = outcome_of(Path(folder) / way.file, content, way)
                outcomes[outcome] += 1
                examples.setdefault(outcome, words)
            failed = "; ".join(f"{kind}: {examples[kind]}" for kind in OURS if kind in examples)
            row = {kind: outcomes[kind] for kind in ("refused", "read", *OURS)}
            rows.append({"way_in": name, "inputs": outcomes.total(), **row, "example": failed[:200]})
    return pd.DataFrame(rows)


def outcome_of(path: Path, content: bytes, way: Way) -> tuple[str, str]:
    """What becomes of one content, in a word, and what was said."""
    path.write_bytes(content)
    signal.alarm(SECONDS)
    try:
        way.read(path)
        return "read", ""
    except (ValueError, OSError) as error:
        words = str(error)
        return ("refused" if path.name in words or path.stem in words else "nameless"), words.splitlines()[0]
    except TooLateError as error:
        return "hang", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def _too_late(*_: Any) -> None:
    raise TooLateError(f"not done in {SECONDS} s")


def hostile(way: Way, *, copies: int, rng: random.Random) -> Iterator[bytes]:
    """So many distinct hostile copies of a sample, the empty one first."""
    seen = {hashlib.md5(way.sample).digest()}
    made = 0
    while made < copies:
        content = b"" if not made else _spoiled(way, rng)
        if (digest := hashlib.md5(content).digest()) not in seen:
            seen.add(digest)
            made += 1
            yield content


def _spoiled(way: Way, rng: random.Random) -> bytes:
    content = bytearray(way.sample)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 2, 8, 64))
        if way.is_text and rng.random() < 0.7:
            words = list(re.finditer(rb"[^\s,:\[\]{}\"]+", content))
            if words:
                word = rng.choice(words)
                content[word.start() : word.end()] = rng.choice(WORDS).encode("utf-8")
            continue
        match rng.randrange(5):
            case 0:
                del content[at:]
            case 1:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case _:
                content[at:at] = rng.randbytes(length)
    return bytes(content)


RAMP = np.arange(1024, dtype=np.uint8).reshape(32, 32)


def ways(folder: Path) -> dict[str, Way]:
    """Every way in by name; what their files point to is laid out in `folder`."""
    for name in ("a.png", "b.png"):
        Image.fromarray(RAMP).save(folder / name)
    params, card, protocol, plan = (
        Path(f"{name}.yaml").read_bytes() for name in ("params", "card", "protocol", "plan")
    )
    pictures = {
        f"picture, {kind}, {np.dtype(mode).itemsize * 8} bits": Way(f"one.{ending}", _picture(kind, mode), _image)
        for kind, ending, mode in (
            ("PNG", "png", np.uint8),
            ("PNG", "16.png", np.uint16),
            ("JPEG", "jpg", np.uint8),
            ("TIFF", "tif", np.uint16),
            ("BMP", "bmp", np.uint8),
            ("WEBP", "webp", np.uint8),
            ("JPEG2000", "jp2", np.uint8),
            ("GIF", "gif", np.uint8),
        )
    }
    dicom = {
        f"DICOM, {syntax.name}": Way("one.dcm", _dicom(syntax), _image)
        for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless)
    }
    table: dict[str, Any] = {"size": 28, "how": "pad", "positive": None}
    options: dict[str, Any] = {"dataset": "pneumoniamnist", "size": 28}
    models: dict[str, Any] = {"prepare": PrepareParams, "site": SiteParams, "deferral": DeferralParams}
    of_params = {
        f"params.yaml, {key}": Way("params.yaml", params, partial(read, key=key, model=model), True)
        for key, model in models.items()
    }
    listed = b"path,label,patient_id,split,age\na.png,1,P1,train,61\nb.png,0,P2,test,NA\n"
    return {
        **pictures,
        **dicom,
        "list of a table": Way("list.csv", listed, lambda path: load_table(path, **table), True),
        "list for predict": Way("new.csv", b"path,patient_id\na.png,7\nb.png,8\n", _unlabelled, True),
        "labels of a site": Way("local.csv", b"image_id,y_true\na,1\nb,\n", _local, True),
        "predictions for evaluate": Way("mine.csv", _predictions(), _questions, True),
        "wide predictions, findings": Way("wide.csv", _wide(labels=True), _questions, True),
        "wide predictions, classes": Way("wide.csv", _wide(labels=False), _questions, True),
        "decisions of somebody else's system": Way("said.csv", _decisions(), _decided, True),
        "log of a system in use": Way("log.csv", _log(folder), log.read, True),
        "labels of a system in use": Way("labels.csv", b"image_id,y_true\na,1\nb,0\n", _labels, True),
        "readings of a study": Way("ann.csv", _readings(), read_readings, True),
        "protocol.yaml": Way("protocol.yaml", protocol, partial(read, key="protocol", model=Protocol), True),
        "plan.yaml": Way("plan.yaml", plan, partial(read, key="study", model=StudyParams), True),
        "MedMNIST": Way("one.npz", _npz(), lambda path: load_medmnist(root=path, **options)),
        **of_params,
        "params.yaml, members": Way("params.yaml", params, read_members, True),
        "card.yaml": Way("card.yaml", card, partial(read, key="card", model=Facts), True),
        "weights, safetensors": Way("w.safetensors", _weights("safetensors"), _load),
        "weights, pth": Way("w.pth", _weights("pth"), _load),
        "network, ONNX": Way("n.onnx", _onnx(folder), _start),
        "calibrators.json": Way("calibrators.json", _calibrators(), read_calibrators, True),
        "policy.json": Way("policy.json", _policy(), read_policy, True),
        "table between stages": Way("cases.csv", b"image_id,y_true\na,1\nb,0\n", _table, True),
        "array between stages": Way("images.npy", _npy(), lambda path: np.asarray(read_npy(path)).sum()),
    }


def _image(path: Path) -> None:
    levels = read_image(content_of(path), name=path.name).levels
    if levels.dtype != np.uint8 or levels.ndim != 2:
        raise TypeError(f"levels are {levels.dtype} {levels.shape}")


def _unlabelled(path: Path) -> None:
    load_unlabelled(path, size=28, how="pad")


def _local(path: Path) -> None:
    cases = {"image_id": ["a", "b", "c"], "patient_id": ["1", "2", "3"], "split": "test", "y_true": [1, 0, 1]}
    name_local(pd.DataFrame(cases), path)


IN_USE = pd.DataFrame(
    {"time": ["2026-01-01", "2026-01-02"], "image_id": ["a", "b"], "patient_id": ["1", "2"], "y_prob": [0.9, 0.2]}
).assign(certainty=0.8, distance=1.5, decision=[1, 0], deferred=0, weights="0a", calibrator="1b", policy="2c")


def _decisions() -> bytes:
    return IN_USE[["image_id", "patient_id", "decision", "deferred", "y_prob"]].assign(y_true=[1, 0]).to_csv().encode()


def _decided(path: Path) -> None:
    read_decisions(path, ["image_id", "patient_id", "y_true"])


def _log(folder: Path) -> bytes:
    log.append(folder / "first_log.csv", IN_USE)
    return (folder / "first_log.csv").read_bytes()


def _labels(path: Path) -> None:
    log.read_labels(path, log.read(path.with_name("first_log.csv")))


def _readings() -> bytes:
    rows = [["ann", arm, "final", "a", "1", 1, 0, k, "yes", 80, 12.5, "2026-01-01"] for k, arm in enumerate(ARMS, 1)]
    return pd.DataFrame(rows, columns=READING).to_csv(index=False).encode()


def _onnx(folder: Path) -> bytes:
    torch.manual_seed(0)
    torch.onnx.export(small(1).eval(), (torch.zeros(1, 3, 32, 32),), folder / "first.onnx", dynamo=False)
    return (folder / "first.onnx").read_bytes()


def _start(path: Path) -> None:
    start(str(path), weights="none", dropout=0.0, seed=0, precision="float32")


def _table(path: Path) -> None:
    read_csv(path, ["image_id", "y_true"])


def _load(path: Path) -> None:
    classifier.load_weights(classifier.build("mobilenet_v3_small", weights="none", dropout=0.0), path)


def _picture(kind: str, depth: type) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RAMP.astype(depth) * (257 if depth is np.uint16 else 1)).save(stream, kind)
    return stream.getvalue()


def _dicom(syntax: pydicom.uid.UID) -> bytes:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid(entropy_srcs=["fuzz"])
    data.PatientID, data.Modality = "P1", "CR"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = 32, 32, 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation = "MONOCHROME2"
    data.WindowCenter, data.WindowWidth, data.RescaleSlope, data.RescaleIntercept = 500, 900, 1, 0
    data.PixelData = (RAMP.astype("<u2") * 4).tobytes()
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((4, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]])
    np.savez(stream, **arrays)
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 8, 8), np.uint8))
    return stream.getvalue()


def _predictions() -> bytes:
    rng = np.random.default_rng(0)
    splits = np.repeat(["val", "cal", "test"], 4)
    table = {"image_id": np.arange(12), "patient_id": np.arange(12), "split": splits, "y_true": [0, 1] * 6}
    return pd.DataFrame(table | {"logit": rng.normal(0, 3, 12).round(3)}).to_csv(index=False).encode()


def _wide(*, labels: bool) -> bytes:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 12).round(3)
    table: dict[str, Any] = {"image_id": np.arange(12), "split": np.repeat(["val", "cal", "test"], 4)}
    table |= {f"prob_{name}": p[:, k] for k, name in enumerate("abc")}
    table["prob_c"] = 1 - table["prob_a"] - table["prob_b"]
    of_each = {f"y_true_{name}": [0, 1] * 6 for name in "abc"}
    return pd.DataFrame(table | (of_each if labels else {"y_true": list("abca") * 3})).to_csv(index=False).encode()


def _questions(path: Path) -> None:
    read_questions([path], ALL)


def _weights(kind: str) -> bytes:
    torch.manual_seed(0)
    state = classifier.build("mobilenet_v3_small", weights="none", dropout=0.0).state_dict()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "w"
        if kind == "pth":
            torch.save(state, path)
        else:
            save_file(state, path)
        return path.read_bytes()


def _calibrators() -> bytes:
    logistic = {"name": "logistic", "parameters": {"intercept": 0.1, "slope": 0.9}}
    steps = {"name": "isotonic", "parameters": {"logit": [-1.0, 1.0], "y_prob": [0.2, 0.8]}}
    return json.dumps({"a": logistic, "b": steps}).encode()


def _policy() -> bytes:
    policy: dict[str, Any] = {
        "members": ["a"],
        "calibration": "shipped",
        "combine": "first_member",
        "stack": [0.0, 1.0],
    }
    policy |= {"cost_fn": 5.0, "cost_fp": 1.0, "threshold": 0.7}
    policy |= {"weights": {"distance": 0.5}, "ranges": {"distance_a": [0.1, 0.9]}}
    return json.dumps(policy).encode()


if __name__ == "__main__":
    main()
