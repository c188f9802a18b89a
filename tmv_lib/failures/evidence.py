"""The evidence on every answer of every model, right or wrong, from which the taxonomy sorts errors."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from tmv_lib.calibration.calibrators import Calibrator, fit_calibrator
from tmv_lib.failures import oddity, taxonomy
from tmv_lib.pipeline.files import Images
from tmv_lib.statistics.ranking import rank_among
from tmv_lib.uncertainty.distance import nearest_neighbour_distance
from tmv_lib.uncertainty.entropy import entropy_decomposition

# What the phantom planted and, of an image, can mend, in the words of the taxonomy.
REPAIRS = {
    "spurious": "spurious feature",
    "blind": "model blindness",
    "ambiguous": "clinical ambiguity",
    "site": "site",
}
PLANTED = REPAIRS | {"mislabelled": "annotation noise", "none": "undetermined"}
MOST_NORMALS = 2000  # whose patches are remembered
SIDE = 56  # pixels, about, to which an image is averaged down where its oddity is measured


class Material(NamedTuple):
    """What evidence is made of.

    cases: outside train, n rows: `score_m` and `logit_m` of every member m and the signals of the earlier stages.
    images: uint8 (n, height, width); normals: those of train that show nothing. witness: logit (n,) of the
    network that never sees the border; features, reference: its features (n, d) and (m, d) of train; reference_y:
    labels of train.
    """

    cases: pd.DataFrame
    images: Images
    normals: Images
    witness: np.ndarray
    features: np.ndarray
    reference: np.ndarray
    reference_y: np.ndarray


def signal_columns(members: list[str], *, lungs: bool) -> dict[str, list[str]]:
    """The columns that evidence needs of each earlier stage; lungs: whether there were masks of them."""
    per_member = {
        "explanations": ["border_effect", "border_flips", "border", *(["lungs"] if lungs else [])],
        "uncertainty": ["expected_entropy", "mutual_information"],
        "stability": ["instability"],
    }
    names = {stage: [f"{kind}_{name}" for kind in kinds for name in members] for stage, kinds in per_member.items()}
    tried = [f"{kind}_{name}" for kind in taxonomy.TRIED for name in [*members, "ensemble"]]
    return names | {"explanations": [*names["explanations"], "map_agreement", *tried]}


def of_cases(
    material: Material, calibrators: dict[str, Calibrator], params: Any, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """All evidence of every case outside train but the answers of a model, and the confident joint (2, 2)."""
    cases, images, features, normals = material.cases, material.images, material.features, material.normals
    y_true, val = cases["y_true"].to_numpy(), (cases["split"] == "val").to_numpy()
    # As the witness sees them: among the members' features, a marker's neighbours are those that bear it, too.
    distance = nearest_neighbour_distance(features, material.reference, k=params.neighbours)
    odd = oddity.patch_oddity(images, normals, side=SIDE, progress=partial(tqdm, desc="oddity", leave=False))
    residual = oddity.residual_oddity(images, normals, components=params.components, side=SIDE, seed=params.seed)
    healthy, groups = val & (y_true == 0), cases["patient_id"].to_numpy()
    witness = fit_calibrator("logistic", y_true[val], material.witness[val], groups=groups[val])
    out_of_fold = oddity.out_of_fold_probs(features, y_true, groups=groups, n_folds=params.folds, rng=rng)
    agreement = oddity.neighbour_agreement(
        features, y_true, material.reference, material.reference_y, k=params.neighbours
    )
    inside = [one.probability(cases[f"score_{m}"] - cases[f"border_effect_{m}"]) for m, one in calibrators.items()]
    cases = cases.assign(
        inside_prob=np.mean(inside, axis=0),
        reference_prob=witness.probability(material.witness),
        out_of_fold_prob=out_of_fold,
        neighbour_agreement=agreement,
        distance_rank=rank_among(distance, distance[val]),
        oddity_rank=rank_among(odd, odd[healthy]),
        residual_rank=rank_among(residual, residual[healthy]),
    )
    return cases, oddity.confident_joint(y_true, out_of_fold)


def of_calibrations(
    cases: pd.DataFrame, logits: dict[str, pd.DataFrame], blame: dict[str, str]
) -> dict[str, pd.DataFrame]:
    """The evidence of every answer in each calibration, `logits` as `read_calibrations` has them.

    blame: by member, whose a miscalibration at the site is. The answers as shipped have `site_prob`, what each becomes
    once the members whom the site makes wrong, and no others, are calibrated there.
    """
    evidence = {name: of_answers(cases, one).assign(site_prob=np.nan) for name, one in logits.items()}
    shipped = logits["as_shipped"]
    wronged = [name for name in shipped if blame.get(name) == "site"]
    mended = shipped.assign(**{name: logits["site_calibrated"][name] for name in wronged})
    for model, rows in evidence["as_shipped"].groupby("model").groups.items():
        members = list(shipped) if model == "ensemble" else [model]
        known = set(members) & set(wronged)
        site_prob = expit(mended[members].to_numpy()).mean(axis=1) if known else np.nan
        evidence["as_shipped"].loc[rows, "site_prob"] = site_prob
    return evidence


def of_answers(cases: pd.DataFrame, logits: pd.DataFrame) -> pd.DataFrame:
    """The evidence of every answer, a row per model and case; calibrated logits, a column per member, decide at 0.

    What a member's map or dropout tells is, for the ensemble, the mean over the members that have it; hiding the
    border flips the ensemble where it flips every member. Borders were changed for the members as shipped.
    """
    members, probs = list(logits), expit(logits.to_numpy())
    positive = probs > 0.5
    shared = cases[["image_id", "patient_id", "split", "y_true"]].assign(
        ensemble_prob=probs.mean(axis=1),
        members_disagree=positive.any(axis=1) & ~positive.all(axis=1),
        **{name: cases[name] for name in taxonomy.EVIDENCE if name in cases and name != "y_true"},
        members_mutual_information=entropy_decomposition(probs.T).mutual_information,
        map_agreement=cases["map_agreement"],
    )
    own = {kind: [f"{kind}_{name}" for name in members] for kind in taxonomy.BESIDE if f"{kind}_{members[0]}" in cases}
    flips = cases[[f"border_flips_{name}" for name in members]].to_numpy(dtype=bool)
    rows = []
    for place, model in enumerate([*members, "ensemble"]):
        here = slice(None) if model == "ensemble" else [place]
        y_prob = probs[:, here].mean(axis=1)
        answered = shared.assign(
            model=model,
            y_prob=y_prob,
            border_flips=flips[:, here].all(axis=1),
            **{kind: cases[f"{kind}_{model}"] for kind in taxonomy.TRIED},
            **{kind: cases[columns].iloc[:, here].mean(axis=1) for kind, columns in own.items()},
            wrong=(y_prob > 0.5) != cases["y_true"].to_numpy(),
        )
        rows.append(answered)
    return pd.concat(rows, ignore_index=True)


def oracle(
    evidence: pd.DataFrame, truth: pd.DataFrame, repairs: dict[str, pd.DataFrame], calibrators: dict[str, Calibrator]
) -> np.ndarray:
    """The cause of every answer, were it wrong, by the phantom's repairs, a row of evidence each.

    truth: `image_id`, `cause`, `y_clean`. repairs: by member `image_id`, `repair` and the `score` of the mended image.
    In a case with nothing else planted that is taken as at another site, the site is what was planted.
    """
    truth, probs = truth.set_index("image_id"), dict[str, Any]()
    for name, table in repairs.items():
        mended = table.assign(y_prob=calibrators[name].probability(table["score"]))
        probs[name] = mended.pivot_table(values="y_prob", index="image_id", columns="repair")
    probs["ensemble"] = sum(probs.values()) / len(repairs)
    causes = []
    for model, own in evidence.groupby("model", sort=False):
        known, y_true = truth.loc[own["image_id"]], own["y_true"].to_numpy()
        answers = probs[str(model)].reindex(index=own["image_id"], columns=list(REPAIRS)).reset_index(drop=True)
        mends = (answers.gt(0.5).eq(y_true, axis=0) & answers.notna()).rename(columns=REPAIRS)
        mends.insert(0, "annotation noise", known["y_clean"].to_numpy() != y_true)
        planted = known["cause"].reset_index(drop=True)
        planted = planted.mask((planted == "none") & answers["site"].notna(), "site")
        causes.append(taxonomy.cause_of_errors(planted.map(PLANTED), mends))
    return np.concatenate(causes)
