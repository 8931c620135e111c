"""Auxiliary losses of components enter what is followed, of every objective, and no value."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from bits import same
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vae import fit
from pyro_vae.engine.svi import SVI
from pyro_vae.inference import (
    CIWAE,
    ELBO,
    IWAE,
    RWS,
    TVO,
    VIMCO,
    AnalyticELBO,
    BetaTCVAE,
    BetaVAE,
    DReG,
    FreeBits,
    InChunks,
    Reconstruction,
    Refined,
    Renyi,
    auxiliary_loss,
    refined,
)

OBJECTIVES: dict[str, Any] = {
    "ELBO": partial(ELBO, 2), "AnalyticELBO": AnalyticELBO, "IWAE": partial(IWAE, 3),
    "Renyi": partial(Renyi, 0.5, 3), "CIWAE": partial(CIWAE, 0.5, 3), "DReG": partial(DReG, 3),
    "RWS": partial(RWS, 3), "TVO": TVO, "VIMCO": partial(VIMCO, 3), "BetaVAE": BetaVAE,
    "FreeBits": FreeBits, "BetaTCVAE": partial(BetaTCVAE, num_data=6),
    "InChunks": lambda: InChunks(IWAE(3), 2), "Reconstruction": Reconstruction,
    "Refined": partial(Refined, 3),
}  # fmt: skip
X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Program(nn.Module):
    """z ~ N(0, I), x ~ N(Wz, I), q = N(Vx, s); each side declares a loss that weighs ``weight``."""

    def __init__(self, weight: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(3, 2, dtype=dtype)
        self.decoder = nn.Linear(2, 3, dtype=dtype)
        self.weight = weight

    def model(self, x: Tensor) -> None:
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.decoder(z)
            if self.weight:
                auxiliary_loss("decoder", self.weight * loc.square().sum(-1))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.plate(x):
            loc = self.encoder(x)
            if self.weight:
                auxiliary_loss("encoder", self.weight * loc.square().sum(-1))
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", len(x))


class Subsampled(Program):
    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", 60, subsample=torch.arange(len(x)))


single = partial(Program, dtype=torch.float32)


def gradients(program: Program, objective: Any, x: Tensor = X) -> tuple[float, list[Tensor]]:
    torch.manual_seed(2)
    value = objective.loss_and_grads(program.model, program.guide, x)
    return value, [p.grad for p in program.parameters() if p.grad is not None]


def written_out(program: Program, objective: Any, x: Tensor = X) -> Tensor:
    """Return the losses of both sides as written above, at the objective's own samples."""
    torch.manual_seed(2)
    found = objective.num_particles
    if isinstance(objective, InChunks):
        pytest.skip("its chunks draw in an order of their own; held against the objective below")
    noise = torch.randn(*([found] if found > 1 else []), len(x), 2, dtype=x.dtype)
    loc = program.encoder(x)
    z = loc + 0.5 * noise
    if type(objective).__name__ in ("DReG", "RWS", "TVO"):
        z = z.detach()  # these cut the samples out
    decoded = program.decoder(z).square().sum(-1)
    decoded = decoded.mean(0) if found > 1 else decoded
    return program.weight * (loc.square().sum(-1) + decoded).sum()


def stay(density: Any, start: Any, sizes: Tensor, *, num_steps: int) -> tuple[Any, Tensor]:
    """Stand for a move of chains that is rejected: the model follows the guide's draws."""
    return start, torch.zeros_like(start.log_density)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_followed_and_not_reported(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(refined, "transition", stay)
    plain, with_losses = Program(), Program(0.7)
    value, bare = gradients(plain, OBJECTIVES[name]())
    same_value, found = gradients(with_losses, OBJECTIVES[name]())
    assert same_value == pytest.approx(value, abs=1e-12)
    extra = torch.autograd.grad(
        written_out(with_losses, OBJECTIVES[name]()), [*with_losses.parameters()]
    )
    for gradient, without, expected in zip(found, bare, extra, strict=True):
        torch.testing.assert_close(gradient - without, expected, rtol=0, atol=1e-10)


def test_a_plate_that_stands_for_more_data_and_weights_scale_them_as_they_scale_the_bound() -> None:
    _, once = gradients(Program(0.7), AnalyticELBO())
    _, many = gradients(Subsampled(0.7), AnalyticELBO())
    program = Program(0.7)
    program.model = poutine.scale(program.model, 10.0)  # type: ignore[method-assign]
    program.guide = poutine.scale(program.guide, 10.0)  # type: ignore[method-assign]
    _, weighed = gradients(program, AnalyticELBO())
    for one, ten, other in zip(once, many, weighed, strict=True):
        torch.testing.assert_close(ten, 10 * one, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(other, 10 * one, rtol=1e-10, atol=1e-10)


def test_in_chunks_follows_what_the_objective_follows() -> None:
    _, whole = gradients(Program(0.7), IWAE(4))
    _, one_chunk = gradients(Program(0.7), InChunks(IWAE(4), 4))
    for gradient, expected in zip(one_chunk, whole, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pyros", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_losses_are_refused(pyros: Any) -> None:
    with pytest.raises(ValueError, match="does not follow the auxiliary loss 'encoder'"):
        fit(single(0.7), X.float(), objective=pyros(), epochs=1, progress=False)
    program = single(0.7)
    svi = SVI(program.model, program.guide, torch.optim.Adam, pyros())
    with pytest.raises(ValueError, match="does not follow the auxiliary loss"):
        svi.step(X.float())


def test_a_run_records_them_and_replays_the_same_bits() -> None:
    found = {}
    for engine in ("eager", "recorded"):
        program = single(0.7)
        done = fit(
            program, X.float(), epochs=2, batch_size=3, progress=False, engine=engine, seed=3
        )
        found[engine] = [p.detach().clone() for p in program.parameters()]
        record = done.history[-1]
        assert record["encoder_loss"] > 0
        assert record["decoder_loss"] > 0
        assert {"train_nats", "validation_elbo_nats"} <= {*record}
    for eager, recorded in zip(found["eager"], found["recorded"], strict=True):
        assert same(eager, recorded)
