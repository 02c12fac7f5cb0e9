"""The density of a symmetric matrix's eigenvalues, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ferrostep.choices import Reorthogonalization
from ferrostep.curvature.krylov import lanczos
from ferrostep.curvature.operators import LinearOperator, random_vector
from ferrostep.figures import axes
from ferrostep.numpy.arrays import check, whole
from ferrostep.suggestions import suggesting

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class SpectralDensity(NamedTuple):
    """Where the eigenvalues of a matrix lie, of :func:`spectral_density`. All float64, on the CPU.

    Example:
        >>> found = spectral_density(LinearOperator(lambda v: torch.tensor([1.0, 2.0, 3.0]) * v, 3), grid=11)
        >>> found.grid.shape, round(float((found.weights * found.nodes).sum()), 4)  # the mean eigenvalue
        (torch.Size([11]), 2.0)
    """

    grid: Tensor
    """Where the density is given, of shape (grid,), evenly spaced."""
    density: Tensor
    """The share of eigenvalues per unit, of shape (grid,): its integral is 1."""
    nodes: Tensor
    """The Ritz values of all probes, of shape (n,). The trace of f(A) is about ``P * sum(weights * f(nodes))``."""
    weights: Tensor
    """The share of eigenvalues that each node stands for, of shape (n,): their sum is 1."""
    sigma: float
    """The standard deviation of the normal distribution that each node is drawn as."""

    def __repr__(self) -> str:
        """Without the numbers, of which there are thousands."""
        start, end = self.grid[0].item(), self.grid[-1].item()
        return f"SpectralDensity(from {start:.4g} to {end:.4g}, {len(self.nodes)} nodes, sigma={self.sigma:.4g})"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the density, on a logarithmic scale (needs matplotlib: the extra ``demo``).

        Args:
            ax: axes of matplotlib to draw on; by default those of a new figure.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        ax = axes(ax)
        ax.semilogy(self.grid.tolist(), self.density.tolist())
        top = float(self.density.max())
        ax.set(xlabel="eigenvalue", ylabel="density", ylim=(1e-8 * top, 2 * top))
        return ax


@suggesting
def spectral_density(
    op: LinearOperator,
    steps: int = 100,
    probes: int = 10,
    grid: int = 1000,
    sigma: float | None = None,
    *,
    reorth: Reorthogonalization = "full",
    seed: int = 0,
) -> SpectralDensity:
    r"""The density of the eigenvalues by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

    ``density(x) = mean over probes of sum_i w_i Normal(x; theta_i, sigma)`` with the Ritz values theta and weights w of
    ``steps`` Lanczos steps from a vector of random signs.

    Args:
        op: the matrix, as an operator on vectors of shape (P,) and of its dtype.
        steps: products for each probe, at least 1. Default 100.
        probes: vectors, at least 1. Default 10: an eigenvalue's weight, 1 / P, is known to about ``sqrt(2 / probes)``.
        grid: points at which the density is given, at least 2, from the least to the greatest Ritz value and five
            ``sigma`` beyond. Default 1000.
        sigma: the width of a Ritz value, above 0. Default None: a hundredth of the Ritz values' range.
        reorth: as of :func:`lanczos`; ``"full"`` (default) keeps ``(steps + 1) * P`` numbers, ``"none"`` 3 P.
        seed: of the vectors; any machine and number of threads has the same. Default 0.

    Returns:
        The density, and the nodes and weights that it is made of.

    Raises:
        TypeError, ValueError: an impossible argument, a product that is not finite, or a matrix that is not symmetric.

    Example:
        >>> diagonal = torch.cat([torch.zeros(90), torch.full((10,), 5.0)])
        >>> found = spectral_density(LinearOperator(lambda v: diagonal * v, 100))
        >>> round(float(found.weights[found.nodes > 2.5].sum()), 4)
        0.1
    """
    steps, probes, grid = whole("steps", steps, 1), whole("probes", probes, 1), whole("grid", grid, 2)
    if sigma is not None:
        check("sigma", sigma, math.ulp(0.0))
    found = [
        lanczos(op, steps, reorth=reorth, q1=random_vector(op, seed, number, signs=True)) for number in range(probes)
    ]
    nodes = torch.cat([each.values for each in found])
    weights = torch.cat([each.weights for each in found]) / probes
    low, high = float(nodes.min()), float(nodes.max())
    if sigma is None:
        # Of one eigenvalue alone, part of its size.
        sigma = 1e-2 * (high - low or abs(high) or 1.0)
    points = torch.linspace(low - 5 * sigma, high + 5 * sigma, grid, dtype=torch.float64)
    bells = torch.exp(-0.5 * ((points[:, None] - nodes) / sigma) ** 2)
    return SpectralDensity(points, bells @ weights / (sigma * math.sqrt(2 * math.pi)), nodes, weights, sigma)
