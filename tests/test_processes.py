"""Several processes say what one says, and learn together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tmv_lib.network import processes

ROOT = Path(__file__).parents[1]
STUDY = """
import json, sys
from pathlib import Path
import numpy as np, torch
from tmv_lib.network import classifier, processes, training
from tmv_lib.pipeline.files import whole

PARAMS = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.01, "positive_weight": "none",
          "patience": 2, "precision": "float32", "augmentation": {"rotation": 3.0, "translation": 0.0, "scale": 0.0,
          "brightness": 0.0, "contrast": 0.0}}

def main():
    rng = np.random.default_rng(0)
    images, y_true = rng.integers(0, 256, (26, 32, 32), dtype=np.uint8), np.arange(26) % 2
    torch.manual_seed(0)
    model = classifier.build("resnet18", weights="none", dropout=0.2)
    logit = classifier.predict(model, images, batch_size=4).logit
    told = {"untrained": logit.tobytes().hex(), "processes": processes.count()}
    params = training.TrainParams.model_validate(PARAMS)
    checkpoint = Path(sys.argv[1]) / "checkpoint.pt"
    data = images, y_true
    training.fit(model, data, data, params, seed=0, checkpoint=checkpoint, report=lambda _: None)
    state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    everybody = processes.over([*range(processes.count())], lambda _: hash(state), progress=iter)
    told |= {"learned": classifier.predict(model, images, batch_size=4).logit.tobytes().hex(),
             "alike": len(set(everybody)) == 1}
    with whole(Path(sys.argv[1]) / "told.json") as temporary:
        temporary.write_text(json.dumps(told))

if __name__ == "__main__":
    processes.shared(main)()
"""


def told(folder: Path, **settings: str) -> dict:
    folder.mkdir()
    (folder / "study.py").write_text(STUDY)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    environment |= settings
    subprocess.run([sys.executable, "-m", "study", str(folder)], check=True, env=environment, cwd=folder, timeout=300)
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"study.py", "checkpoint.pt", "told.json"}
    return json.loads((folder / "told.json").read_text())


def test_two_processes_say_of_every_case_what_one_says_and_end_with_the_same_weights(tmp_path):
    one, two = told(tmp_path / "one", TMV_PROCESSES="1"), told(tmp_path / "two", TMV_PROCESSES="2")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["untrained"] == two["untrained"]
    assert two["alike"]
    assert one["learned"] != two["learned"]  # statistics of half a batch, and other masks of dropout


def test_who_starts_two_processes_makes_no_difference(tmp_path):
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    assert told(tmp_path / "ours", TMV_PROCESSES="2") == told(tmp_path / "given", TMV_LAUNCHER=launcher)


def test_a_number_of_processes_that_is_none_is_refused(monkeypatch):
    for said in ("0", "-1", "two", "1.5", ""):
        monkeypatch.setenv("TMV_PROCESSES", said)
        with pytest.raises(ValueError, match=f"TMV_PROCESSES is {said!r}: a whole number of at least 1"):
            processes.wanted()


def test_batches_come_back_in_their_order_whoever_read_them(monkeypatch):
    def gather(parts, own):
        parts[:] = [[10 * place for place in places[k::3]] for k in range(3)]
        assert own == parts[processes.rank()]

    places = range(7)
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes.distributed, "all_gather_object", gather)
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        assert processes.over(places, lambda place: 10 * place, progress=iter) == [10 * place for place in places]
