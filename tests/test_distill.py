"""Distillation, on logits small enough to check by hand."""

import math

import numpy as np
import pytest
import torch

import data
import distill
from support.files import UserError, write_json


@pytest.mark.parametrize("T, p", [(1.0, 3 / 4), (2.0, math.sqrt(3) / (1 + math.sqrt(3)))])
def test_divergence_by_hand(T, p):
    """The teacher's odds are 3^(1/T) to 1, the student's even: T² Σ p log(p / (1/2)) in each row.
    """
    teacher, student = torch.tensor([[math.log(3.0), 0.0]] * 2), torch.zeros(2, 2)
    by_hand = T**2 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    divergence = distill.scaled_kl_divergence(student, teacher, T)
    assert divergence.item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2, 5, 2)])
def test_zero_at_equality_and_positive_elsewhere(shape):
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randn(shape)
    answer_tokens = torch.ones(shape[:2], dtype=torch.bool)
    assert distill.distillation_loss(x, x, answer_tokens, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert distill.distillation_loss(x, y, answer_tokens, 2.0) > 0.01


def test_t_squared_keeps_the_gradient_of_small_logits():
    """For small logits the gradient tends to (student − teacher) / C per row, whatever T."""
    teacher = torch.tensor([[0.01, -0.02, 0.01]])
    for T in (1.0, 2.0, 10.0):
        student = torch.tensor([[-0.01, 0.0, 0.01]], requires_grad=True)
        distill.scaled_kl_divergence(student, teacher, T).backward()
        assert torch.allclose(student.grad, (student.detach() - teacher) / 3, atol=1e-4)


def test_spans_are_the_mean_of_start_and_end_over_answer_tokens():
    torch.manual_seed(2)
    student, teacher = torch.randn(1, 6, 2), torch.randn(1, 6, 2)
    answer_tokens = torch.tensor([[True, False, False, True, True, False]])
    start, end = (distill.scaled_kl_divergence(
        student[:, answer_tokens[0], i], teacher[:, answer_tokens[0], i], 2.0) for i in (0, 1))
    loss = distill.distillation_loss(student, teacher, answer_tokens, 2.0)
    torch.testing.assert_close(loss, (start + end) / 2)
    student[:, 1] += 50  # no answer can start or end there
    assert torch.equal(distill.distillation_loss(student, teacher, answer_tokens, 2.0), loss)


def test_regression_is_squared_error():
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]])
    assert distill.distillation_loss(student, teacher, None, 2.0).item() == 2.0


def test_convex_combination():
    assert distill.total_loss(10.0, 2.0, 0.9) == pytest.approx(2.8)


def test_outputs_of_a_batch_are_padded_to_the_students_shape():
    outputs = [np.full((n, 2), n, dtype=np.float32) for n in (3, 5, 2)]
    padded = distill.batch_outputs(outputs, np.array([2, 0]), "cpu")
    assert padded[0, :, 0].tolist() == [2, 2, 0] and padded[1, :, 1].tolist() == [3, 3, 3]


# -- the order of a teacher's labels


def order(tmp_path, labels):
    """label_order of MNLI, whose classes are contradiction, entailment, neutral."""
    write_json(tmp_path / "config.json", {
        "model_type": "bert", "id2label": dict(enumerate(labels))})
    return distill.label_order(tmp_path, data.TASKS["mnli"])


@pytest.mark.parametrize("labels, expected", [
    (["entailment", "neutral", "contradiction"], [2, 0, 1]),
    (["CONTRADICTION", "Neutral", "ENTAILMENT"], [0, 2, 1]),
    (["LABEL_0", "LABEL_1", "LABEL_2"], []),
])
def test_labels_are_matched_by_name(tmp_path, labels, expected):
    assert order(tmp_path, labels) == expected


def test_outputs_are_put_into_the_tasks_order():
    logits = np.array([0.1, 0.2, 0.7])
    assert distill.reorder([logits], [2, 0, 1])[0].tolist() == [0.7, 0.1, 0.2]
    assert distill.reorder([logits], [])[0] is logits


def test_classes_without_names_are_announced(tmp_path, capsys):
    order(tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert "taken to be contradiction, entailment, neutral" in capsys.readouterr().out


@pytest.mark.parametrize("task, labels", [
    ("sst2", ["NEGATIVE", "POSITIVE"]), ("mrpc", ["not_equivalent", "equivalent"]),
    ("qqp", ["not_duplicate", "duplicate"]), ("cola", ["unacceptable", "acceptable"]),
    ("wnli", ["not_entailment", "entailment"])])
def test_the_hubs_names_of_classes(tmp_path, task, labels):
    for names, order in ((labels, [0, 1]), (labels[::-1], [1, 0])):
        write_json(tmp_path / "config.json", {
            "model_type": "bert", "id2label": dict(enumerate(names))})
        assert distill.label_order(tmp_path, data.TASKS[task]) == order


@pytest.mark.parametrize("labels, said", [
    (["no", "yes"], "has 2 labels, the task 3"),
    (["a", "entailment", "neutral"], "but no contradiction"),
])
def test_other_labels_are_refused(tmp_path, labels, said):
    with pytest.raises(UserError, match=said):
        order(tmp_path, labels)
