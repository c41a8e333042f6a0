"""The paper's equations, on numbers small enough to check by hand."""

import math

import pytest
import torch
from torch import nn

import masking
from masking import (
    L0,
    Dense,
    Magnitude,
    Movement,
    Pruner,
    Random,
    Schedule,
    SoftMovement,
    top_v,
    top_v_by_sorting,
)
from support.files import RunError
from support.noise import uniform_noise
from support.penalty import PenaltySearch

NOW = Schedule(T=10, t_i=0, t_f=9)  # at step 1 and later: the final density


def attach(W, method, keep=0.5, schedule=NOW, **options):
    """A one-matrix model y = W' x and its Pruner."""
    model = nn.Linear(W.shape[1], W.shape[0], bias=False)
    model.weight.data.copy_(W)
    return model, Pruner({"W": model.weight}, method, keep, schedule, **options)


# -- Eq. (1)


@pytest.mark.parametrize("top_v", [top_v, top_v_by_sorting])
def test_top_v_by_hand(top_v):
    S = torch.tensor([[0.1, 4.0, -2.0], [3.0, 0.0, -5.0]])
    assert top_v([S], 0.5)[0].tolist() == [[1, 1, 0], [1, 0, 0]]  # the three highest of six
    assert top_v([S], 0.0)[0].sum() == 0 and top_v([S], 1.0)[0].sum() == 6
    a, b = top_v([S, S + 2], 0.25)  # the three highest of twelve
    assert a.tolist() == [[0, 1, 0], [0, 0, 0]] and b.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("v", [0.003, 0.03, 0.1, 0.333, 0.5, 0.97])
@pytest.mark.parametrize("values", [1, 4, 37 * 53])  # all scores equal, many ties, none
def test_top_v_keeps_exactly_k_under_ties(v, values):
    torch.manual_seed(0)
    S = (torch.randperm(37 * 53) % values).float().view(37, 53)
    [M] = top_v([S], v)
    assert values < S.numel() or torch.equal(M, top_v_by_sorting([S], v)[0])
    assert M.sum() == round(v * S.numel()) and M.dtype == torch.bool
    assert S[M].min() >= S[~M].max()  # nothing kept is lower than anything pruned
    assert torch.equal(M, top_v([S.clone()], v)[0])  # the same every time


@pytest.mark.parametrize("n, m, v", [
    (128, 128, 0.25), (384, 384, 0.03), (768, 768, 0.03), (3072, 768, 0.1), (512, 2048, 0.03)])
def test_ties_are_scattered_not_clumped(n, m, v):
    """With all scores equal, rows and columns keep their shares more evenly than by chance."""
    [M] = top_v([torch.zeros(n, m)], v)
    for kept, of in ((M.sum(0).float(), n), (M.sum(1).float(), m)):
        assert kept.mean() == pytest.approx(v * of, rel=1e-3)
        assert kept.var() < of * v * (1 - v)  # the binomial distribution's


def test_global_ranks_compare_matrices_local_ranks_do_not():
    for scope, kept in (("local", [2, 2]), ("global", [4, 0])):
        big = nn.Parameter(torch.full((2, 2), 9.0))
        small = nn.Parameter(torch.full((2, 2), 1.0))
        pruner = Pruner({"a": big, "b": small}, Magnitude(), 0.5, NOW, scope=scope)
        pruner.set_masks(10)
        assert [int(m.M.sum()) for m in pruner.matrices] == kept
        assert pruner.density() == 0.5


# -- the methods' masks


def test_magnitude_ranks_absolute_values():
    W = torch.tensor([[1.0, -4.0], [0.5, 3.0]])
    model, pruner = attach(W, Magnitude())
    pruner.set_masks(10)
    assert model.weight.tolist() == [[0, -4], [0, 3]]  # W' = W ⊙ M, in the model itself
    assert torch.equal(pruner.matrices[0].W, W)  # and W is whole


def test_random_masks_are_drawn_once_and_nested():
    _, pruner = attach(torch.randn(20, 20), Random(), schedule=Schedule(100, 10, 10), keep=0.1)
    before = torch.ones(20, 20)
    for t in range(0, 101, 10):
        pruner.set_masks(t)
        M = pruner.matrices[0].M
        assert (before >= M).all()  # what is gone stays gone
        before = M
    assert M.sum() == 40
    _, other = attach(torch.randn(20, 20), Random(), keep=0.1, seed=1)
    other.set_masks(10)
    assert not torch.equal(M, other.matrices[0].M)


