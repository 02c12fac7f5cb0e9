"""Products of a loss's Hessian with vectors, and the random vectors for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from ferrostep.choices import Distribution
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.numpy.arrays import listed
from ferrostep.suggestions import suggesting

Loss: TypeAlias = "Tensor | Callable[[], Tensor]"
PairOfLoss: TypeAlias = "tuple[Tensor, Tensor] | Callable[[], tuple[Tensor, Tensor]]"
"""A loss with the outputs that it was computed from."""

Product: TypeAlias = Callable[..., list[Tensor]]
"""Of a loss's matrix and a vector, one tensor per parameter: a :class:`HessianProduct`, say."""


@contextmanager
def double_backward() -> Iterator[None]:
    """Compute attention in a form that can be differentiated twice, which the fused kernels of CPU and CUDA cannot.

    Example:
        >>> x = torch.ones(1, 2, 4, requires_grad=True)
        >>> with double_backward():
        ...     loss = torch.nn.functional.scaled_dot_product_attention(x, x, x).sum()
        >>> [h.shape for h in HessianProduct(loss, [x])([torch.ones_like(x)])]
        [torch.Size([1, 2, 4])]
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


@suggesting
class HessianProduct:
    r"""The Hessian of a loss as a function of a vector: ``v -> H v``, by differentiating twice (Pearlmutter 1994).

    Args:
        loss: a tensor of shape () with its graph, or a function without arguments that returns one; the function is
            called once, with gradients enabled and under :func:`double_backward`.
        params: the parameters in which to differentiate, of any shape and floating-point dtype, or (name, parameter)
            pairs. One that the loss does not use, or that does not require gradients, has zeros for its part of the
            Hessian.
        grad_scale: what the loss has been multiplied by (``GradScaler.get_scale()``); products are divided by it.
            Default 1.

    The graph is kept while the object lives, for any number of products; dropout and the like are those of the one
    forward pass, so all products belong to one symmetric matrix. ``p.grad`` is not touched.

    Raises:
        ValueError: the loss is not a scalar, or ``params`` is empty.
        TypeError: ``params`` has something else than parameters.
        RuntimeError: the loss has no graph, reaches none of the parameters, or lacks some of them and went through
            ``torch.utils.checkpoint`` with ``use_reentrant=True``; a gradient is sparse; the loss went through a
            function that is ``once_differentiable`` or, in a call, through an operation without a second derivative.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> product = HessianProduct((w**3).sum(), [w])
        >>> product([torch.ones(2)])
        [tensor([ 6., 12.])]
    """

    def __init__(self, loss: Loss, params: Iterable[Tensor], *, grad_scale: float = 1.0) -> None:
        self.params = listed_parameters(params)
        if not hasattr(grad_scale, "__float__"):
            raise wrong_kind("grad_scale", grad_scale, "a number")
        if not grad_scale > 0.0:
            raise Problem.NUMBER.of("grad_scale value", grad_scale, "a number above 0")
        self.grad_scale = grad_scale
        self._trainable = [i for i, p in enumerate(self.params) if p.requires_grad]
        self.loss = evaluated(loss)
        check_twice(self.loss)
        gradients = first_derivatives(self.loss, self.params, create_graph=True)
        self.gradient = [g.detach() for g in filled(gradients, self.params)]
        """The loss's gradient, not divided by ``grad_scale``; zeros where it has none."""
        # A gradient without a graph is constant: the loss is linear in the parameter.
        self._gradients = {i: g for i, g in enumerate(gradients) if g is not None and g.requires_grad}
        """Those that have a derivative, by the positions of their parameters."""

    def __call__(
        self, vectors: Sequence[Tensor], *, retain_graph: bool = True, is_batched: bool = False
    ) -> list[Tensor]:
        """The product with ``vectors``, one per parameter, of its shape and dtype; detached.

        ``is_batched``: with several at once, along a first dimension that all vectors have, as ``torch.vmap`` does.

        ``retain_graph=False`` frees the graph, for the loss's own ``backward``, too. With a ``grad_scale``, products of
        bfloat16 and float16 parameters are float32.
        """
        if len(vectors) != len(self.params):
            raise ValueError(f"got {len(vectors)} vectors, expected {len(self.params)}: one per parameter")
        products: list[Tensor | None] = [None] * len(self.params)
        if self._gradients:
            found = _derivative(
                list(self._gradients.values()),
                [self.params[i] for i in self._trainable],
                [vectors[i] for i in self._gradients],
                retain_graph,
                is_batched,
            )
            for i, product in zip(self._trainable, found, strict=True):
                products[i] = product
        full = filled(products, vectors)
        if self.grad_scale == 1.0:
            return full
        # What had to be scaled for a 16-bit dtype cannot be unscaled in it.
        return [product.to(work_dtype(product)) / self.grad_scale for product in full]


