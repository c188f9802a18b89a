"""How a stage fails: one line, an exit code, and nothing half-written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tmv_lib.pipeline.files import whole
from tmv_lib.pipeline.stage import run

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("params.yaml: a is 3"), "error: params.yaml: a is 3 ["),
        (KeyError("logit"), "error: KeyError: 'logit' ["),
        (MemoryError(), "error: MemoryError: no more is known ["),
        (
            FileNotFoundError(2, "No such file or directory", "data/x.csv"),
            "error: data/x.csv: No such file or directory [",
        ),
        (RuntimeError("mat1 and mat2"), "error: RuntimeError: mat1 and mat2 ["),
    ],
)
def test_whatever_is_raised_is_one_line_with_its_place(error, words):
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(fail)
    assert str(ended.value).startswith(words)
    assert "\n" not in str(ended.value)
    assert str(ended.value).endswith("]")


def test_a_project_in_a_hidden_folder_has_its_errors_told(tmp_path):
    folder = tmp_path / "my .venv 100 % \u00fc'"
    folder.mkdir()
    (folder / "tmv_lib").symlink_to(ROOT / "tmv_lib")
    text = "from tmv_lib.pipeline.stage import run\ndef main(): raise ValueError('no')\nrun(main)\n"
    (folder / "stage.py").write_text(text)
    done = subprocess.run([sys.executable, "stage.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no [")


def test_a_stage_that_is_asked_to_end_leaves_no_part_of_a_file(tmp_path):
    text = (
        "import time\nfrom tmv_lib.pipeline.stage import run\nfrom tmv_lib.pipeline.files import whole\n"
        "def main():\n    with whole('out.csv') as part:\n        part.write_text('half')\n"
        "        print('writing', flush=True)\n        time.sleep(60)\nrun(main)\n"
    )
    (tmp_path / "stage.py").write_text(text)
    with subprocess.Popen(
        [sys.executable, "stage.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
    assert [path.name for path in tmp_path.iterdir()] == ["stage.py"]


def test_who_interrupts_is_told_what_is_kept(tmp_path):
    text = (
        "import time\nfrom tmv_lib.pipeline.stage import run\n"
        "def main():\n    print('training', flush=True)\n    time.sleep(60)\nrun(main)\n"
    )
    (tmp_path / "stage.py").write_text(text)
    (tmp_path / "dvc.yaml").write_text("stages: {train: {foreach: [a, b], do: {desc: 'Train ${key}.', cmd: x}}}\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_STAGE": "train@a"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "stage.py"], cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"training\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert said.decode().startswith("train@a: Train a.\n")
    assert "checkpoints/" in said.decode()
    assert b"Traceback" not in said


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    (tmp_path / "a.csv").write_text("old")
    with (
        pytest.raises(OSError, match=r"a\.csv: cannot be written \(No space left on device\)"),
        whole(tmp_path / "a.csv"),
    ):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "a.csv").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=r"a\.csv: cannot be written"), whole(tmp_path / "a.csv") as part:
        part.write_text("x")
