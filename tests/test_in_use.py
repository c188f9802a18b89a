"""The commands of a system in use, each with what it refuses, in a project of files alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from commands import accept, label, plan, rehearse
from commands import log as log_command
from commands import monitor as monitor_command
from stages import monitor
from tests.test_trust_card import IDENTITY
from tmv_lib.card import in_use, signed
from tmv_lib.card.card import make, render
from tmv_lib.card.facts import Facts
from tmv_lib.monitoring.acceptance import Protocol
from tmv_lib.pipeline import log, monitored
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.record import Figures, read_metrics

ROOT = Path(__file__).parents[1]


def git(*arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A committed protocol, parameters with an audit of all, and a vendor's decisions on 300 patients."""
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["monitor"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"monitor": params | {"audit_rate": 0.5}}), encoding="utf-8")
    (tmp_path / "protocol.yaml").write_text((ROOT / "protocol.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "protocol")
    vendor(0.0).to_csv("vendor.csv", index=False)
    return tmp_path


def vendor(risk, patients=300):
    """Decisions alone, of which a share is wrong."""
    rng = np.random.default_rng(0)
    decision, wrong = rng.integers(0, 2, patients), rng.random(patients) < risk
    table = {
        "image_id": [f"i{k}" for k in range(patients)],
        "patient_id": [f"p{k}" for k in range(patients)],
        "time": [f"2026-03-{1 + k // 12:02}" for k in range(patients)],
        "decision": decision,
        "version": "2.1",
        "y_true": np.where(wrong, 1 - decision, decision),
    }
    return pd.DataFrame(table)


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    module.main()


def test_a_vendors_black_box_is_accepted_from_decisions_alone(monkeypatch, capsys):
    call(accept, monkeypatch, "vendor.csv")
    told = capsys.readouterr().out
    assert told.startswith("Accept: every promise was shown to hold here. 300 of at most 400 patients have been read.")
    assert json.loads(Path("metrics/acceptance.json").read_text())["acceptance"]["answer"] == "accept"
    page = Path("acceptance/report.html").read_text(encoding="utf-8")
    assert "Date, signature" in page
    assert "Of the patients it calls negative at most 10 % are positive: accepted after" in page
    call(accept, monkeypatch, "vendor.csv")  # another look


def test_one_that_errs_is_rejected(monkeypatch, capsys):
    vendor(0.5).to_csv("vendor.csv", index=False)
    call(accept, monkeypatch, "vendor.csv")
    assert capsys.readouterr().out.startswith("Reject: do not switch it on here")


def test_a_batch_after_a_batch(monkeypatch, capsys):
    whole = pd.read_csv("vendor.csv")
    whole[:30].to_csv("vendor.csv", index=False)
    call(accept, monkeypatch, "vendor.csv")
    assert capsys.readouterr().out.startswith("Go on")
    whole.to_csv("vendor.csv", index=False)
    call(accept, monkeypatch, "vendor.csv")
    assert capsys.readouterr().out.startswith("Accept")


def test_a_protocol_must_be_committed_and_stay_as_it_is(monkeypatch):
    call(accept, monkeypatch, "vendor.csv")
    text = Path("protocol.yaml").read_text()
    Path("protocol.yaml").write_text(text.replace("false_alarms: 0.2 ", "false_alarms: 0.4 "))
    with pytest.raises(ValueError, match=r"protocol.yaml: not committed as it is"):
        call(accept, monkeypatch, "vendor.csv")
    git("commit", "--quiet", "--all", "--message", "easier")
    with pytest.raises(ValueError, match=r"protocol.yaml: changed since the first label came in"):
        call(accept, monkeypatch, "vendor.csv")


def test_rows_that_were_looked_at_must_stay(monkeypatch):
    call(accept, monkeypatch, "vendor.csv")
    pd.read_csv("vendor.csv")[1:].to_csv("vendor.csv", index=False)
    with pytest.raises(ValueError, match=r"vendor.csv: its first 300 rows are not those of the last look"):
        call(accept, monkeypatch, "vendor.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(time=table["time"][::-1].to_numpy()), "row 14: time 2026-03-24 is earlier"),
        (lambda table: table.assign(y_true=""), "row 2: y_true '' is empty"),
        (lambda table: table.assign(decision=2), "row 2: decision '2' is neither 0 nor 1"),
        (lambda table: table.assign(image_id="i"), "row 3: image_id 'i' is there already"),
        (lambda table: table.drop(columns="y_true"), "column y_true is missing"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_row(monkeypatch, change, message):
    change(pd.read_csv("vendor.csv")).to_csv("vendor.csv", index=False)
    with pytest.raises(ValueError, match=f"vendor.csv: {message}"):
        call(accept, monkeypatch, "vendor.csv")
    assert not Path("acceptance").exists()


def test_a_plan_says_what_it_will_take(monkeypatch, capsys):
    call(plan, monkeypatch)
    assert "missed_positives" in capsys.readouterr().out
    page = Path("acceptance/plan.html").read_text(encoding="utf-8")
    assert "Of the patients it calls negative at most 10 % are positive: without an error it takes 44" in page


def test_a_protocol_that_nothing_could_confirm_is_refused_with_what_it_takes(monkeypatch):
    text = Path("protocol.yaml").read_text().replace("most_patients: 400", "most_patients: 30")
    Path("protocol.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"is 30, and missed_positives cannot be confirmed .* it takes 44"):
        call(plan, monkeypatch)
    assert not Path("acceptance").exists()


def test_a_vendors_black_box_is_monitored_from_decisions_alone(monkeypatch, capsys):
    table = vendor(0.4)
    table.drop(columns="y_true").to_csv("vendor.csv", index=False)
    call(log_command, monkeypatch, "vendor.csv")
    capsys.readouterr()
    call(label, monkeypatch)
    due = pd.read_csv(pd.io.common.StringIO(capsys.readouterr().out), dtype=str)
    assert due.columns.tolist() == ["image_id", "patient_id", "time", "y_true"]  # and not what the system said
    assert 100 < len(due) < 200
    monitor.main()
    monitor_command.main()
    assert capsys.readouterr().out.startswith("Nobody knows")
    due.assign(y_true=due["image_id"].map(table.set_index("image_id")["y_true"])).to_csv("answers.csv", index=False)
    call(label, monkeypatch, "answers.csv")
    monitor.main()
    monitor_command.main()
    told = capsys.readouterr().out
    assert told.startswith("Stop using it: it was promised that of the patients it calls")
    assert "Inputs were not compared" in told
    assert json.loads(Path("metrics/monitor.json").read_text())["monitor"]["log"]["rows"] == 300
    call(label, monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 1  # nobody is due any more
    assert set(pd.read_csv("plots/monitor/evidence.csv")) == {"series", "patients", "evidence"}


def test_a_log_that_was_edited_is_not_looked_at(monkeypatch):
    call(log_command, monkeypatch, "vendor.csv")
    text = monitored.LOG.read_text()
    monitored.LOG.write_text(text.replace("i7,p7", "i7,p8"))
    with pytest.raises(ValueError, match=r"monitor/log.csv: row 9 is not as it was written"):
        monitor.main()


def test_signals_of_a_system_are_added_once():
    parts = dict.fromkeys(monitored.PARTS, "a")
    assert not monitored.has_reference(parts)
    monitored.add_reference(pd.DataFrame({"certainty": [0.5], "distance": [1.0]}), parts)
    monitored.add_reference(pd.DataFrame({"certainty": [0.6], "distance": [1.0]}), parts | {"policy": "b"})
    assert monitored.has_reference(parts)
    assert len(monitored.read_reference()) == 2


def test_the_card_answers_both_questions_and_warns(monkeypatch):
    values = yaml.safe_load((ROOT / "card.yaml").read_text(encoding="utf-8"))["card"]
    facts, nothing = (
        Facts(**values),
        dict.fromkeys(["ensemble", "site", "failures", "stability", "calibration", "prepare"]),
    )
    nothing |= dict.fromkeys(["baseline", "diversity", "uncertainty", "explanations"])
    card = make(nothing, facts, {}, IDENTITY)
    assert card.sections["site"].words[-1] == "In use: not measured: make accept and make monitor have not run."
    call(log_command, monkeypatch, "vendor.csv")
    table = vendor(0.5)
    table[["image_id", "y_true"]].to_csv("answers.csv", index=False)
    call(label, monkeypatch, "answers.csv")
    monitor.main()
    call(accept, monkeypatch, "vendor.csv")
    card = make(nothing | {name: read_metrics(name) for name in in_use.AFTER}, facts, {}, IDENTITY)
    assert "Stop using it" in card.warning
    assert any(line.startswith("Kept apart") for line in in_use.monitor(read_metrics("monitor")))
    assert "Last looked at 300 images of 300 patients" in render(card, "md")


def test_pages_and_sentences_have_words_for_every_answer():
    protocol = read("protocol.yaml", "protocol", Protocol)
    for answer in in_use.ACCEPTANCE:
        figures = {"answer": answer, "n_patients": 1, "most_patients": 2, "groups": {}}
        assert "1 of at most 2 patients" in signed.judged(protocol, Figures({"acceptance": figures}, "made"), "origin")
    assert set(log.LABELS) == {"image_id", "y_true"}


def test_ones_own_cases_are_rehearsed(monkeypatch, capsys):
    cases = vendor(0.0, patients=1200).drop(columns="time")
    cases["shifted"] = (cases.index >= 600).astype(int)
    wrong = cases["shifted"] == 1
    cases.loc[wrong, "y_true"] = 1 - cases.loc[wrong, "decision"]
    cases.to_csv("own.csv", index=False)
    call(rehearse, monkeypatch, "--cases", "own.csv", "--out", "year.png")
    told = capsys.readouterr().out
    assert "false alarms: alarm at the end of week 3" in told
    assert "23 patients a week" in told
    assert Path("year.png").stat().st_size > 10_000
    cases[:40].assign(shifted=0).to_csv("own.csv", index=False)
    with pytest.raises(ValueError, match="a year needs a patient a week at least"):
        call(rehearse, monkeypatch, "--cases", "own.csv")
