"""Muon, with NorMuon and the layouts of parameters that are not one matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.choices import Algorithm, NdimPolicy, Precision
from ferrostep.coefficients import Coefficients, schedule_of
from ferrostep.optim import chains
from ferrostep.optim.arguments import Check, LearningRate, arguments_of, as_tuple, if_given, one_of
from ferrostep.optim.options import Options, check_has_shape, check_real
from ferrostep.optim.rules import Rule, RuleOptimizer

KELLER = (3.4445, -4.7750, 2.0315)
NORMALIZES = {None: False, "normuon": True}


def should_be(fits: Callable[[Any], bool], expected: str) -> Check:
    """A check in the words of ``torch.optim.Muon``."""

    def check(name: str, value: Any, _group: Mapping[str, Any]) -> Any:
        if not fits(value):
            raise ValueError(f"{name.replace('weight_', 'weight ')} should be {expected}: {value}")
        return value

    return check


def heights(name: str, sizes: Sequence[int], group: Mapping[str, Any]) -> tuple[int, ...]:
    """Raise ValueError for heights of matrices below 1."""
    sizes = as_tuple(name, sizes, group)
    if min(sizes, default=0) < 1:
        raise ValueError(f"{name} should be >= 1 but are: {sizes}")
    return sizes


NotNegative: TypeAlias = Annotated[float, should_be(lambda value: value >= 0.0, ">= 0 but is")]
Adjustment: TypeAlias = Literal["original", "match_rms_adamw", "spectral_unclamped"]
AdjustLr: TypeAlias = Annotated[
    Adjustment | None,
    one_of((None, *get_args(Adjustment)), "Adjust learning rate function {value} is not supported"),
]
Heads: TypeAlias = Annotated[int | None, if_given(should_be(lambda value: value >= 1, ">= 1 but is"))]


class Muon(RuleOptimizer):
    r"""Muon (Jordan et al. 2024), as ``torch.optim.Muon``; NorMuon with ``normalize="normuon"`` (arXiv 2510.05491).

    .. code-block:: text

        m <- momentum * m + (1 - momentum) * g
        u  = (1 - momentum) * g + momentum * m        (m itself without nesterov)
        O  = newton_schulz(u / max(norm(u), eps))     about U V^T, where u = U S V^T
        p <- p * (1 - lr * weight_decay)
        p <- p - lr * s(rows, columns) * O

    NorMuon divides each row of O by the root of a running mean of its squares, ``v <- beta2 * v + (1 - beta2) *
    mean(row^2)``, and restores the matrix's norm.

    As the step's size does not depend on the gradient's, a zero gradient with momentum left moves the parameter by a
    full step; see ``skip_zero_grad``.

    Args:
        params: matrices of shape (rows, columns), as parameters or parameter groups, of dtype float32, float64,
            bfloat16 or float16. Embeddings, output layers, norms and biases belong to AdamW: see
            :class:`MuonWithAuxAdamW`.
        lr: learning rate, a float or a 1-element tensor. Default 1e-3.
        weight_decay: decoupled, times ``lr`` without ``s``. Default 0.1.
        momentum: decay rate of the momentum. Default 0.95.
        nesterov: Default True.
        ns_coefficients: of Newton-Schulz: a triple for all steps, a sequence of triples of which the last repeats, or
            a name: ``"keller"``, ``"quintic"``, ``"polar_express_F"`` and ``"cans_F"`` with a safety factor F such as
            1.01, ``"dion_polar_1.02"``, ``"deepseekv4"``, ``"cubic5"``, ``"classic"``. Default: Keller Jordan's
            triple. Coefficients that would turn a singular value in (0, 1.01] negative are refused.
        eps: least norm to divide by. Default 1e-7, as torch: a gradient of a smaller norm gives a smaller O, and one
            far below it next to none. With 0 the size of a gradient makes no difference.
        ns_steps: number of steps; None for as many as were published under the name. Default 5. Fewer than there are
            triples are refused (``"deepseekv4"`` takes 10), but for ``"polar_express_F"`` and ``"cans_F"``, whose
            first steps serve by themselves.
        adjust_lr_fn: ``s``. None or ``"original"``: sqrt(max(1, rows / columns)); ``"match_rms_adamw"``:
            0.2 sqrt(max(rows, columns)); ``"spectral_unclamped"``: sqrt(rows / columns).
        maximize: ascend instead of descend. Default False.
        ns_algorithm: ``"standard"``, ``"gram"`` (on the smaller side's Gram matrix) or ``"auto"`` (default): whichever
            is faster and accurate enough.
        ns_precision: ``"float64"``, ``"float32"``, ``"bfloat16"`` or ``"auto"`` (default): float64 for float64
            parameters; else products with bfloat16 factors and float32 sums where these are faster (with AMX on Linux,
            and with AVX-512 BF16 but on Intel's CPUs) and the coefficients do not amplify their rounding too much, and
            float32 elsewhere. On the inputs of our tests
            (Gaussian, condition 1e6, rank 1, rank 8 with noise) it has a smaller error than torch, which rounds sums
            to bfloat16 as well.
        ns_restarts: steps before which the Gram form computes the Gram matrix anew. Default (2,).
        ndim_policy: what parameters of more than 2 dimensions are: ``"error"`` (default); ``"flatten"``, a matrix of
            the first against all others (convolutions); ``"batch"``, matrices in the last two (experts).
        num_heads: see each parameter as so many matrices, one above the other. Default None.
        split_sizes: see each parameter as matrices of these heights, one above the other. Default None.
        normalize: None (default) or ``"normuon"``.
        beta2: NorMuon's decay rate. Default 0.95.
        cautious_weight_decay: decay only elements whose step does not move them away from zero
            (arXiv 2510.12402). Default False.
        skip_zero_grad: leave matrices alone whose gradient is all zero, such as idle experts. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``momentum_buffer`` (4 bytes per element in float32); with NorMuon ``second_momentum_buffer``,
    one number per row. State dicts move both ways between this class and ``torch.optim.Muon``. Besides, the optimizer
    keeps working memory from step to step: 4 bytes (8 for float64, 6 for 16-bit state) for each element of the
    matrices that are stepped together, 16 MB of float32 or the largest matrix, and for each thread some copies of the
    matrix that it works on.

    Raises:
        ValueError, TypeError: an impossible or unknown argument, or a parameter of the wrong shape.
        RuntimeError: complex parameters.
        NotImplementedError: a DTensor whose matrices no rank can own, as a rank has more than one block of them.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2, 3))
        >>> p.grad = 5 * torch.eye(2, 3)
        >>> Muon([p], lr=0.1, ns_coefficients="classic", ns_steps=15).step()
        >>> p.detach().round(decimals=2)
        tensor([[-0.1000,  0.0000,  0.0000],
                [ 0.0000, -0.1000,  0.0000]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 1e-3,
        weight_decay: NotNegative = 0.1,
        momentum: NotNegative = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = KELLER,
        eps: NotNegative = 1e-7,
        ns_steps: int | None = 5,
        adjust_lr_fn: AdjustLr = None,
        *,
        maximize: bool = False,
        ns_algorithm: Algorithm = "auto",
        ns_precision: Precision = "auto",
        ns_restarts: Annotated[Sequence[int], as_tuple] = (2,),
        ndim_policy: NdimPolicy = "error",
        num_heads: Heads = None,
        split_sizes: Annotated[Sequence[int] | None, if_given(heights)] = None,
        normalize: Literal["normuon"] | None = None,
        beta2: Annotated[float, should_be(lambda value: 0.0 <= value < 1.0, "in [0, 1) but is")] = 0.95,
        cautious_weight_decay: bool = False,
        skip_zero_grad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)
    _looks_at_matrices = True

    def _check_group(self, group: dict[str, Any]) -> None:
        check_muon_group(group)
        check_matrices(group)

    def rule(self, group: dict[str, Any]) -> Rule:
        """Muon with the group's hyperparameters."""
        return muon_rule(group)


def muon_rule(group: dict[str, Any]) -> Rule:
    """Muon or NorMuon with the hyperparameters of a parameter group."""
    normuon = NORMALIZES[group["normalize"]]
    layout = {name: group[name] for name in ("ndim_policy", "num_heads", "split_sizes")}
    hyperparameters = {
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "momentum": group["momentum"],
        "nesterov": bool(group["nesterov"]),
        "maximize": bool(group["maximize"]),
        "schedule": schedule_of(group["ns_coefficients"], group["ns_steps"]),
        "eps": group["eps"],
        "algorithm": group["ns_algorithm"],
        "precision": group["ns_precision"],
        "restarts": list(group["ns_restarts"]),
        "adjust_lr": group["adjust_lr_fn"] or "original",
        "beta2": group["beta2"] if normuon else None,
        "cautious_weight_decay": bool(group["cautious_weight_decay"]),
        "skip_zero_grad": bool(group["skip_zero_grad"]),
        **layout,
    }
    states: tuple[str, ...] = ("momentum_buffer",)
    if not normuon:
        return Rule(chains.muon, reference.muon, states, hyperparameters, counts_steps=False)
    states = (*states, "second_momentum_buffer")
    shapes = {"second_momentum_buffer": partial(one_per_row, ndim_policy=group["ndim_policy"])}
    return Rule(chains.muon, reference.muon, states, hyperparameters, counts_steps=False, shapes=shapes)


def one_per_row(p: Tensor, ndim_policy: str) -> tuple[int, ...]:
    """The shape of a tensor with one number for every row of the parameter's matrices."""
    if ndim_policy == "flatten":
        return (p.shape[0], *[1] * (p.ndim - 1))
    return (*p.shape[:-1], 1)


def check_muon_group(group: dict[str, Any]) -> None:
    """Raise for hyperparameters that exclude each other, or that Rust refuses."""
    given = [name for name in ("num_heads", "split_sizes") if group[name] is not None]
    if len(given) == 2:
        raise ValueError("num_heads and split_sizes exclude each other")
    if given and group["ndim_policy"] != "error":
        raise ValueError(f"{given[0]} is for 2D parameters and excludes ndim_policy={group['ndim_policy']!r}")
    muon_rule(group).native()


def check_matrices(group: dict[str, Any], owner: str = "Muon") -> None:
    """Raise for parameters that ``owner`` cannot take."""
    check_real(group["params"], owner)
    for i, p in enumerate(group["params"]):
        check_has_shape(f"param {i}", p)
        shape = torch.empty(p.shape, device="meta")
        reference.matrices(shape, group["ndim_policy"], group["num_heads"], group["split_sizes"], owner)
