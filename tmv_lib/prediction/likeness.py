"""Does a batch of new images look like the cases that calibrators and threshold come from?"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import join
from tmv_lib.pipeline.params import read
from tmv_lib.prediction.system import Scored, System
from tmv_lib.site.answer import SiteParams
from tmv_lib.site.shift import LEVEL, Shift, domain_test, feature_space, kolmogorov_smirnov
from tmv_lib.statistics.tests import holm

FEWEST = 20  # patients of a batch that are compared with the cases calibrated on
LOOKS = (  # 1 - 0.95^14 = 0.51
    "This is one look: of batches that are no different one in twenty is called different, and of fourteen in a row at"
    " least one as likely as not."
)


class Likeness(NamedTuple):
    """The tests by name, and the verdict in words; without tests where the patients are too few."""

    tests: dict[str, Shift]
    words: str


def compare(system: System, scored: Scored, groups: ArrayLike) -> Likeness:
    """Compare new images, of the patients `groups` (n,), with those that calibrators and threshold come from.

    They are `val` and `cal`, patients of the source that no network was trained on, or the site's own cases where the
    policy was calibrated there. The tests of the stage `site` that need no label, with its parameters: the features and
    the distribution of each member's logit; p by permuting patients, Holm over the tests of this batch. Batches that
    were looked at before are not known here, and no correction is made for them: the words say what that means.
    """
    root, first = system.root, system.policy.members[0]
    cases = record.read_labelled(root=root)
    train = cases.loc[cases["split"] == "train", "image_id"]
    splits = ["val", "cal"]
    if system.policy.calibration == "site":
        splits = ["local"] if "local" in set(cases["split"]) else ["test"]
    cases = record.of_split(cases, *splits)
    new = scored.cases.assign(patient_id=np.asarray(groups, dtype=str))
    fresh = ~new["patient_id"].isin(cases["patient_id"]).to_numpy()
    params, n_patients = read(root / "params.yaml", "site", SiteParams), new.loc[fresh, "patient_id"].nunique()
    if n_patients < FEWEST:
        words = f"Too few to say whether they look like the cases calibrated on: {n_patients} patients that"
        return Likeness({}, f"{words} are not among those; {FEWEST} are needed.")
    space = feature_space(record.read_features(first, train, root=root), n_components=params.components)
    features = np.vstack(
        [space(record.read_features(first, cases["image_id"], root=root)), space(scored.features[fresh])]
    )
    site, who = np.repeat([0, 1], [len(cases), fresh.sum()]), [*cases["patient_id"], *new.loc[fresh, "patient_id"]]
    dealt: dict[str, Any] = {"n_permutations": params.permutations, "rng": np.random.default_rng(params.seed)}
    folded = {"n_folds": params.folds, "n_foldings": params.foldings, **dealt}
    tests = {"features": domain_test(features, site, who, **folded)}
    for name in system.policy.members:
        known = join(cases[["image_id"]], record.read_predictions(name, root=root)[["image_id", "score"]])
        # to four decimals: what rounding and the size of a batch leave is no difference
        logits = np.round([*known["score"], *new.loc[fresh, f"logit_{name}"]], 4)
        tests[f"logit_{name}"] = kolmogorov_smirnov(logits, site, who, **dealt)
    adjusted = holm([test.p_value for test in tests.values()])
    tests = {name: test._replace(p_value=float(p)) for (name, test), p in zip(tests.items(), adjusted, strict=True)}
    return Likeness(tests, _in_words(tests, n_patients))


def _in_words(tests: dict[str, Shift], n_patients: int) -> str:
    least = min(test.p_value for test in tests.values())
    tested = (
        f"AUC of telling them apart {tests['features'].observed:.2f}; least p {least:.2g} by Holm over"
        f" {len(tests)} tests"
    )
    if least < LEVEL:
        differ = ", ".join(name.replace("_", " of ", 1) for name, test in tests.items() if test.p_value < LEVEL)
        return (
            f"Looks different, harm unknown: these {n_patients} patients and the cases calibrated on differ in {differ}"
            f" ({tested}). Another share of positives alone also looks different, and without labels nobody can say"
            f" whether probabilities, threshold and guarantee hold. {LOOKS}"
        )
    return (
        f"No difference from the cases calibrated on was shown in {n_patients} patients ({tested}). That is no proof:"
        f" a smaller difference goes unnoticed, and so does one that only labels can show. {LOOKS}"
    )
