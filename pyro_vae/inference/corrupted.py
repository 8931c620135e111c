r"""Noise on what an encoder, or an autoregressive decoder, sees; clean data are scored.

Of a guide that sees corrupted data, the denoising criterion:

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
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.arguments import shown
from pyro_vae.inference.program import Program, modules_around

__all__ = ["Corrupted", "CorruptedInputs", "check_corruption", "meet_data"]


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
        _check_noise(noise)
        self.noise = noise

    def __call__(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a guide, so that it sees corrupted data."""
        wrapper = functools.partial(self._run, guide)
        functools.update_wrapper(wrapper, guide, updated=())
        wrapper.modules_around = (self.noise,)  # type: ignore[attr-defined]
        return wrapper

    def _run(self, guide: Callable[..., Any], x: Tensor, /, *others: Any, **named: Any) -> Any:
        return guide(self.noise(x), *others, **named)


class CorruptedInputs(Messenger):
    r"""Let an autoregressive decoder see the symbols before each place through a noise.

    ``CorruptedInputs(MaskingNoise(0.3, value=padding))(vae.model)`` is word dropout: 30 % of what
    the decoder is fed with is the padding symbol, which it never sees otherwise, so that it has to
    ask z. What is scored is clean.

    .. math:: \prod_t p(x_t \mid \tilde x_{<t}, z)

    For a noise that hides symbols it sums to one over all x, as p(x | z) does, so that the value in
    training is the bound of a model that hides them. ``Program.evaluating()``, and with it every
    validation and evaluation, sees no noise.

    Args:
        noise: A module from data to data of the same shape, such as ``MaskingNoise``.
        site: The observed site.

    Raises:
        TypeError: If the noise is no module.
        ValueError: If the noise makes numbers between symbols; on running, if the site is no
            autoregressive sequence.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016)
    """

    def __init__(self, noise: nn.Module, *, site: str = "x") -> None:
        super().__init__()
        _check_noise(noise)
        if not getattr(noise, "keeps_symbols", True):
            raise ValueError(
                f"{type(noise).__name__} makes numbers between the symbols, which no decoder of "
                "symbols reads; take MaskingNoise or WordDropout"
            )
        self.noise, self.site = noise, site

    def __call__(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a model, so that its decoder sees corrupted symbols."""
        wrapper = super().__call__(model)
        functools.update_wrapper(wrapper, model, updated=())
        wrapper.modules_around = (self.noise,)
        return wrapper

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site or poutine.util.site_is_subsample(msg):
            return
        if not hasattr(msg["fn"], "with_input_noise"):
            raise ValueError(
                f"it is a {type(msg['fn']).__name__}, which reads nothing of the "
                "datum, so that nothing can be hidden from it: word dropout is for "
                "AutoregressiveSequence"
            )
        msg["fn"] = msg["fn"].with_input_noise(self.noise)


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
    noises = [module for module in modules_around(program.guide) if hasattr(module, "refusal")]
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


def _check_noise(noise: Any) -> None:
    if not isinstance(noise, nn.Module):
        raise TypeError(
            f"noise={shown(noise)}: give a module from data to data, such as GaussianNoise(0.3)"
        )
