"""Hierarchies against the joint Gaussian of linear layers, and against a VAE of one layer."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from bits import same
from hierarchies import (
    NUM_1,
    NUM_2,
    NUM_X,
    SCALES,
    X,
    affine,
    conditioned,
    generative,
    joint,
    linear,
    of_model,
    table,
)
from laws import Pair
from pyro.infer import Trace_ELBO
from quick import some
from recorded import both, run
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyro_vae import SVI, fit
from pyro_vae.components import (
    MLP,
    Automatic,
    Bernoulli,
    Convolutional,
    DiagonalNormal,
    StandardNormal,
    assemble_hierarchy,
)
from pyro_vae.engine import checkpoint
from pyro_vae.inference import (
    ELBO,
    IWAE,
    MIWAE,
    NVIL,
    RLOO,
    RWS,
    TVO,
    VIMCO,
    AnalyticELBO,
    BetaVAE,
    DReG,
    FreeBits,
    KLWeight,
    Probe,
    Program,
    Units,
)
from pyro_vae.models import VAE, HierarchicalVAE, LadderVAE
from pyro_vae.models.ladder import merged


def bottom_up() -> HierarchicalVAE:
    posteriors = [linear(NUM_X, NUM_1, 0.5), linear(NUM_1, NUM_2, 0.8)]
    return HierarchicalVAE(**generative(), posteriors=posteriors)


def top_down() -> LadderVAE:
    steps = [nn.Linear(NUM_X, 5).double(), nn.Linear(5, 6).double()]
    posteriors = [linear(5, NUM_1, 0.6), linear(6, NUM_2, 0.9)]
    return LadderVAE(**generative(), upward=steps, posteriors=posteriors)


def guide_bottom_up(vae: HierarchicalVAE, x: torch.Tensor) -> MultivariateNormal:
    """q(z2, z1 | x) of one datum, from the layers' weights alone."""
    (w1, b1), (w2, b2) = (affine(layer) for layer in vae.posteriors)
    none = torch.zeros(NUM_1, 0).double()
    upward = joint([(none, w1 @ x + b1, 0.5), (w2, b2, 0.8)])  # z1, then z2
    order = [*range(NUM_1, NUM_1 + NUM_2), *range(NUM_1)]
    return MultivariateNormal(upward.loc[order], upward.covariance_matrix[order][:, order])


def guide_top_down(vae: LadderVAE, x: torch.Tensor) -> MultivariateNormal:
    """q(z2, z1 | x) of one datum, by products of precisions."""
    d1 = vae.upward[0](x).detach()
    d2 = vae.upward[1](d1).detach()
    (v1, c1), (v2, c2) = (affine(layer) for layer in vae.posteriors)
    (w1, b1) = affine(vae.priors[0])
    of_data, of_prior = 0.6**-2, SCALES["z1"] ** -2
    precision = of_data + of_prior
    bias = (of_data * (v1 @ d1 + c1) + of_prior * b1) / precision
    none = torch.zeros(NUM_2, 0).double()
    return joint([(none, v2 @ d2 + c2, 0.9), (of_prior / precision * w1, bias, precision**-0.5)])


GUIDES = {"bottom-up": (bottom_up, guide_bottom_up), "top-down": (top_down, guide_top_down)}
guides = pytest.mark.parametrize("name", GUIDES)


@guides
def test_joint_and_guide_are_the_gaussians_of_their_layers(name: str) -> None:
    build, gaussian = GUIDES[name]
    vae = build()
    terms = table(vae)
    z = torch.cat([terms.values["z2"], terms.values["z1"]], -1)  # [S, B, 5]
    both_ = torch.cat([z, X.expand(len(z), -1, -1)], -1)
    log_p = sum(terms.log_p.values())
    torch.testing.assert_close(log_p, of_model(vae).log_prob(both_), rtol=1e-10, atol=1e-10)
    for row, x in enumerate(X):
        expected = gaussian(vae, x).log_prob(z[:, row])
        log_q = sum(terms.log_q.values())[:, row]
        torch.testing.assert_close(log_q, expected, rtol=1e-10, atol=1e-10)


