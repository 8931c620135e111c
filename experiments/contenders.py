"""The contenders in torch: plain Pyro, PyTorch by hand, ours, and the products alone.

All minimise the same bound of the same networks on the same batches with Adam at 1e-3, but each
draws its own noise, and they start from the initial weights of their own layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, singledispatch
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from programs import (
    AutoregressiveGuide,
    Contender,
    Convolutions,
    Epochs,
    Ladder,
    Perceptrons,
    Program,
    SplinePrior,
)
from pyro.distributions import transforms
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import SVI, VAE
from pyro_vae.arithmetic import suited_arithmetic
from pyro_vae.budget import Budget
from pyro_vae.components import MLP, Convolutional, assemble
from pyro_vae.inference import ELBO, IWAE, Objective
from pyro_vae.models import LadderVAE

__all__ = [
    "CONTENDERS",
    "bound_of",
    "images",
    "in_turn",
    "objective",
    "products_of",
    "vae",
    "whole_step",
]

_RATE = 1e-3
_Product = Callable[[], Any]


# ---------------------------------------------------------------------------- Pyro and ours


@singledispatch
def vae(program: Program) -> Any:
    """Build the program of these sizes, which both Pyro and our engine run."""
    raise TypeError(f"{type(program).__name__} is no known kind of program")


@vae.register
def _(program: Perceptrons) -> VAE:
    return VAE(**_parts(program, partial(MLP, hidden=program.hidden, activation=nn.Tanh)))


@vae.register
def _(program: Convolutions) -> VAE:
    return VAE(**_parts(program, partial(Convolutional, channels=program.hidden)))


@vae.register
def _(program: AutoregressiveGuide) -> VAE:
    parts = _parts(program, partial(MLP, hidden=program.hidden, activation=nn.Tanh))
    flows = [transforms.affine_autoregressive(program.latents, hidden_dims=[320]) for _ in range(2)]
    return VAE(**{**parts, "posterior": _Flow(parts["posterior"], flows)})


@vae.register
def _(program: SplinePrior) -> VAE:
    parts = _parts(program, partial(MLP, hidden=program.hidden, activation=nn.Tanh))
    flows = [
        transforms.spline_coupling(program.latents, hidden_dims=[100, 100]),
        transforms.Permute(torch.arange(program.latents).flip(0)),
        transforms.spline_coupling(program.latents, hidden_dims=[100, 100]),
    ]
    return VAE(**{**parts, "prior": _Flow(parts["prior"], flows)})


@vae.register
def _(program: Ladder) -> LadderVAE:
    network = partial(MLP, hidden=program.hidden, activation=nn.Tanh)
    shapes = [(size,) for size in program.layers]
    return LadderVAE.assemble((1, program.side, program.side), shapes, network=network)


class _Flow(nn.Module):
    """A conditional distribution through flows."""

    def __init__(self, base: nn.Module, flows: Sequence[Any]) -> None:
        super().__init__()
        self.base = base
        self.flows = list(flows)
        self.layers = nn.ModuleList([flow for flow in flows if isinstance(flow, nn.Module)])

    def forward(self, context: Tensor | None = None) -> Any:
        return dist.TransformedDistribution(self.base(context), self.flows)


def pyro_example(program: Program) -> Epochs:
    """Step Pyro's SVI as its VAE example does: a DataLoader, probabilities, registered modules."""
    encoder, decoder = networks(program)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            zeros = x.new_zeros(len(x), program.latents)
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            probs = torch.sigmoid(decoder(z))
            pyro.sample("x", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": _RATE}), Trace_ELBO())
    data = TensorDataset(torch.from_numpy(program.data()))
    batches = DataLoader(data, batch_size=program.batch, shuffle=True)
    return in_turn(lambda rows: svi.step(rows[0]), batches, program)


def pyro_svi(program: Program) -> Epochs:
    """Step ``pyro.infer.SVI`` on tensors; particles, where there are any, are vectorised."""
    module = vae(program)

    def model(x: Tensor) -> None:
        pyro.module("vae", module)
        module.model(x)

    loss: Any = Trace_ELBO()
    if program.particles > 1:
        loss = RenyiELBO(
            0, num_particles=program.particles, vectorize_particles=True, max_plate_nesting=1
        )
    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, module.guide, pyro.optim.Adam({"lr": _RATE}), loss)
    return in_turn(svi.step, images(program), program)


