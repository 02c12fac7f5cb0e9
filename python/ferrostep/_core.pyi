"""The Rust module. Private: its interface may change between any two versions."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

__version__: str

class Rule:
    """An element-wise update rule; see :func:`rules` for the names and what hyperparameters each has, all required.

    Raises ValueError for an unknown name, TypeError for a missing or unknown hyperparameter or one of another type.
    """

    def __init__(self, name: str, hyperparameters: dict[str, Any]) -> None: ...

def rules() -> dict[
    str, tuple[tuple[str, ...], dict[str, type[float] | type[bool]], bool, tuple[str, ...], str | None]
]:
    """By name, the rules: the names of their states, their hyperparameters with their types, whether they depend on
    the number of the step, the names of the states that are never negative, and the name of the product, if there is
    one: a number of each parameter that is 1 before the first step, and that every step multiplies."""

class SimplexRule:
    """A rule for parameters of which the rows along ``dim`` are positive and sum up to 1.

    Each number is multiplied by the exponential of what the rule, which subtracts, makes of a zero, and the row divided
    by its sum. A 0 stays 0, and nothing else becomes one. States in 8 bits are not supported.
    """

    def __init__(self, rule: Rule, dim: int) -> None: ...

class CarriedRule:
    """The rule ``"Storm"`` where both states are of the arithmetic's dtype.

    :meth:`Batch.sums` writes the new momentum to the transport, from where the step reads it, and where it stays.
    """

    def __init__(self, rule: Rule) -> None: ...

class SelectedRule:
    """A rule for parameters of 2 or more dimensions, of which ``inner`` updates the selected elements and ``rest`` the
    others; without a ``rest`` they stay.

    A parameter is a matrix of its first dimension against all others. ``of`` says of what the last state has the rising
    numbers, in int32: ``"rows"`` or ``"columns"``, which makes matrices of the other states, of the selected rows or
    columns; or it is ``"entries"``: a bit for each element, in uint8, the lowest first, and the others have one
    dimension. ``rest`` has no states.
    """

    def __init__(self, inner: Rule, rest: Rule | None, of: str) -> None: ...

def sample(of: int, count: int, seed: int, number: int, as_bits: bool) -> bytes:
    """``count`` of the numbers below ``of``, chosen at random from a seed and a number beside it.

    As rising int32 numbers, or as bits, the lowest of a byte first. ValueError for more than there are, or for 2**31
    numbers or more.
    """

def hyperparameters(name: str, group: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a rule in a parameter group: those of the same name, and beta1, beta2, ... from its betas.

    Raises KeyError for one that is not there.
    """

class Schedule:
    """The coefficients (a, b, c) of every Newton-Schulz step, checked; ValueError for impossible ones."""

    def __init__(
        self,
        coefficients: str | Sequence[float] | Sequence[Sequence[float]],
        steps: int | None = None,
    ) -> None: ...
    def triples(self) -> list[tuple[float, float, float]]: ...

class Transform:
    """A link of the chain of a :class:`MatrixRule`, with its numbers; ValueError for impossible ones.

    Those that write a matrix's elements come before those that only give it a factor.
    """

    @staticmethod
    def orthogonalize(
        *, schedule: Schedule, eps: float, algorithm: str, precision: str, restarts: Sequence[int]
    ) -> Transform:
        """Newton-Schulz; writes."""

    @staticmethod
    def normalize(*, eps: float) -> Transform:
        """Divide by the norm, to which ``eps`` is added; a factor."""

    @staticmethod
    def normalize_rows(*, beta2: float) -> Transform:
        """NorMuon; writes. State second_momentum_buffer, one number for every row."""

    @staticmethod
    def divide_by_cosh(*, gamma: float, rms_eps: float, of_normalized: bool, eps: float) -> Transform:
        """Divide by the root mean square of cosh(gamma * x), to which ``rms_eps`` is added; a factor.

        x is the matrix or, ``of_normalized``, the matrix divided by its norm, to which ``eps`` is added.
        """

