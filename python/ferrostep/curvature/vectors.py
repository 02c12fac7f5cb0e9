"""The vector work of Lanczos iteration."""

from ferrostep.reference.krylov import dot, fill, orthogonalize, recur, scale, subtract

__all__ = ["dot", "fill", "orthogonalize", "recur", "scale", "subtract"]
