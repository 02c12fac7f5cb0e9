"""Our optimizers by name in Hugging Face's Trainer, and in the trainers that descend from it (TRL's).

transformers itself is not imported here.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ferrostep.errors import Problem
from ferrostep.integrations.classes import class_of
from ferrostep.optim import MuonAdamW
from ferrostep.optim.given import GroupsOf
from ferrostep.suggestions import meant

__all__ = ["TrainerMixin"]

OF_ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
"""The defaults of ``TrainingArguments``, which do not tell what was given from what was not."""


class TrainerMixin:
    """Lets ``TrainingArguments(optim_args="ferrostep=AdamW, ...")`` choose one of :mod:`ferrostep.optim`.

    To stand before the trainer among the bases. ``optim`` takes the names of transformers' own list only, hence
    ``optim_args``, which a command line, a file of arguments and a checkpoint carry, too. Its entries are separated by
    commas; ``ferrostep`` is the name of the class, the others are its arguments: numbers, tuples, True, False, None,
    or words. The learning rate, the weight decay and its exceptions are those of the arguments, as for any optimizer.
    So are ``betas`` and ``eps`` of classes that have ``betas``, where ``adam_beta1``, ``adam_beta2`` and
    ``adam_epsilon`` are not transformers' defaults: then the class's own stand. ``optim_args`` comes before all of
    these. ``MuonAdamW`` gets the model, by whose modules it routes the parameters.
    Without ``ferrostep`` in ``optim_args`` nothing changes.

    Example:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(learning_rate=1e-4, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8)
        >>> args.optim_args = "ferrostep=Lion, betas=(0.95, 0.98), rounding=kahan"
        >>> TrainerMixin.get_optimizer_cls_and_kwargs(args)
        (<class 'ferrostep.optim.lion.Lion'>, {'lr': 0.0001, 'betas': (0.95, 0.98), 'rounding': 'kahan'})
    """

    @classmethod
    def get_optimizer_cls_and_kwargs(cls, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """What the Trainer makes its optimizer of: the class and the arguments.

        Args:
            args: the ``TrainingArguments``.
            model: for ``MuonAdamW``, and the optimizers of transformers that look at it.

        Raises:
            ValueError: ``optim_args`` that cannot be read, or a name that is no optimizer's.
        """
        if not is_ours(args.optim_args or ""):
            found: tuple[Any, dict[str, Any]] = super().get_optimizer_cls_and_kwargs(args, model)  # type: ignore[misc]
            return found
        given = entries(args.optim_args)
        optimizer_class = class_of(str(given.pop("ferrostep", None)))
        kwargs = {"lr": args.learning_rate, **of_adam(args, optimizer_class)}
        if optimizer_class is MuonAdamW and model is not None:
            decayed = cls.get_decay_parameter_names(None, model)  # type: ignore[attr-defined]
            kwargs["params"] = groups_of(model, decayed, args.weight_decay)
        return optimizer_class, {**kwargs, **given}


def is_ours(text: str) -> bool:
    """Whether an entry is called ``ferrostep``, or what was probably meant to be: that must not leave torch's class."""
    words = re.findall(r"(?:^|,)\s*(\w+)", text)
    near = [word for word in words if meant(word, ["ferrostep"], cutoff=0.8)]
    if near and "ferrostep" not in near:
        raise Problem.NUMBER.of("optim_args", repr(text), f"'ferrostep' for {near[0]!r}")
    return bool(near)


def of_adam(args: Any, optimizer_class: type[Optimizer]) -> dict[str, Any]:
    """``betas`` and ``eps`` from the arguments that are named after Adam, those that someone has chosen."""
    own = inspect.signature(optimizer_class).parameters
    if "betas" not in own:
        return {}
    chosen = {name: value for name, default in OF_ADAM.items() if (value := getattr(args, name)) != default}
    found: dict[str, Any] = {}
    if chosen.keys() - {"adam_epsilon"}:
        first, second = own["betas"].default
        found["betas"] = (chosen.get("adam_beta1", first), chosen.get("adam_beta2", second))
    if "adam_epsilon" in chosen and "eps" in own:
        found["eps"] = chosen["adam_epsilon"]
    return found


def groups_of(model: nn.Module, decayed: Collection[str], weight_decay: float) -> GroupsOf:
    """The groups that the Trainer makes, with the model."""
    groups = []
    for decays in (True, False):
        params = [p for name, p in model.named_parameters() if p.requires_grad and (name in decayed) is decays]
        groups.append({"params": params, "weight_decay": weight_decay if decays else 0.0})
    return GroupsOf(model, groups)


def entries(text: str) -> dict[str, Any]:
    """``"a=1, b=(2, 3), c=word"`` as a dict; ValueError for what is not of this form."""
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(each.arg is None for each in call.keywords):
            raise ValueError(text)
        return {str(each.arg): value_of(each.value) for each in call.keywords}
    except (SyntaxError, ValueError) as error:
        expected = "entries such as 'ferrostep=AdamW, betas=(0.9, 0.95), rounding=kahan'"
        raise Problem.NUMBER.of("optim_args", repr(text), expected) from error


def value_of(node: ast.expr) -> Any:
    """A word, or what Python's literals stand for."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
