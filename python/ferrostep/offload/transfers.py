"""Copies between a device and the host."""

from __future__ import annotations

import torch
from torch import Tensor


class Transfers:
    """Copies that are finished when they return, as any device allows."""

    def to_host(self, source: Tensor, target: Tensor) -> None:
        """Copy a gradient, of what the device has been told to do so far, to the host."""
        target.copy_(source)

    def to_device(self, source: Tensor, target: Tensor) -> None:
        """Copy a weight to the device, before what it is told to do next."""
        target.copy_(source)

    def wait(self) -> None:
        """Wait until all is on the host that was copied there, and what was copied from there may be overwritten."""

    def buffer_like(self, x: Tensor) -> Tensor:
        """Host memory of the shape, dtype and layout of a tensor."""
        return torch.empty_like(x, device="cpu", requires_grad=False)


class CudaTransfers(Transfers):
    """Copies that a CUDA device makes by itself, to and from pinned memory.

    Gradients leave on a stream of their own, which first waits for the stream that made them, so that the rest of the
    backward pass goes on meanwhile. Weights come back on the current stream: what uses them is queued there later, and
    what still reads the old ones was queued before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.leaving = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.returned = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def to_host(self, source: Tensor, target: Tensor) -> None:
        """Queue the copy; see :meth:`wait`."""
        self.leaving.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.leaving):
            target.copy_(source, non_blocking=True)
        source.record_stream(self.leaving)  # freed, its memory is not to be given away before the copy is made

    def to_device(self, source: Tensor, target: Tensor) -> None:
        """Queue the copy; see :meth:`wait`."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self.returned)  # of another stream's copies, so that the last record stands for all
        target.copy_(source, non_blocking=True)
        self.returned.record(stream)

    def wait(self) -> None:
        """Wait for both ways."""
        self.leaving.synchronize()
        self.returned.synchronize()  # at once, if it was never recorded

    def buffer_like(self, x: Tensor) -> Tensor:
        """Pinned memory: from any other, the device cannot copy by itself."""
        return torch.empty_like(x, device="cpu", requires_grad=False, pin_memory=True)


_OF_DEVICES: dict[torch.device, Transfers] = {}


def transfers_of(device: torch.device) -> Transfers:
    """What copies between a device and the host: one for each device."""
    if device not in _OF_DEVICES:
        _OF_DEVICES[device] = CudaTransfers(device) if device.type == "cuda" else Transfers()
    return _OF_DEVICES[device]
