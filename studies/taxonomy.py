"""Is the failure taxonomy right, where the phantom knows? Fitted on some phantoms, measured on others.

Run by `make validate-taxonomy`; writes the frozen score tmv_lib/taxonomy.json, docs/taxonomy.csv and docs/taxonomy.md.
A seed is a phantom with its own patients and its own training: a copy of the project in `.studies/taxonomy` for each,
in which DVC runs what `failures` needs. A killed run goes on where it was; a seed whose evidence is there is not run
again, so delete the folder after a change of the evidence.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from studies.seeds import copy_project, dvc
from tmv_lib import failures
from tmv_lib.files import read_csv, whole, write_csv
from tmv_lib.reporting import figure, mean

FOLDER = Path(".studies/taxonomy")
SCORE = Path("tmv_lib/taxonomy.json")
FIT, FRESH = [11, 12, 13], [21, 22, 23, 24, 25]
ENOUGH = 0.6  # the probability that the best kind must reach
# Faster, and not asked about: sanity checks are the dear part of `explanations`, and none of them is evidence.
CHEAPER = {"sanity_cases": 8, "untrained_networks": 1, "random_pairs": 1}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of training")
    precision = options.parse_args().precision
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for seed in tqdm([*FIT, *FRESH], desc="phantoms"):
        folder = FOLDER / str(seed)
        if not (folder / "data/failures/evidence.csv").exists():
            lay_out(folder, with_seed(params, seed, precision=precision))
            dvc("repro", "failures", folder=folder)
    fit, fresh = errors_of(FIT, splits=["val", "cal", "test"]), errors_of(FRESH, splits=["test"])
    provenance = {
        "fitted_by": "make validate-taxonomy",
        "phantom_seeds": FIT,
        "precision": precision,
        "n_errors": fit["cause"].value_counts().sort_index().to_dict(),
    }
    score = failures.fit_score(fit, fit["cause"], enough=ENOUGH, provenance=provenance)
    with whole(SCORE) as temporary:
        temporary.write_text(json.dumps(score._asdict(), indent=1) + "\n", encoding="utf-8")

    knobs, rng = params["failures"], np.random.default_rng(params["failures"]["seed"])
    rules = failures.Rules(knobs["against"], knobs["doubt"], knobs["neighbours_below"], knobs["unusual"], knobs["gap"])
    found = fresh.join(failures.sort_errors(fresh, score=score, rules=rules))
    rows = [measured(of_seed, rng, knobs["resamples"]) | {"seed": str(seed)} for seed, of_seed in found.groupby("seed")]
    rows.append(measured(found, rng, knobs["resamples"]) | {"seed": "pooled"})
    for model, of_model in found.groupby("model", sort=False):
        rows.append(measured(of_model, rng, knobs["resamples"]) | {"seed": f"pooled, {model}"})
    rows.append(measured(shuffled(fresh, score, rules, rng), rng, knobs["resamples"]) | {"seed": "shuffled signals"})
    table = pd.DataFrame(rows).set_index("seed").reset_index()
    write_csv("docs/taxonomy.csv", table)
    with whole("docs/taxonomy.md") as temporary:
        temporary.write_text(page(table, found, score), encoding="utf-8")


def with_seed(params: dict[str, Any], seed: int, *, precision: str) -> dict[str, Any]:
    """The project's parameters for the phantom of this seed, its networks trained with the same seed."""
    changed = {name: section | {"precision": precision} for name, section in params.items() if "precision" in section}
    changed["explanations"] = params["explanations"] | CHEAPER
    changed["reference"] |= {"seed": seed}
    members = {name: member | {"seed": seed} for name, member in params["members"].items()}
    prepare = params["prepare"] | {"source": "phantom", "seed": seed}
    return params | changed | {"members": members, "prepare": prepare}