def ours(engine: str, program: Program, *, fast: bool = False) -> Epochs:
    """Step our SVI at one of its levels; "fast" with threads and products that suit its size."""
    module = vae(program)
    adam = partial(torch.optim.Adam, lr=_RATE, fused=True)
    svi = SVI(module.model, module.guide, adam, objective(program), engine=engine, fast=fast)
    return in_turn(svi.update, images(program), program)


def as_in_fit(engine: str, program: Program) -> Epochs:
    """Step our SVI in the arithmetic that ``fit`` chooses by the size of the products."""
    module, batches = vae(program), images(program)
    adam = partial(torch.optim.Adam, lr=_RATE, fused=True)
    svi = SVI(module.model, module.guide, adam, objective(program), engine=engine)
    with Budget() as counted:
        svi.update(batches[0])
    epochs = in_turn(svi.update, batches, program)

    def suited(num: int) -> float:
        with suited_arithmetic(counted.largest_product, "float32"):
            return epochs(num)

    return suited


def _parts(program: Program, network: Any) -> dict[str, nn.Module]:
    shape = (1, program.side, program.side)
    return assemble(shape, (program.latents,), network=network)


def objective(program: Program) -> Objective:
    """Return what is maximised."""
    return IWAE(program.particles) if program.particles > 1 else ELBO()


# ---------------------------------------------------------------------------- by hand


@singledispatch
def networks(program: Program) -> tuple[nn.Module, nn.Module]:
    """Build encoder and decoder, from ``[*, pixels]`` to ``[*, 2 * latents]`` and back."""
    raise TypeError(f"{type(program).__name__} is not written by hand")


@networks.register
def _(program: Perceptrons) -> tuple[nn.Module, nn.Module]:
    return (
        _layers([program.pixels, *program.hidden, 2 * program.latents]),
        _layers([program.latents, *program.hidden, program.pixels]),
    )


@networks.register
def _(program: Convolutions) -> tuple[nn.Module, nn.Module]:
    image, latents = (1, program.side, program.side), (program.latents,)
    down = Convolutional(image, (2 * program.latents,), channels=program.hidden)
    up = Convolutional(latents, image, channels=program.hidden)
    return nn.Sequential(nn.Unflatten(-1, image), down), nn.Sequential(up, nn.Flatten(-3))


