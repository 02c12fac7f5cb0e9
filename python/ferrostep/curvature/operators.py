"""Symmetric matrices as functions of flat vectors: Hessians, Gauss-Newton matrices, and both with a preconditioner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from ferrostep.choices import Curvature
from ferrostep.curvature import vectors
from ferrostep.curvature.products import GaussNewtonProduct, HessianProduct, Product, listed_parameters
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.numpy.arrays import listed, whole
from ferrostep.reference import checks
from ferrostep.suggestions import suggesting


@suggesting
class LinearOperator:
    """A symmetric matrix of P rows as a function of a vector, which counts its products.

    Args:
        multiply: the product of the matrix with a vector of shape (P,).
        size: P, at least 1.
        dtype: of the vectors, float32 (default) or float64.
        device: where they are. Default the CPU.

    Attributes:
        products: how many products have been asked for.

    Raises:
        TypeError, ValueError: an impossible size or dtype, or nothing that can be called; in a call, a vector of
            another shape, dtype or device, or a product that is none.
        RuntimeError: in a call, ``multiply`` has written to its argument.

    Example:
        >>> diagonal = torch.tensor([1.0, 2.0, 3.0])
        >>> operator = LinearOperator(lambda v: diagonal * v, 3)
        >>> operator(torch.ones(3)), operator.products
        (tensor([1., 2., 3.]), 1)
        >>> operator @ torch.eye(3)[:, 1:]
        tensor([[0., 0.],
                [2., 0.],
                [0., 3.]])
    """

    def __init__(
        self,
        multiply: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not callable(multiply):
            raise wrong_kind("multiply", multiply, "a function of a vector")
        _check_dtype("the operator", dtype)
        self.multiply = multiply
        self.size = whole("size", size, 1)
        self.dtype = dtype
        self.device = torch.device(device)
        self.products = 0

    def __call__(self, vector: Tensor) -> Tensor:
        """The product, of shape (P,), without a graph."""
        self.check("the vector", vector)
        self.products += 1
        version = checks.version(vector)
        product = self.multiply(vector)
        if checks.version(vector) != version:
            raise RuntimeError(
                "multiply has written to the vector that it was given, expected it to leave that as it is"
            )
        self.check("the product of the matrix", product)
        return product.detach()

    def __matmul__(self, other: Tensor) -> Tensor:
        """The product with a vector of shape (P,), or with each column of a matrix of shape (P, n)."""
        if not isinstance(other, Tensor) or other.ndim != 2:
            return self(other)
        product = torch.empty_like(other, requires_grad=False, memory_format=torch.contiguous_format)
        for i, column in enumerate(other.T):
            product[:, i] = self(column)  # at once: the next product may use its memory
        return product

    def check(self, name: str, vector: Any) -> None:
        """Refuse what is no vector of the matrix.

        Args:
            name: what the error calls it.
            vector: a tensor, one would think.

        Raises:
            TypeError, ValueError, RuntimeError: it is of another kind, shape, dtype or device.
        """
        checks.readable(name, vector)
        checks.like(name, vector, self.empty(0), shape=(self.size,), dtype=self.dtype)

    def empty(self, *shape: int) -> Tensor:
        """Memory for vectors of the matrix's dtype and on its device.

        Args:
            shape: of the tensor.

        Returns:
            The tensor, with whatever was in memory.

        Raises:
            RuntimeError: there is not so much memory.
        """
        return torch.empty(shape, dtype=self.dtype, device=self.device)


@suggesting
def hvp_operator(
    loss_fn: Callable[..., Any] | Tensor,
    params: Iterable[Tensor],
    data: Iterable[Any] | None = None,
    kind: Curvature = "hessian",
    precond: Sequence[Tensor] | None = None,
) -> LinearOperator:
    r"""The Hessian of a mean loss, or its Gauss-Newton matrix, as an operator on flat vectors.

    The vector has the elements of all parameters one after the other. ``p.grad``, the modules' training mode and
    torch's random numbers are left as they are. All products are those of one matrix, with the same batches and the
    same dropout. What ``loss_fn`` changes by itself it does change, such as the running averages of batch norm in
    training mode.

    Args:
        loss_fn: a function that returns the mean loss, of shape (), of the batch that it is called with; with ``data``
            None it is called once, without arguments, and its graph is kept while the operator lives (a loss with its
            graph may be given as such). For ``kind="ggn"`` it returns a pair ``(loss, outputs)``: the loss computed
            from the outputs, a tensor of any shape, alone.
        params: the parameters, of any shape, of dtype float32 or float64, on one device, or (name, parameter) pairs;
            also a part of a model's. One that the loss does not use has zeros.
        data: a list, ``DataLoader`` or the like of batches, each a tensor, or a tuple, list or dict that begins with
            one, of which the first dimension is the batch. The matrix is that of the mean over all samples; every
            product goes through all batches, and only one graph is alive at a time. Default None.
        kind: ``"hessian"`` (default) or ``"ggn"``, the Gauss-Newton matrix ``J' H_out J`` with the Jacobian J of the
            outputs and the Hessian of the loss in these: positive semi-definite for a loss convex in them.
        precond: a positive diagonal D, as one tensor of the shape of each parameter; the matrix is then
            ``D^-1/2 H D^-1/2``. Default None.

    Returns:
        The operator, of as many rows as the parameters have elements; float64 where a parameter is, else float32.

    Raises:
        ValueError: parameters of 16 bits, whose products are too coarse, or on several devices; another kind; a
            preconditioner that is not positive and finite, or does not fit the parameters; no batch at all; a loss that
            is not a scalar.
        TypeError: something else than parameters, batches or a loss.
        RuntimeError: as of :class:`HessianProduct`, such as for a loss that cannot be differentiated twice.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> operator = hvp_operator(lambda: (w**3).sum(), [w])
        >>> operator(torch.ones(2))
        tensor([ 6., 12.])
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        >>> hvp_operator(lambda x: ((x @ w) ** 2).mean() / 2, [w], data=[x[:1], x[1:]])(torch.ones(2))
        tensor([1., 2.])
    """
    if kind not in get_args(Curvature):
        raise wrong_choice("kind", kind, *get_args(Curvature))
    flat = FlatParameters(params)
    make: Callable[[Any, list[Tensor]], Product] = HessianProduct if kind == "hessian" else GaussNewtonProduct
    numbers = RandomNumbers(flat.device)
    if data is None:
        with numbers.again():
            product = make(loss_fn, flat.params)
        multiply = flat.multiplied_by(product)
    else:
        if not callable(loss_fn):
            raise wrong_kind("loss_fn", loss_fn, "a function of a batch")
        batches = numbers.batches(data)
        shares = _shares(batches)

        def multiply(vector: Tensor) -> Tensor:
            total = torch.zeros_like(vector)
            for batch, share in zip(batches, shares, strict=True):
                with numbers.again():
                    one = make(partial(loss_fn, batch), flat.params)
                vectors.subtract(total, flat.joined(one(flat.pieces(vector), retain_graph=False)), -share)
            return total

    return flat.operator(multiply, precond)


@suggesting
def check_symmetry(op: LinearOperator, probes: int = 2, *, seed: int = 0) -> float:
    """How far an operator is from a symmetric matrix, as far as random vectors u and v see.

    Args:
        op: the operator, on vectors of shape (P,) and of its dtype.
        probes: pairs of vectors, each costing two products, at least 1. Default 2.
        seed: of the vectors. Default 0.

    Returns:
        The greatest ``abs(<u, A v> - <v, A u>)``, relative to the mean of the norms of ``A u`` and ``A v``: about 1e-6
        for a float32 Hessian, 1 for a matrix without any symmetry. Where it is large, the products have seen different
        batches or dropout.

    Raises:
        TypeError, ValueError: an impossible argument, or a product that is not finite.

    Example:
        >>> a = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        >>> check_symmetry(LinearOperator(lambda v: (a + a.T) @ v, 2))
        0.0
        >>> check_symmetry(LinearOperator(lambda v: a @ v, 2)) > 0.5
        True
    """
    worst = 0.0
    for probe in range(whole("probes", probes, 1)):
        u, v = (random_vector(op, seed, number, signs=True) for number in (2 * probe, 2 * probe + 1))
        au, av = op(u), op(v)
        size = (math.sqrt(vectors.dot(au, au)) + math.sqrt(vectors.dot(av, av))) / 2
        difference = abs(vectors.dot(u, av) - vectors.dot(v, au))
        worst = max(worst, finite(difference) / size if size else 0.0)
    return worst


class FlatParameters:
    """Parameters of 32 or 64 bits on one device, and how they lie in a flat vector."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.params = listed_parameters(params)
        self.device = self.params[0].device
        for i, p in enumerate(self.params):
            _check_dtype(f"parameter {i}", p.dtype)
            if p.device != self.device:
                raise Problem.DEVICE.of(f"parameter {i}", p.device, f"{self.device}, as parameter 0")
        self.sizes = [p.numel() for p in self.params]
        self.size = sum(self.sizes)
        is_double = any(p.dtype == torch.float64 for p in self.params)
        self.dtype = torch.float64 if is_double else torch.float32

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The vector as tensors like the parameters; of several, one in each row, along a dimension before theirs."""
        pieces, lead = torch.split_with_sizes(vector, self.sizes, -1), vector.shape[:-1]
        return [piece.reshape(*lead, *p.shape).to(p.dtype) for piece, p in zip(pieces, self.params, strict=True)]

    def multiplied_by(self, product: Product) -> Callable[[Tensor], Tensor]:
        """The product as a function of flat vectors."""
        return lambda vector: self.joined(product(self.pieces(vector)))

    def operator(self, multiply: Callable[[Tensor], Tensor], precond: Sequence[Tensor] | None = None) -> LinearOperator:
        """The operator of a matrix, with a preconditioner on both sides."""
        if precond is not None:
            multiply = _preconditioned(multiply, self, precond)
        return LinearOperator(multiply, self.size, dtype=self.dtype, device=self.device)

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """A new vector of tensors like the parameters; a matrix, of such with a dimension before theirs."""
        lead = tensors[0].shape[: tensors[0].ndim - self.params[0].ndim]
        return torch.cat([x.detach().reshape(*lead, -1).to(self.dtype) for x in tensors], -1)


def random_vector(op: LinearOperator, seed: int, number: int, *, signs: bool) -> Tensor:
    """Vector ``number`` of a seed: random signs, or numbers between -1 and 1; for any device and threads the same."""
    if not isinstance(op, LinearOperator):
        raise wrong_kind("op", op, "a LinearOperator")
    vector = op.empty(op.size)
    vectors.fill(vector, signs=signs, seed=whole("seed", seed, 0, 2**64), number=number)
    return vector


def finite(value: float) -> float:
    """The number, which comes from a product of the matrix and a vector."""
    if not math.isfinite(value):
        raise ValueError(
            f"a product of the matrix is not finite ({value}): the loss or its derivatives have NaN or infinity"
        )
    return value


class RandomNumbers:
    """Torch's random numbers as they come now, to be drawn any number of times without being used up."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.devices)]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw them once more, and leave torch's own where they were."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.devices, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield

    def batches(self, data: Iterable[Any]) -> list[Any]:
        """All batches, of which a ``DataLoader`` draws a seed for its workers, and the order if it shuffles."""
        if isinstance(data, tuple) and data and all(isinstance(each, Tensor) for each in data):
            raise wrong_kind("data", data, "a list: [(x, y)] is one batch of both, [x, y] are two batches")
        with self.again():
            batches = listed("data", data)
        if not batches:
            raise Problem.EMPTY.of("data", "nothing", "one batch at least")
        return batches


