"""The demonstration behind `python -m ferrostep compare`: optimizers side by side on a small GPT."""


class DemoError(Exception):
    """A problem for the user to solve; its text is one line, shown without a traceback."""
