"""The text to train on: the standard library's own source, or a file of the user's."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import DemoError

STANDARD_LIBRARY_LIMIT = 4_000_000  # bytes: far more than a run of minutes reads


@dataclass(frozen=True)
class Text:
    """Bytes as one-dimensional uint8 tensors: nine tenths to train on, the last tenth held out."""

    source: str
    train: Tensor
    held_out: Tensor

    @classmethod
    def load(cls, path: Path | None, context: int) -> "Text":
        """Read `path`, or the standard library where it is None.

        Raises `DemoError` if it cannot be read, or if its last tenth has no window of `context + 1` bytes.
        """
        source, content = ("the standard library", standard_library()) if path is None else (path.name, read(path))
        least = 10 * (context + 1)
        if len(content) < least:
            raise DemoError(
                f"the text is too short: {source} has {len(content):,} bytes, at least {least:,} are needed"
            )
        tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        cut = len(content) * 9 // 10
        return cls(source, tokens[:cut], tokens[cut:])


def read(path: Path) -> bytes:
    """The bytes of the user's file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DemoError(f"cannot read the text {str(path)!r}: {error.strerror}") from error


def standard_library() -> bytes:
    """The top-level modules of the running Python, by name, up to the limit; packages hold too many tables."""
    folder = Path(sysconfig.get_path("stdlib"))
    content = bytearray()
    for path in sorted(folder.glob("*.py")):
        content += path.read_bytes()
        if len(content) >= STANDARD_LIBRARY_LIMIT:
            break
    if not content:
        raise DemoError(f"this Python has no library sources in {str(folder)!r}: give a text with --text FILE")
    return bytes(content[:STANDARD_LIBRARY_LIMIT])


def windows(tokens: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """`[batch, length]` int64: stretches of `tokens` at places drawn from `generator`."""
    starts = torch.randint(len(tokens) - length + 1, (batch, 1), generator=generator)
    return tokens[starts + torch.arange(length)].long()