def test_soft_movement_compares_sigma_of_s_with_tau():
    method = SoftMovement()
    S = torch.tensor([[-3.0, -2.0, 0.0, 5.0]])  # σ: 0.047, 0.119, 0.5, 0.993
    assert method.mask(S, 0.1, None)[0].tolist() == [[0, 1, 1, 1]]
    assert method.mask(S, 0.6, None)[0].tolist() == [[0, 0, 0, 1]]
    assert method.mask(S, 0.0, None)[0].tolist() == [[1, 1, 1, 1]]
    assert torch.sigmoid(torch.tensor(method.kept_above)) == pytest.approx(0.1)
    child = type("Child", (SoftMovement,), {"tau_f": 0.3})()
    assert torch.sigmoid(torch.tensor(child.kept_above)) == pytest.approx(0.3)


def test_soft_movement_never_empties_a_matrix():
    weights = {name: nn.Parameter(torch.randn(20, 50)) for name in "ab"}
    pruner = Pruner(weights, SoftMovement(), 0.1, Schedule(10, 2, 2))
    pruner.matrices[0].S.data.fill_(-9.0)
    pruner.set_masks(9)
    assert [int(m.M.sum()) for m in pruner.matrices] == [5, 1000]  # 0.5 % of 1,000, and all


def test_hard_concrete_by_hand():
    """Eq. (4) with u = 1/2, where log u − log(1 − u) = 0."""
    S = torch.tensor([[-4.0, 0.0, 0.5, 4.0]])
    S_bar = [1 / (1 + math.exp(-s / (2 / 3))) for s in S[0].tolist()]
    Z = [1.2 * s - 0.1 for s in S_bar]
    M, f = L0().mask(S, 0.0, lambda shape: torch.full(shape, 0.5))
    assert M[0].tolist() == pytest.approx([min(1, max(0, z)) for z in Z], abs=1e-6)
    inside = [0 <= z <= 1 for z in Z]
    assert inside == [False, True, True, False]
    by_hand = [1.2 / (2 / 3) * s * (1 - s) * i for s, i in zip(S_bar, inside)]
    assert f[0].tolist() == pytest.approx(by_hand, abs=1e-6)


def test_hard_concrete_gradient_is_autograds():
    torch.manual_seed(1)
    S, u = torch.randn(8, 8, requires_grad=True), torch.rand(8, 8)
    b, l, r = L0.b, L0.l, L0.r  # noqa: E741
    S_bar = torch.sigmoid((torch.log(u) - torch.log(1 - u) + S) / b)
    ((r - l) * S_bar + l).clamp(0, 1).sum().backward()
    _, f = L0().mask(S.detach(), 0.0, lambda shape: u.clone())
    assert torch.allclose(f, S.grad, atol=1e-6)


def test_hard_concrete_at_test_time():
    S = torch.tensor([[-2.5, -2.3, 2.197, 9.0]])
    M, _ = L0().mask(S, 0.0, None)
    by_hand = [0.0, 1.2 / (1 + math.exp(2.3)) - 0.1, 1.2 * 0.9 - 0.1, 1.0]
    assert M[0].tolist() == pytest.approx(by_hand, abs=1e-3)
    assert (M > 0).equal(L0().kept_above < S)


def test_penalties_by_hand():
    S = torch.tensor([[0.0, math.log(3.0)]])  # σ: 1/2 and 3/4
    assert SoftMovement().penalty(S).item() == pytest.approx(0.625)
    shift = L0.b * math.log(0.1 / 1.1)  # E[L0] = σ(S − b log(−l/r))
    chance = [1 / (1 + math.exp(-(s - shift))) for s in S[0].tolist()]
    assert L0().penalty(S).item() == pytest.approx(sum(chance) / 2)


def test_expected_l0_is_the_share_of_open_gates():
    torch.manual_seed(0)
    S = torch.full((1000, 1000), 0.3)
    M, _ = L0().mask(S, 0.0, torch.rand)
    assert (M > 0).float().mean().item() == pytest.approx(L0().penalty(S).item(), abs=2e-3)


