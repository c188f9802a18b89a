"""Run what the questions need that is not there yet, and say what came out; what `make repro` runs.

DVC's own lines go unseen. Each stage says its question, and its bar what is left of it; every error is shown.
"""

import subprocess
import sys
from pathlib import Path

from commands import answers
from tmv_lib.data.answer import PrepareParams
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import run


def main() -> None:
    root = Path(read("params.yaml", "prepare", PrepareParams).root)
    if not root.is_dir():  # of which DVC would say no more than that there is no such file
        raise ValueError(f"params.yaml: prepare.root is {root}: there is no such folder")
    with subprocess.Popen(["dvc", "repro"], stdout=subprocess.DEVNULL) as dvc:
        try:
            code = dvc.wait()
        except KeyboardInterrupt:  # the stage has been told, too, and says what it keeps
            dvc.wait()
            code = 130
    if code:
        sys.exit(code)
    answers.main()


if __name__ == "__main__":
    run(main)
