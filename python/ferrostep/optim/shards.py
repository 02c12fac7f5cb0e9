"""DTensors (FSDP2, tensor parallelism): of each, a rank steps its own shard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.errors import Problem, wrong_kind
from ferrostep.optim.layouts import is_in_blocks, mesh_dims
from ferrostep.optim.options import is_coded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

    from ferrostep.optim.rules import Rule


def _kind() -> type[DTensor] | None:
    """The class, once it is loaded, and not half of it by another thread: before, there are none."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_distributed(x: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor."""
    kind = _kind()
    return kind is not None and isinstance(x, kind)


def those_of(params: Iterable[Tensor]) -> list[Tensor]:
    """The DTensors among parameters."""
    kind = _kind()
    return [] if kind is None else [p for p in params if isinstance(p, kind)]


def are_among(params: Iterable[Tensor]) -> bool:
    """Whether there are DTensors among parameters."""
    return bool(those_of(params))


def local(x: Tensor) -> Tensor:
    """The memory of this rank's shard, which `to_local` would make a view of; any other tensor as it is."""
    if not is_distributed(x):
        return x
    own: Tensor = x._local_tensor
    # What a collective operation has yet to bring.
    return own if type(own) is Tensor or not hasattr(own, "wait") else own.wait()


def shard(place: Callable[[], str], x: Any, p: DTensor) -> Tensor:
    """This rank's shard of what goes with parameter ``p``; raise for what is placed otherwise."""
    if not is_distributed(x):
        raise wrong_kind(place(), x, "a DTensor, as the parameter is")
    if x.placements != p.placements:
        raise Problem.COUNT.of(place(), f"placements {x.placements}", f"the parameter's, {p.placements}")
    if x.device_mesh is not p.device_mesh and x.device_mesh != p.device_mesh:
        raise Problem.COUNT.of(place(), f"device mesh {x.device_mesh}", f"the parameter's, {p.device_mesh}")
    return local(x)


def of_rank(place: Callable[[int], str], column: list[Any], params: list[Tensor]) -> list[Any]:
    """This rank's shards of a column of tensors that go with ``params``; those that are no DTensors as they are.

    Models under FSDP2 have hundreds of small parameters, so what is as it should be is passed without a call.
    """
    from torch.distributed.tensor import DTensor

    own, others = _core.shards(column, params, DTensor, Tensor)
    for i in others:
        p = params[i]
        if column[i] is not None and isinstance(p, DTensor):
            own[i] = shard(partial(place, i), column[i], p)
    return own


def zeros(shape: Sequence[int], dtype: torch.dtype, p: DTensor) -> DTensor:
    """Zeros placed as a parameter is."""
    from torch.distributed import tensor

    return tensor.zeros(*shape, dtype=dtype, device_mesh=p.device_mesh, placements=p.placements)


def of_local(own: Tensor, p: DTensor) -> DTensor:
    """The DTensor of which this rank has ``own``, placed as a parameter is."""
    from torch.distributed.tensor import DTensor

    shape, stride = p.shape, p.stride()
    return DTensor.from_local(own, p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride)


def split_dims(p: DTensor) -> dict[int, int]:
    """The dimensions of the mesh over which the parameter is split, each with the dimension of it that is.

    Raises:
        NotImplementedError: its shards are sums, or are placed in another way that no optimizer can step.
    """
    dims = {}
    for mesh_dim in mesh_dims(p.device_mesh, p.placements):
        placement = p.placements[mesh_dim]
        if not hasattr(placement, "dim"):
            raise NotImplementedError(f"placements {p.placements}, expected Shard or Replicate")
        dims[mesh_dim] = placement.dim
    return dims


def is_in_parts(p: Tensor, hyperparameters: Mapping[str, Any]) -> bool:
    """Whether no rank has whole matrices of the parameter, as a rule of matrices sees it."""
    if not is_distributed(p):
        return False
    dims = split_dims(p).values()
    counting = p.ndim - 2 if hyperparameters.get("ndim_policy") == "batch" else 0
    return any(dim >= counting for dim in dims)


def process_groups(params: Iterable[Tensor]) -> list[ProcessGroup]:
    """The process groups that parameters are split over, in order; also in ways that no optimizer can step."""
    kind = _kind()
    layouts = set() if kind is None else {*_core.layouts([*params], kind)}
    return in_order(mesh.get_group(i) for mesh, placements in layouts for i in mesh_dims(mesh, placements))


def who_share(param_groups: Iterable[Mapping[str, Any]]) -> list[ProcessGroup]:
    """The process groups that the parameters of parameter groups are split over, in order."""
    return process_groups(chain.from_iterable(group["params"] for group in param_groups))


def in_order(groups: Iterable[ProcessGroup]) -> list[ProcessGroup]:
    """Process groups, each once, in an order in which no ranks wait for one another and news reaches all.

    All ranks of a mesh first speak along one of its dimensions, where ranks are nearest, then along the next, so that
    what one has said is known to all at the end. A mesh's slices count as the mesh.
    """

    def place(group: ProcessGroup) -> tuple[int, list[int]]:
        ranks = sorted(torch.distributed.get_process_group_ranks(group))
        return ranks[1] - ranks[0], ranks

    return sorted(set(groups), key=place)


def check_placements(place: str, p: DTensor, group: Mapping[str, Any], rule: Rule | None) -> None:
    """Raise NotImplementedError for a parameter that cannot be stepped; ``rule`` is one that needs whole matrices."""
    where = f"{place} on rank {torch.distributed.get_rank()}"
    if group["differentiable"]:
        raise NotImplementedError(f"{where} is a DTensor, which differentiable=True does not support")
    try:
        split_dims(p)
    except NotImplementedError as error:
        raise NotImplementedError(f"{where} has {error}") from None
    if rule is None or not is_in_parts(p, rule.hyperparameters):
        return
    if any(is_coded(name, group) for name in rule.signed):
        raise NotImplementedError(
            f"{where} is in parts (placements {p.placements}), and this rule looks at all of it; expected another "
            "state_dtype than 'int8', whose codes each rank has for itself"
        )
    if not is_in_blocks(p):
        raise NotImplementedError(
            f"{where} has placements {p.placements}; expected shards that are blocks, as FSDP2 and tensor parallelism "
            "make them, so that a rank can own its matrices"
        )
    if rule.hyperparameters.get("skip_zero_grad"):
        raise NotImplementedError(
            f"{where} has matrices in parts (placements {p.placements}), of which skip_zero_grad=True does not see "
            "the gradient as a whole; expected whole matrices on each rank, such as experts split along dimension 0"
        )


def whole(column: list[Any]) -> list[Any]:
    """The tensors that DTensors are shards of, gathered from all ranks."""
    return [_whole(x) if is_distributed(x) else x for x in column]


def _whole(x: DTensor) -> Tensor:
    # Gloo does not send 16-bit integers.
    sent: Any = x.detach().to(torch.int32 if x.dtype == torch.int16 else x.dtype)
    full: Tensor = sent.full_tensor()
    return full.to(x.dtype)


def own_part(x: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's shard of a DTensor and of what is new for it as a whole; other tensors as they are."""
    if not is_distributed(x):
        return x, new
    from torch.distributed.tensor import distribute_tensor

    return local(x), local(distribute_tensor(new, x.device_mesh, x.placements, src_data_rank=None))
