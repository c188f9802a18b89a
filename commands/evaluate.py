"""When should one use a model of which only the predictions are known?

Run by `make evaluate PREDICTIONS="a.csv b.csv" OUT=<folder>` in a project, which need not have run. Each CSV is a
member, named after its file, a row an image: `image_id`, `y_true`, and `logit` or `prob`; or wide, with `logit_<name>`
or `prob_<name>` of every class (`y_true` names the class) or finding (`y_true_<name>`, empty where not labelled).
`patient_id` and `split` may be left out; further columns of the first file are subgroups. One question is answered in
OUT, a folder with metrics/, plots/ and the report, by the stages that need no network; of several findings or
classes OUT has a row each in findings.csv, .html and .md, and a folder each. By the knobs of params.yaml and the words
of card.yaml, or of those that come with the package where the folder has none. Needs no images, no GPU and no torch.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir
from hashlib import sha256
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from tmv_lib.card import findings
from tmv_lib.data.prediction_files import ALL, COLUMNS, Asked, Questions, read_questions
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read_yaml
from tmv_lib.pipeline.record import Figures, read_metrics
from tmv_lib.pipeline.stage import own_or_default, run
from tmv_lib.report.report import Origin, write_report
from tmv_lib.statistics.resampling import WHOLE

SOURCE = "predictions"  # what cases.csv says of where they come from
STAGES = ("calibration", "site", "baseline", "diversity", "uncertainty", "ensemble")
OF_A_FINDING = ("calibration", "site", "uncertainty", "ensemble")
# What the page does not show, and is not worth its time for each of many findings: learning curve, other prevalences.
LEFT_OUT: dict[str, dict[str, Any]] = {"site": {"draws": 20}, "calibration": {"prevalences": []}}
PROCESSES = 4  # at most, each of some hundred MB


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("predictions", type=Path, nargs="+", help="a CSV a member")
    options.add_argument("--out", type=Path, required=True, help="the folder to make")
    options.add_argument(
        "--column", action="append", default=[], metavar="OURS=THEIRS", help="patient_id=PatientID, say"
    )
    options.add_argument(
        "--positive", nargs="+", default=[], help="the positive classes, or the one finding, to ask of"
    )
    options.add_argument("--primary", nargs="+", default=[], help="findings named beforehand")
    options.add_argument(
        "--shares", nargs=2, type=float, default=(0.2, 0.2), help="of val and cal where there is no split"
    )
    options.add_argument("--seed", type=int, default=0, help="of that cut")
    given = options.parse_args()
    pairs = [pair.partition("=") for pair in given.column]
    if wrong := ["".join(pair) for pair in pairs if not (pair[0] and pair[2])]:
        raise ValueError(f"--column {wrong[0]}: OURS=THEIRS is asked for, image_id=Name, say")
    asked = Asked(
        {ours: theirs for ours, _, theirs in pairs},
        tuple(given.positive),
        tuple(given.primary),
        tuple(given.shares),
        given.seed,
    )
    program = sys.argv[0] if sys.argv[0].startswith("tmv ") else "python -m commands.evaluate"
    for remark in evaluate(given.predictions, given.out, asked, command=f"{program} {shlex.join(sys.argv[1:])}"):
        print(remark, file=sys.stderr)
    page = next(page for page in ("findings.html", "report.html") if (given.out / page).exists())
    print(f"Open {given.out / page}")


def evaluate(
    predictions: list[Path], out: Path, asked: Asked = ALL, *, command: str = "commands.evaluate.evaluate(...)"
) -> list[str]:
    """Answer the questions in `out`, which is there when all are answered, or not at all; what limits the answers.

    command: what the report says that made it.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; name another folder, or remove this one")
    questions = read_questions(predictions, asked)
    origin = Origin(command, {path.name: sha256(path.read_bytes()).hexdigest() for path in predictions})
    part = out.with_name(f".{out.name}.{os.getpid()}.part")  # of this run alone
    part.mkdir(parents=True)
    try:
        if len(questions.members) == 1:
            (members,) = questions.members.values()
            answer(part, members, [stage for stage in STAGES if stage != "diversity" or len(members) > 1])
            report(part, members, ", ".join(members), questions.remarks, origin)
        else:
            answer_each(part, questions, asked, origin)
        if questions.remarks:
            (part / "remarks.txt").write_text("\n".join(questions.remarks) + "\n", encoding="utf-8")
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return questions.remarks


def answer(folder: Path, members: dict[str, pd.DataFrame], stages: Sequence[str], **knobs: dict[str, Any]) -> None:
    """Put the questions of these stages to the members, in a folder laid out for them with these knobs by section."""
    lay_out(folder, members, **knobs)
    with chdir(folder):
        bar = tqdm(stages)
        for stage in bar:
            bar.set_description(stage)
            import_module(f"stages.{stage}").main()


