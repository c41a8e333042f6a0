"""PAPER.md: what it names exists, what it computes is so, what it shows runs; all names in it."""

import ast
import functools
import re
import shlex

import pytest
import torch
from conftest import ROOT
from torch import nn

import masking

GUIDE = (ROOT / "PAPER.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", GUIDE)))
COMMANDS = sorted(set(re.findall(r"`(python [\w/]+\.py[^`]*)`", GUIDE + README)))


def names(path):
    """Functions, classes and constants of a file, and Class.method."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif hasattr(node, "name"):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if hasattr(part, "name")}
    return found


@pytest.mark.parametrize("path, name", REFERENCES)
def test_reference_exists(path, name):
    assert name in names(path)


def test_every_equation_is_there():
    assert len(REFERENCES) > 50
    for number in range(1, 6):
        assert f"\\tag{{{number}}}" in GUIDE and f"Eq. ({number})" in GUIDE
    assert "Eqs. (6) to (9)" in GUIDE
    for item in ("Table 1", "Table 2", "Table 3", *(f"Figure {n}" for n in (1, 2, 3, 5, 6)),
                 "Figure 4a", "Figure 4b"):
        assert item in GUIDE, item


@pytest.mark.parametrize("path", ["masking.py", "distill.py"])
def test_every_public_name_is_there(path):
    said = {name for text in re.findall(r"`([^`\n]+)`", GUIDE) for name in (
        text.split(":")[-1], text)}
    constants = {"NAME", "NOW"}
    asked = {n for n in names(path) - constants if not n.split(".")[-1].startswith("_")}
    plain = {n for n in asked if "." not in n} | {n for n in asked if n.startswith("Pruner.")}
    assert plain <= said, sorted(plain - said)


@pytest.fixture(scope="module")
def help_of(command):
    """A program's help, asked for once."""
    return functools.cache(lambda program: command(program, "--help").stdout)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_flags_that_exist(line, help_of):
    program, *words = shlex.split(line)[1:]
    text = help_of(program)
    if program in ("tools.sweep", "tools.claims"):  # they pass flags on
        text += help_of("train.py")
    for flag in (w.split("=")[0] for w in words if w.startswith("--")):
        assert flag in text, f"{flag} is not a flag of {program}"


def test_links_lead_somewhere():
    for text in (GUIDE, README):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / target).exists(), target


# ---- what it computes


def worked():
    """The numbers of the step by hand: name → value."""
    block = next(b for b in re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL) if "dL/dS" in b)
    found = re.findall(r"^(\S+(?: new)?) += (\[.*?\](?=$|   )|\S+)", block, re.MULTILINE)
    return {name: torch.tensor(ast.literal_eval(value)) for name, value in found}


def test_the_step_by_hand():
    n = worked()
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = n["W"].clone()
    pruner = masking.Pruner({"W": layer.weight}, "movement", 0.5, masking.Schedule(3, 0, 1))
    [m] = pruner.matrices
    m.S.data = n["S"].clone()

    def loss(t):
        pruner.refresh(t)
        a = layer(n["x"])
        return a, 0.5 * (a - n["y"]).square().sum()

    a, L = loss(2)
    assert torch.equal(m.M, n["M"].float())
    assert torch.allclose(a, n["a"]) and L.item() == pytest.approx(n["L"].item())
    assert torch.allclose(a - n["y"], n["dL/da"])
    L.backward()
    pruner.backward(2)
    assert torch.allclose(m.S.grad, n["dL/dS"]) and torch.allclose(m.W.grad, n["dL/dW"])
    torch.optim.SGD([m.S], lr=n["alpha_S"].item()).step()
    assert torch.allclose(m.S, n["S new"])
    _, L = loss(2)
    assert torch.equal(m.M, n["M new"].float())
    assert m.ever_pruned[1, 0] and m.M[1, 0] == 1  # it came back
    swap = ((n["M new"] - n["M"]) * n["dL/dS"]).sum()
    assert swap.item() == pytest.approx(n["first"].item())
    assert L.item() == pytest.approx(n["L new"].item())


def test_a_score_of_ones_own(monkeypatch):
    [block] = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    monkeypatch.setattr(masking, "METHODS", dict(masking.METHODS))
    exec(block, {"masking": masking})
    layer = nn.Linear(8, 8, bias=False)
    pruner = masking.Pruner({"W": layer.weight}, "grown", 0.25, masking.Schedule(10, 2, 2))
    [m] = pruner.matrices
    m.S.data[:4] = 1.0  # half of the weights moved away from zero, half did not move
    pruner.refresh(9)
    assert m.M.sum() == 16 and not m.M[4:].any()
    layer(torch.ones(8)).sum().backward()
    pruner.backward(9)
    assert torch.equal(m.S.grad, m.W.detach()) and len(pruner.scores()) == 1
