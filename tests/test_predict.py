"""How the images of a patient are united, and what an image that cannot be read becomes."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from commands.predict import of_batch, of_images, of_patients
from tmv_lib.deferral.costs import NEVER
from tmv_lib.prediction.likeness import Likeness
from tmv_lib.site.shift import Shift


def scored(**columns):
    n = len(columns["y_prob"])
    base = {"certainty": 0.9, "decision": 1, "deferred": False, "reason": "", "not_measured": ""}
    usual = {"oddity": 0.5, "out_of_distribution": False}
    return pd.DataFrame({"logit_net": np.zeros(n), "y_prob_net": columns["y_prob"], **base, **usual, **columns})


@pytest.fixture
def images():
    cases = pd.DataFrame({"image_id": list("abcde"), "patient_id": ["1", "1", "2", "2", "3"], "problem": ""})
    cases.loc[3, "problem"] = "d: torn"
    found = scored(
        y_prob=[0.9, 0.1, 0.8, 0.05],
        certainty=[0.8, 0.7, 0.9, 0.2],
        decision=[1, 0, 1, 0],
        deferred=[False, False, False, True],
        reason=["", "", "", "members disagree; unstable explanation"],
    )
    return of_images(cases, found)


def test_what_cannot_be_read_goes_to_a_doctor_with_the_reason(images):
    assert images["answer"].tolist() == ["positive", "negative", "positive", "to a doctor", "to a doctor"]
    assert images.loc[3, "reason"] == "the image could not be read: d: torn"
    assert images.loc[3, ["y_prob", "certainty", "decision"]].isna().all()
    assert images["deferred"].tolist() == [0, 0, 0, 1, 1]
    assert images.loc[4, "decision"] == 0  # what it would have said
    assert images["image_id"].tolist() == list("abcde")


def test_what_is_unlike_the_training_images_is_never_decided():
    cases = pd.DataFrame({"image_id": ["usual", "odd"], "patient_id": ["1", "2"], "problem": ""})
    found = scored(
        y_prob=[0.9, 0.999],
        certainty=[0.9, NEVER],
        oddity=[0.5, 0.002],
        out_of_distribution=[False, True],
        deferred=[False, True],
        reason=["", "unlike the training images"],
    )
    images = of_images(cases, found)
    assert images["answer"].tolist() == ["positive", "to a doctor"]
    assert images["deferred"].tolist() == [0, 1]
    assert images["reason"].tolist() == ["", "unlike the training images"]
    patients = of_patients(images)
    assert patients["n_out_of_distribution"].tolist() == [0, 1]
    assert of_batch(images, patients, Likeness({}, "words"))["images"]["out_of_distribution"] == 1


def test_one_image_takes_its_patient_to_a_doctor_and_one_positive_makes_a_positive(images):
    patients = of_patients(images).set_index("patient_id")
    assert patients["answer"].to_dict() == {"1": "positive", "2": "to a doctor", "3": "to a doctor"}
    assert patients.loc["1", "y_prob"] == pytest.approx(expit((logit(0.9) + logit(0.1)) / 2))
    assert patients["certainty"].tolist() == [0.7, 0.9, 0.2]
    assert patients["n_images"].tolist() == [2, 2, 1]
    assert patients.loc["2", "y_prob"] == pytest.approx(0.8)  # of the image that could be read
    shuffled = of_patients(images.sample(frac=1, random_state=0)).set_index("patient_id").loc[patients.index]
    pd.testing.assert_frame_equal(shuffled, patients)


def test_the_batch_counts_every_image_once(images):
    alike = Likeness({"features": Shift(0.9, 0.01)}, "words")
    found = of_batch(images, of_patients(images), alike)
    assert found["images"] == {"n": 5, "negative": 1, "positive": 2, "to a doctor": 2, "out_of_distribution": 0}
    assert found["n_unreadable"] == 1
    assert found["likeness"]["features"]["p_value"] == 0.01
