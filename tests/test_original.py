"""50 steps of every method: the Pruner against the equations written out naively, and, where
MOVEMENT_ORIGINAL names a checkout of them, against the authors' own modules (the folder
movement-pruning of huggingface/transformers-research-projects)."""

import importlib
import math
import sys
import types

import pytest
import torch
from conftest import named_by
from torch import nn
from torch.nn import functional as F

import masking

THEIR_NAMES = {"magnitude": "magnitude", "movement": "topK", "l0": "l0",
               "soft_movement": "sigmoied_threshold"}
T, N, PENALTY = 50, 200, 1.0  # steps, entries of each matrix, λ


class StraightThrough(torch.autograd.Function):
    """M forwards; backwards the identity for S."""

    @staticmethod
    def forward(ctx, S, M):
        return M

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class NaiveLinear(nn.Linear):
    """Masks in every forward pass, by sorting; gradients by autograd through the product."""

    def __init__(self, inputs, outputs, bias, mask_init, mask_scale, pruning_method):
        super().__init__(inputs, outputs, bias)
        self.kind = pruning_method
        if self.kind != "magnitude":
            self.mask_scores = nn.Parameter(torch.zeros_like(self.weight))

    def mask(self, threshold):
        W, S = self.weight, None if self.kind == "magnitude" else self.mask_scores
        if self.kind == "l0":
            u = torch.zeros_like(S).uniform_().clamp(0.0001, 0.9999)
            S_bar = torch.sigmoid((torch.log(u) - torch.log(1 - u) + S) / (2 / 3))
            return torch.relu(1.2 * S_bar - 0.1).clamp(max=1)
        if self.kind == "sigmoied_threshold":
            return StraightThrough.apply(S, (torch.sigmoid(S) > threshold).to(S))
        M = torch.zeros_like(W)
        ranked = W.abs() if S is None else S
        M.view(-1)[ranked.flatten().argsort(descending=True)[:int(threshold * N)]] = 1
        return M if S is None else StraightThrough.apply(S, M)

    def forward(self, x, threshold):
        return F.linear(x, self.weight * self.mask(threshold), self.bias)


class Whole(masking.Schedule):
    """v · n a little above a whole number, where int() and round() agree."""

    def keep(self, t, v_f, v_i=1.0):
        return (round(N * super().keep(t, v_f, v_i)) + 0.25) / N


def rates(weights, scores):
    groups = [{"params": weights, "lr": 0.01}, {"params": scores, "lr": 0.2}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)


def check(name, masked_linear, monkeypatch):
    """Train the same network both ways, with the same noise, and compare."""
    torch.manual_seed(0)
    method, schedule = masking.METHODS[name](), Whole(T, 5, 10)
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 10)).double()
    matrices = {"0": net[0].weight, "2": net[2].weight}
    pruner = masking.Pruner(matrices, method, 0.2, schedule, penalty=PENALTY)
    layers = [masked_linear(*shape, True, "constant", 0.0, THEIR_NAMES[name]).double()
              for shape in ((10, 20), (20, 10))]
    for m, layer, ours in zip(pruner.matrices, layers, (net[0], net[2])):
        layer.load_state_dict(ours.state_dict(), strict=False)
        if method.learned:  # without ties, which each breaks in its own way
            m.S.data += 0.1 * torch.randn_like(m.S)
            layer.mask_scores.data.copy_(m.S)
    scores = [layer.mask_scores for layer in layers if method.learned]
    noise = torch.Generator()
    monkeypatch.setattr(masking, "uniform_noise", lambda seed, t, device: lambda shape: torch.rand(
        shape, generator=noise, dtype=torch.float64).clamp(0.0001, 0.9999))
    ours = rates(pruner.weights() + [net[0].bias, net[2].bias], pruner.scores())
    theirs = rates([p for layer in layers for p in (layer.weight, layer.bias)], scores)
    x, y = torch.randn(2, 32, 10, dtype=torch.float64)
    shift = 2 / 3 * math.log(0.1 / 1.1) if name == "l0" else 0.0
    for t in range(T):
        noise.manual_seed(t)
        pruner.set_masks(t)
        F.mse_loss(net(x), y).backward()
        pruner.set_gradients(t)
        ours.step()
        ours.zero_grad()
        torch.manual_seed(t)
        rises = 1 - schedule.cubic(t) if name == "soft_movement" else 1.0
        threshold = 0.1 * rises if name == "soft_movement" else schedule.keep(t, 0.2)
        loss = F.mse_loss(layers[1](torch.tanh(layers[0](x, threshold)), threshold), y)
        if method.penalised:
            R = sum(torch.sigmoid(S - shift).mean() for S in scores) / 2
            loss = loss + PENALTY * rises * R
        loss.backward()
        theirs.step()
        theirs.zero_grad()
    for m, layer in zip(pruner.matrices, layers):
        assert torch.allclose(m.W, layer.weight, rtol=0, atol=1e-9)
        assert not method.learned or torch.allclose(m.S, layer.mask_scores, rtol=0, atol=1e-9)
    assert 0.01 < pruner.density() < 0.9 and m.ever_pruned.any()


@pytest.mark.parametrize("name", THEIR_NAMES)
def test_the_equations_agree(name, monkeypatch):
    check(name, NaiveLinear, monkeypatch)


@pytest.mark.parametrize("name", THEIR_NAMES)
def test_the_original_agrees(name, monkeypatch):
    [folder] = named_by("MOVEMENT_ORIGINAL").glob("**/emmental/modules")
    package = types.ModuleType("original_modules")  # its own __init__ needs an old transformers
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    check(name, importlib.import_module("original_modules.masked_nn").MaskedLinear, monkeypatch)
