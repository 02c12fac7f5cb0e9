"""Between what a model predicts and the denoised sample that follows from it."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from ferrostep.choices import PredictionType
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.reference import checks


def to_denoised(
    prediction: Tensor,
    sample: Tensor,
    *,
    prediction_type: PredictionType,
    alpha: float | Tensor = 1.0,
    sigma: float | Tensor,
) -> Tensor:
    """The denoised sample that a prediction stands for.

    The noised sample is ``alpha * x0 + sigma * noise``. Plain torch, on any device and under autograd.

    Args:
        prediction: the model's output, of any shape and floating-point dtype.
        sample: the noised sample, of the same shape.
        prediction_type: ``"epsilon"`` (the noise), ``"v_prediction"`` (``alpha * noise - sigma * x0``, where
            ``alpha**2 + sigma**2 == 1``), ``"flow_prediction"`` (``noise - x0``, where ``alpha == 1 - sigma``), or
            ``"sample"`` (x0 itself): diffusers' names.
        alpha, sigma: numbers, or tensors that broadcast with the sample. A flow's time is its sigma. Default
            of alpha: 1.

    Returns:
        x0, a new tensor; the prediction itself for ``"sample"``.

    Raises:
        TypeError: something else than tensors or numbers.
        ValueError: an unknown ``prediction_type``, or different shapes.

    Example:
        >>> import torch
        >>> noise, sample = torch.tensor([0.5]), torch.tensor([1.0])
        >>> to_denoised(noise, sample, prediction_type="epsilon", alpha=0.8, sigma=0.6)
        tensor([0.8750])
    """
    _check(prediction_type, prediction=prediction, sample=sample)
    _check_numbers(alpha=alpha, sigma=sigma)
    if prediction_type == "epsilon":
        return (sample - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * sample - sigma * prediction
    if prediction_type == "flow_prediction":
        return sample - sigma * prediction
    return prediction


def from_denoised(
    denoised: Tensor,
    sample: Tensor,
    *,
    prediction_type: PredictionType,
    alpha: float | Tensor = 1.0,
    sigma: float | Tensor,
) -> Tensor:
    """The prediction that stands for a denoised sample: the inverse of :func:`to_denoised`.

    Args:
        denoised: x0, of any shape and floating-point dtype.
        sample: the noised sample, of the same shape.
        prediction_type, alpha, sigma: as of :func:`to_denoised`. ``sigma`` must not be 0 but for ``"sample"``.

    Returns:
        The prediction, a new tensor; x0 itself for ``"sample"``.

    Raises:
        TypeError: something else than tensors or numbers.
        ValueError: an unknown ``prediction_type``, or different shapes.

    Example:
        >>> import torch
        >>> x0, sample = torch.tensor([0.875]), torch.tensor([1.0])
        >>> from_denoised(x0, sample, prediction_type="epsilon", alpha=0.8, sigma=0.6)
        tensor([0.5000])
    """
    _check(prediction_type, denoised=denoised, sample=sample)
    _check_numbers(alpha=alpha, sigma=sigma)
    if prediction_type == "epsilon":
        return (sample - alpha * denoised) / sigma
    if prediction_type == "v_prediction":
        return (alpha * sample - denoised) / sigma
    if prediction_type == "flow_prediction":
        return (sample - denoised) / sigma
    return denoised


def _check(prediction_type: PredictionType, **tensors: Tensor) -> None:
    known = get_args(PredictionType)
    if prediction_type not in known:
        raise wrong_choice("prediction_type", prediction_type, *known)
    for name, x in tensors.items():
        checks.tensor(name, x)
    (_, first), (name, second) = tensors.items()
    if second.shape != first.shape:
        raise Problem.SHAPE.of(name, list(second.shape), list(first.shape))


def _check_numbers(**numbers: float | Tensor) -> None:
    for name, x in numbers.items():
        if not hasattr(x, "__float__"):
            raise wrong_kind(name, x, "a number or a torch.Tensor")