def report(
    folder: Path, members: dict[str, pd.DataFrame], subject: str, remarks: Sequence[str], origin: Origin
) -> None:
    """Write the report on what was answered in `folder`; a stage's question is the first line of its docstring."""
    first, *others = members
    said = {"baseline": f"How well does {first} read unseen images?"}
    said |= {"diversity": f"Does {others[0]} err on different images?"} if others else {}
    of_stages = {stage: str(import_module(f"stages.{stage}").__doc__).splitlines()[0] for stage in STAGES}
    known = dict.fromkeys(members)  # by their predictions alone
    write_report(folder, known, subject=subject, questions=of_stages | said, remarks=remarks, origin=origin)


def answer_each(folder: Path, questions: Questions, asked: Asked, origin: Origin) -> None:
    """A row per finding, the questions put to each in a process of its own, of which the metrics and plots are kept."""
    folders = [findings.slug(name) for name in questions.members]
    if twice := sorted({one for one in folders if folders.count(one) > 1}):
        raise ValueError(f"two findings would share the folder {twice[0]}; rename one")
    rows, waiting = [], {}
    os.environ["TQDM_DISABLE"] = "1"  # of these processes, whose bars would write over the one below
    with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), mp_context=get_context("spawn")) as processes:
        for name, members in questions.members.items():
            role = findings.PRIMARY if name in asked.primary else findings.EXPLORATORY
            cases = next(iter(members.values()))
            if reason := findings.too_few(cases):
                rows.append((name, findings.absent_row(name, role, cases, reason)))
            else:
                own, told = folder / findings.slug(name), (questions.remarks, origin)
                waiting[name] = processes.submit(row_of, own, name, role, members, *told)
        for name, row in tqdm(waiting.items(), desc="findings"):
            try:
                rows.append((name, row.result()))
            except ValueError as error:
                processes.shutdown(cancel_futures=True)
                raise ValueError(f"finding {name}: {error}") from None
    order = list(questions.members)
    ordered = [row for _, row in sorted(rows, key=lambda pair: order.index(pair[0]))]
    title = ", ".join(next(iter(questions.members.values())))
    reports = {name: f"{findings.slug(name)}/report.html" for name in waiting}
    findings.write_findings(folder, ordered, title=title, remarks=questions.remarks, reports=reports)


def row_of(
    folder: Path, name: str, role: str, members: dict[str, pd.DataFrame], remarks: Sequence[str], origin: Origin
) -> dict[str, Any]:
    """The row of one finding, whose report, metrics and plots stay in `folder`."""
    folder.mkdir(parents=True)
    answer(folder, members, OF_A_FINDING, **LEFT_OUT)
    metrics: dict[str, Figures] = {}
    for stage in ("calibration", "site", "ensemble"):
        found = read_metrics(stage, root=folder)
        assert found is not None  # the stage has just written it
        metrics[stage] = found
    report(folder, members, f"{name}, {', '.join(members)}", remarks, origin)
    shutil.rmtree(folder / "data")
    return findings.row(name, role, next(iter(members)), metrics)


def lay_out(folder: Path, members: dict[str, pd.DataFrame], **knobs: dict[str, Any]) -> None:
    """The files that the stages look for, as `prepare` and `train` would have left them; other knobs by section."""
    params = read_yaml(own_or_default("params.yaml"))
    kept = {name: params[name] | knobs.get(name, {}) for name in (*STAGES, "deferral")}
    told = {"task": "binary", "question": {"positive": []}, "prepare": {"source": SOURCE}}
    told |= {"members": dict.fromkeys(members), **kept}
    (folder / "params.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    shutil.copy(own_or_default("card.yaml"), folder)
    cases = next(iter(members.values())).drop(columns="logit").assign(source=SOURCE)
    write_csv(folder / "data/prepare/cases.csv", cases)
    splits = {
        split: {"images": len(rows), "positives": int(rows["y_true"].sum()), "patients": rows["patient_id"].nunique()}
        for split, rows in cases.groupby("split")
    }
    torn = cases.groupby("patient_id")["split"].transform("nunique") > 1  # by local alone: others are refused
    problems = {"patient_in_two_splits": {"images": int(torn.sum())}}
    told_of: dict[str, Any] = {"splits": splits, "problems": problems}
    evaluated = cases.loc[cases["split"] != "train", "patient_id"].nunique()
    if evaluated > WHOLE:  # docs/speed.md says of which figures
        told_of["intervals"] = "little_bootstraps"
    write_metrics("prepare", {"prepare": told_of}, root=folder)
    for name, table in members.items():
        write_csv(folder / f"data/train/{name}/predictions.csv", table[COLUMNS], digits=9)


if __name__ == "__main__":
    run(main)