def _preconditioned(
    multiply: Callable[[Tensor], Tensor], flat: FlatParameters, precond: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    given = listed("precond", precond)
    if len(given) != len(flat.params):
        raise Problem.COUNT.of("precond", f"{len(given)} tensors", f"{len(flat.params)}: one for each parameter")
    for i, (d, p) in enumerate(zip(given, flat.params, strict=True)):
        checks.readable(f"precond[{i}]", d)
        checks.like(f"precond[{i}]", d, p, shape=p.shape)
        if not bool(((d > 0) & d.isfinite()).all()):
            raise ValueError(f"precond[{i}] has elements that are not positive and finite")
    factors = flat.joined(given).rsqrt_()
    return lambda vector: multiply(vector * factors).mul_(factors)


def _shares(batches: list[Any]) -> list[float]:
    """How much of all samples each batch has."""
    counts = [len(_first(f"data[{i}]", batch)) for i, batch in enumerate(batches)]
    if not sum(counts):
        raise Problem.EMPTY.of("data", "nothing", "one sample at least")
    return [count / sum(counts) for count in counts]


def _first(name: str, batch: Any) -> Tensor:
    """The tensor of a batch that says how many samples it has."""
    first = batch
    while not isinstance(first, Tensor):
        if isinstance(first, Mapping):
            first = list(first.values())
        if not isinstance(first, Sequence) or isinstance(first, str) or not first:
            raise wrong_kind(name, batch, "a tensor, or a tuple, list or dict that begins with one")
        first = first[0]
    if first.ndim == 0:
        raise Problem.SHAPE.of(name, [], "a first dimension, the samples")
    return first


def _check_dtype(name: str, dtype: Any) -> None:
    """Products of 16 bits are too coarse for Lanczos iteration."""
    if dtype not in (torch.float32, torch.float64):
        raise Problem.DTYPE.of(name, dtype, "float32 or float64")