class MatrixRule:
    """A direction (the momentum), a chain of transforms, and the step; states momentum_buffer, the transforms'."""

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        maximize: bool,
        transforms: Sequence[Transform],
        adjust_lr: str,
        ndim_policy: str,
        num_heads: int | None = None,
        split_sizes: Sequence[int] | None = None,
        cautious_weight_decay: bool = False,
        skip_zero_grad: bool = False,
    ) -> None: ...
    @property
    def states(self) -> list[str]:
        """The names of the states, in their order."""

    def working_memory(self, params: list[tuple[list[int], int, int]], threads: int) -> int:
        """The bytes that a step works in, and the next one after it, in :class:`Known`.

        ``params`` are shapes, each with the bytes of a number of the arithmetic and of one of the momentum.
        """

    def stages(self) -> tuple[Stage, MatrixRule, Stage]:
        """The rule in three, for parameters that lie in parts.

        The first writes the state ``direction`` from the gradient and ``momentum_buffer``, which it leaves alone. The
        second takes whole matrices: the direction as ``momentum_buffer`` and as gradient, both of which it only reads;
        the parameter, in the type of the arithmetic, becomes the move. The third takes the step: states
        ``momentum_buffer`` and ``move``, which is only read.
        """

class Stage:
    """A stage of a :class:`MatrixRule` that needs no whole matrices: an element-wise rule."""

class Known:
    """What one step of an optimizer leaves to the next, to check less."""

    def __init__(self) -> None: ...

def with_gradient(
    params: list[Any], elsewhere: bool
) -> tuple[tuple[list[int], list[Any], list[Any]], tuple[list[int], list[Any], list[Any]]]:
    """The positions, parameters and gradients of those that have one: on the CPU, and the others; ``elsewhere`` all."""

def columns(
    state: dict[Any, dict[str, Any]], params: list[Any], names: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, list[Any]] | None:
    """By name, the states of the parameters, or None if a parameter lacks one, or has None.

    Of the ``optional`` ones None stands in the list of a parameter that lacks it.
    """

def shards(column: list[Any], params: list[Any], dtensor: type, tensor: type) -> tuple[list[Any], list[int]]:
    """The local tensors of DTensors that are placed as the parameters they go with, and the positions of all others.

    Those stay as they are: what is of another class or placed otherwise, or has a local tensor of another class.
    """

def layouts(params: list[Any], dtensor: type) -> list[tuple[Any, Any]]:
    """The meshes and placements of DTensors, once for several in a row that share both."""

