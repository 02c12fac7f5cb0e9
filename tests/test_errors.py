"""The same mistake gets the same error in Rust and in plain torch.

The words stand twice, in ``src/bindings/errors.rs`` and in ``ferrostep.errors``; these cases hold them together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep import guidance, orthogonalize
from ferrostep.errors import Problem
from ferrostep.gradients import combine, ema_, gram, orthogonal_, orthogonal_combine_, pcgrad_
from tests.bad_inputs.torch_cases import inferred
from tests.contract.rules.registry import Entry, one_of_each_class

Form = Callable[[Tensor], Tensor]
"""What makes of a tensor one that a form of the rule is to compute with."""
X = torch.ones(2, 3)
NAN = float("nan")


def in_rust(x: Tensor) -> Tensor:
    return x


def recorded(x: Tensor) -> Tensor:
    """Autograd records, which guidance leaves to plain torch."""
    return x.clone().requires_grad_(x.is_floating_point())


def elsewhere(x: Tensor) -> Tensor:
    """On another device, which has no kernels."""
    return x.to("meta")


def row(form: Form) -> list[Any]:
    return [form(torch.ones(3)), form(torch.ones(2))]


GUIDANCE: dict[str, Callable[[Form], object]] = {
    "kind": lambda form: guidance.cfg(form(X), 3.0, 2.0),  # type: ignore[arg-type]
    "kind of out": lambda form: guidance.cfg(form(X), form(X), 2.0, out=[X]),  # type: ignore[arg-type]
    "complex": lambda form: guidance.cfg(form(X), X.to(torch.complex64), 2.0),
    "layout": lambda form: guidance.cfg(form(X), X.to_sparse(), 2.0),
    "integers": lambda form: guidance.cfg(form(X), X.long(), 2.0),
    "dtype": lambda form: guidance.cfg(form(X), form(X.double()), 2.0),
    "shape": lambda form: guidance.cfg(form(X), form(X[:1]), 2.0),
    "shape of out": lambda form: guidance.cfg(form(X), form(X), 2.0, out=torch.ones(3)),
    "inference out": lambda form: guidance.cfg(form(X), form(X), 2.0, out=inferred(X)),
    "no batch": lambda form: guidance.cfg(form(X.sum()), form(X.sum()), 2.0),
    "count": lambda form: guidance.perp_neg(form(X), form(X), [form(X)], 2.0, [1.0, 2.0]),
    "number": lambda form: guidance.cfg(form(X), form(X), 2.0, rescale=2.0),
    "NaN": lambda form: guidance.apg(form(X), form(X), 2.0, eta=NAN),
    "choice": lambda form: guidance.apg(form(X), form(X), 2.0, base="both"),
    "dims": lambda form: guidance.cfg(form(X), form(X), 2.0, dims=5),
    "dims twice": lambda form: guidance.cfg(form(X), form(X), 2.0, dims=(1, -1)),
    "dims of samples": lambda form: guidance.cfg(form(X), form(X), torch.ones(2), dims=0),
}
GRADIENTS: dict[str, Callable[[Form], object]] = {
    "kind": lambda form: gram([row(form), [form(torch.ones(3)), 2.0]]),  # type: ignore[list-item]
    "no list": lambda form: gram([row(form), form(X)]),  # type: ignore[list-item]
    "integers": lambda form: gram([[form(X.long())]]),
    "dtype": lambda form: gram([row(form), [x.double() for x in row(form)]]),
    "shape": lambda form: gram([row(form), row(form)[::-1]]),
    "lengths": lambda form: gram([row(form), row(form)[:1]]),
    "empty": lambda form: gram([]),
    "count": lambda form: combine([row(form)], [1.0, 2.0]),
    "scale": lambda form: orthogonal_(row(form), row(form), scale=NAN),
    "eps": lambda form: orthogonal_(row(form), row(form), eps=-1.0),
    "eta": lambda form: orthogonal_combine_(row(form), row(form), row(form), eta=float("inf")),
    "tau": lambda form: ema_(row(form), row(form), 2.0),
    "inference target": lambda form: ema_([form(X), inferred(form(X))], [form(X), form(X)], 0.5),
    "inference out": lambda form: combine([[form(X)]], [2.0], out=[inferred(form(X))]),
    "inference backward": lambda form: orthogonal_([inferred(form(X))], [form(X)]),
    "inference sum": lambda form: orthogonal_combine_([inferred(form(X))], [form(X)], [form(X)]),
    "inference gradients": lambda form: pcgrad_([[form(X)], [inferred(form(X))]]),
}
MATRICES: dict[str, Callable[[Form], object]] = {
    "kind": lambda form: orthogonalize([form(X), 1.0]),  # type: ignore[list-item]
    "kind of out": lambda form: orthogonalize([form(X)], out=[1.0]),  # type: ignore[list-item]
    "layout": lambda form: orthogonalize([form(X), X.to_sparse()]),
    "integers": lambda form: orthogonalize(form(X.int())),
    "shape": lambda form: orthogonalize(form(torch.ones(3))),
    "shape of out": lambda form: orthogonalize(form(X), out=form(X.T.clone())),
    "dtype of out": lambda form: orthogonalize(form(X), out=form(X.double())),
    "count": lambda form: orthogonalize([form(X)], out=[]),
    "inference out": lambda form: orthogonalize(form(X), out=inferred(form(X))),
    "steps": lambda form: orthogonalize(form(X), steps=0),
}


class Step(Protocol):
    """Spoils the second step of an optimizer: the parameter, its state, and the name of one of its tensors."""

    def __call__(self, p: Parameter, state: dict[str, Any], name: str) -> None: ...


def with_gradient(grad: Tensor) -> Step:
    """A step with another gradient, which torch would not let in by the front door."""

    def spoil(p: Parameter, _state: dict[str, Any], _name: str) -> None:
        p.grad, p.grad_dtype = None, None
        p.grad = grad

    return spoil


def with_state(value: object, named: str | None = None) -> Step:
    """A step with something else for a state."""

    def spoil(_p: Parameter, state: dict[str, Any], name: str) -> None:
        state[named or name] = value

    return spoil


STEPS: dict[str, Step] = {
    "dtype of gradient": with_gradient(X.double()),
    "integers for gradient": with_gradient(X.long()),
    "layout of gradient": with_gradient(X.to_sparse()),
    "kind of state": with_state(1.0),
    "integers for state": with_state(X.long()),
    "layout of state": with_state(X.to_sparse()),
    "shape of state": with_state(X[:1]),
    "inference state": with_state(inferred(X)),
}
NUMBER = torch.tensor(0.5)
PRODUCTS: dict[str, Step] = {
    "kind of product": with_state(0.5, "mu_product"),
    "several products": with_state(torch.ones(2), "mu_product"),
    "half a product": with_state(NUMBER.half(), "mu_product"),
    "negative product": with_state(-NUMBER, "mu_product"),
    "product above 1": with_state(NUMBER + 1, "mu_product"),
    "NaN product": with_state(NUMBER * NAN, "mu_product"),
}
COUNTS: dict[str, Step] = {
    "kind of step": with_state(3.0, "step"),
    "several steps": with_state(torch.ones(2), "step"),
    "integer step": with_state(torch.ones((), dtype=torch.int64), "step"),
    "negative step": with_state(torch.tensor(-1.0), "step"),
    "half a step": with_state(torch.tensor(1.5), "step"),
    "NaN step": with_state(torch.tensor(NAN), "step"),
}


def steps_of(entry: Entry) -> dict[str, Step]:
    """The ways to spoil a step of what is among the states."""
    optimizer: Any = entry.build([Parameter(X)])
    rule = optimizer.rule(optimizer.param_groups[0])
    return STEPS | (COUNTS if rule.counts_steps else {}) | (PRODUCTS if rule.product else {})


def stepped(entry: Entry, spoil: Step) -> Callable[[Form], object]:
    """A spoiled second step, in Rust or in plain torch."""

    def provoke(form: Form) -> object:
        params = [Parameter(X.clone()) for _ in range(2)]
        optimizer = entry.build(params, backend="rust" if form is in_rust else "reference")
        for p in params:
            p.grad = X.clone()
        optimizer.step()
        spoil(params[1], optimizer.state[params[1]], entry.state)
        return optimizer.step()

    return provoke


CASES = [
    pytest.param(provoke, plain, id=f"{plain.__name__}-{name}")
    for cases, plain in ((GUIDANCE, recorded), (GRADIENTS, elsewhere), (MATRICES, elsewhere))
    for name, provoke in cases.items()
]
OF_OPTIMIZERS = [
    pytest.param(stepped(entry, spoil), elsewhere, id=f"{entry.name}-{name}")
    for entry in one_of_each_class()
    for name, spoil in steps_of(entry).items()
]


def error_of(provoke: Callable[[Form], object], form: Form) -> tuple[type[Exception], str]:
    """The error, without what is a form's own: that Rust takes arrays, too, and how it prints NaN."""
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        provoke(form)
    return caught.type, str(caught.value).replace(" or a numpy.ndarray", "").replace("NaN", "nan")


@pytest.mark.smoke
@pytest.mark.parametrize(("provoke", "plain"), CASES + OF_OPTIMIZERS)
def test_both_forms_refuse_with_the_same_words(provoke: Callable[[Form], object], plain: Form) -> None:
    assert error_of(provoke, in_rust) == error_of(provoke, plain)


def test_every_problem_is_provoked() -> None:
    """No entry of the table but those of a device, which one form alone can meet, is without a case."""
    messages = [error_of(*case.values)[1] for case in CASES + OF_OPTIMIZERS]
    for problem in set(Problem) - {Problem.DEVICE}:
        pattern = re.sub(r"\\{\w+\\}", ".+", re.escape(problem.value[1]))
        assert any(re.fullmatch(pattern, message) for message in messages), problem
