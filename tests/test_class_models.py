"""M2 and GMVAE: a class that is given, or is not, or is never."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from exact import distance
from laws import binary
from pyro.infer import TraceEnum_ELBO
from torch import nn

from pyro_vae import SVI, fit
from pyro_vae.components import MLP, VampPrior
from pyro_vae.components.labelled import beside
from pyro_vae.inference import ELBO, IWAE, RLOO, Probe, Program
from pyro_vae.models import GMVAE, M2, ConditionalVAE

X, Y = binary(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
NONE = torch.full_like(Y, -1)
small = partial(MLP, hidden=(5,))


def m2(**options):
    torch.manual_seed(1)
    options = {"network": small, "alpha": 0.0, **options}
    program = M2.assemble((4,), (2,), num_classes=3, **options).double()
    nn.init.normal_(program.classes.offset)
    return program


def gmvae(**options):
    torch.manual_seed(1)
    program = GMVAE.assemble((4,), (2,), num_clusters=3, network=small, **options).double()
    nn.init.normal_(program.classes.offset)
    return program


def followed(program, objective, *args, model=None, guide=None):
    """Return an objective's value and gradient, upwards, summed over the data."""
    for parameter in program.parameters():
        parameter.grad = None
    torch.manual_seed(2)
    svi = SVI(model or program.model, guide or program.guide, torch.optim.SGD, objective)
    value = -svi.loss_and_grads(*args)
    gradient = {
        name: torch.zeros_like(p) if p.grad is None else -p.grad
        for name, p in program.named_parameters()
    }
    return torch.tensor(value, dtype=torch.float64), gradient