class Batch:
    """One optimizer step: ``add`` checks a group's tensors, ``run`` updates all groups or, on an error, none."""

    def __init__(self, known: Known | None = None) -> None: ...
    def add(
        self,
        rule: Rule | SimplexRule | CarriedRule | SelectedRule | MatrixRule | Stage,
        params: list[Any],
        grads: list[Any],
        states: dict[str, list[Any]],
        *,
        steps: list[Any] | None = None,
        step: int = 0,
        product: tuple[str, list[Any]] | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        compensation: list[Any] | None = None,
        scales: dict[str, list[Any]] | None = None,
        group: int | None = None,
        positions: list[int] | None = None,
        skip_nonfinite: bool = False,
        measure: bool = False,
        noise: float = 0.0,
    ) -> None:
        """Check the tensors of a parameter group and take them in.

        ``params``, ``grads`` and each list of ``states`` (in the rule's order; the names are for error messages)
        go together, tensor by tensor: torch tensors or NumPy arrays of equal shape, of dtype float32, float64,
        bfloat16, float16 or complex; gradients of float32 and the 16-bit types go with parameters of any of these.
        ``steps`` are one-element counters that the step advances; without them ``step`` is the number of this step,
        from 1. ``product`` goes with a rule that has one: its name, and one-element tensors that the step multiplies.
        ``compensation`` goes with ``rounding="kahan"`` (of the parameter's dtype), ``"split"`` (int16) and
        ``"master"`` (float32). ``scales`` are by name those of states that are codes (uint8): a float32 for each 256 of
        them in the order of the indices, or None where a state is numbers; rules of matrices take none. ``group`` and
        ``positions`` are the numbers by which error messages name a tensor. With ``skip_nonfinite`` nothing is updated,
        of no group, if a gradient of this one has a NaN or infinity. With ``measure`` :meth:`norms` and
        :meth:`measured_norms` have those of these gradients. After the rule, each parameter is multiplied by the
        exponential of a normal number times ``noise``, which ``seed`` tells.

        Raises TypeError, ValueError or RuntimeError for a tensor that cannot be updated; nothing has changed then.
        """

    def norms(self, orders: list[int], threads: int) -> list[list[list[float]]]:
        """For each group that was added, what the norms of the gradients that are measured follow from.

        That is of each the l1 norm and the square of the l2 norm, in float64, where ``orders`` (``[1]``, ``[2]`` or
        ``[1, 2]``) ask for it, else 0. The numbers of a complex gradient count by themselves.
        """

    def scale(self, factors: list[float]) -> None:
        """Multiply the gradients of each group that was added on their way into the step, and into its sums."""

    def sums(self, threads: int) -> list[list[float]]:
        """For each group that was added, what its rule sums over each parameter; nothing if it sums nothing.

        Raises:
            ValueError: with a :class:`CarriedRule`, tensors that share memory, of which some is written.
        """

    def know(self, sums: list[list[float]]) -> None:
        """Tell the rules of each group that was added what they are to know of each parameter, or nothing."""

    def run(
        self,
        threads: int,
        *,
        copies: list[tuple[Any, Any]] = ...,
        then: list[Callable[[], object]] = ...,
        orders: list[int] | None = None,
    ) -> bool:
        """Update everything that was added, on up to ``threads`` threads, without the GIL; once.

        With ``orders``, :meth:`measured_norms` has what :meth:`norms` would have said, to the bit: element-wise rules
        leave it behind, in the same pass; rules of rows, of parts of a matrix and of matrices take one pass more.

        Then tell autograd of the parameters, copy to the first tensor of each of ``copies`` the second, and call all of
        ``then``, what raises once more: an interrupt leaves nothing of this undone.

        Returns False, with nothing changed, if a gradient that is not to be has a NaN or infinity. Raises ValueError
        if tensors share memory of which some is written.
        """

    @property
    def finished(self) -> bool:
        """Whether ``run`` has updated everything."""

    def measured_norms(self) -> list[list[list[float]]]:
        """After ``run`` with ``orders``: those, as of :meth:`norms`; nothing where it has changed nothing."""

    def counted(self) -> tuple[int, int]:
        """After ``run``: how many elements the rules counted, and how many elements there are."""

def complete(call: Callable[[], T], then: Callable[[T], object]) -> T:
    """Call the first function and, with its result, which is returned, the second: there, too, if an interrupt comes.

    No Python code runs between both, so an interrupt comes up in one of them. If ``call`` raises, that is all. If
    ``then`` raises, it is called once more, before the exception is passed on.
    """

class InterruptHandler:
    """What the process does at SIGINT, also where that is a handler which Python does not know."""

    @staticmethod
    def current() -> InterruptHandler: ...
    def install(self) -> None: ...

class Guidance:
    """A rule of guidance with its numbers; each maker refuses impossible ones with ValueError.

    ``scales`` is one number for all samples, or one for each.
    """

    @staticmethod
    def cfg(scales: list[float], rescale: float) -> Guidance: ...
    @staticmethod
    def apg(
        scales: list[float], eta: float, norm_threshold: float, momentum: float | None, base: str, rescale: float
    ) -> Guidance: ...
    @staticmethod
    def cfg_zero_star(scales: list[float], rescale: float) -> Guidance: ...
    @staticmethod
    def tangential(scales: list[float], rescale: float) -> Guidance: ...
    @staticmethod
    def magnitude_aware(scales: list[float], alpha: float, rescale: float) -> Guidance: ...
    @staticmethod
    def perp_neg(scales: list[float], weights: list[float]) -> Guidance: ...
    @staticmethod
    def project() -> Guidance: ...
    def run(self, inputs: list[Any], outputs: list[Any], dims: list[int] | None, threads: int) -> None:
        """Compute the outputs from cond, uncond and the momentum (which is updated) or the negatives.

        All are torch tensors or NumPy arrays of one shape and dtype; an output may be an input other than the
        momentum. ``project`` takes what is projected onto, then the vector, and gives the parallel part, then the
        orthogonal one. Raises TypeError, ValueError or RuntimeError, with nothing changed.
        """

