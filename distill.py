"""Distillation (paper, §6): the pruned model also learns from a fine-tuned dense teacher.

    python train.py --task mnli --method dense --output runs/teacher
    python train.py --task mnli --method movement --teacher runs/teacher

The loss is that of Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), as in the original code.
Shapes: B batch, C classes, T tokens; in T² and logits / T, T is the temperature.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import bert
import data
from support import report
from support.files import UserError
from support.tokenizer import load_tokenizer

MASKED_LOGIT = -1e9  # its probability is 0; −∞ would make the divergence NaN


def scaled_kl_divergence(student_logits: Tensor, teacher_logits: Tensor,
                         temperature: float) -> Tensor:
    """T² · KL(p_teacher ‖ p_student), the mean over the batch: two (B, C) → a scalar.

    T² keeps the gradient's size whatever the temperature T (Hinton et al. 2015, §2).
    """
    # p = softmax(logits / T)
    log_p_student = F.log_softmax(student_logits / temperature, dim=1)  # (B, C)
    log_p_teacher = F.log_softmax(teacher_logits / temperature, dim=1)  # (B, C)
    # KL(p_teacher ‖ p_student) = Σ p_teacher (log p_teacher − log p_student)
    kl = F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * kl


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, answer_tokens: Tensor,
                      temperature: float) -> Tensor:
    """How far the student's outputs are from the teacher's, for any task → a scalar.

    Both logits are (B, C) for classes, (B, 1) for regression, (B, T, 2) for spans.
    answer_tokens: (B, T), true where an answer may start or end: at [CLS] and in the second
    segment, its [SEP] included. Only spans use it; their loss is the mean of start and end.
    """
    if student_logits.dim() == 3:
        elsewhere = ~answer_tokens[:, :, None]  # (B, T, 1)
        student = student_logits.masked_fill(elsewhere, MASKED_LOGIT)  # (B, T, 2)
        teacher = teacher_logits.masked_fill(elsewhere, MASKED_LOGIT)  # (B, T, 2)
        start, end = (scaled_kl_divergence(student[:, :, i], teacher[:, :, i], temperature)
                      for i in (0, 1))
        return (start + end) / 2
    if student_logits.shape[1] == 1:
        return F.mse_loss(student_logits, teacher_logits)
    return scaled_kl_divergence(student_logits, teacher_logits, temperature)


def total_loss(task_loss: Tensor, teacher_loss: Tensor, alpha: float) -> Tensor:
    """The loss that is trained on; the paper's runs have α = 0.9."""
    # §6: L = α T² KL(p_teacher ‖ p_student) + (1 − α) L_task
    return alpha * teacher_loss + (1 - alpha) * task_loss


# ------------------------------------------------------------------------------- the teacher


def label_order(folder: Path, task: data.Task) -> list[int]:
    """For each of the task's classes, its place among the outputs of the model in `folder`.

    Classes are matched by name (id2label in config.json). [] means that outputs stay as they are:
    for spans, regression and classes without names (a note is printed). Raises UserError if the
    classes differ.
    """
    if task.span:
        return []
    model_labels = bert.read_labels(folder)
    needed = len(task.labels) or 1  # regression has one output
    if len(model_labels) != needed:
        raise UserError(f"{folder}: has {len(model_labels)} labels, the task {needed}")
    if not task.labels:
        return []
    if model_labels[0] == "LABEL_0":
        report.say(f"NOTE: {folder}: its classes have no names; they are taken to be "
                   + ", ".join(task.labels))
        return []
    plain = [label.lower().replace("-", "_") for label in model_labels]  # some write NOT-ENTAILMENT
    for names in (model_labels, plain):
        for wanted in (task.labels, task.aliases):
            if set(wanted) == set(names):
                return [names.index(label) for label in wanted]
    missing = [label for label in task.labels if label not in plain]
    raise UserError(f"{folder}: has the labels {', '.join(model_labels)}, but no "
                    f"{', '.join(missing)}; name them in its config.json (id2label)")


def load_fine_tuned(folder: Path, task: data.Task) -> tuple[nn.Module, list[int]]:
    """A model that can already do the task, and its label_order; UserError if it cannot."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (a run's, or another fine-tuned BERT's)")
    order = label_order(folder, task)
    model, fresh = bert.load(folder, *task.head)
    if fresh:
        raise UserError(f"{folder}: not fine-tuned for this task ({fresh[0]} is missing)")
    return model.eval(), order


def load_teacher(folder: Path, task: data.Task, tokenizer) -> tuple[nn.Module, list[int]]:
    """As load_fine_tuned, frozen; UserError unless it reads the same tokens as the student."""
    model, order = load_fine_tuned(folder, task)
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"--teacher {folder}: its tokenizer has another vocabulary than --model's")
    return model.requires_grad_(False), order


def reorder(outputs: list[np.ndarray], order: list[int]) -> list[np.ndarray]:
    """A model's outputs, an array per row, with the classes in the task's order."""
    return [logits[order] for logits in outputs] if order else outputs


def batch_outputs(outputs: list[np.ndarray], rows: np.ndarray, device) -> Tensor:
    """The teacher's outputs for the `rows` of a batch: (B, C), or (B, T, 2), 0 at padding."""
    logits = [torch.from_numpy(outputs[row]) for row in rows]  # (C) or (tokens of the row, 2) each
    return pad_sequence(logits, batch_first=True).to(device)