def test_noise_depends_on_seed_and_step_alone():
    """Not on what else was drawn: so every process draws the same, and a resumed run too."""
    def draw(seed, t):
        return uniform_noise(seed, t, torch.device("cpu"))((40, 50))

    u = draw(3, 7)
    torch.manual_seed(1)
    assert torch.equal(u, draw(3, 7)) and u.min() >= 0 and u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(u, draw(3, 8)) and not torch.equal(u, draw(4, 7))


# -- gradients


def test_straight_through_gradient_by_hand():
    """a = W' x: dL/dS_ij = (dL/da_i) W_ij x_j everywhere; dL/dW only where kept."""
    W = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    model, pruner = attach(W, Movement())
    m = pruner.matrices[0]
    m.S.data = torch.tensor([[1.0, -1.0], [-2.0, 5.0]])  # keeps the diagonal
    pruner.set_masks(10)
    x, dL_da = torch.tensor([10.0, 100.0]), torch.tensor([1.0, -2.0])
    a = model(x)
    assert a.tolist() == [20.0, 300.0]
    a.backward(dL_da)
    pruner.set_gradients(10)
    assert m.S.grad.tolist() == [[20.0, -100.0], [-10.0, -600.0]]  # (dL/da_i) W_ij x_j
    assert m.W.grad.tolist() == [[10.0, 0.0], [0.0, -200.0]]  # (dL/da_i) x_j M_ij


@pytest.mark.parametrize("method", [Movement(), SoftMovement(), L0(), Magnitude(), Random()])
def test_gradients_equal_autograd_through_the_masked_product(method):
    torch.manual_seed(0)
    W, x, y = torch.randn(6, 5), torch.randn(7, 5), torch.randn(7, 6)
    model, pruner = attach(W, method)
    pruner.set_masks(10)
    m = pruner.matrices[0]
    ((model(x) - y) ** 2).mean().backward()
    pruner.set_gradients(10)
    # the same by autograd: W' = W ⊙ M with dM/dS = f (1: straight-through)
    V, S = W.clone().requires_grad_(), torch.zeros(6, 5, requires_grad=True)
    f = 1.0 if m.dM_dS is None else m.dM_dS
    ((x @ (V * (m.M + f * S)).T - y) ** 2).mean().backward()
    assert torch.allclose(m.W.grad, V.grad, atol=1e-6)
    if pruner.method.learned:
        assert torch.allclose(m.S.grad, S.grad, atol=1e-6)


@pytest.mark.parametrize("method", [SoftMovement(), L0()])
def test_penalty_gradient_is_added_with_means_over_entries_and_matrices(method):
    a, b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(8, 3))
    pruner = Pruner({"a": a, "b": b}, method, 0.5, NOW, penalty=7.0)
    pruner.set_masks(10)
    for m in pruner.matrices:
        m.weight.grad = torch.zeros_like(m.weight)
        m.S.data.normal_()
    pruner.set_gradients(10)
    twins = [m.S.detach().clone().requires_grad_() for m in pruner.matrices]
    (7.0 * (pruner.method.penalty(twins[0]) + pruner.method.penalty(twins[1])) / 2).backward()
    for m, twin in zip(pruner.matrices, twins):
        assert torch.allclose(m.S.grad, twin.grad, atol=1e-7)


def test_soft_movements_penalty_rises_with_tau():
    _, pruner = attach(torch.randn(4, 4), SoftMovement(), schedule=Schedule(100, 10, 20),
                       penalty=300.0)
    assert pruner.next_penalty(5) == 0.0
    assert pruner.next_penalty(45) == pytest.approx(300 * (1 - 0.5**3))
    assert pruner.next_penalty(80) == 300.0


def test_equation_3_scores_add_up_the_movements():
    """With plain SGD, S after T steps is −α_S Σ (dL/dW')_ij W_ij."""
    torch.manual_seed(0)
    model, pruner = attach(torch.randn(5, 4), Movement(), schedule=Schedule(30, 2, 5))
    m, alpha = pruner.matrices[0], 0.01
    optimizer = torch.optim.SGD([{"params": [m.W], "lr": 0.1}, {"params": [m.S], "lr": alpha}])
    total = torch.zeros(5, 4)
    for t in range(30):
        pruner.set_masks(t)
        ((model(torch.randn(16, 4)) - 1) ** 2).mean().backward()
        total += model.weight.grad * m.W.detach()
        pruner.set_gradients(t)
        optimizer.step()
    assert torch.allclose(m.S, -alpha * total, atol=1e-6)
    assert m.S.abs().max() > 0.01