@suggesting
class GaussNewtonProduct:
    r"""The Gauss-Newton matrix of a loss as a function of a vector: ``v -> J' H_out J v`` (Schraudolph 2002).

    J is the Jacobian of the outputs in the parameters, ``H_out`` the Hessian of the loss in the outputs. As J v is the
    derivative of ``J' u`` in u, which is linear, nothing of J itself is differentiated twice.

    Args:
        loss: a pair ``(loss, outputs)`` of a tensor of shape () and the tensor, of any shape, from which alone it has
            been computed, both with their graph, or a function that returns one, as of :class:`HessianProduct`.
        params: the parameters, of any shape and floating-point dtype, as of :class:`HessianProduct`.

    Raises:
        TypeError, ValueError, RuntimeError: as of :class:`HessianProduct`, or no such pair.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> outputs = w**2
        >>> GaussNewtonProduct(((outputs**2).sum() / 2, outputs), [w])([torch.ones(2)])
        [tensor([ 4., 16.])]
    """

    def __init__(self, loss: PairOfLoss, params: Iterable[Tensor]) -> None:
        self.params = listed_parameters(params)
        pair = called(loss)
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], Tensor):
            raise wrong_kind("the loss", pair, "a pair (loss, outputs) for the Gauss-Newton matrix")
        value, self._outputs = evaluated(pair[0]), pair[1]
        check_twice(value)
        if not self._outputs.requires_grad:
            raise RuntimeError("the outputs have no graph: compute them with gradients enabled, and do not detach them")
        (self._slope,) = torch.autograd.grad(value, self._outputs, create_graph=True, allow_unused=True)
        """The gradient of the loss in the outputs; None where it was not computed from them."""
        if self._slope is None:
            raise RuntimeError("the loss was not computed from the outputs: it has no gradient in them")
        self._weights = torch.zeros_like(self._outputs, requires_grad=True)
        found = first_derivatives(
            self._outputs, self.params, grad_outputs=self._weights, create_graph=True, name="the outputs"
        )
        self._combined = {i: x for i, x in enumerate(found) if x is not None}
        """The rows of J, combined by weights that are zeros, by the positions of their parameters."""

    def __call__(
        self, vectors: Sequence[Tensor], *, retain_graph: bool = True, is_batched: bool = False
    ) -> list[Tensor]:
        """The product with ``vectors``, one per parameter, of its shape and dtype; detached.

        ``is_batched``: with several at once, along a first dimension that all vectors have, as ``torch.vmap`` does.

        ``retain_graph=False`` frees the graph.
        """
        products: list[Tensor | None] = [None] * len(self.params)
        if self._slope.requires_grad:  # else the loss is linear in the outputs
            (along,) = _derivative(
                list(self._combined.values()), [self._weights], [vectors[i] for i in self._combined], True, is_batched
            )
            (turned,) = _derivative([self._slope], [self._outputs], [along], True, is_batched)
            trainable = list(self._combined)
            params = [self.params[i] for i in trainable]
            found = _derivative([self._outputs], params, [turned], retain_graph, is_batched)
            for i, product in zip(trainable, found, strict=True):
                products[i] = product
        return filled(products, vectors)


def _derivative(
    of: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor | None],
    retain_graph: bool,
    is_batched: bool,
) -> Sequence[Tensor | None]:
    """The products of a gradient's Jacobian with vectors; RuntimeError where there is none."""
    try:
        return torch.autograd.grad(
            of, inputs, vectors, retain_graph=retain_graph, allow_unused=True, is_grads_batched=is_batched
        )
    except RuntimeError as error:
        if "scaled_dot_product" not in str(error):
            raise
        raise RuntimeError(
            "the loss went through fused attention, which has no second derivative: give the loss as a "
            "function (lambda: ...), or compute it under `with ferrostep.curvature.double_backward():`"
        ) from error


def filled(found: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor]:
    """Gradients or products, with zeros where there are none."""
    return [torch.zeros_like(p, requires_grad=False) if x is None else x for p, x in zip(params, found, strict=True)]


def work_dtype(p: Tensor) -> torch.dtype:
    """The dtype of what is computed from a tensor: float32 for bfloat16 and float16."""
    return torch.float32 if p.dtype in (torch.bfloat16, torch.float16) else p.dtype


