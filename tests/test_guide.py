"""PAPER.md: what it names exists, what it computes is right, and the code it shows runs."""

import ast
import functools
import importlib
import re
import shlex
import textwrap

import pytest
import torch
from conftest import ROOT
from torch import nn

import bert
import masking
from tools import claims

GUIDE = (ROOT / "PAPER.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", GUIDE)))
COMMANDS = sorted(set(re.findall(
    r"`python (?:-m )?((?:\w+\.py|(?:tools|sample)\.\w+)\b[^`]*)`", GUIDE + README)))
LOOP, OWN_SCORE, OWN_METHOD = map(textwrap.dedent, re.findall(
    r"^ *```python\n(.*?)^ *```", GUIDE, re.DOTALL | re.MULTILINE))
ANSWERS = [float(number.replace(",", "").replace("−", "-")) for number in re.findall(
    r"<summary>Answer</summary>[^<]*?\*\*(.*?)\*\*[^<]*</details>", GUIDE)]  # the bold numbers


@pytest.mark.parametrize("path, name", REFERENCES)
def test_reference_exists(path, name):
    module = path.removeprefix("tests/").removesuffix(".py").replace("/", ".")
    functools.reduce(getattr, name.split("."), importlib.import_module(module))


def test_every_equation_table_and_figure_is_there():
    assert len(REFERENCES) > 50
    for number in range(1, 6):
        assert f"\\tag{{{number}}}" in GUIDE and f"Eq. ({number})" in GUIDE
    for item in ("Eqs. (6) to (9)", *(f"Table {n}" for n in (1, 2, 3)),
                 *(f"Figure {n}" for n in (1, 2, 3, "4a", "4b", 5, 6))):
        assert item in GUIDE, item


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_flags_that_exist(line, command):
    program, *words = shlex.split(line)
    text = command(program, "--help").stdout
    assert text, f"{program} has no help"
    if program in ("tools.sweep", "tools.claims"):  # they pass flags on
        text += command("train.py", "--help").stdout
    for flag in (w.split("=")[0] for w in words if w.startswith("--")):
        assert flag in text, f"{flag} is not a flag of {program}"


def test_links_lead_somewhere():
    for text in (GUIDE, README):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_loop_has_the_four_lines():
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    places = [source.index(f"        {line}\n") for line in LOOP.splitlines()]
    assert len(places) == 4 and places == sorted(places)


# ---- what it computes


def by_hand():
    """The numbers of the step by hand: name → value."""
    block = next(b for b in re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL) if "dL/dS" in b)
    values = re.findall(r"^(\S+(?: new)?) += (\[.*?\](?=$|   )|\S+)", block, re.MULTILINE)
    return {name: torch.tensor(ast.literal_eval(value)) for name, value in values}


def one_step(n, y):
    """The step by hand on the scores → the matrix after it, and a, L and M before, L after."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = n["W"].clone()
    pruner = masking.Pruner({"W": layer.weight}, masking.Movement(), 0.5, masking.Schedule(3, 0, 1))
    [m] = pruner.matrices
    m.S.data = n["S"].clone()

    def forward():
        pruner.set_masks(2)
        a = layer(n["x"])
        return a, 0.5 * (a - y).square().sum()

    a, L = forward()
    M = m.M.float()
    L.backward()
    pruner.set_gradients(2)
    torch.optim.SGD([m.S], lr=n["alpha_S"].item()).step()
    return m, a, L, M, forward()[1]


def test_the_step_by_hand():
    n = by_hand()
    m, a, L, M, L_new = one_step(n, n["y"])
    assert torch.equal(M, n["M"].float()) and torch.equal(m.M, n["M new"].bool())
    for name, value in {"a": a, "L": L, "dL/da": a - n["y"], "dL/dS": m.S.grad, "dL/dW": m.W.grad,
                        "S new": m.S, "first": ((m.M.float() - M) * n["dL/dS"]).sum(),
                        "L new": L_new}.items():
        assert torch.allclose(value, n[name]), name
    assert m.ever_pruned[1, 0] and m.M[1, 0] == 1  # it came back


def test_answer_1_the_weights_that_remain():
    with torch.device("meta"):
        matrices = masking.encoder_matrices(bert.create(bert.Config(), "classification"))
    assert sum(round(0.03 * W.numel()) for W in matrices.values()) == ANSWERS[0]


def test_answer_2_the_first_step_below_one_half():
    schedule = masking.Schedule(T=1000, t_i=100, t_f=300)
    assert next(t for t in range(1000) if schedule.keep(t, 0.1) < 0.5) == ANSWERS[1]


def test_answer_3_another_target():
    m, *_ = one_step(by_hand(), torch.tensor([2.0, 0.0]))
    assert m.S.grad[1, 0].item() == pytest.approx(ANSWERS[2])
    assert m.S[1].tolist() == pytest.approx([-0.05, 0.04]) and m.M[1, 0] == 0


def test_answer_4_a_gate_open_half_of_the_time():
    chance = masking.L0().chance_open(torch.tensor(ANSWERS[3]))
    assert chance.item() == pytest.approx(0.5, abs=5e-5)


def run_block(block, name):
    """The class `name` that a block of the guide defines."""
    space = {"masking": masking}
    exec(block, space)
    return space[name]


def test_answer_5_a_method_whose_swaps_raise_the_loss():
    """It keeps exactly v and learns by Eq. (2), and to first order some swaps raise the loss."""
    method = run_block(OWN_METHOD, "Mine")()
    weight = nn.Parameter(torch.linspace(-1, 2, 30).reshape(5, 6))
    pruner = masking.Pruner({"W": weight}, method, 0.2, masking.Schedule(2, 0, 1))
    [m] = pruner.matrices
    m.S.data = torch.linspace(1, -1, 30).reshape(5, 6)
    pruner.set_masks(1)
    assert m.M.sum() == 6
    weight.grad = torch.ones_like(weight)
    pruner.set_gradients(1)
    assert torch.equal(m.S.grad, m.W)
    assert any(claims.one_step(method, seed)[1] > 0 for seed in range(200))
    assert not any(claims.one_step(masking.Movement(), seed)[1] > 0 for seed in range(200))


def test_a_score_of_ones_own():
    assert len([line for line in OWN_SCORE.splitlines() if line.strip()]) <= 10
    layer = nn.Linear(8, 8, bias=False)
    pruner = masking.Pruner({"W": layer.weight}, run_block(OWN_SCORE, "Grown")(), 0.25,
                            masking.Schedule(10, 2, 2))
    [m] = pruner.matrices
    m.S.data[:4] = 1.0  # half of the weights moved away from zero, half did not move
    pruner.set_masks(9)
    assert m.M.sum() == 16 and not m.M[4:].any()
    layer(torch.ones(8)).sum().backward()
    pruner.set_gradients(9)
    assert torch.equal(m.S.grad, m.W.detach()) and len(pruner.scores()) == 1
