"""Reading `params.yaml` through typed, validated models.

Each stage declares its own model: what it may be asked for stands at the top of its script, and a new knob
in one stage does not make the others rerun.
"""

import os
import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

# Above these bounds a stage would run for days, or not fit into memory.
Resamples = Annotated[int, Field(ge=100, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Params(BaseModel):
    """A section of `params.yaml`: unknown keys, wrong types and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Section = TypeVar("Section", bound=Params)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML 1.2 file, as DVC does. Raises ValueError naming file, line and what is wrong, a key twice, say."""
    try:
        return deepcopy(_loaded(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise ValueError(f"{path}: {line}not readable YAML ({error.problem})") from None
    except YAMLError as error:
        raise ValueError(f"{path}: not readable YAML ({error})") from None


@lru_cache(maxsize=4)
def _loaded(text: str) -> Any:
    """Each stage reads a dozen sections of one file, and to parse it takes longer than many an answer."""
    return YAML(typ="safe", pure=True).load(text)


def read(path: str | Path, key: str, model: type[Section]) -> Section:
    """Read the section `key` (dotted for nested ones) of the YAML file `path` as `model`.

    Raises ValueError of one line a problem: the key, what was found, what is allowed.
    """
    section: Section = read_value(path, key, model)
    return section


def read_value(path: str | Path, key: str, kind: Any) -> Any:
    """The value of `key`, which must be of this kind; raises ValueError as `read`."""
    values = read_yaml(path)
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            raise ValueError(f"{path}: section {key} is missing")
        values = values[part]
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [f"{path}: {_problem(key, problem)}" for problem in error.errors()]
        raise ValueError("\n".join(lines)) from None


def _problem(key: str, problem: Any) -> str:
    name = ".".join([key, *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        return f"{name} is not a parameter"
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


# Names that figures about members bear themselves.
RESERVED = {"baseline", "reference", "ensemble", "first", "second", "together", "taxonomy"}


Normalise = Literal["imagenet", "xrv"] | Annotated[list[float], Field(min_length=2, max_length=2)]


class Member(Params):
    """One network of the ensemble."""

    architecture: str
    weights: str
    dropout: Annotated[float, Field(ge=0, lt=1)]
    train: bool
    seed: Seed
    normalise: Normalise = "imagenet"

    def below(self, root: Path) -> "Member":
        """The member of a project that lies in another folder, from where the path of an ONNX file starts."""
        file = self.architecture.endswith(".onnx")
        return self.model_copy(update={"architecture": str(root / self.architecture)}) if file else self


def read_members(path: str | Path) -> dict[str, Member]:
    """Read the section `members`, in its order.

    Raises ValueError as `read_member`, and for fewer than two members.
    """
    listed = _listed(path)
    if len(listed) < 2:
        raise ValueError(f"{path}: members must name at least two networks, found {list(listed)}")
    return {name: read_member(path, str(name)) for name in listed}


def read_member(path: str | Path, name: str) -> Member:
    """Read the section `members.<name>`.

    Raises ValueError as `read`, for a name that cannot be a column, for untrained networks that nobody trains, and for
    files outside `data/weights`, where DVC would not see them change. An ONNX file holds its weights itself.
    """
    check_name(name, where=f"{path}: members.{name}")
    member = read(path, f"members.{name}", Member)
    file = member.architecture if member.architecture.endswith(".onnx") else None
    for key, value in (("weights", member.weights), ("architecture", file)):
        if value and (key == "architecture" or "/" in value) and not _below_weights(value):
            raise ValueError(f"{path}: members.{name}.{key} is {value!r}: files lie in data/weights/")
    if file and (member.train or member.weights != "none"):
        raise ValueError(f"{path}: members.{name} is {file}, taken as it is: weights: none and train: false are needed")
    if not file and not member.train and member.weights == "none":
        raise ValueError(f"{path}: members.{name}.train is false and weights is none: there is nothing to evaluate")
    return member


def _below_weights(file: str) -> bool:
    return Path(os.path.normpath(file)).parts[:2] == ("data", "weights")


def named_members(path: str | Path) -> dict[str, Member | None]:
    """As `read_members`, or, where every entry is empty (`mine: null`), models of somebody else's.

    Of these the predictions are on disk and there is no network to ask; one is enough. Raises ValueError as
    `read_members`, and where some entries are empty and others are not.
    """
    listed = _listed(path)
    if not listed or any(entry is not None for entry in listed.values()):
        return dict(read_members(path))
    for name in listed:
        check_name(str(name), where=f"{path}: members.{name}")
    return dict.fromkeys(listed)


def _listed(path: str | Path) -> dict[str, Any]:
    values = read_yaml(path)
    listed = values.get("members") if isinstance(values, dict) else None
    if not isinstance(listed, dict):
        raise ValueError(f"{path}: members must name networks, found {listed!r}")
    return listed


def check_name(name: str, *, where: str) -> None:
    """Raise ValueError, which starts with `where`, for a name that cannot be a column or that figures bear already."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED:
        raise ValueError(f"{where}: a name is lower-case letters, digits and _, and none of {sorted(RESERVED)}")
