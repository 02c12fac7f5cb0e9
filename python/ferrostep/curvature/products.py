"""Products of a loss's Hessian with vectors, and the random vectors for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss: TypeAlias = "Tensor | Callable[[], Tensor]"

DISTRIBUTIONS = ("rademacher", "gaussian")


@contextmanager
def double_backward() -> Iterator[None]:
    """Compute attention in a form that can be differentiated twice, which the fused kernels of CPU and CUDA cannot.

    Example:
        >>> with double_backward():  # doctest: +SKIP
        ...     loss = model(x).mean()
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


class HessianProduct:
    r"""The Hessian of a loss as a function of a vector: ``v -> H v``.

    Args:
        loss: a scalar tensor with its graph, or a function without arguments that returns one; the function is called
            once, with gradients enabled and under :func:`double_backward`.
        params: the parameters in which to differentiate. One that the loss does not use, or that does not require
            gradients, has zeros for its part of the Hessian.
        grad_scale: what the loss has been multiplied by (``GradScaler.get_scale()``); products are divided by it.

    The graph is kept while the object lives, for any number of products; dropout and the like are those of the one
    forward pass, so all products belong to one symmetric matrix. ``p.grad`` is not touched.

    Raises:
        ValueError: the loss is not a scalar, or ``params`` is empty.
        RuntimeError: the loss has no graph; or, in a call, it went through an operation without a second derivative.
    """

    def __init__(self, loss: Loss, params: Iterable[Tensor], *, grad_scale: float = 1.0) -> None:
        self.params = list(params)
        self.grad_scale = grad_scale
        if not self.params:
            raise ValueError("params is empty, expected at least one parameter")
        self._gradients: dict[int, Tensor] = {}
        """Those that have a derivative, by the positions of their parameters."""
        self._trainable = [i for i, p in enumerate(self.params) if p.requires_grad]
        loss = evaluated(loss)
        if self._trainable:
            trainable = [self.params[i] for i in self._trainable]
            gradients = torch.autograd.grad(loss, trainable, create_graph=True, allow_unused=True)
            for i, gradient in zip(self._trainable, gradients, strict=True):
                # A gradient without a graph is constant: the loss is linear in the parameter.
                if gradient is not None and gradient.requires_grad:
                    self._gradients[i] = gradient

    def __call__(self, vectors: Sequence[Tensor], *, retain_graph: bool = True) -> list[Tensor]:
        """The product with ``vectors``, one per parameter, of its shape and dtype; detached.

        ``retain_graph=False`` frees the graph, for the loss's own ``backward``, too. With a ``grad_scale``, products of
        bfloat16 and float16 parameters are float32.
        """
        products: list[Tensor | None] = [None] * len(self.params)
        if self._gradients:
            try:
                found = torch.autograd.grad(
                    list(self._gradients.values()),
                    [self.params[i] for i in self._trainable],
                    grad_outputs=[vectors[i] for i in self._gradients],
                    retain_graph=retain_graph,
                    allow_unused=True,
                )
            except RuntimeError as error:
                if "scaled_dot_product" not in str(error):
                    raise
                raise RuntimeError(
                    "the loss went through fused attention, which has no second derivative: give the loss as a "
                    "function (lambda: ...), or compute it under `with ferrostep.curvature.double_backward():`"
                ) from error
            for i, product in zip(self._trainable, found, strict=True):
                products[i] = product
        full = [
            torch.zeros_like(p) if product is None else product
            for p, product in zip(self.params, products, strict=True)
        ]
        if self.grad_scale == 1.0:
            return full
        # What had to be scaled for a 16-bit dtype cannot be unscaled in it.
        return [product.to(work_dtype(product)) / self.grad_scale for product in full]


def work_dtype(p: Tensor) -> torch.dtype:
    """The dtype of what is computed from a tensor: float32 for bfloat16 and float16."""
    return torch.float32 if p.dtype in (torch.bfloat16, torch.float16) else p.dtype


def evaluated(loss: Loss) -> Tensor:
    """The loss as a scalar tensor with a graph."""
    if not isinstance(loss, Tensor):
        with torch.enable_grad(), double_backward():
            loss = loss()
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"the loss is {what}, expected a tensor with one element")
    if not loss.requires_grad:
        raise RuntimeError(
            "the loss has no graph: compute it with gradients enabled, from parameters that require gradients, and "
            "do not detach it"
        )
    return loss


def draw_probes(
    params: Iterable[Tensor], distribution: str = "rademacher", generator: torch.Generator | None = None
) -> list[Tensor]:
    """Random vectors with the identity as their covariance, one tensor like each parameter.

    ``"rademacher"``: plus or minus 1 with equal odds; ``"gaussian"``: standard normal. ``generator`` is torch's global
    one if None.
    """
    if distribution not in DISTRIBUTIONS:
        expected = " or ".join(map(repr, DISTRIBUTIONS))
        raise ValueError(f"Invalid distribution value: {distribution!r}; expected {expected}")
    with torch.no_grad():
        probes = [torch.empty_like(p, requires_grad=False) for p in params]
        for probe in probes:
            if distribution == "gaussian":
                probe.normal_(generator=generator)
            else:
                probe.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    return probes
