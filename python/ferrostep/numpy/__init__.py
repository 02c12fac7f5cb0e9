"""The update rules, matrix kernels and projections for NumPy arrays; torch is not needed.

Arrays are float32, float64, float16 or bfloat16 (of ml_dtypes), of any layout; for the update rules also complex64 or
complex128. Those of one call have the same shape, but where it says otherwise. In an update rule the gradient has the
parameter's dtype; states have one dtype together: the parameter's, or float32 for 16-bit parameters, or bfloat16. The
arithmetic is float64 for float64 and complex128, else float32.

A call uses at most ``num_threads`` threads: by default as many as there are CPUs that the process may use, by its
affinity (``taskset``) and its cgroup's quota (a container's). ``OMP_NUM_THREADS`` and ``torch.set_num_threads`` do not
count here, and the results do not depend on the number.

Every function raises TypeError or ValueError, with nothing changed, for arrays that do not fit: wrong dtype or shape,
read-only, or sharing memory.
"""

from ferrostep.numpy import projections, prox
from ferrostep.numpy.elementwise import adamw_, lion_, sgd_
from ferrostep.numpy.gradients import combine, ema_, gram, orthogonal_, orthogonal_combine_, pcgrad_
from ferrostep.numpy.guidance import apg, cfg, cfg_zero_star, magnitude_aware, perp_neg, project, tangential
from ferrostep.numpy.matrices import orthogonalize
from ferrostep.numpy.weights import (
    aligned_mtl_weights,
    cagrad_weights,
    imtl_g_weights,
    min_norm_weights,
    nash_mtl_weights,
    pcgrad_weights,
    upgrad_weights,
)

__all__ = [
    "adamw_",
    "aligned_mtl_weights",
    "apg",
    "cagrad_weights",
    "cfg",
    "cfg_zero_star",
    "combine",
    "ema_",
    "gram",
    "imtl_g_weights",
    "lion_",
    "magnitude_aware",
    "min_norm_weights",
    "nash_mtl_weights",
    "orthogonal_",
    "orthogonal_combine_",
    "orthogonalize",
    "pcgrad_",
    "pcgrad_weights",
    "perp_neg",
    "project",
    "projections",
    "prox",
    "sgd_",
    "tangential",
    "upgrad_weights",
]