def of(program, value):
    parameters = dict(program.named_parameters())
    found = torch.autograd.grad(value, parameters.values(), allow_unused=True)
    return value.detach(), {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


class OfXAndY(nn.Module):
    """q(z | x, y) of one vector, as a conditional VAE takes it."""

    def __init__(self, program):
        super().__init__()
        self.features, self.posterior = program.features, program.posterior

    def forward(self, context):
        x, y = context[..., :4], context[..., 4:]
        return self.posterior(beside(self.features(x), y, event_dim=1))


@pytest.mark.parametrize("objective", [ELBO, IWAE])
def test_with_all_labels_the_bound_is_that_of_the_conditional_model(objective):
    program = m2()
    conditional = ConditionalVAE(
        prior=program.prior, likelihood=program.likelihood, posterior=OfXAndY(program),
        num_classes=3,
    ).double()  # fmt: skip
    labelled = torch.ones(6, dtype=torch.bool)
    found = followed(program, objective(1), X, Y, labelled)
    # Each of the three particles is a draw of z, as three particles of the other program are.
    value, gradient = followed(
        program, objective(3), X, Y, model=conditional.model, guide=conditional.guide
    )
    log_p_y, own = of(program, program.classes().log_prob(program.one_hot[Y]).sum())
    reference = value + log_p_y, {name: gradient[name] + own[name] for name in gradient}
    assert distance(found, reference) < 1e-10
    assert found[1]["classifier.offset"].abs().max() == 0
    # Mutant: one label that is another.
    wrong = torch.tensor([1, 1, 2, 0, 1, 2])
    assert distance(followed(program, objective(1), X, wrong, labelled), reference) > 1e-3


def bounds_of_each(program, num_classes, noise, *, decodes_y):
    """Return the bound of each datum given each class, log q(y | x) and log p(y), ``[C, N]``."""
    found, log_q, log_p = [], [], []
    for y in torch.eye(num_classes, dtype=torch.float64):
        q_z = program.posterior(beside(program.features(X), y, event_dim=1))
        z = q_z.base_dist.loc + q_z.base_dist.scale * noise[len(found)]
        decoded = torch.cat([z, y.expand(6, -1)], -1) if decodes_y else z
        log_p_x = program.likelihood(decoded).log_prob(X)
        found.append(log_p_x + program.prior(y).log_prob(z) - q_z.log_prob(z))
        log_q.append(program.classifier(X).log_prob(y))
        log_p.append(program.classes().log_prob(y).expand(6))
    return torch.stack(found), torch.stack(log_q), torch.stack(log_p)


def marginal(program, num_classes, *, decodes_y, bound):
    torch.manual_seed(2)
    noise = torch.randn(num_classes, 6, 2, dtype=torch.float64)
    given, log_q, log_p = bounds_of_each(program, num_classes, noise, decodes_y=decodes_y)
    if bound is IWAE:
        return of(program, (given + log_p).logsumexp(0).sum())
    return of(program, (log_q.exp() * (given + log_p - log_q)).sum())


@pytest.mark.parametrize("bound", [ELBO, IWAE])
def test_without_labels_the_bound_is_that_of_the_marginal_model(bound):
    program, labelled = m2(), torch.zeros(6, dtype=torch.bool)
    reference = marginal(program, 3, decodes_y=True, bound=bound)
    assert distance(followed(program, bound(1), X, NONE, labelled), reference) < 1e-10
    assert distance(followed(program, bound(1), X, Y, ~labelled), reference) > 1e-3  # mutant


@pytest.mark.parametrize("bound", [ELBO, IWAE])
def test_clusters_are_summed_over(bound):
    program = gmvae()
    reference = marginal(program, 3, decodes_y=False, bound=bound)
    assert distance(followed(program, bound(1), X), reference) < 1e-10
    if bound is ELBO:
        theirs = TraceEnum_ELBO(max_plate_nesting=1)
        assert distance(followed(program, theirs, X), reference) < 1e-10


def test_rows_with_and_without_a_label_go_in_one_stream():
    program, mixed = m2(), torch.tensor([0, -1, 2, -1, -1, 2])
    some = followed(program, ELBO(), X, mixed, mixed >= 0)[0]
    torch.manual_seed(2)
    noise = torch.randn(3, 6, 2, dtype=torch.float64)
    given, log_q, log_p = bounds_of_each(program, 3, noise, decodes_y=True)
    without = (log_q.exp() * (given + log_p - log_q)).sum(0)[mixed < 0].sum()
    with_label = 0.0
    for row in (mixed >= 0).nonzero().flatten().tolist():
        # Its three particles are draws of z given the one class.
        one = torch.stack([noise[k, row] for k in range(3)])
        y = program.one_hot[mixed[row]]
        q_z = program.posterior(beside(program.features(X[row]), y, event_dim=1))
        z = q_z.base_dist.loc + q_z.base_dist.scale * one
        bound = program.likelihood(torch.cat([z, y.expand(3, -1)], -1)).log_prob(X[row])
        bound = bound + program.prior(y).log_prob(z) - q_z.log_prob(z)
        with_label = with_label + bound.mean() + program.classes().log_prob(y)
    torch.testing.assert_close(some, (without + with_label).detach())


def test_the_classifier_learns_from_what_is_given_and_the_bound_has_none_of_it():
    plain, mixed = m2(), torch.tensor([0, -1, 2, -1, -1, 2])
    told = m2(alpha=7.0)
    without, with_ = (followed(p, ELBO(), X, mixed, mixed >= 0) for p in (plain, told))
    assert with_[0] == without[0]
    log_q = told.classifier(X).log_prob(told.one_hot[mixed.clamp(min=0)])
    _, own = of(told, 7.0 * log_q[mixed >= 0].sum())
    for name, gradient in with_[1].items():
        torch.testing.assert_close(gradient, without[1][name] + own[name])


@pytest.mark.parametrize("build", [m2, gmvae])
def test_features_and_every_class_go_through_one_perceptron(build):
    """The columns of x in its first layer are multiplied once, for all classes."""
    program, classes = build(), torch.eye(3).double().unsqueeze(1)
    *network, of_x = program.features
    of_y, head = program.posterior.network.of_y, program.posterior.network.head
    layer = nn.Linear(of_x.in_features + 3, of_x.out_features).double()
    layer.weight, layer.bias = nn.Parameter(torch.cat([of_x.weight, of_y.weight], 1)), of_x.bias
    joined = beside(nn.Sequential(*network)(X), classes, event_dim=1)
    expected = program.posterior.offset + head(nn.functional.silu(layer(joined)))
    found = program.posterior.raw(beside(program.features(X), classes, event_dim=1))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("build", [m2, pytest.param(gmvae, marks=pytest.mark.slow)])
def test_recorded_steps_have_the_bits_of_eager_ones(build):
    def run(engine):
        program = build()
        args = (X, Y, Y > 0) if build is m2 else (X,)
        adam = partial(torch.optim.Adam, lr=0.01)
        svi = SVI(program.model, program.guide, adam, ELBO(2), engine=engine)
        torch.manual_seed(0)
        losses = [svi.step(*args) for _ in range(4)]
        assert svi.recorded == (engine == "recorded")
        return losses

    assert run("eager") == run("recorded")


def test_a_few_labels_name_the_classes():
    """Two kinds of rows that the bound tells apart, and one label of each."""
    torch.manual_seed(0)
    kind = torch.arange(200) % 2
    x = (torch.rand(200, 8) < torch.where(kind[:, None] == 1, 0.9, 0.1)).float()
    labels = torch.where(torch.arange(200) < 2, kind, -1)
    program = M2.assemble((8,), (2,), num_classes=2, network=small, alpha=20.0)
    fit(program, (x, labels), epochs=20, batch_size=20, device="cpu", progress=False)
    found = program.classifier(x).logits.argmax(-1)
    assert (found == kind).float().mean() > 0.85


def test_what_it_takes():
    layout = Probe(Program(m2().model, m2().guide), X, Y, Y >= 0).layout
    assert [(stratum.name, stratum.num) for stratum in layout.strata.sites] == [("y_unobserved", 3)]
    assert layout.observed == ("y_observed", "x")
    with pytest.raises(ValueError, match=r"^alpha=-1"):
        m2(alpha=-1.0)
    with pytest.raises(ValueError, match="VampPrior needs the posterior of its latent as one"):
        m2(prior=VampPrior)
    with pytest.raises(ValueError, match=r"^1 classes: there are two or more"):
        GMVAE.assemble((4,), (2,), num_clusters=1)
    program = gmvae()
    with pytest.raises(ValueError, match=r"'y' is marked to be enumerated.*: use ELBO"):
        SVI(program.model, program.guide, torch.optim.SGD, RLOO()).step(X)
