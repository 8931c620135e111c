r"""A guide that sees corrupted data, while the model scores clean ones: the denoising criterion.

.. math::
    \mathrm{E}_{\tilde x \sim c(\tilde x \mid x)}
    \mathrm{E}_{z \sim q(z \mid \tilde x)} \log \frac{p(x, z)}{q(z \mid \tilde x)}
    \le \log p(x)

for every :math:`\tilde x`, and so in the mean over them: :math:`q(z \mid \tilde x)` is a guide of
z, whatever it looks at. The same holds for the bounds of several particles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.arguments import shown
from pyro_vae.inference.program import Program

__all__ = ["Corrupted", "check_corruption", "meet_data"]


class Corrupted:
    """Let a guide see its first argument through a noise; the model still scores clean data.

    ``Corrupted(GaussianNoise(0.3))(vae.guide)`` keeps the guide's signature and modules, as
    handlers do. The noise corrupts in training mode alone: ``Program.evaluating()``, and with it
    all validation and evaluation, puts it in evaluation mode, so that every number is on clean
    data. ``fit`` gives it the units of the training data; in a loop of your own call
    ``noise.adapt_inputs(x)``.

    Each datum has noise of its own, drawn anew at every step. Particles that are drawn at once
    share it, those drawn one after the other do not; the value is a bound either way.

    Args:
        noise: A module from data to data of the same shape, such as ``GaussianNoise``.

    Raises:
        TypeError: If it is no module.

    References:
        Denoising Criterion for Variational Auto-Encoding Framework
        (Im, Ahn, Memisevic & Bengio, 2017)
    """

    def __init__(self, noise: nn.Module) -> None:
        if not isinstance(noise, nn.Module):
            raise TypeError(
                f"noise={shown(noise)}: give a module from data to data, such as GaussianNoise(0.3)"
            )
        self.noise = noise

    def __call__(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a guide, so that it sees corrupted data."""
        wrapper = functools.partial(self._run, guide)
        functools.update_wrapper(wrapper, guide, updated=())
        wrapper.modules_around = (self.noise,)  # type: ignore[attr-defined]
        return wrapper

    def _run(self, guide: Callable[..., Any], x: Tensor, /, *others: Any, **named: Any) -> Any:
        return guide(self.noise(x), *others, **named)


def meet_data(program: Program, x: Tensor) -> None:
    """Let the noises around a program that are new take the units of the data.

    Args:
        program: Whose guide is corrupted, or not.
        x: Training data that stand for all of them, ``[N, *event_shape]``.
    """
    for module in program.around:
        if getattr(module, "is_new", False):
            module.adapt_inputs(x)  # type: ignore[operator]


def check_corruption(program: Program, *args: Any, **kwargs: Any) -> None:
    """Refuse a noise that makes what the guide's encoder cannot read, such as half a symbol.

    Args:
        program: Whose guide is corrupted, or not.
        args: What model and guide are called with.
        kwargs: Likewise.

    Raises:
        ValueError: If a noise says so; with its reason.
    """
    noises = [module for module in program.around if hasattr(module, "refusal")]
    if not noises:
        return
    num_symbols = _num_embedded(program, args, kwargs)
    for noise in noises:
        reason = noise.refusal(num_symbols)  # type: ignore[operator]
        if reason is not None:
            raise ValueError(reason)


def _num_embedded(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return how many symbols the guide embeds the data as; None if it reads them as numbers."""
    found: list[int] = []

    def embeds(module: nn.Module, given: tuple[Any, ...]) -> None:
        (symbols,) = given
        x = args[0].long()
        if symbols.numel() == x.numel() and torch.equal(symbols.flatten(), x.flatten()):
            found.append(module.num_embeddings)  # type: ignore[arg-type]

    parts = [part for root in program.modules for part in root.modules()]
    with ExitStack() as stack:
        for part in parts:
            if isinstance(part, nn.Embedding):
                handle = part.register_forward_pre_hook(embeds)
                stack.callback(handle.remove)
        stack.enter_context(program.evaluating(seed=0))
        stack.enter_context(pyro.validation_enabled(False))
        program.guide(*args, **kwargs)
    return min(found, default=None)
