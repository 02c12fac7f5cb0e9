"""Imported first by what needs torch, so that without it the error says how to get it."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    message = 'this part of ferrostep needs torch: pip install "ferrostep[torch]"'
    raise ModuleNotFoundError(message, name="torch") from None
