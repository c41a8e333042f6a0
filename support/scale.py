"""Scores of any range, for a task of one's own: trained on with mean 0 and standard deviation 1.

A new head begins near 0, and a step moves its bias by the learning rate at most: it would never
reach scores around 2,000, nor tell scores apart that differ in their fifth decimal place.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the training rows' scores."""

    mean: float = 0.0
    std: float = 1.0

    def standard(self, scores):
        return (scores - self.mean) / self.std

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Change the head of a model that gives standard scores: it will give the scores
        themselves."""
        if self != Scale():
            model.classifier.weight *= self.std
            model.classifier.bias.copy_(self.std * model.classifier.bias + self.mean)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """The reverse, for a head that was trained earlier."""
        model.classifier.weight /= self.std
        model.classifier.bias.copy_(self.standard(model.classifier.bias))


def standardise(features, model: nn.Module, fresh: bool) -> Scale:
    """Replace the features' labels by standard scores → their scale. `fresh`: is the head new?"""
    scores = features.labels.astype(np.float64)
    scale = Scale(float(scores.mean()), float(scores.std()) or 1.0)
    features.labels = scale.standard(scores).astype(np.float32)
    if not fresh:
        scale.apply(model)
    return scale
