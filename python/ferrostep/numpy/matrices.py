"""Newton-Schulz for NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ferrostep import _core
from ferrostep.choices import Algorithm, Precision
from ferrostep.coefficients import Coefficients, schedule_of
from ferrostep.numpy.arrays import Array, integers, listed, threads


def orthogonalize(
    arrays: Array | Sequence[Array],
    *,
    steps: int | None = None,
    coefficients: Coefficients = "keller",
    precision: Precision = "auto",
    algorithm: Algorithm = "auto",
    restarts: Sequence[int] = (2,),
    eps: float = 0.0,
    out: Array | Sequence[Array] | None = None,
    num_threads: int | None = None,
) -> Array | list[Array]:
    """Orthogonalize matrices by Newton-Schulz, as :func:`ferrostep.orthogonalize`, on arrays.

    Args:
        arrays: an array of shape (..., rows, columns), or several, of dtype float32, float64, float16 or bfloat16.
        steps, coefficients, precision, algorithm, restarts, eps: as of :func:`ferrostep.orthogonalize`.
        out: where the results go, of the shapes and dtypes of ``arrays``, which may be ``arrays`` themselves.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        The results, in ``out`` or new arrays.

    Raises:
        TypeError, ValueError: an array that does not fit, or an impossible argument; nothing has been changed then.

    Example:
        >>> orthogonal = orthogonalize(np.array([[3.0, 0.0], [4.0, 5.0]]), steps=15, coefficients="classic")
        >>> abs(orthogonal @ orthogonal.T).round(3)
        array([[1., 0.],
               [0., 1.]])
    """
    single = isinstance(arrays, np.ndarray)
    inputs = [arrays] if isinstance(arrays, np.ndarray) else listed("arrays", arrays)
    given = [out] if single and isinstance(out, np.ndarray) else out
    outputs = [np.empty_like(x) for x in inputs] if given is None else listed("out", given)
    _core.orthogonalize(
        inputs,
        outputs,
        schedule=schedule_of(coefficients, steps),
        eps=eps,
        algorithm=algorithm,
        precision=precision,
        restarts=integers("restarts", restarts),
        threads=threads(num_threads),
    )
    return outputs[0] if single else outputs
