"""A datum is scored alike whatever stands beside it in a batch; where it is not, a run says so."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_vae import VAE, fit
from pyro_vae.components import (
    AutoregressiveNormal,
    BatchNormalizedNormal,
    InverseAutoregressive,
    MaskedAutoregressive,
    Sylvester,
    VampPrior,
)
from pyro_vae.inference import Program
from pyro_vae.inference.rows_apart import mixed_rows
from pyro_vae.models import LadderVAE, SemiAmortizedVAE

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


class Own(PyroModule):
    """A program whose encoder and decoder end in given functions of a batch."""

    def __init__(self, of_encoder=lambda h: h, of_decoder=lambda m: m) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)
        self.of_encoder, self.of_decoder = of_encoder, of_decoder

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.of_decoder(self.decoder(z)).expand(*z.shape[:-1], 4)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        h = self.of_encoder(self.encoder(x)).expand(len(x), 4)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1))


def noisy(h):
    return h + 0.1 * torch.randn_like(h)


MIXED = {
    "a mean over the data in the decoder": ("x", lambda: Own(of_decoder=lambda m: m.mean(0))),
    "a softmax over the data": ("x", lambda: Own(of_decoder=lambda m: m.softmax(0))),
    "a maximum over all": ("z", lambda: Own(of_encoder=lambda h: h - h.max())),
    "no running averages": (
        "z", lambda: Own(nn.BatchNorm1d(4, track_running_stats=False)),
    ),
    "standardised by the batch": ("z", lambda: Own(lambda h: (h - h.mean(0)) / h.std(0).exp())),
}  # fmt: skip
APART = {
    "plain": Own,
    "running averages": lambda: Own(nn.BatchNorm1d(4), nn.BatchNorm1d(4)),
    "layer normalisation": lambda: Own(nn.LayerNorm(4)),
    "noise inside": lambda: Own(noisy, noisy),
    "dropout": lambda: Own(nn.Dropout(0.5), nn.Dropout(0.5)),
    **{
        part.__name__: lambda part=part: VAE.assemble((4,), (2,), posterior=part)
        for part in (InverseAutoregressive, MaskedAutoregressive, Sylvester, BatchNormalizedNormal)
    },
    **{
        part.__name__: lambda part=part: VAE.assemble((4,), (2,), prior=part, data=X)
        for part in (VampPrior, AutoregressiveNormal, MaskedAutoregressive)
    },
    "a ladder": lambda: LadderVAE.assemble((4,), ((3,), (2,))),
    "steps inside the guide": lambda: SemiAmortizedVAE.assemble((4,), (2,)),
}


@pytest.mark.parametrize("case", MIXED)
def test_a_density_that_depends_on_the_batch_is_named(case):
    site, build = MIXED[case]
    torch.manual_seed(0)
    program = build()
    said = mixed_rows(Program(program.model, program.guide), X)
    assert f"site {site!r} (test_rows_apart.py:" in said


@pytest.mark.parametrize("case", APART)
def test_one_that_does_not_is_left_in_peace(case):
    torch.manual_seed(0)
    program = APART[case]()
    before = torch.get_rng_state()
    assert mixed_rows(Program(program.model, program.guide), X) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_says_so_once():
    torch.manual_seed(0)
    program = MIXED["a mean over the data in the decoder"][1]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(program, X, epochs=1, batch_size=4, device="cpu", progress=False)
    assert sum("depends on the others of its batch" in str(w.message) for w in caught) == 1


def test_a_part_in_evaluation_mode_stays_so_in_fit_and_a_whole_does_not():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    program = Own(norm)
    program.eval()
    fit(program, X, epochs=1, batch_size=5, device="cpu", progress=False)
    assert norm.num_batches_tracked == 2
    norm.eval()
    fit(program, X, epochs=1, batch_size=5, device="cpu", progress=False)
    assert norm.num_batches_tracked == 2
    assert not norm.training