class Bound(nn.Module):
    """The negative bound, written out: no distributions, no handlers."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.encoder, self.decoder = networks(program)
        self.particles = program.particles

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative bound of a batch in nats, summed over its data."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn(self.particles, *loc.shape, device=loc.device)
        z = loc + log_scale.exp() * noise
        log_q = (-0.5 * noise**2 - log_scale).sum(-1)
        log_p = (-0.5 * z**2).sum(-1)
        logits = self.decoder(z)
        log_x = -functional.binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        )
        log_w = log_x.sum(-1) + log_p - log_q
        return -(log_w.logsumexp(0) - math.log(self.particles)).sum()


class LadderBound(nn.Module):
    """The negative bound of a ladder, written out likewise."""

    def __init__(self, program: Ladder) -> None:
        super().__init__()
        hidden, states = program.hidden, [program.pixels, *(8 * n for n in program.layers)]
        self.upward = _stack([below, *hidden, above] for below, above in pairwise(states))
        self.evidence = _stack([8 * size, 2 * size] for size in program.layers)
        self.priors = _stack([up, *hidden, 2 * down] for down, up in pairwise(program.layers))
        self.decoder = _layers([program.layers[0], *hidden, program.pixels])
        self.particles = program.particles

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative bound of a batch in nats, summed over its data."""
        evidence, state = [], x
        for upward, linear in zip(self.upward, self.evidence, strict=True):
            state = functional.silu(upward(state))
            evidence.append(linear(state).chunk(2, -1))
        loc, log_scale = evidence.pop()
        noise = torch.randn(self.particles, *loc.shape, device=loc.device)
        z = loc + log_scale.exp() * noise
        log_w = (0.5 * noise**2 + log_scale - 0.5 * z**2).sum(-1)
        for (loc, log_scale), prior in zip(reversed(evidence), reversed(self.priors), strict=True):
            prior_loc, prior_log_scale = prior(z).chunk(2, -1)
            scale, prior_scale = log_scale.exp(), prior_log_scale.exp()
            total = torch.hypot(scale, prior_scale)
            loc = loc + (scale / total).square() * (prior_loc - loc)
            scale = scale * (prior_scale / total)
            noise = torch.randn(self.particles, *loc.shape[-2:], device=loc.device)
            z = loc + scale * noise
            log_q = -0.5 * noise**2 - scale.log()
            log_p = -0.5 * ((z - prior_loc) / prior_scale) ** 2 - prior_log_scale
            log_w = log_w + (log_p - log_q).sum(-1)
        logits = self.decoder(z)
        log_x = -functional.binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        )
        log_w = log_w + log_x.sum(-1)
        return -(log_w.logsumexp(0) - math.log(self.particles)).sum()


def bound_of(program: Program) -> nn.Module:
    """Return the negative bound of a program, written out."""
    return LadderBound(program) if isinstance(program, Ladder) else Bound(program)


def by_hand(program: Program) -> Epochs:
    """Step the bound with autograd and a fused Adam."""
    bound = bound_of(program)
    return in_turn(_backward_and_adam(bound, bound), _rows(program), program)


def by_hand_compiled(program: Program) -> Epochs:
    """The same with the bound compiled; backward and Adam are calls of their own."""
    bound = bound_of(program)
    function = torch.compile(bound, dynamic=False)
    return in_turn(_backward_and_adam(bound, function), _rows(program), program)


def by_hand_whole(program: Program) -> Epochs:
    """The same with the whole step compiled: the bound, its gradient and Adam in one graph."""
    step = torch.compile(whole_step(bound_of(program)), dynamic=False, fullgraph=True)
    return in_turn(step, _rows(program), program)