def test_scores_rise_when_weights_move_away_from_zero():
    """§4: the four cases of the signs of dL/dW and W."""
    model, pruner = attach(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), Movement(), keep=1.0)
    pruner.set_masks(10)
    model.weight.grad = torch.tensor([[-1.0, 1.0, 1.0, -1.0]])  # away, away, to zero, to zero
    pruner.set_gradients(10)
    assert (-pruner.matrices[0].S.grad > 0).tolist() == [[True, True, False, False]]


def test_a_pruned_weight_comes_back():
    """A pruned weight whose score goes on rising overtakes a kept one and is used again."""
    torch.manual_seed(0)
    W = torch.tensor([[1.0, 1.0]])
    model, pruner = attach(W, Movement())
    m = pruner.matrices[0]
    m.S.data = torch.tensor([[0.5, 0.0]])  # the second weight is pruned at first
    optimizer = torch.optim.SGD([m.W, m.S], lr=0.1)
    seen = []
    for t in range(1, 10):
        pruner.set_masks(t)
        seen.append(m.M[0].tolist())
        loss = (model(torch.tensor([0.1, 1.0])) - 3.0) ** 2  # the second input matters more
        loss.backward()
        pruner.set_gradients(t)
        optimizer.step()
    assert seen[0] == [1, 0] and seen[-1] == [0, 1]
    assert model.weight[0, 1] != 0
    assert m.ever_pruned[0].tolist() == [True, True]


# -- Eq. (5)


def test_schedule_at_its_corners():
    s = Schedule(T=100, t_i=20, t_f=30)
    assert [s.keep(t, 0.1) for t in (0, 10, 20)] == [1.0, 1.0, 1.0]
    assert s.keep(45, 0.1) == pytest.approx(0.1 + 0.9 * 0.5**3)  # half way: (1/2)³ of the way
    assert s.keep(21, 0.1) == pytest.approx(0.1 + 0.9 * (49 / 50) ** 3)
    assert [s.keep(t, 0.1) for t in (70, 85, 100)] == [0.1, 0.1, 0.1]
    assert s.keep(45, 0.1, v_i=0.6) == pytest.approx(0.1 + 0.5 / 8)
    assert [s.tau(t, 0.1) for t in (20, 70)] == [0.0, 0.1]
    assert s.tau(45, 0.1) == pytest.approx(0.1 * 7 / 8)


def test_dense_touches_nothing():
    W = torch.randn(3, 3)
    model, pruner = attach(W, Dense())
    pruner.set_masks(5)
    model(torch.ones(3)).sum().backward()
    pruner.set_gradients(5)
    assert torch.equal(model.weight, W) and pruner.density() == 1.0
    assert pruner.weights() == [model.weight] and pruner.scores() == []
    assert model.weight.grad.tolist() == [[1.0] * 3] * 3


# -- λ for a density


