"""Distillation (paper, Section 6): the pruned model also learns from a fine-tuned dense teacher.

    python train.py --task mnli --method dense --output runs/teacher
    python train.py --task mnli --method movement --teacher runs/teacher

Shapes: B batch, C classes, T tokens.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import bert
import data
from support.files import UserError

NEVER = -1e9  # a logit whose probability is 0, and whose difference from another is no NaN


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), batch mean; logits (B, C) → scalar.

    The factor T² keeps the gradient's size the same whatever T (Hinton, Vinyals, Dean 2015).
    """
    p = F.log_softmax(teacher / temperature, dim=1)  # (B, C)
    q = F.log_softmax(student / temperature, dim=1)  # (B, C)
    # Σ p (log p − log q)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def teacher_loss(student: Tensor, teacher: Tensor, usable: Tensor, temperature: float) -> Tensor:
    """How far the student's outputs are from the teacher's, for outputs of any task.

    student, teacher: (B, C) class logits, (B, 1) regression values, or (B, T, 2) span logits.
    usable: (B, T) true at [CLS] and in the second segment; only spans look at it.
    """
    if student.dim() == 3:  # mean of start and end, over the tokens that an answer can use
        student, teacher = (x.masked_fill(~usable[:, :, None], NEVER) for x in (student, teacher))
        pairs = zip(student.unbind(2), teacher.unbind(2))  # two of (B, T)
        return sum(divergence(s, t, temperature) for s, t in pairs) / 2
    if student.shape[1] == 1:
        return F.mse_loss(student, teacher)
    return divergence(student, teacher, temperature)


def combined(task_loss: Tensor, from_teacher: Tensor, alpha: float) -> Tensor:
    """Section 6: a convex combination; the paper's runs have α = 0.9 on the teacher."""
    # L = α · L_teacher + (1 − α) · L_task
    return alpha * from_teacher + (1 - alpha) * task_loss


# ------------------------------------------------------------------------------- the teacher


def label_order(folder: Path, task: data.Task) -> list[int]:
    """Where the task's labels stand among a model's: its id2label decides, not its order."""
    ours, theirs = list(task.labels), bert.read_labels(folder)
    # Hugging Face leaves id2label out when it is the default, two labels without names
    count = len(bert.read_config(folder)[1].get("id2label") or (0, 1))
    if task.span:
        return []
    if count != (len(ours) or 1):
        raise UserError(f"{folder}: has {count} labels, the task {len(ours) or 'is a regression'}")
    if theirs is None or not ours:  # LABEL_0, LABEL_1 …: nothing to map by
        return []
    names = [name.lower().replace("-", "_") for name in theirs]
    missing = [label for label in ours if label not in names]
    if missing:
        raise UserError(f"{folder}: has the labels {', '.join(theirs)}, but no "
                        + ", ".join(missing))
    return [names.index(label) for label in ours]


def load_fine_tuned(folder: Path, task: data.Task):
    """A model that can already do the task → (model, the order of its outputs or [])."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (a run's, or another fine-tuned BERT's)")
    order = label_order(folder, task)
    head = "span" if task.span else "classification"
    model, fresh = bert.load(folder, head, 2 if task.span else len(task.labels) or 1)
    if fresh:
        raise UserError(f"{folder}: not fine-tuned for this task ({fresh[0]} is missing)")
    return model.eval(), order


def load_teacher(folder: Path, task: data.Task, tokenizer):
    """As load_fine_tuned; a teacher has to read the same tokens as its student."""
    model, order = load_fine_tuned(folder, task)
    if data.load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"--teacher {folder}: its tokenizer has another vocabulary than --model's")
    return model.requires_grad_(False), order


def reorder(outputs: list[np.ndarray], order: list[int]) -> list[np.ndarray]:
    """A model's outputs row by row, classes in the task's order."""
    return [row[order] for row in outputs] if order else outputs


def batch_outputs(outputs: list[np.ndarray], index: np.ndarray, like: Tensor) -> Tensor:
    """The kept outputs of a batch's rows, padded to the shape of the student's, `like`."""
    padded = torch.zeros(like.shape, dtype=torch.float32)
    for i, row in enumerate(index):
        own = torch.from_numpy(outputs[row])  # (C) or (tokens of the row, 2)
        padded[i, : len(own)] = own
    return padded.to(like.device)
