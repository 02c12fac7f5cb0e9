"""Interrupts that come at a chosen instruction."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import ferrostep

FOLDERS = (str(Path(ferrostep.__file__).parent), str(Path(torch.autograd.graph.__file__)))


class Interrupts:
    """Raises KeyboardInterrupt before instruction number ``at`` of the step's Python code; by default only counts."""

    def __init__(self, at: int = sys.maxsize, folders: tuple[str, ...] = FOLDERS, by_signal: bool = False) -> None:
        self.at = at
        self._by_signal = by_signal
        self._folders = folders
        self.passed = 0

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._folders):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.passed += 1
            if self.passed == self.at and self._by_signal:
                signal.raise_signal(signal.SIGINT)
            elif self.passed == self.at:
                raise KeyboardInterrupt
        return self._trace

    def run(self, call: Callable[[], object]) -> None:
        """Call under interrupts."""
        before = sys.gettrace(), torch.is_grad_enabled()
        sys.settrace(self._trace)
        try:
            call()
        finally:
            sys.settrace(before[0])
            torch.set_grad_enabled(before[1])  # at the end of a `with`, Python itself takes no interrupts
