"""PAPER.md: what it names exists, what it computes is right, and the code it shows runs."""

import ast
import re
import shlex
import textwrap

import pytest
import torch
from conftest import ROOT
from torch import nn

import bert
import masking
from tools import claims, pictures, quotes

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in quotes.PAGES}
GUIDE = PAGES["PAPER.md"]
COMMANDS = sorted(set(re.findall(
    r"`python (?:-m )?((?:\w+\.py|(?:tools|sample)\.\w+)\b[^`]*)`", "".join(PAGES.values()))))
OWN_SCORE, OWN_METHOD = map(textwrap.dedent, re.findall(
    r"^ *```python\n(.*?)^ *```", quotes.MARK.sub("", GUIDE), re.DOTALL | re.MULTILINE))
ANSWERS = [float(number.replace(",", "").replace("−", "-")) for number in re.findall(
    r"<summary>Answer</summary>[^<]*?\*\*(.*?)\*\*[^<]*</details>", GUIDE)]  # the bold numbers


def test_every_equation_table_and_figure_is_there():
    for number in range(1, 10):
        assert f"\\tag{{{number}}}" in GUIDE, number
    for item in (*(f"Table {n}" for n in (1, 2, 3)),
                 *(f"Figure {n}" for n in (1, 2, 3, "4a", "4b", 5, 6))):
        assert item in GUIDE, item


def test_it_is_read_in_half_an_hour():
    prose = quotes.MARK.sub("", GUIDE)
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"<.*?>", r"\]\([^)]*\)"):
        prose = re.sub(pattern, " ", prose, flags=re.DOTALL)
    words = [word for word in re.sub(r"\$[^$]*\$|`[^`]*`", " x ", prose).split()
             if re.search(r"\w", word)]
    assert len(words) <= 3000


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_flags_that_exist(line, command):
    program, *words = shlex.split(line)
    text = command(program, "--help").stdout
    assert text, f"{program} has no help"
    if program in ("tools.sweep", "tools.claims"):  # they pass flags on
        text += command("train.py", "--help").stdout
    for flag in (w.split("=")[0] for w in words if w.startswith("--")):
        assert flag in text, f"{flag} is not a flag of {program}"


def headings(page):
    """What a link can name in a page, as GitHub makes it of the headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere():
    for name, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
            if not target.startswith("https://"):
                path = ROOT / (target or name)
                assert path.exists(), target
                assert path.suffix != ".md" or not anchor or anchor in headings(path), anchor


# ---- what it computes


def by_hand():
    """The numbers of the step by hand: name → value."""
    block = next(b for b in re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL) if "dL/dS" in b)
    values = re.findall(r"^(\S+(?: new)?) += (\[.*?\](?=$|   )|\S+)", block, re.MULTILINE)
    return {name: torch.tensor(ast.literal_eval(value)) for name, value in values}


def test_the_steps_by_hand():
    n, states = by_hand(), pictures.steps_by_hand()
    for name in ("S", "W", "M", "a", "L", "dL/dW'", "dL/dS", "dL/dW"):
        assert torch.allclose(states[0][name], n[name].float()), name
    for name in ("S", "W", "M"):
        assert torch.allclose(states[1][name], n[f"{name} new"].float()), name
    assert torch.allclose(n["dL/da"], n["a"] - pictures.Y)
    assert torch.equal(states[2]["M"], states[0]["M"])  # the swap of step 1 is undone
    assert states[0]["L"] > states[1]["L"] > states[2]["L"]
    swap = (n["M new"] - n["M"]).float()  # Eq. (8), and what the loss really does
    assert (swap * n["dL/dS"]).sum() == pytest.approx(-0.1)
    a = (n["W"] * n["M new"]) @ pictures.X
    assert 0.5 * (a - pictures.Y).square().sum() == pytest.approx(0.905)


def test_answer_1_the_weights_that_remain():
    with torch.device("meta"):
        matrices = masking.encoder_matrices(bert.create(bert.Config(), "classification"))
    assert sum(round(0.03 * W.numel()) for W in matrices.values()) == ANSWERS[0]


def test_answer_2_the_first_step_below_one_half():
    schedule = masking.Schedule(T=1000, t_i=100, t_f=300)
    assert next(t for t in range(1000) if schedule.keep(t, 0.1) < 0.5) == ANSWERS[1]


def test_answer_3_another_target(monkeypatch):
    monkeypatch.setattr(pictures, "Y", torch.tensor([2.0, 0.0]))
    before, after, _ = pictures.steps_by_hand()
    assert before["dL/dS"][1, 0].item() == pytest.approx(ANSWERS[2])
    assert after["S"][1].tolist() == pytest.approx([-0.05, 0.04]) and after["M"][1, 0] == 0


def test_answer_4_a_gate_open_half_of_the_time():
    chance = masking.L0().chance_open(torch.tensor(ANSWERS[3]))
    assert chance.item() == pytest.approx(0.5, abs=5e-5)


def test_answer_5_steps_to_the_bar():
    assert -masking.SoftMovement().kept_above / 0.01 == pytest.approx(ANSWERS[4], abs=1)


def run_block(block, name):
    """The class `name` that a block of the guide defines."""
    space = {"masking": masking}
    exec(block, space)
    return space[name]


def test_answer_6_a_method_whose_swaps_raise_the_loss():
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
