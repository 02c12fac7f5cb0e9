"""The words that options take, each list once: a type for editors and type checkers, and what checks go by."""

from __future__ import annotations

from typing import Literal, TypeAlias

Rounding: TypeAlias = Literal["nearest", "stochastic", "kahan"]
StateCodes: TypeAlias = Literal["int8"]
MasterWeights: TypeAlias = Literal["split", "float32"]
Backend: TypeAlias = Literal["auto", "rust", "reference"]
Precision: TypeAlias = Literal["auto", "float64", "float32", "bfloat16"]
"""Of the products in Newton-Schulz."""
Algorithm: TypeAlias = Literal["auto", "standard", "gram"]
"""Of Newton-Schulz."""
Kappa: TypeAlias = Literal["sign", "lp", "deadzone", "topk", "huber", "l2", "row", "identity"]
"""What takes the place of the sign in Lion-K."""
NdimPolicy: TypeAlias = Literal["error", "flatten", "batch"]
"""What a parameter of more than 2 dimensions is to Muon."""
Distribution: TypeAlias = Literal["rademacher", "gaussian"]
"""Of probes of the curvature."""
Curvature: TypeAlias = Literal["hessian", "ggn"]
"""Which matrix of a loss: the Hessian, or the Gauss-Newton matrix."""
Reorthogonalization: TypeAlias = Literal["full", "none"]
"""Against which vectors Lanczos iteration makes a new one orthogonal, beyond the last two."""
Spectrum: TypeAlias = Literal["LA", "SA", "LM"]
"""Which eigenvalues: the largest, the smallest, those of the largest magnitude."""
Base: TypeAlias = Literal["cond", "uncond"]
"""What guidance is added to."""
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "flow_prediction", "sample"]