@guides
@pytest.mark.parametrize("objective", [ELBO, AnalyticELBO])
def test_the_bound_is_exact(name: str, objective: Any) -> None:
    build, gaussian = GUIDES[name]
    vae = build()
    p = of_model(vae)
    found = objective().value(table(vae)).detach()
    num = NUM_1 + NUM_2
    log_p = MultivariateNormal(p.loc[num:], p.covariance_matrix[num:, num:]).log_prob(X)
    gaps = [kl_divergence(gaussian(vae, x), conditioned(p, x)) for x in X]
    torch.testing.assert_close(found, log_p - torch.stack(gaps), rtol=1e-10, atol=1e-10)


@guides
def test_the_kl_of_the_layers_is_exact_and_sums_to_the_whole(name: str) -> None:
    build, gaussian = GUIDES[name]
    vae = build()
    terms = table(vae)
    found = {site: terms.kl(site).mean(0).detach() for site in terms.log_q}
    p = of_model(vae)
    for row, x in enumerate(X):
        q = gaussian(vae, x)
        whole = kl_divergence(q, marginal(p, [*range(NUM_1 + NUM_2)]))
        total = sum(kl[row] for kl in found.values())
        torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-10)
    if name == "top-down":
        of_z2 = [
            kl_divergence(marginal(guide_top_down(vae, x), [0, 1]), marginal(p, [0, 1])) for x in X
        ]
        torch.testing.assert_close(found["z2"], torch.stack(of_z2), rtol=1e-10, atol=1e-10)
        assert all(terms.closed_kl(site) is not None for site in found)
    else:  # the model declares z1 given z2, which the guide draws later: that KL is sampled
        assert terms.closed_kl("z1") is None
        assert terms.closed_kl("z2") is not None


def marginal(gaussian: MultivariateNormal, dims: list[int]) -> MultivariateNormal:
    return MultivariateNormal(gaussian.loc[dims], gaussian.covariance_matrix[dims][:, dims])


@guides
@pytest.mark.parametrize("nats", [0.0, 1.5, 100.0])
def test_free_bits_of_the_layers_sum_right(name: str, nats: float) -> None:
    build, gaussian = GUIDES[name]
    vae = build()
    p = of_model(vae)
    layers = torch.zeros(2).double()
    for x in X:  # KL(q(z2) || p(z2)) and the rest, or KL(q(z2 | z1) || p(z2)) and the rest
        q = gaussian(vae, x)
        whole = kl_divergence(q, marginal(p, [*range(NUM_1 + NUM_2)]))
        of_z2 = kl_of_z2(vae, x) if name == "bottom-up" else whole - whole
        if name == "top-down":
            of_z2 = kl_divergence(marginal(q, [0, 1]), marginal(p, [0, 1]))
        layers += torch.stack([of_z2, whole - of_z2]) / len(X)
    penalty = FreeBits(nats).penalty(table(vae)).detach()
    assert penalty.shape == (len(X),)
    torch.testing.assert_close(penalty[0], layers.clamp(min=nats).sum(), rtol=1e-9, atol=1e-9)


def kl_of_z2(vae: HierarchicalVAE, x: torch.Tensor) -> torch.Tensor:
    """E over z1 of KL(q(z2 | z1) || N(0, I)), written out: half of s^2 - 1 - log s^2 + loc^2."""
    (w1, b1), (w2, b2) = (affine(layer) for layer in vae.posteriors)
    loc = w2 @ (w1 @ x + b1) + b2
    square = loc.square().sum() + 0.5**2 * w2.square().sum()
    return 0.5 * (NUM_2 * (0.8**2 - 1 - math.log(0.8**2)) + square)


@guides
def test_a_weight_of_one_layer_leaves_the_others(name: str) -> None:
    vae = GUIDES[name][0]()
    plain = table(vae)
    weight = KLWeight(0.25, sites=["z2"])
    weighed = SimpleNamespace(model=weight(vae.model), guide=weight(vae.guide))
    terms = table(weighed)
    objective = AnalyticELBO()
    torch.testing.assert_close(objective.value(terms), objective.value(plain))
    expected = -plain.distortion - plain.kl("z1") - 0.25 * plain.kl("z2")
    torch.testing.assert_close(objective.surrogate(terms), expected.mean(0))


