"""Parameters, and what stands for them on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep.errors import Problem
from ferrostep.offload.transfers import transfers_of
from ferrostep.optim.shards import is_distributed
from ferrostep.reference import checks


class Twin:
    """A parameter, and the one that an optimizer on the host has in its place, of a dtype that may be another.

    Both are one where that is possible. Otherwise the one on the host has what the optimizer made of it, unless someone
    else has written the parameter since. With ``casts`` it gets its gradient in its own dtype.
    """

    @torch.inference_mode(False)  # here and below: whatever the mode, later steps write what is made
    def __init__(self, param: Tensor, dtype: torch.dtype, casts: bool) -> None:
        self.param = param
        self.device = param.device
        self._shape, self._dtype = list(param.shape), param.dtype
        self.host = param
        self.is_stepped = False
        """Whether the one on the host has anything that the parameter has not."""
        self._casts = casts
        self._forget_transfers()
        if is_on_host(param) and dtype == param.dtype:
            return
        if param.is_meta:
            raise RuntimeError("a parameter is on device meta, which has no memory; materialize it first")
        if is_distributed(param):
            raise NotImplementedError(
                f"HostOptimizer does not support distributed tensors on {param.device}{' with this class' * casts}; "
                "it takes those on the CPU with classes of ferrostep"
            )
        weight = self._room() if dtype == param.dtype else on_host(param, dtype)
        self.host = Parameter(weight, requires_grad=param.requires_grad)
        self._follow()

    def _forget_transfers(self) -> None:
        """Begin without gradients, and with a parameter of which nothing is known."""
        self._seen: tuple[int, int] | None = None
        self._sent = checks.version(self.host)
        """The version of the host's weight that the parameter has."""
        self._gradient: Tensor | None = None
        self._later: Tensor | None = None
        self._cast: Tensor | None = None
        self._arrived = 0

    def _room(self) -> Tensor:
        """Memory for a weight that is copied to and fro."""
        return transfers_of(self.device).buffer_like(self.param)

    @property
    def is_copy(self) -> bool:
        """Whether there are two tensors."""
        return self.host is not self.param

    @property
    def is_master(self) -> bool:
        """Whether the one on the host is more precise."""
        return self.host.dtype != self.param.dtype

    @property
    def is_written(self) -> bool:
        """Whether the one on the host has been written since both were alike."""
        return self.host._version != self._sent

    @property
    def has_gradient(self) -> bool:
        """Whether there is a gradient for a step."""
        return self._arrived > 0 or self.param.grad is not None

    def check(self, number: int, i: int) -> None:
        """Raise for parameter ``i`` in group ``number`` if a step cannot be taken of it.

        Raises:
            RuntimeError: it was moved, or its gradient cannot be copied, or was too early.
            ValueError: it is of another dtype or shape, and its copy is not.
        """
        place = f"parameter {i} in group {number}"
        if self.param.device != self.device:
            expected = f"{self.device}, where it was when the optimizer got it"
            raise Problem.DEVICE.of(f"param of {place}", self.param.device, expected)
        if not self.is_copy:
            return
        for problem, now, before in (
            (Problem.DTYPE, self.param.dtype, self._dtype),
            (Problem.SHAPE, list(self.param.shape), self._shape),
        ):
            if now != before:
                raise problem.of(f"param of {place}", now, f"{before}, as when the optimizer got it")
        grad = self.param.grad
        if grad is not None and grad.layout != torch.strided:
            raise Problem.LAYOUT.of(f"grad of {place}", grad.layout, torch.strided)
        if self._arrived and grad is not None:
            raise RuntimeError(
                f"grad of {place} came after offload_gradients=True had taken one to the host; where gradients come "
                "after the backward pass, as with DistributedDataParallel, it has to be False"
            )

    def arrive(self) -> None:
        """Take a gradient of the backward pass to the host, and free it on the device; several are added up."""
        grad = self.param.grad
        if grad is None or grad.layout != torch.strided:
            return  # the step will say so
        if self._arrived == 0:
            self._gradient = self._copied(grad, self._gradient)
        else:
            self._add_later()
            self._later = self._copied(grad, self._later)
        self._arrived += 1
        self.param.grad = self.host.grad = None

    def _add_later(self) -> None:
        """Add what came after the first gradient, and has not been added yet."""
        if self._arrived > 1 and self._gradient is not None and self._later is not None:
            transfers_of(self.device).wait()
            self._gradient.add_(self._later)
            self._arrived = 1

    @torch.inference_mode(False)
    def _copied(self, grad: Tensor, buffer: Tensor | None) -> Tensor:
        """A copy on the host, once the transfers have been waited for; in the same memory if it can be."""
        grad = grad.detach()
        transfers = transfers_of(self.device)
        if buffer is None or (buffer.shape, buffer.dtype, buffer.stride()) != (grad.shape, grad.dtype, grad.stride()):
            buffer = transfers.buffer_like(grad)
        transfers.to_host(grad, buffer)
        return buffer

    def fetch(self) -> None:
        """Begin to take to the host what is not there: a gradient, and a weight that someone has written.

        A weight on the host that an interrupt has kept there goes to the parameter.
        """
        if self._seen != self._state_of_param():
            self._follow()
        elif self.is_written:
            self.send()
        grad = self.param.grad
        if self._arrived == 0 and grad is not None:
            self._gradient = grad.detach() if is_on_host(self.param) else self._copied(grad, self._gradient)

    @torch.inference_mode(False)
    def receive(self) -> None:
        """Give the host's parameter the gradient that was waited for; one that it has from an arrival, it keeps."""
        if self._arrived and self.host.grad is not None:
            return
        self.host.grad = None
        self._add_later()
        if not self.has_gradient or self._gradient is None:
            return
        gradient = self._gradient
        if self._casts and gradient.dtype != self.host.dtype:
            if self._cast is None:
                self._cast = torch.empty_like(self.host, requires_grad=False)
            gradient = self._cast.copy_(gradient)
        if gradient.dtype != self.host.dtype or self.host.dtype != getattr(self.host, "grad_dtype", self.host.dtype):
            self.host.grad_dtype = gradient.dtype
        self.host.grad = gradient

    def send(self) -> None:
        """Begin to copy the new weight to the parameter."""
        with torch.no_grad():
            transfers_of(self.device).to_device(self.host.detach(), self.param)
        self._alike()
        self.is_stepped = True

    def _alike(self) -> None:
        """Remember that both are alike now."""
        self._seen, self._sent = self._state_of_param(), self.host._version

    def forget(self) -> None:
        """Drop the gradient on the host."""
        self.host.grad = None
        self._arrived = 0

    def load(self, master: Tensor) -> None:
        """Take a loaded master in, where the parameter is what it rounds to."""
        with torch.no_grad():
            self.host.copy_(master)
        self.is_stepped = True
        self._follow()

    def _follow(self) -> None:
        """Take the parameter's present value in, but for elements that a master rounds to."""
        now = on_host(self.param, self.param.dtype)
        if self.is_master:
            now = torch.where(self.host.detach().to(now.dtype) == now, self.host.detach(), now.to(self.host.dtype))
        transfers_of(self.device).wait()  # an earlier weight may be on its way
        with torch.no_grad():
            self.host.copy_(now)
        self._alike()

    def _state_of_param(self) -> tuple[int, int]:
        """What changes when the parameter is written, but through its ``data``, or gets other memory."""
        return self.param._version, self.param.data_ptr()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_transfers()
        if self.is_copy and self.host.dtype == self.param.dtype:
            weight = self._room().copy_(self.host.detach())  # what was copied or pickled is not pinned
            self.host.data = weight


def is_on_host(p: Tensor) -> bool:
    """Whether the kernels reach the parameter; one without memory is left for them to refuse."""
    return p.device.type in ("cpu", "meta")


def on_host(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the host, in the layout of the tensor."""
    return x.detach().to("cpu", dtype, copy=True, memory_format=torch.preserve_format)
