"""Train, evaluate and compare variational autoencoders written as Pyro programs.

A *model* declares the prior and the decoder likelihood, a *guide* the amortised encoder; ``SVI``
or ``fit`` maximises any of Pyro's ELBOs over both. ``VAE`` is such a program, made of parts that
combine freely; every function here works on any program of your own as well.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae import components, datasets, evaluation, inference, laboratory
    from pyro_vae.engine import SVI
    from pyro_vae.fitting import fit
    from pyro_vae.models import VAE

__all__ = [
    "SVI",
    "VAE",
    "components",
    "datasets",
    "evaluation",
    "fit",
    "inference",
    "laboratory",
    "load",
]

_HOMES = {"SVI": "engine", "fit": "fitting", "load": "cli.trained_run", "VAE": "models"}
_PARTS = {
    "components", "datasets", "distributions", "engine", "evaluation", "inference", "laboratory",
    "models", "recording", "report",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: until a name is used, a command can still be interrupted.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_PARTS})
