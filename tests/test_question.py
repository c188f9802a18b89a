"""What the networks tell apart, and the question that is put to them."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from tmv_lib.network.classifier import Classifier
from tmv_lib.network.objective import objective
from tmv_lib.pipeline.question import Question, output_names, read_question, read_task, targets, with_outputs

GRADES = pd.DataFrame(
    {
        "image_id": [f"i{k}" for k in range(12)],
        "patient_id": [f"p{k}" for k in range(12)],
        "split": np.repeat(["train", "val", "cal", "test"], 3),
        "class": ["none", "mild", "severe"] * 4,
        "site": "here",
    }
)
FINDINGS = GRADES.drop(columns="class").assign(
    y_true_mass=[1, 0, np.nan] * 4, y_true_oedema=[0, 1, 1] * 3 + [1, 1, np.nan]
)


def asked(folder, task, positive, cases):
    path = folder / "params.yaml"
    path.write_text(f"task: {task}\nquestion:\n  positive: {positive}\n")
    return read_question(path, cases)


def test_positive_classes_are_one_and_all_others_zero(tmp_path):
    question = asked(tmp_path, "multiclass", "[severe, mild]", GRADES)
    assert question == Question("multiclass", ["mild", "none", "severe"], [2, 0])
    answered = question.of(GRADES)
    assert answered["y_true"].tolist() == [0, 1, 1] * 4
    assert list(answered) == ["image_id", "patient_id", "split", "y_true", "site"]


def test_the_logit_is_the_log_odds_of_softmax():
    z = np.random.default_rng(0).normal(0, 3, (50, 4))
    probs = softmax(z, axis=1)[:, [1, 3]].sum(axis=1)
    found = Question("multiclass", list("abcd"), [1, 3]).logit(z)
    np.testing.assert_allclose(found, np.log(probs / (1 - probs)), rtol=1e-9)


@pytest.mark.parametrize(
    "question",
    [
        Question("multiclass", list("abcd"), [1, 3]),
        Question("multilabel", list("abcd"), [2]),
        Question("binary", [], [0]),
    ],
)
def test_a_network_answers_as_its_outputs_do(question):
    torch.manual_seed(0)
    model = Classifier(torch.nn.Flatten(), n_features=12, dropout=0.0, n_outputs=max(len(question.names), 1)).eval()
    images = torch.randn(6, 3, 2, 2)
    outputs = model(images).detach().numpy().reshape(6, -1)
    model.question = question
    np.testing.assert_allclose(model(images).detach().numpy(), question.logit(outputs), rtol=1e-5)


def test_what_is_not_labelled_is_left_out(tmp_path):
    answered = asked(tmp_path, "multilabel", "[mass]", FINDINGS).of(FINDINGS)
    assert answered["image_id"].tolist() == [f"i{k}" for k in range(12) if k % 3 < 2]
    assert answered["y_true"].tolist() == [1, 0] * 4


@pytest.mark.parametrize(
    ("task", "positive", "said"),
    [
        ("binary", "[a]", r"question.positive is \['a'\]: with task: binary it must be \[\]"),
        ("multiclass", "[]", "must name what is asked about; the classes are mild, none, severe"),
        ("multiclass", "[mild, none, severe]", "these are all classes"),
        ("multiclass", "[moderate]", "moderate is none of them; the classes are mild, none, severe"),
        ("multiclass", "[mild, mild]", "it names one twice"),
        ("multilabel", "[mass, oedema]", "a question is about one finding"),
        ("multilabel", "[]", "the findings are mass, oedema"),
        ("regression", "[]", "task is 'regression': input should be 'binary', 'multiclass' or 'multilabel'"),
        ("multiclass", "severe", "question.positive is 'severe': input should be a valid list"),
    ],
)
def test_a_question_that_cannot_be_asked(tmp_path, task, positive, said):
    with pytest.raises(ValueError, match=said) as told:
        asked(tmp_path, task, positive, FINDINGS if task == "multilabel" else GRADES)
    assert "\n" not in str(told.value)


def test_a_split_without_one_answer_is_named(tmp_path):
    question = asked(tmp_path, "multilabel", "[oedema]", FINDINGS)
    with pytest.raises(ValueError, match=r"question.positive is \['oedema'\]: split test has no case without it"):
        question.of(FINDINGS)


def test_what_a_network_is_trained_on():
    assert output_names("multiclass", GRADES) == ["mild", "none", "severe"]
    assert targets("multiclass", GRADES).tolist() == [1, 0, 2] * 4
    np.testing.assert_array_equal(targets("multilabel", FINDINGS)[2], [np.nan, 1])
    table = with_outputs(GRADES[["image_id"]], np.arange(36).reshape(12, 3), ["mild", "none", "severe"])
    assert list(table) == ["image_id", "logit_mild", "logit_none", "logit_severe"]


def test_task_is_read_alone(tmp_path):
    (tmp_path / "params.yaml").write_text("task: multilabel\n")
    assert read_task(tmp_path / "params.yaml") == "multilabel"


def aim(task, target, outputs, *, balanced=False):
    made = objective(task, target, n_outputs=outputs.shape[1], balanced=balanced, device=torch.device("cpu"))
    z, y = torch.from_numpy(outputs).float().requires_grad_(), torch.from_numpy(target).float()
    loss = made.loss(z, y)
    loss.backward()
    return made, loss.item(), z.grad.numpy()


def test_findings_that_are_not_labelled_cost_nothing():
    rng = np.random.default_rng(0)
    y, z = rng.integers(0, 2, (40, 3)).astype(float), rng.normal(size=(40, 3))
    y[rng.random(y.shape) < 0.3] = np.nan
    _, loss, gradient = aim("multilabel", y, z)
    there = ~np.isnan(y)
    by_hand = np.logaddexp(0, np.where(y == 1, -z, z))[there].mean()
    assert loss == pytest.approx(by_hand, rel=1e-6)
    assert (gradient[~there] == 0).all()
    assert (gradient[there] != 0).all()


def test_the_loss_of_classes_is_that_of_softmax_and_its_auroc_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, z = rng.integers(0, 3, 60), rng.normal(size=(60, 3))
    made, loss, _ = aim("multiclass", y, z)
    probs = softmax(z, axis=1)
    assert loss == pytest.approx(-np.log(probs[np.arange(60), y]).mean(), rel=1e-6)
    one_by_one = [roc_auc_score(y == k, probs[:, k]) for k in range(3)]
    assert made.auroc(y, z) == pytest.approx(np.mean(one_by_one))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_weights_of_a_balanced_loss_are_undone_by_their_logarithm(task):
    """An output that knows nothing but is trained with these weights ends too high by log w."""
    rng = np.random.default_rng(0)
    y = rng.choice(3, 3000, p=[0.6, 0.3, 0.1])
    target = {"binary": (y == 2).astype(int), "multiclass": y, "multilabel": (y[:, None] == [1, 2]).astype(float)}[task]
    k = {"binary": 1, "multiclass": 3, "multilabel": 2}[task]
    bias = torch.zeros(k, requires_grad=True)
    made = objective(task, target, n_outputs=k, balanced=True, device=torch.device("cpu"))
    optimiser = torch.optim.LBFGS([bias], max_iter=100, line_search_fn="strong_wolfe")

    def step():
        optimiser.zero_grad()
        outputs = bias.expand(len(y), k)
        loss = made.loss(outputs.squeeze(1) if task == "binary" else outputs, torch.from_numpy(target).float())
        loss.backward()
        return loss

    optimiser.step(step)
    found = bias.detach().numpy() - np.log(made.weights)
    if task == "multiclass":
        np.testing.assert_allclose(softmax(found), np.bincount(y) / len(y), atol=1e-3)
    else:
        shares = target.reshape(len(y), -1).mean(axis=0)
        np.testing.assert_allclose(1 / (1 + np.exp(-found)), shares, atol=1e-3)
