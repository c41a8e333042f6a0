"""Distillation, on logits small enough to check by hand."""

import math

import numpy as np
import pytest
import torch

import bert
import data
import distill
from support.files import UserError


def test_divergence_by_hand():
    """p = (3/4, 1/4) against q = (1/2, 1/2) at T = 1: Σ p log(p/q)."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distill.divergence(student, teacher, 1.0).item() == pytest.approx(by_hand, abs=1e-6)
    # at T = 2 the teacher's odds are √3, and the factor is T² = 4
    p = math.sqrt(3) / (1 + math.sqrt(3))
    by_hand = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert distill.divergence(student, teacher, 2.0).item() == pytest.approx(by_hand, abs=1e-6)


def test_batch_mean():
    one = torch.randn(1, 3), torch.randn(1, 3)
    alone = distill.divergence(*one, 2.0)
    repeated = distill.divergence(*(x.repeat(5, 1) for x in one), 2.0)
    assert repeated.item() == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2, 5, 2)])
def test_zero_at_equality_and_positive_elsewhere(shape):
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randn(shape)
    usable = torch.ones(shape[0], shape[1] if len(shape) == 3 else 1, dtype=torch.bool)
    assert distill.teacher_loss(x, x, usable, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert distill.teacher_loss(x, y, usable, 2.0) > 0.01


def test_t_squared_keeps_the_gradient_of_small_logits():
    """For small logits the gradient tends to (student − teacher) / C per row, whatever T."""
    teacher = torch.tensor([[0.01, -0.02, 0.01]])
    for T in (1.0, 2.0, 10.0):
        student = torch.tensor([[-0.01, 0.0, 0.01]], requires_grad=True)
        distill.divergence(student, teacher, T).backward()
        assert torch.allclose(student.grad, (student.detach() - teacher) / 3, atol=1e-4)


def test_gradient_is_that_of_the_written_out_formula():
    torch.manual_seed(1)
    teacher, T = torch.randn(6, 3), 2.0
    ours = torch.randn(6, 3, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    distill.divergence(ours, teacher, T).backward()
    p, q = torch.softmax(teacher / T, 1), torch.softmax(theirs / T, 1)
    (T * T * (p * (p.log() - q.log())).sum(1).mean()).backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_spans_are_the_mean_of_start_and_end_over_usable_tokens():
    torch.manual_seed(2)
    student, teacher = torch.randn(1, 6, 2), torch.randn(1, 6, 2)
    usable = torch.tensor([[True, False, False, True, True, False]])
    by_hand = sum(distill.divergence(student[:, usable[0], i], teacher[:, usable[0], i], 2.0)
                  for i in (0, 1)) / 2
    assert distill.teacher_loss(student, teacher, usable, 2.0).item() == pytest.approx(
        by_hand.item(), abs=1e-5)
    moved = student.clone()
    moved[:, 1] += 50  # a token that no answer can use
    assert torch.equal(distill.teacher_loss(moved, teacher, usable, 2.0),
                       distill.teacher_loss(student, teacher, usable, 2.0))


def test_regression_is_squared_error():
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.0]])
    assert distill.teacher_loss(student, teacher, None, 2.0).item() == 2.0


def test_convex_combination():
    task, taught = torch.tensor(10.0), torch.tensor(2.0)
    assert distill.combined(task, taught, 0.9).item() == pytest.approx(2.8)
    assert distill.combined(task, taught, 0.0) == task


def test_outputs_of_a_batch_are_padded_to_the_students_shape():
    outputs = [np.full((n, 2), n, dtype=np.float32) for n in (3, 5, 2)]
    like = torch.zeros(2, 4, 2)
    out = distill.batch_outputs(outputs, np.array([2, 0]), like)
    assert out[0, :, 0].tolist() == [2, 2, 0, 0] and out[1, :, 1].tolist() == [3, 3, 3, 0]


# -- teachers' labels


def folder_with(tmp_path, labels, classes):
    config = bert.Config(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=16)
    bert.save(bert.create(config, "classification", classes), tmp_path, labels)
    return tmp_path


def test_labels_are_mapped_by_name(tmp_path):
    folder = folder_with(tmp_path, ["entailment", "neutral", "contradiction"], 3)
    order = distill.label_order(folder, data.TASKS["mnli"])
    assert order == [2, 0, 1]  # contradiction, entailment, neutral among theirs
    row = np.array([0.1, 0.2, 0.7])  # their entailment, neutral, contradiction
    assert distill.reorder([row], order)[0].tolist() == [0.7, 0.1, 0.2]


def test_capital_names_and_generic_names(tmp_path):
    folder = folder_with(tmp_path / "a", ["CONTRADICTION", "Neutral", "ENTAILMENT"], 3)
    assert distill.label_order(folder, data.TASKS["mnli"]) == [0, 2, 1]
    folder = folder_with(tmp_path / "b", ["LABEL_0", "LABEL_1", "LABEL_2"], 3)
    assert distill.label_order(folder, data.TASKS["mnli"]) == []


@pytest.mark.parametrize("labels, classes, complaint", [
    (["no", "yes"], 2, "has 2 labels, the task 3"),
    (["a", "entailment", "neutral"], 3, "no contradiction"),
])
def test_other_labels_are_refused(tmp_path, labels, classes, complaint):
    folder = folder_with(tmp_path, labels, classes)
    with pytest.raises(UserError, match=complaint):
        distill.label_order(folder, data.TASKS["mnli"])