class Map:
    """A function of rows with its numbers; each maker refuses impossible ones with ValueError.

    Its methods take torch tensors or NumPy arrays of one shape and dtype, with rows of at least one element along
    ``dim``. They raise TypeError, ValueError, IndexError or RuntimeError, with nothing changed. Arrays with a number
    for each element of a row are of float64 and one dimension.
    """

    @staticmethod
    def simplex(s: float) -> Map: ...
    @staticmethod
    def l1_ball(r: float, rest: bool) -> Map:
        """Onto the ball, or what that takes away (``rest``). Its Jacobian follows from the row."""
    @staticmethod
    def l2_ball(r: float, rest: bool) -> Map:
        """Onto the ball, or what that takes away (``rest``). Its Jacobian follows from the row."""
    @staticmethod
    def clip(lo: float, hi: float) -> Map:
        """Of each number by itself. Its Jacobian follows from the row."""
    @staticmethod
    def shrink(threshold: float, factor: float, nonnegative: bool) -> Map:
        """Of each number: its magnitude less a threshold, times a factor, with its sign or, if that is -, as 0."""
    @staticmethod
    def plane(b: float, a: Any, half: bool) -> Map:
        """Onto ``a.x = b``, or ``a.x <= b`` (``half``). Its Jacobian follows from the row."""
    @staticmethod
    def section(c: float, lo: Any, hi: Any, w: Any) -> Map:
        """Onto ``lo <= x <= hi`` with ``w.x = c``. Its Jacobian follows from the row."""
    @staticmethod
    def isotonic(increasing: bool, weight: Any | None = None) -> Map:
        """The nearest row that does not fall, or rise. Its Jacobian follows from the row."""
    @staticmethod
    def sorted(w: Any, slope: bool) -> Map:
        """SLOPE's proximal operator, or onto the permutahedron. Its Jacobian follows from the row."""
    def forward(self, x: Any, out: Any, dim: int, threads: int) -> None:
        """Write the image of every row of ``x``; ``out`` is ``x``, or new: what it was, autograd is not told."""

    def product(self, told: Any, v: Any, out: Any, dim: int, threads: int, *, transposed: bool = False) -> None:
        """Write the products of the rows of ``v`` with the Jacobians, or with these transposed, to a new ``out``.

        ``told`` are the images where nothing else is said of the map, else the rows.
        """

def orthogonalize(
    inputs: list[Any],
    outputs: list[Any],
    *,
    schedule: Schedule,
    eps: float,
    algorithm: str,
    precision: str,
    restarts: list[int],
    threads: int,
) -> None:
    """Orthogonalize the last two dimensions of every input into the output of the same shape and dtype.

    An output may be its own input. Raises TypeError, ValueError or RuntimeError, with nothing changed.
    """

def multiply(a: Any, b: Any | None, out: Any, *, threads: int) -> None:
    """Write `a @ b` to `out`, or `a @ a.T` where `b` is None: the products of Newton-Schulz by themselves.

    Matrices of float64, float32 or bfloat16, contiguous or transposed; `out` is contiguous and float32 for bfloat16.
    Raises TypeError, ValueError or RuntimeError, with nothing changed.
    """

