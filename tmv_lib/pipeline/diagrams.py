"""The diagrams of `dvc plots` anywhere else: one Vega-Lite specification per diagram, as DVC fills it, and its SVG.

A plot has a template in `.dvc/plots` and its columns and labels in `dvc.yaml`. Nothing else describes how it looks. The
first line of its `title` there is the heading, and the rest says what the figure shows and how to read it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
from dvc_render.vega import VegaRenderer

from tmv_lib.pipeline.params import read_yaml

REVISION = "workspace"  # the name that DVC gives to the files as they lie there


def specification(plot: str, *, root: str | Path = ".") -> dict[str, Any]:
    """The Vega-Lite specification of a plot, such as `plots/calibration/corp.csv`, as `dvc plots` draws it.

    Raises KeyError where `dvc.yaml` has no such plot with a template, FileNotFoundError where it was not made.
    """
    options = described(root=root)[plot]
    options.pop("caption")
    return filled(pd.read_csv(Path(root, plot)), name=plot, root=root, **options)


def filled(table: pd.DataFrame, *, name: str, root: str | Path = ".", **options: str) -> dict[str, Any]:
    """The rows of a table in a template, of several revisions where it has a column `rev`.

    options: `template`, `x`, `y`, `x_label`, `y_label`, `title` of `dvc.yaml`.
    """
    table = table if "rev" in table else table.assign(rev=REVISION)
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    renderer = VegaRenderer(rows, name, template_dir=str(Path(root, ".dvc", "plots")), **options)
    content = renderer.get_filled_template()
    return json.loads(content) if isinstance(content, str) else content


def described(*, root: str | Path = ".") -> dict[str, dict[str, str]]:
    """The options of every plot with a template in `dvc.yaml` or `monitor/dvc.yaml`, by its path, in file order.

    `title` is its heading alone, and `caption` what else stands in the title: how to read it, on one line.
    """
    files = [path for name in ("dvc.yaml", "monitor/dvc.yaml") if (path := Path(root, name)).exists()]
    return {path: options for file in files for path, options in _entries(read_yaml(file)["stages"], root)}


def svg(specification: dict[str, Any]) -> str:
    """The specification drawn, without a browser or a network. Raises ValueError where Vega cannot draw it."""
    return vl_convert.vegalite_to_svg(_still(specification), allowed_base_urls=[])


def png(specification: dict[str, Any]) -> bytes:
    """The same at twice the pixels."""
    return vl_convert.vegalite_to_png(_still(specification), scale=2, allowed_base_urls=[])


def _still(specification: dict[str, Any]) -> dict[str, Any]:
    """The specification without its unseen marks, which only carry tooltips."""
    layers = [layer for layer in specification.get("layer", []) if layer["mark"].get("opacity") != 0]
    return {**specification, "layer": layers} if layers else specification


def _entries(stages: dict[str, Any], root: str | Path) -> Iterator[tuple[str, dict[str, str]]]:
    for stage in stages.values():
        keys = _keys(stage["foreach"], root) if "foreach" in stage else [None]
        for entry in stage.get("do", stage).get("plots", []):
            for key in keys:
                for path, options in entry.items() if isinstance(entry, dict) else ():
                    if "template" in options:
                        words = {k: _put(v, key) for k, v in options.items() if isinstance(v, str)}
                        heading, *caption = words["title"].splitlines()
                        yield _put(path, key), {**words, "title": heading, "caption": " ".join(caption)}


def _keys(foreach: Any, root: str | Path) -> list[str]:
    """The keys of a `foreach`, which may name a mapping of `params.yaml`."""
    if isinstance(foreach, str):
        params = read_yaml(Path(root, "params.yaml"))
        foreach = params[foreach.removeprefix("${").removesuffix("}")]
    return [str(key) for key in foreach]


def _put(words: str, key: str | None) -> str:
    return words if key is None else words.replace("${key}", key).replace("${item}", key)