def lay_out(folder: Path, params: dict[str, Any]) -> None:
    """Bring a copy of the project up to date in `folder`; what DVC has done there stays."""
    copy_project(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    # The copy is no git repository, and lies in one that ignores it.
    (folder / ".dvc/config.local").write_text("[core]\n    no_scm = true\n", encoding="utf-8")


def errors_of(seeds: list[int], *, splits: list[str]) -> pd.DataFrame:
    """The errors of these phantoms on these splits, with evidence and cause; patients of two phantoms are two."""
    tables = []
    for seed in seeds:
        columns = ["image_id", "patient_id", "split", "model", "wrong", "cause", *failures.EVIDENCE]
        evidence = read_csv(FOLDER / str(seed) / "data/failures/evidence.csv", columns)
        errors = evidence[evidence["wrong"] & evidence["split"].isin(splits)]
        tables.append(errors.assign(seed=seed, patient_id=f"{seed} " + errors["patient_id"]))
    return pd.concat(tables, ignore_index=True)


def shuffled(
    errors: pd.DataFrame, score: failures.Score, rules: failures.Rules, rng: np.random.Generator
) -> pd.DataFrame:
    """The errors sorted by the evidence of other errors: agreement must be that of chance."""
    evidence = errors[list(failures.EVIDENCE)].iloc[rng.permutation(len(errors))].reset_index(drop=True)
    told = failures.sort_errors(evidence, score=score, rules=rules)
    return errors.drop(columns=list(failures.EVIDENCE)).join(evidence).join(told)


def measured(found: pd.DataFrame, rng: np.random.Generator, n_resamples: int) -> dict[str, Any]:
    """Agreement with the oracle, over the errors that a repair mends."""
    resampled = partial(figure, n_resamples=n_resamples, rng=rng)
    known = found[found["cause"] != "undetermined"]
    decided = known[known["kind"] != "undetermined"]
    row: dict[str, Any] = {"n_errors": len(found), "mended_by_no_repair": len(found) - len(known)}
    row["decided"] = len(decided) / len(known)
    codes = {kind: code for code, kind in enumerate(failures.KINDS)}
    for name, table, column in (
        ("kappa", known, "best"),
        ("kappa_where_it_decides", decided, "kind"),
        ("kappa_of_the_rules", known, "rule"),
    ):
        truth, told = (table[key].map(codes).to_numpy() for key in ("cause", column))
        row |= resampled(name, failures.kappa, truth, told, groups=table["patient_id"].to_numpy())
    for kind in failures.KINDS[:4]:
        here = known[known["cause"] == kind]
        hits, groups = (here["best"] == kind).to_numpy(dtype=float), here["patient_id"].to_numpy()
        row |= {f"n {kind}": len(here)} | resampled(f"recall of {kind}", mean, hits, groups=groups)
    return row


def page(table: pd.DataFrame, found: pd.DataFrame, score: failures.Score) -> str:
    """docs/taxonomy.md, its numbers read from the tables."""

    def said(row: pd.Series, name: str) -> str:
        if pd.isna(row.get(name)):
            return "no figure"
        return f"{row[name]:.2f} ({row[name + '_low']:.2f} to {row[name + '_high']:.2f})"

    columns = ["kappa", "kappa_where_it_decides", "kappa_of_the_rules", *(f"recall of {k}" for k in failures.KINDS[:4])]
    head = ["phantom", "errors", "decided", *(name.replace("_", " ") for name in columns)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for _, row in table.iterrows():
        cells = [row["seed"], str(row["n_errors"]), f"{row['decided']:.0%}", *(said(row, name) for name in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    likely, decided = matrix(found, "best"), matrix(found, "kind")
    fitted = ", ".join(f"{count} {kind}" for kind, count in score.provenance["n_errors"].items())
    return "\n".join(
        [
            "# Is the failure taxonomy right?",
            "",
            "Made by `make validate-taxonomy`. On the phantom the cause of an error is defined by intervention: it is",
            "the repair that mends this model's error on this case (the marker put to its usual state, a faint finding",
            "made clear or taken away, an unseen finding replaced by a seen one, the label cleaned). The score in",
            f"`tmv_lib/taxonomy.json` was fitted on the errors of phantoms {', '.join(map(str, FIT))}",
            f"({fitted})",
            f"and is asked here about phantoms {', '.join(map(str, FRESH))}: other patients, other trainings, test.",
            "Errors of the two members and of their mean; intervals over patients. kappa takes the most likely kind of",
            "every error that a repair mends; where it decides, that kind has a probability of 0.6 or more.",
            "",
            *lines,
            "",
            "All errors of the fresh phantoms, what mended them against what they were called (most likely kind):",
            "",
            *likely,
            "",
            "The same where it decides, undetermined otherwise:",
            "",
            *decided,
            "",
            "No figure: there is no such error, or there are resamples of the patients in which it cannot be computed.",
            "Errors that no repair mends (last row) have no right answer among the four: any kind is wrong for them.",
            "The networks of this study were trained in"
            f" {score.provenance['precision']}; those of the default run in float32.",
            "",
        ]
    )


def matrix(found: pd.DataFrame, column: str) -> list[str]:
    """What mended the errors (rows) against what the column calls them, as a Markdown table."""
    crossed = pd.crosstab(found["cause"], found[column])
    crossed = crossed.reindex(index=list(failures.KINDS), columns=list(failures.KINDS), fill_value=0)
    lines = [f"| mended by \\ called | {' | '.join(crossed.columns)} |", f"|{' --- |' * (len(crossed.columns) + 1)}"]
    return [
        *lines,
        *(f"| {kind} | {' | '.join(map(str, row))} |" for kind, row in zip(crossed.index, crossed.to_numpy())),
    ]


if __name__ == "__main__":
    main()