def whole_step(bound: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a step of the bound, as one function of tensors that changes weights in place.

    References:
        Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
    """
    weights = {name: weight.detach() for name, weight in bound.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count = torch.zeros(())
    gradients_and_loss = torch.func.grad_and_value(
        lambda weights, x: torch.func.functional_call(bound, weights, (x,))
    )

    def step(x: Tensor) -> Tensor:
        gradients, loss = gradients_and_loss(weights, x)
        count.add_(1.0)
        rate = _RATE / (1.0 - 0.9**count)
        unbiased = (1.0 - 0.999**count).sqrt()
        for name, gradient in gradients.items():
            first[name].lerp_(gradient, 0.1)
            second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            scale = second[name].sqrt() / unbiased + 1e-8
            weights[name].sub_(rate * first[name] / scale)
        return loss

    return step


def _backward_and_adam(
    bound: nn.Module, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    adam = torch.optim.Adam(bound.parameters(), lr=_RATE, fused=True)

    def step(x: Tensor) -> Tensor:
        loss = function(x)
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _stack(sizes: Iterable[Sequence[int]]) -> nn.ModuleList:
    return nn.ModuleList([_layers(each) for each in sizes])


# ---------------------------------------------------------------------------- the floor


def products_alone(program: Program) -> Epochs:
    """Multiply what a step multiplies, forward and backward, and do nothing else."""
    products = products_of(program)

    def step(_: Tensor) -> float:
        for product in products:
            product()
        return math.nan

    return in_turn(step, _rows(program), program)


def products_of(program: Program) -> list[_Product]:
    """Return the products of a step, found by watching the layers of the program at work."""
    module, loss, x = vae(program), objective(program), images(program)[0]
    loss.differentiable_loss(module.model, module.guide, x)  # the first call runs checks, too
    found: list[_Product] = []

    def watch(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend(_products(layer, args[0], torch.randn_like(output)))

    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(watch)
    loss.differentiable_loss(module.model, module.guide, x)
    return found


def _products(layer: Any, x: Tensor, gradient: Tensor) -> list[_Product]:
    back, weight, x = x.requires_grad, layer.weight.detach(), x.detach()
    if not isinstance(layer, nn.Linear):
        upward = isinstance(layer, nn.ConvTranspose2d)
        sizes = (layer.stride, layer.padding, layer.dilation, upward, layer.output_padding, 1)
        backward = torch.ops.aten.convolution_backward
        return [
            lambda: torch.convolution(x, weight, None, *sizes),
            lambda: backward(gradient, x, weight, None, *sizes, [back, True, False]),
        ]
    a, b = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    pairs = [(a, weight.T), (b.T, a), *([(b, weight)] if back else [])]
    return [partial(torch.mm, p, q, out=torch.empty(len(p), q.shape[1])) for p, q in pairs]


# ---------------------------------------------------------------------------- epochs


def in_turn(step: Callable[[Any], Any], batches: Any, program: Program) -> Epochs:
    """Step through the batches; losses stay tensors until an epoch ends, where they are ones."""

    def epochs(num: int) -> float:
        losses: list[Any] = []
        for _ in range(num):
            losses = [step(batch) for batch in batches]
        return sum(map(float, losses)) / (program.batch * len(losses))

    return epochs


def _rows(program: Program) -> list[Tensor]:
    """Return the batches of an epoch, on torch's default device."""
    return list(
        torch.from_numpy(program.data()).to(torch.get_default_device()).split(program.batch)
    )


def images(program: Program) -> list[Tensor]:
    return [rows.unflatten(-1, (1, program.side, program.side)) for rows in _rows(program)]


_OF_ONE_LATENT = (Perceptrons, Convolutions)
_WRITTEN_OUT = (*_OF_ONE_LATENT, Ladder)
_ALL = (*_WRITTEN_OUT, AutoregressiveGuide, SplinePrior)

CONTENDERS: dict[str, Contender] = {
    "Pyro's example": Contender(pyro_example, _OF_ONE_LATENT, single=True),
    "Pyro's SVI.step": Contender(pyro_svi, _ALL),
    "by hand": Contender(by_hand, _WRITTEN_OUT),
    "by hand, loss compiled": Contender(by_hand_compiled, _WRITTEN_OUT, uncompiled="by hand"),
    "by hand, step compiled": Contender(by_hand_whole, _WRITTEN_OUT, uncompiled="by hand"),
    "pyro_vae, eager": Contender(partial(ours, "eager"), _ALL),
    "pyro_vae, recorded": Contender(partial(ours, "recorded"), _ALL),
    "pyro_vae, compiled": Contender(
        partial(ours, "compiled"), _ALL, uncompiled="pyro_vae, recorded"
    ),
    "by hand, step compiled, fast": Contender(
        by_hand_whole, _WRITTEN_OUT, fast=True, uncompiled="by hand"
    ),
    "pyro_vae, recorded, fast": Contender(partial(as_in_fit, "recorded"), _ALL),
    "pyro_vae, compiled, fast": Contender(
        partial(as_in_fit, "compiled"), _ALL, uncompiled="pyro_vae, recorded, fast"
    ),
    "pyro_vae, drop-in": Contender(
        partial(ours, "compiled", fast=True), _ALL, uncompiled="pyro_vae, recorded"
    ),
    "products alone": Contender(products_alone, _ALL),
    "products alone, fast": Contender(products_alone, _ALL, fast=True),
}
