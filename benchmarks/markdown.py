"""Tables in Markdown, and the places in a file that they replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers are aligned to the right."""
    columns = list(zip(*rows, strict=True))
    numeric = [all(cell[:1].isdigit() for cell in column) for column in columns]
    widths = [max(map(len, (heading, *column))) for heading, column in zip(headings, columns, strict=True)]
    alignments = list(zip(widths, numeric, strict=True))

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, (width, right) in zip(cells, alignments, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - right) + right * ":" for width, right in alignments]
    return "\n".join([line(headings), line(rule), *map(line, rows)])


def replace_sections(path: Path, sections: Mapping[str, str]) -> None:
    """Put each text between `<!-- begin NAME -->` and `<!-- end NAME -->`. Raises ValueError if a marker is missing."""
    content = path.read_text(encoding="utf-8")
    for name, text in sections.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, found, rest = content.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{path.name} has no place for {name!r}: expected {begin.strip()} and {end}")
        content = f"{before}{begin}\n{text}\n\n{end}{after}"
    path.write_text(content, encoding="utf-8")
