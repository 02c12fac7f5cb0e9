"""Docstrings as Markdown, for the API reference: they are written for `help()`, with Sphinx's roles."""

import re

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data):`([\w.]+)`")
ENTRY = re.compile(r"^([a-z_, ]+): (?=\S)", re.M)
CODE_BLOCK = re.compile(r"^ *\.\. code-block:: \w+\n", re.M)


def reference(match: re.Match[str]) -> str:
    """What a role names, as a link where the site documents it."""
    path = match[1]
    if not path.startswith("ferrostep."):
        return f"`{path}`"
    return f'<autoref identifier="{path}" optional><code>{path.rpartition(".")[2]}</code></autoref>'


def as_markdown(docstring: str) -> str:
    """The docstring with links for roles, without the directives of blocks, and with examples as griffe knows them."""
    text = CODE_BLOCK.sub("", ROLE.sub(reference, docstring))
    return re.sub(r"^Example:$", "Examples:", text, flags=re.M)


class Markdown(griffe.Extension):
    """Converts every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Convert that of one object."""
        if obj.docstring and "TypedDict" in map(str, getattr(obj, "bases", ())):  # which lists its keys
            obj.docstring.value = ENTRY.sub(r"- `\1`: ", obj.docstring.value)
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