def evaluated(loss: Loss) -> Tensor:
    """The loss as a scalar tensor with a graph."""
    loss = called(loss)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"the loss is {what}, expected a tensor with one element")
    if not loss.requires_grad:
        raise RuntimeError(
            "the loss has no graph: compute it with gradients enabled, from parameters that require gradients, and "
            "do not detach it"
        )
    return loss


def called(loss: Any) -> Any:
    """What a loss given as a function returns, with attention that can be differentiated twice; else the loss."""
    if isinstance(loss, Tensor) or not callable(loss):
        return loss
    with torch.enable_grad(), double_backward():
        return loss()


def listed_parameters(params: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> list[Tensor]:
    """The parameters, given as such or in pairs with their names."""
    found: dict[int, Tensor] = {}
    for i, item in enumerate(listed("params", params, "a list of tensors, such as model.parameters()")):
        p = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        if not isinstance(p, Tensor):
            raise wrong_kind(f"params[{i}]", item, "a torch.Tensor or (name, torch.Tensor)")
        if id(p) in found:
            raise ValueError(f"params[{i}] has come before, expected each parameter once")
        found[id(p)] = p
    if not found:
        raise Problem.EMPTY.of("params", "nothing", "at least one parameter")
    return list(found.values())


def first_derivatives(
    loss: Tensor, params: Sequence[Tensor], *, name: str = "the loss", **options: Any
) -> list[Tensor | None]:
    """The gradient, with None for what the loss does not use and what requires none; options of ``autograd.grad``.

    Raises:
        RuntimeError: the loss reaches nothing, or not all for a reason that :func:`check_reached` knows; or a sparse
            gradient.
    """
    trainable = {i: p for i, p in enumerate(params) if p.requires_grad}
    found: list[Tensor | None] = [None] * len(params)
    if trainable:
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True, **options)
        check_reached(name, loss, gradients)
        for i, gradient in zip(trainable, gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                raise RuntimeError(
                    f"the gradient of parameter {i} has layout {gradient.layout}, expected torch.strided: such as of "
                    "nn.Embedding(..., sparse=False)"
                )
            found[i] = gradient
    return found


def check_reached(name: str, loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
    """Refuse a loss whose gradients lack a part, or are none at all, where that is no property of the loss.

    The graph of a reentrant checkpoint has none of the parameters inside: ``autograd.grad`` takes them for unused, or
    finds their other uses only.
    """
    for node in graph_of(loss):
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                f"{name} went through torch.utils.checkpoint with use_reentrant=True, which hides parameters from "
                "torch.autograd.grad: call it with use_reentrant=False"
            )
    if all(gradient is None for gradient in gradients):
        raise RuntimeError(f"{name} reaches none of the parameters: it has no gradient in any of them")


@contextmanager
def gradients_aside(params: Sequence[Tensor]) -> Iterator[None]:
    """Let parameters have no gradients meanwhile."""
    before = [p.grad for p in params]
    try:
        for p in params:
            p.grad = None
        yield
    finally:
        for p, grad in zip(params, before, strict=True):
            p.grad = grad


def graph_of(*tensors: Tensor) -> Iterator[Any]:
    """The nodes of autograd's graph, each once."""
    nodes, seen = [x.grad_fn for x in tensors], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]


def check_twice(loss: Tensor) -> None:
    """Refuse a loss through a function whose gradient autograd takes for a constant, without a word.

    Raises:
        RuntimeError: there is a ``torch.autograd.Function`` with a backward pass that is ``once_differentiable``.
    """
    for node in graph_of(loss):
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is _ONCE:
            raise RuntimeError(f"the loss went through {node.name()}, which is marked once_differentiable")


# What all backward passes with that mark have in common.
_ONCE = once_differentiable(lambda ctx: None).__code__


def draw_probes(
    params: Iterable[Tensor], distribution: Distribution = "rademacher", generator: torch.Generator | None = None
) -> list[Tensor]:
    """Random vectors with the identity as their covariance, one tensor like each parameter.

    ``"rademacher"``: plus or minus 1 with equal odds; ``"gaussian"``: standard normal. ``generator`` is torch's global
    one if None.
    """
    if distribution not in get_args(Distribution):
        raise wrong_choice("distribution value", distribution, *get_args(Distribution))
    params = list(params)
    for i, p in enumerate(params):
        if p.is_complex():
            raise Problem.DTYPE.of(f"parameter {i}", p.dtype, "a real one")
    with torch.no_grad():
        probes = [torch.empty_like(p, requires_grad=False) for p in params]
        for probe in probes:
            if distribution == "gaussian":
                probe.normal_(generator=generator)
            else:
                probe.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    return probes
