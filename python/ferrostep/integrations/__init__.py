"""What frameworks need beyond a ``torch.optim.Optimizer`` class to take our optimizers by name.

:mod:`ferrostep.integrations.timm` puts them into timm's registry, :mod:`ferrostep.integrations.transformers` lets
Hugging Face's Trainer find them. Most frameworks need nothing: docs/frameworks has a page with a program for each.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import optim  # noqa: F401  (before its parts: threads may meet there)
