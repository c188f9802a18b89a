"""Do promises and the three answers about a site keep their levels? Simulated patients whose true risk is known.

Run by `make promises`; writes docs/promises.csv. Two questions, of 2,000 samples each:

- A certificate is drawn from fresh calibration patients, and held against the population that they come from: how often
  is any of its promises broken there?
- A site sends 100 patients that the policy decides, each wrongly with a given probability: how often is a promise of at
  most 5 % called broken, kept, or neither?
"""

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from tmv_lib.deferral import costs, guarantee, policy
from tmv_lib.pipeline.files import write_csv
from tmv_lib.statistics.tests import wilson_interval

REPEATS = 2000
PRICES = {"cost_fn": 5.0, "cost_fp": 1.0}
LIMITS = {"missed_positives": 0.05, "false_alarms": 0.2, "sensitivity": 0.1}
DELTA = 0.1
PATIENTS, POPULATION = 300, 100_000
THRESHOLD = 0.7
RISKS = (0.0, 0.02, 0.04, 0.05, 0.115, 0.15)  # of a promise of 5 %: the first four are harmless
ACCEPTED, LIMIT = 100, 0.05


def main() -> None:
    rng = np.random.default_rng(0)
    rows = [fresh_populations(images, slope, rng) for images in (1, 2) for slope in (1.0, 0.6, 0.4)]
    rows += [row for images in (1, 2) for risk in RISKS for row in sites(images, risk, rng)]
    write_csv("docs/promises.csv", pd.DataFrame(rows))


def patients(rng: np.random.Generator, n: int, *, images: int, slope: float) -> pd.DataFrame:
    """Cases of n patients, decided; the logits of one patient are alike, its label is one, logit P(y = 1) = slope z."""
    z = np.repeat(rng.normal(-0.5, 3.0, n), images) + rng.normal(0, 0.3, n * images)
    truth = np.repeat(rng.random(n), images) < expit(slope * z)
    p = expit(z)
    certainty = costs.certainty(p, **PRICES)
    table = policy.decide(p, certainty, np.zeros(p.size), threshold=0, prices=PRICES)
    return table.assign(patient_id=np.repeat(np.arange(n), images), y_true=truth.astype(int))


def fresh_populations(
    images: int, slope: float, rng: np.random.Generator, *, repeats: int = REPEATS
) -> dict[str, object]:
    """How often any promise of a fresh calibration sample is broken in its population."""
    population, val = (patients(rng, n, images=images, slope=slope) for n in (POPULATION, PATIENTS))
    broken = made = 0
    for _ in tqdm(range(repeats), desc=f"{images} images, slope {slope}"):
        cal = patients(rng, PATIENTS, images=images, slope=slope)
        promises = guarantee.promise(cal, val, threshold=THRESHOLD, limits=LIMITS, delta=DELTA, rng=rng)
        kept = {name: one for name, one in promises.items() if one.threshold is not None}
        made += bool(kept)
        broken += any(_risk(name, population, float(one.threshold or 0)) > one.limit for name, one in kept.items())
    world = f"calibration slope {slope}, {PATIENTS} calibration patients"
    return _row("any promise is broken", world, images, broken, repeats) | {"any promise made": made / repeats}


def _risk(name: str, population: pd.DataFrame, threshold: float) -> float:
    own, wrong = guarantee.PROMISES[name](population, threshold)
    return wrong.sum() / max(own.sum(), 1)


def sites(images: int, risk: float, rng: np.random.Generator, *, repeats: int = REPEATS) -> list[dict[str, object]]:
    """How often each of the three answers is given about a promise, the images of a patient being wrong together."""
    verdicts = dict.fromkeys(("broken", "holds", "cannot_tell"), 0)
    for _ in tqdm(range(repeats), desc=f"{images} images, risk {risk}"):
        cases = pd.DataFrame(
            {
                "patient_id": np.repeat(np.arange(ACCEPTED), images),
                "y_true": np.repeat(rng.random(ACCEPTED) < risk, images).astype(int),
                "certainty": 1.0,
                "decision": 0,
                "out_of_distribution": False,
            }
        )
        found = guarantee.stand("missed_positives", cases, threshold=0.5, limit=LIMIT, delta=DELTA, rng=rng)
        verdicts[found.verdict] += 1
    world = f"true risk {risk:.1%}, promised at most {LIMIT:.0%}, {ACCEPTED} patients"
    return [_row(f"said: {name.replace('_', ' ')}", world, images, count, repeats) for name, count in verdicts.items()]


def _row(event: str, world: str, images: int, count: int, repeats: int) -> dict[str, object]:
    low, high = wilson_interval(count, repeats)
    return {"event": event, "world": world, "images": images, "share": count / repeats, "low": low, "high": high}


if __name__ == "__main__":
    main()