def top_singular_value(
    matrix: Any, vector: Any, *, steps: int, tolerance: float, threads: int
) -> tuple[float, float, float, int]:
    """The largest singular value of a matrix, its residual, the sum of the matrix's squares, and the products made.

    A matrix of more than two dimensions is the first one by all others. ``vector`` has as many elements as that has
    columns, of the dtype of the arithmetic: where the iteration starts, not zero, and, updated, the right singular
    vector. At most ``steps`` products with the matrix and its transpose; fewer where the residual is at most
    ``tolerance`` times the value. Raises TypeError, ValueError or RuntimeError, with nothing changed.
    """

def available_cpus() -> int:
    """How many CPUs the process may use: its affinity and its cgroup's quota count."""

def isa() -> str: ...
def supported_isas() -> list[str]: ...
def use_isa(name: str) -> None: ...
def adopt_openmp() -> bool: ...
def use_exchange_api(yes: bool) -> None: ...
def lie_in_memory(tensors: tuple[Any, ...]) -> bool:
    """Whether these are numbers as they lie in this machine's memory: not wrapped, not batched, not to be negated."""

def orthogonal(
    forward: list[Any | None],
    backward: list[Any | None],
    *,
    scale: float,
    eps: float,
    per_tensor: bool,
    threads: int,
) -> list[float]:
    """``backward <- scale * (backward - kappa * forward)``; returns kappa, or one for each place with ``per_tensor``.

    Lists of this function and of the next hold torch tensors or NumPy arrays, or None for zeros; those at one place
    have one shape and dtype. Raise TypeError, ValueError or RuntimeError, with nothing changed.
    """

def orthogonal_combine(
    extra: list[Any | None],
    forward: list[Any | None],
    backward: list[Any | None],
    outputs: list[Any | None],
    *,
    eta: float,
    eps: float,
    per_tensor: bool,
    skip_nonfinite: bool,
    threads: int,
) -> list[float] | None:
    """``outputs <- extra + forward + eta * (backward - kappa * forward)``; an output may be an input at its place.

    Returns kappa as :func:`orthogonal` does, or None where ``skip_nonfinite`` found NaN or infinity and nothing was
    written.
    """

def ghost_norm(
    x: Any,
    out: Any,
    affine: tuple[Any | None, Any | None],
    statistics: Any,
    *,
    size: int,
    eps: float,
    threads: int,
) -> None:
    """Normalize each ghost of ``size`` samples of ``x``, of shape ``(n, channels, ...)``, by its mean and variance.

    ``affine`` are weights and biases, ones and zeros without them. ``statistics`` gets, in float64 and of shape
    ``(3, ghosts, channels)``, the means, the reciprocal standard deviations, and the variances with divisor n - 1.
    """

def ghost_follow(
    running: tuple[Any | None, Any | None], statistics: Any, *, momentum: float | None, counted: float
) -> None:
    """Move running means and variances by those of ``ghost_norm``, ghost by ghost.

    By ``momentum`` or, without, so that they are the means of all ghosts, of which ``counted`` came before.
    """

def ghost_norm_backward(
    x: Any,
    grad: Any,
    out: Any,
    weight: Any | None,
    statistics: Any,
    derivatives: tuple[Any | None, Any | None],
    *,
    size: int,
    threads: int,
) -> None:
    """Write the derivative by ``x`` to ``out``, and those by weight and bias to ``derivatives``."""

def gram(lists: list[list[Any | None]], threads: int) -> list[list[float]]:
    """The inner products of all pairs of lists, in float64."""

def norms(gradient: list[Any | None], orders: list[int], threads: int) -> list[float]:
    """The l1 norm, and the square of the l2 norm, in float64 and in one pass; 0 for what ``orders`` leave out."""

def follow(gradient: list[Any | None], before: list[Any | None], threads: int) -> list[float]:
    """The squares of the norms of ``gradient`` and ``gradient - before``, and ``before <- gradient``, in one pass."""

def descend(r: list[Any], q: list[Any], alpha: float, threads: int) -> float:
    """``r <- r - alpha * q``, and the square of the norm of r, in one pass."""

def advance(x: list[Any], p: list[Any], z: list[Any], alpha: float, beta: float, threads: int) -> None:
    """``x <- x + alpha * p`` and ``p <- z + beta * p``, in one pass."""

