"""Projections that torch.linalg works out: onto affine sets, and the plans of entropic transport."""

from __future__ import annotations

import pytest
import torch

from ferrostep.projections import Affine, affine, birkhoff, hyperplane, transport

f64 = torch.float64
A = torch.tensor([[1.0, 1, 1, 1, 1], [1, -1, 0, 2, 0]], dtype=f64)
B = torch.tensor([1.0, 0.5], dtype=f64)
Y = torch.tensor([0.8, -1.5, 0.1, -0.4, 2], dtype=f64)
COST = torch.tensor([[0.1, 0.5, 0.9], [0.4, 0.2, 0.3]], dtype=f64)
ROWS, COLUMNS = torch.tensor([0.4, 0.6], dtype=f64), torch.tensor([0.3, 0.3, 0.4], dtype=f64)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=f64, generator=torch.Generator().manual_seed(0))


def test_the_affine_projection_by_hand_and_against_a_hyperplane() -> None:
    expected = [0.684615384615, -1.230769230769, 0.176923076923, -0.707692307692, 2.076923076923]
    torch.testing.assert_close(affine(Y, A, B), torch.tensor(expected, dtype=f64), rtol=1e-11, atol=0)
    x, a = noise(3, 5, 4), noise(5)
    project = Affine(a[None], torch.tensor([0.5], dtype=f64))
    torch.testing.assert_close(project(x, 1), hyperplane(x, a, 0.5, dim=1))
    torch.testing.assert_close(project(project(x, 1), 1), project(x, 1))
    assert affine(Y.bfloat16(), A, B).dtype == torch.bfloat16


def test_without_full_rank_the_pseudo_inverse_serves() -> None:
    twice = torch.cat([A, A[:1]])
    torch.testing.assert_close(affine(Y, twice, torch.cat([B, B[:1]])), affine(Y, A, B))
    between = affine(Y, torch.cat([A[:1], A[:1]]), torch.tensor([0.0, 2.0], dtype=f64))  # no solution: sums of 1
    torch.testing.assert_close(between, affine(Y, A[:1], B[:1]))


def test_derivatives_of_affine_projections() -> None:
    arguments = [each.clone().requires_grad_() for each in (noise(2, 5), A, B)]
    assert torch.autograd.gradcheck(affine, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(affine, arguments)
    batch = torch.vmap(affine)(noise(3, 5), torch.stack([A, 2 * A, A + 1]), torch.stack([B, B, B]))
    torch.testing.assert_close(batch[1], affine(noise(3, 5)[1], 2 * A, B))


def test_a_plan_by_hand() -> None:
    plan = transport(COST, ROWS, COLUMNS, 0.1)
    expected = torch.tensor([0.298351592496, 0.092909048063, 0.008739359441], dtype=f64)
    torch.testing.assert_close(plan[0], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close((plan * COST).sum().item(), 0.243610852334925, rtol=0, atol=1e-13)
    torch.testing.assert_close(plan.sum(1), ROWS)
    torch.testing.assert_close(plan.sum(0), COLUMNS)


def test_derivatives_of_plans() -> None:
    def plan(cost: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return transport(cost, a.softmax(-1), b.softmax(-1), 1.0)

    arguments = [each.clone().requires_grad_() for each in (noise(2, 2, 3), noise(2, 2), noise(2, 3))]
    first = [each[:1] for each in arguments]
    assert torch.autograd.gradcheck(plan, first, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(plan, first)
    torch.testing.assert_close(torch.vmap(plan)(*arguments), plan(*arguments))


def test_doubly_stochastic_matrices() -> None:
    y = birkhoff(noise(3, 4, 4), 0.5)
    for dim in (1, 2):
        torch.testing.assert_close(y.sum(dim), torch.ones(3, 4, dtype=f64))
    permutation = torch.eye(4, dtype=f64)[[2, 0, 3, 1]]
    torch.testing.assert_close(birkhoff(permutation, 0.04), permutation, atol=1e-9, rtol=0)
    assert torch.autograd.gradcheck(birkhoff, (noise(3, 3).requires_grad_(), 1.0))


def test_what_does_not_converge_is_told() -> None:
    with pytest.warns(UserWarning, match="^transport has not converged: a step changes potentials by"):
        transport(noise(3, 3), torch.ones(3, dtype=f64) / 3, torch.ones(3, dtype=f64) / 3, 1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: affine(Y, A[:, :4], B), ValueError, r"^x has shape \[5\], expected 4 elements along dim -1"),
        (lambda: affine(Y, A, B[:1]), ValueError, r"^b has shape \[1\], expected \[2\]"),
        (lambda: affine(Y, A[0], B), ValueError, r"^A has shape \[5\], expected 2 dimensions"),
        (lambda: affine(Y, A / 0, B), ValueError, "^A has a number that is not finite"),
        (lambda: transport(COST, ROWS, COLUMNS, 0.0), ValueError, "^Invalid eps: 0.0; expected a positive number"),
        (lambda: transport(COST, COLUMNS, ROWS), ValueError, r"^a has shape \[3\], expected \[2\]"),
        (lambda: transport(COST, ROWS, 2 * COLUMNS), ValueError, "^b has another sum than a"),
        (lambda: transport(COST, ROWS - 0.4, COLUMNS), ValueError, "^a has a number that is not positive"),
        (lambda: transport(COST.log().log(), ROWS, COLUMNS), ValueError, "^C has a number that is not finite"),
        (lambda: birkhoff(COST), ValueError, r"^x has shape \[2, 3\], expected square matrices"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_bad_arguments(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_rows_of_equations_may_be_of_any_scale() -> None:
    A, b, x = (torch.tensor(v, dtype=torch.float64) for v in ([[1.0, 1, 0], [0, 1, 1]], [1.0, 1.0], [0.3, 0.2, 0.1]))
    scales = torch.tensor([1e10, 1e-10], dtype=torch.float64)
    torch.testing.assert_close(affine(x, A * scales[:, None], b * scales), affine(x, A, b))