def test_at_the_exact_posterior_every_draw_of_both_guides_is_the_evidence() -> None:
    """Scalars: q(z1 | x) q(z2 | z1) and q(z2 | x) q(z1 | z2, x) can both be exact."""
    priors = [linear(1, 1, 0.7), StandardNormal((1,)).double()]
    likelihood = linear(1, 2, 0.9)
    parts: dict[str, Any] = {"priors": priors, "likelihood": likelihood}
    (u, b), (w, c) = affine(priors[0]), affine(likelihood)
    none = torch.zeros(1, 0).double()
    p = joint([(none, torch.zeros(1).double(), 1.0), (u, b, 0.7), (w, c, 0.9)])
    x = X[:, :2]
    posterior = conditioned(p, x)  # of z2, z1
    cov = posterior.covariance_matrix[0]
    z1_given_x = Normal(posterior.loc[:, 1:], cov[1, 1].sqrt())
    z2_given_x = Normal(posterior.loc[:, :1], cov[0, 0].sqrt())
    given_z1 = conditioned(marginal(p, [0, 1]), torch.zeros(1, 1).double())
    slope = conditioned(marginal(p, [0, 1]), torch.ones(1, 1).double()).loc - given_z1.loc
    scale = given_z1.covariance_matrix.sqrt().squeeze()
    precision = w.square().sum() / 0.9**2  # of x about z1
    of_data = Normal((x - c) @ w / 0.9**2 / precision, precision.rsqrt())
    up = HierarchicalVAE(
        **parts,
        posteriors=[
            Given(lambda x: z1_given_x),
            Given(lambda z: Normal(given_z1.loc + z * slope, scale)),
        ],
    )
    same = nn.Identity()
    read = [Given(lambda d: of_data), Given(lambda d: z2_given_x)]
    down = LadderVAE(**parts, upward=[same, same], posteriors=read)
    log_p = marginal(p, [2, 3]).log_prob(x)
    for vae in (up, down):
        program = Program(vae.model, vae.guide)
        with program.running():
            model, guide = program.traces(x)
            log_w = model.log_prob_sum() - guide.log_prob_sum()
        torch.testing.assert_close(log_w, log_p.sum(), rtol=1e-10, atol=1e-10)