def normalized_step(
    buffers: list[Any], direction: list[Any], params: list[Any], momentum: float, lr: float, threads: int
) -> float:
    """``direction <- momentum * buffers + (1 - momentum) * direction``, ``params <- params - lr / norm * direction``.

    Returns the norm, of all tensors of the new ``direction``. Where it is 0 or not finite ``params`` stay.
    """

def combine(
    lists: list[list[Any | None]], outputs: list[list[Any | None]], factors: list[list[float]], threads: int
) -> None:
    """Write to each list of outputs the sum of all lists, each times its factor; outputs may be inputs."""

class Report:
    """How far a solver has come, or how it ended."""

    steps: int
    gap: float
    """How far from the solution it is at most, in the solver's own unit."""
    status: str
    """``running``, ``converged``; ``stalled``: rounding lets no step come nearer; ``out of steps``."""

def min_norm(
    gram: npt.NDArray[np.float64],
    *,
    initial: list[float] | None = None,
    callback: Callable[[Report], object] | None = None,
    max_steps: int | None = None,
) -> npt.NDArray[np.float64]:
    """The weights of the point of least norm in a convex hull.

    Without the GIL; a signal handler that raises ends it, as does the callback, which is called about every 50 ms and
    with the last report. What is given is copied first and not changed. Its gap is by how much half the squared norm
    may exceed the least one, in units of the largest number of the gram.
    """

def cagrad(
    gram: npt.NDArray[np.float64],
    *,
    c: float,
    initial: list[float] | None = None,
    callback: Callable[[Report], object] | None = None,
    max_steps: int | None = None,
) -> npt.NDArray[np.float64]:
    """CAGrad's weights, as :func:`min_norm`; its gap is the part that the worst combination's norm is not sure of."""

def nash_mtl(
    gram: npt.NDArray[np.float64],
    *,
    initial: list[float] | None = None,
    callback: Callable[[Report], object] | None = None,
    max_steps: int | None = None,
) -> npt.NDArray[np.float64]:
    """Nash-MTL's weights, as :func:`min_norm`; its gap is by how much the value that they minimize may be too high."""

def upgrad(
    gram: npt.NDArray[np.float64],
    *,
    initial: list[list[float]] | None = None,
    callback: Callable[[Report], object] | None = None,
    max_steps: int | None = None,
) -> npt.NDArray[np.float64]:
    """UPGrad's weights, a row for each task, as :func:`min_norm`; its gap is the most that is left of a conflict."""

def pcgrad(gram: npt.NDArray[np.float64], orders: list[list[int]]) -> npt.NDArray[np.float64]:
    """PCGrad's weights, a row for each task."""

def krylov_fill(out: Any, *, signs: bool, seed: int, number: int, threads: int) -> None:
    """Fills a vector with random signs, or with numbers between -1 and 1, chosen by a seed and a number beside it.

    This and what follows is for vectors of one length, of float32 or float64, and computes in float64. Raises with
    nothing changed if they do not go together, or if the one that is changed overlaps another.
    """

def krylov_recur(product: Any, before: Any, beta: float, q: Any, out: Any, threads: int) -> float:
    """Writes ``product - beta * before`` to ``out``; returns its inner product with ``q``."""

def krylov_subtract(w: Any, q: Any, alpha: float, threads: int) -> float:
    """Writes ``w - alpha * q`` to ``w``; returns its norm."""

def krylov_orthogonalize(basis: Any, block: Any, threads: int) -> tuple[list[list[float]], list[float]]:
    """Writes ``w - Q c`` with ``c = Q' w`` to each row w of a block, of an orthonormal basis of which the rows are the
    columns of Q, and takes the block's rows before it likewise; returns c and the norm of every row."""

def krylov_scale(w: Any, factor: float, threads: int) -> None:
    """Multiplies ``w`` by a factor."""

def ema(targets: list[Any], sources: list[Any], tau: float, threads: int) -> None:
    """``target <- target + tau * (source - target)``"""