@pytest.mark.parametrize("keep", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("method, score_lr", [(SoftMovement(), 0.03), (L0(), 0.1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_penalty_search_ends_at_the_density_asked_for(keep, method, score_lr, scale):
    """On a noisy toy loss of any scale: neither early wind-up nor an emptied matrix."""
    torch.manual_seed(0)
    n, T = 4_000, 600
    useful = torch.randn(n // 50, 50) * 0.3
    schedule = Schedule(T, 60, 120)
    search = PenaltySearch(method, keep, schedule, lambda t: score_lr * (T - t) / T)
    model, pruner = attach(torch.ones(n // 50, 50), method, keep, schedule, penalty=search)
    m = pruner.matrices[0]
    optimizer = torch.optim.Adam([m.S], lr=score_lr)
    penalties = []
    for t in range(T):
        pruner.set_masks(t)
        model.weight.grad = scale * (torch.randn_like(useful) - useful)
        optimizer.param_groups[0]["lr"] = search.score_lr(t)
        pruner.set_gradients(t)
        optimizer.step()
        penalties.append(pruner.penalty)
    pruner.set_masks(T, training=False)
    assert pruner.density() == pytest.approx(keep, abs=0.005 if keep >= 0.05 else 0.002)
    assert 0 < penalties[T - 121] == penalties[T - 120] == penalties[-1]  # frozen from T − t_f on
    assert penalties[T - 122] != penalties[-1]


def test_penalty_search_counts_what_the_floor_keeps():
    """One of two matrices of 1,000 scores lies below q: its floor keeps 5 of the 60 wanted."""
    high, low = torch.arange(1.0, 1001), -torch.arange(1.0, 1001)
    for method, q in ((SoftMovement(), 946), (L0(), 941)):  # 55th and 60th from above
        search = PenaltySearch(method, 0.03, NOW, lambda t: 0.1)
        search.q = 500.0
        assert search.quantile([high, low]) == q


def test_penalty_search_goes_on_where_the_penalty_has_no_slope_left():
    """Scores that ran away: σ'(q) is 0 in float32, and λ is finite all the same."""
    scores = [torch.linspace(100, 200, 1000)]
    for method in (SoftMovement(), L0()):
        search = PenaltySearch(method, 0.1, Schedule(10, 0, 2), lambda t: 0.1)
        assert all(0 < search.update(t, scores, 1e-3) < math.inf for t in (1, 2, 3))


# -- methods and models of one's own


def test_a_method_of_ones_own_in_ten_lines():
    class Sensitivity(masking.Method):
        """|W| times a running mean of the sizes of its gradients, which the hook keeps in S."""

        def first_scores(self, W, generator):
            return torch.zeros_like(W)

        def scores(self, W, S):
            return W.abs() * S

        def score_gradient(self, W, dL_dW_prime, S, dM_dS):
            S.mul_(0.5).add_(0.5 * dL_dW_prime.abs())

    model, pruner = attach(torch.ones(2, 2), Sensitivity())
    for t in (1, 2):
        pruner.set_masks(t)
        model.weight.grad = torch.tensor([[4.0, -3.0], [1.0, 2.0]])
        pruner.set_gradients(t)
    assert pruner.matrices[0].S.tolist() == [[3.0, 2.25], [0.75, 1.5]]
    assert model.weight.tolist() == [[1, 1], [0, 0]] and not pruner.scores()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", [Movement, SoftMovement])
def test_a_model_keeps_its_precision(method, dtype):
    model = nn.Linear(4, 3, bias=False).to(dtype)
    pruner = Pruner({"W": model.weight}, method(), 0.5, NOW)
    pruner.set_masks(5)
    model(torch.ones(4, dtype=dtype)).sum().backward()
    pruner.set_gradients(5)
    assert model.weight.dtype == pruner.matrices[0].S.grad.dtype == dtype


def test_masked_weights_in_bf16_are_float32_again_at_the_end():
    """The gradients are those of the float32 path, where the products are in bf16 anyway."""
    W, x, gradients = torch.randn(8, 8), torch.randn(5, 8), []
    for dtype in (None, torch.bfloat16):
        model, pruner = attach(W, Movement(), dtype=dtype)
        pruner.set_masks(5)
        with torch.autocast("cpu", torch.bfloat16):
            model(x).square().sum().backward()
        pruner.set_gradients(5)
        gradients.append(pruner.matrices[0].S.grad)
        pruner.set_masks(10, training=False)
        assert model.weight.dtype == gradients[-1].dtype == torch.float32
    assert torch.equal(*gradients)


def test_a_matrix_that_the_loss_never_reaches_is_named():
    _, pruner = attach(torch.ones(2, 2), Movement())
    with pytest.raises(RunError, match="W: the loss does not depend on it"):
        pruner.set_gradients(0)


def test_matrices_alike_in_shape_draw_numbers_of_their_own():
    draw = uniform_noise(3, 7, torch.device("cpu"))
    assert not torch.equal(draw((4, 4)), draw((4, 4)))
    weights = {name: nn.Parameter(torch.ones(20, 20)) for name in "ab"}
    a, b = Pruner(weights, Random(), 0.5, NOW).matrices
    assert not torch.equal(a.S, b.S)


def test_nine_in_ten_gates_are_open_at_first():
    S = L0().first_scores(torch.zeros(1, 1), None)
    assert torch.sigmoid(S).item() == pytest.approx(0.9, abs=1e-4)
    assert SoftMovement().first_scores(S, None).item() == 0