class Given(nn.Module):
    """A conditional that is written as a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, context: torch.Tensor) -> Any:
        fn = self.function(context)
        return dist.Normal(fn.loc, fn.scale).to_event(1)


def test_the_merge_is_the_normalised_product_of_the_densities() -> None:
    evidence = dist.Normal(torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.1).to_event(1)
    prior = dist.Normal(torch.randn(5, 3).double(), torch.rand(3).double() + 0.1).to_event(1)
    found = merged(evidence, prior)
    z = torch.randn(40, 5, 3).double()
    ratio = evidence.log_prob(z) + prior.log_prob(z) - found.log_prob(z)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # of z it does not depend
    assert found.event_shape == (3,)


def test_a_merge_of_extreme_scales_stays_finite() -> None:
    scales = torch.tensor([1e-5, 1e-2, 1.0, 1e2, 1e4])
    ours = dist.Normal(torch.ones(5, 5, requires_grad=True), scales.requires_grad_()).to_event(2)
    theirs = dist.Normal(torch.zeros(5, 5), scales.detach().unsqueeze(-1)).to_event(2)
    found = merged(ours, theirs)
    (found.mean.sum() + found.base_dist.scale.log().sum()).backward()
    assert bool(found.mean.isfinite().all())
    assert bool((found.base_dist.scale > 0).all())
    assert bool(scales.grad.isfinite().all())


# ---------------------------------------------------------------------------- one layer


PARTS: dict[str, dict[str, Any]] = {
    "normal": {},
    "learned prior": {"prior": DiagonalNormal},
    "bits": {"prior": Bernoulli, "posterior": Bernoulli},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_stack_of_one_layer_is_a_vae_bit_for_bit(name: str) -> None:
    x = (torch.rand(6, 4) < 0.4).float()
    parts = {"network": partial(MLP, hidden=(5,)), "data": x, **PARTS[name]}
    losses, states = [], []
    for build, shapes in ((VAE.assemble, (3,)), (HierarchicalVAE.assemble, [(3,)])):
        torch.manual_seed(1)
        vae = build((4,), shapes, **parts)
        svi = SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.05), ELBO(2))
        losses.append([svi.step(x) for _ in range(3)])
        states.append(list(vae.state_dict().values()))
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


# ---------------------------------------------------------------------------- families, sizes

GAMMA = partial(Automatic, distribution="Gamma")
POISSON = partial(Automatic, distribution="Poisson")
OF_NORMALS: dict[str, Any] = {
    "ELBO": partial(ELBO, 2),
    "AnalyticELBO": AnalyticELBO,
    "IWAE": partial(IWAE, 3),
    "DReG": partial(DReG, 3),
    "MIWAE": partial(MIWAE, 2, 2),
    "RWS": partial(RWS, 3),
    "TVO": partial(TVO, 3),
    "BetaVAE": partial(BetaVAE, 0.5),
    "FreeBits": partial(FreeBits, 0.3),
    "FreeBits, units": partial(FreeBits, 0.3, Units()),
    "Trace_ELBO": Trace_ELBO,
}
OF_ANY: dict[str, Any] = {
    "ELBO": partial(ELBO, 2),
    "RLOO": partial(RLOO, 3),
    "VIMCO": partial(VIMCO, 3),
    "NVIL": NVIL,
    "RWS": partial(RWS, 3),
    "TVO": partial(TVO, 3),
}
STACKS: dict[str, tuple[Any, list[tuple[int, ...]], dict[str, Any]]] = {
    "normal": (HierarchicalVAE, [(3,), (2,)], {}),
    "three layers, one larger than x": (HierarchicalVAE, [(2,), (7,), (2, 2)], {}),
    "ladder": (LadderVAE, [(3,), (2,)], {}),
    "ladder of equal sizes": (LadderVAE, [(2,), (2,), (2,)], {}),
    "sigmoid belief network": (
        HierarchicalVAE,
        [(3,), (2,)],
        {"prior": Bernoulli, "posterior": Bernoulli},
    ),
    "gamma layers": (HierarchicalVAE, [(3,), (2,)], {"prior": GAMMA, "posterior": GAMMA}),
    "Poisson layers": (HierarchicalVAE, [(3,), (2,)], {"prior": POISSON, "posterior": POISSON}),
    "bits below a normal": (
        HierarchicalVAE,
        [(3,), (2,)],
        {"prior": [Bernoulli, StandardNormal], "posterior": [Bernoulli, DiagonalNormal]},
    ),
}


def stack(name: str) -> Pair:
    build, shapes, parts = STACKS[name]
    x = (torch.rand(6, 4, generator=torch.Generator().manual_seed(7)) < 0.4).float()
    vae = build.assemble((4,), shapes, network=partial(MLP, hidden=(5,)), **parts)
    return Pair(vae.model, vae.guide, (x,))


RECORDED = {"ladder": partial(IWAE, 2), "Poisson layers": partial(VIMCO, 2)}
IN_FULL = ("normal", "ladder", "sigmoid belief network")


def legal(name: str) -> dict[str, Any]:
    reparameterised = not STACKS[name][2] or name == "gamma layers"
    found = OF_NORMALS if reparameterised else OF_ANY
    return found if name in IN_FULL else {each: found[each] for each in ("ELBO", "RWS")}


@pytest.mark.parametrize("name", STACKS)
def test_stacks_train_under_every_legal_objective(name: str) -> None:
    for objective, build in legal(name).items():
        losses = run(partial(stack, name), build(), "eager", sizes=(6, 6), whole=True).losses
        assert len(set(losses)) == 2, objective
        assert all(map(math.isfinite, losses)), objective


@pytest.mark.parametrize("name", some(RECORDED, "ladder"))
def test_a_recorded_step_has_the_bits_of_an_eager_one(name: str) -> None:
    found = both(partial(stack, name), RECORDED[name], sizes=(6, 6, 6), whole=True)
    assert found.replayed[-1]


@pytest.mark.parametrize("name", STACKS)
def test_every_parameter_of_every_layer_gets_a_gradient(name: str) -> None:
    pair = stack(name)
    objective = ELBO(2)
    program = Program(pair.model, pair.guide)
    with program.running():
        objective.differentiable_loss(pair.model, pair.guide, *pair.args).backward()
    for parameter, value in program.parameters().items():
        assert value.grad is not None, parameter
        assert bool(value.grad.isfinite().all()), parameter
        assert bool((value.grad != 0).any()), parameter
    assert Probe(program, *pair.args).layout.vectorizes


def test_only_the_layer_beside_the_data_needs_a_network_for_images() -> None:
    network = partial(Convolutional, channels=(2, 3), hidden=4)
    vae = HierarchicalVAE.assemble((1, 5, 4), [(3,), (2,)], network=network)
    assert [type(part.network).__name__ for part in (vae.likelihood, *vae.posteriors)] == [
        "Convolutional",
        "Convolutional",
        "MLP",
    ]


@pytest.mark.parametrize(
    ("prior", "posterior", "expected"),
    [
        (StandardNormal, DiagonalNormal, DiagonalNormal),
        (StandardNormal, partial(Automatic, distribution="Laplace"), DiagonalNormal),
        (DiagonalNormal, DiagonalNormal, DiagonalNormal),
        (Bernoulli, Bernoulli, Bernoulli),
        ([GAMMA, StandardNormal], DiagonalNormal, Automatic),
        (StandardNormal, [Bernoulli, DiagonalNormal], Bernoulli),
    ],
)
def test_the_family_below_the_top(prior: Any, posterior: Any, expected: type) -> None:
    parts = assemble_hierarchy((4,), [(3,), (2,)], prior=prior, posterior=posterior)
    assert type(parts["priors"][0].family) is expected


def test_data_standardise_the_first_layer_alone_and_start_the_likelihood() -> None:
    x = torch.bernoulli(torch.linspace(0.05, 0.95, 12).expand(200, 12))
    for build in (HierarchicalVAE, LadderVAE):
        vae = build.assemble((12,), [(3,), (2,)], data=x)
        assert sum(getattr(module, "known", False) for module in vae.modules()) == 1
        mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
        torch.testing.assert_close(vae.likelihood.offset.squeeze(0), mean.logit())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: assemble_hierarchy((4,), []), r"latent_shapes=\(\): .*at least one layer"),
        (lambda: assemble_hierarchy((4,), [(3,), (0,)]), r"\(0,\)"),
        (lambda: assemble_hierarchy((4,), [(3,)], prior=[Bernoulli] * 2), "prior: 2 given for 1"),
        (lambda: assemble_hierarchy((4,), [(3,)], network=[MLP] * 2), "network: 2 given for 1"),
        (lambda: HierarchicalVAE(priors=[], likelihood=nn.Identity(), posteriors=[]), "0 priors"),
        (
            lambda: LadderVAE(
                priors=[nn.Identity()], likelihood=nn.Identity(), upward=[], posteriors=[]
            ),
            "got 1, 0 and 0",
        ),
    ],
)
def test_what_is_no_hierarchy_is_said_on_one_line(build: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


LADDERS = {
    "bits": ({"prior": Bernoulli, "posterior": Bernoulli}, "a layer has a Bernoulli: .*DiagonalNo"),
    "gamma": ({"prior": [GAMMA, DiagonalNormal]}, "a layer has a Gamma"),
}


@pytest.mark.parametrize("name", LADDERS)
def test_a_ladder_of_other_layers_than_normal_ones_is_refused(name: str) -> None:
    parts, said = LADDERS[name]
    vae = LadderVAE.assemble((4,), [(3,), (2,)], **parts)
    with pytest.raises(ValueError, match=said) as caught:
        Probe(Program(vae.model, vae.guide), torch.zeros(3, 4))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_merged_names_both_shapes() -> None:
    two, three = (dist.Normal(torch.zeros(n), 1.0).to_event(1) for n in (2, 3))
    with pytest.raises(ValueError, match=r"over \(2,\) with a prior over \(3,\)"):
        merged(two, three)


def test_a_checkpoint_of_a_hierarchy_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def run(**options: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        vae = LadderVAE.assemble((4,), [(3,), (2,)], network=partial(MLP, hidden=(5,)))
        x = (torch.rand(20, 4, generator=torch.Generator().manual_seed(2)) < 0.4).float()
        history = fit(vae, x, batch_size=8, **options).history
        return {"history": history, **vae.state_dict()}

    class Stop(Exception):
        pass

    original = checkpoint.save

    def stop(*args: Any, **options: Any) -> Any:
        original(*args, **options)
        if options["step"] == 3:
            raise Stop

    whole = run(epochs=2)
    options = {"out": tmp_path / "run", "checkpoint_seconds": 0.0, "epochs": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(Stop):
            run(**options)
    assert same(run(resume=True, **options), whole)
