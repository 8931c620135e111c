"""The top-down hierarchy: its shapes, that layers see what is above, and what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from laws import Pair
from pyro import poutine
from recorded import both

from pyro_vae.components import Automatic, Bernoulli, Binomial, DiagonalNormal, FullNormal
from pyro_vae.components.top_down import SubPixel, image_shapes
from pyro_vae.inference import ELBO, AnalyticELBO, FreeBits, Groups, Probe, Program
from pyro_vae.inference.terms import site_terms
from pyro_vae.models import TopDownVAE

EVENT, LATENTS = (1, 7, 5), ((2, 4, 3), (2, 4, 3), (3, 1, 1))


def built(latents: Any = LATENTS, **options: Any) -> Pair:
    x = torch.randint(0, 2, (5, *EVENT), generator=torch.Generator().manual_seed(3)).double()
    options = {"channels": 4, "data": x, **options}
    vae = TopDownVAE.assemble(EVENT, latents, **options).double()
    return Pair(vae.model, vae.guide, (x,))


FAMILIES: dict[str, dict[str, Any]] = {
    "normal": {},
    "counts": {"likelihood": partial(Binomial, total_count=3)},
    "Laplace": {"posterior": partial(Automatic, distribution="Laplace")},
    "bits": {"prior": Bernoulli, "posterior": Bernoulli},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient_and_particles_are_drawn_at_once(name: str) -> None:
    pair = built(**FAMILIES[name])
    program = Program(pair.model, pair.guide)
    layout = Probe(program, *pair.args).layout
    assert layout.latents == ("z3", "z2", "z1")
    assert layout.vectorizes
    with program.running():
        ELBO(2).differentiable_loss(pair.model, pair.guide, *pair.args).backward()
        terms = site_terms(program, layout, *pair.args, num_particles=2)
    for parameter, value in program.parameters().items():
        assert value.grad is not None, parameter
        assert bool(value.grad.isfinite().all()), parameter
        assert bool((value.grad != 0).any()), parameter
    for layer, shape in enumerate(LATENTS, start=1):
        assert terms.values[f"z{layer}"].shape == (2, 5, *shape)


def test_every_layer_has_a_closed_kl_and_free_bits_of_channels() -> None:
    pair = built()
    program = Program(pair.model, pair.guide)
    layout = Probe(program, *pair.args).layout
    with program.running():
        terms = site_terms(program, layout, *pair.args)
        each = {name: terms.closed_kl(name).mean() for name in terms.log_q}
        penalty = FreeBits(0.0).penalty(terms)
    torch.testing.assert_close(penalty[0], sum(each.values()))
    groups = {name: Groups(LATENTS[int(name[1]) - 1][0])(terms, name) for name in terms.log_q}
    for name, kl in groups.items():
        torch.testing.assert_close(kl.sum(-1).mean(), each[name])


def test_the_model_replays_the_state_of_the_guide() -> None:
    """Both come down through the same blocks: only then is q(z | h, d) next to p(z | h)."""
    pair = built()
    seen: dict[str, list[torch.Tensor]] = {"enter": []}
    vae = pair.model.__self__
    for block in vae.blocks:
        block.enter = noting(block.enter, seen["enter"])
    with Program(pair.model, pair.guide).running():
        guide = poutine.trace(pair.guide).get_trace(*pair.args)
        of_guide = [h.detach() for h in seen["enter"]]
        seen["enter"].clear()
        poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*pair.args)
    assert len(of_guide) == len(seen["enter"]) == 3
    for found, expected in zip(seen["enter"], of_guide, strict=True):
        torch.testing.assert_close(found, expected)


def noting(function: Any, seen: list[torch.Tensor]) -> Any:
    def noted(h: Any) -> torch.Tensor:
        seen.append(function(h))
        return seen[-1]

    return noted


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_a_layer_depends_on_all_layers_above_and_on_none_below(changed: int) -> None:
    pair = built()
    program = Program(pair.model, pair.guide)
    with program.running(), torch.no_grad():
        first, guide = program.traces(*pair.args)
        values = {name: guide.nodes[name]["value"] for name in ("z1", "z2", "z3")}
        values[f"z{changed}"] = values[f"z{changed}"] + 1.0
        conditioned = poutine.condition(pair.model, data=values)
        second = poutine.trace(conditioned).get_trace(*pair.args)
    for layer in (1, 2, 3):
        one, other = (t.nodes[f"z{layer}"]["fn"].mean for t in (first, second))
        moved = not torch.allclose(one.expand_as(other), other)
        assert moved == (layer < changed), layer
    logits = [t.nodes["x"]["fn"].base_dist.logits for t in (first, second)]
    assert not torch.allclose(*logits)


def test_a_recorded_step_has_the_bits_of_an_eager_one() -> None:
    def float32() -> Pair:
        pair = built(((1, 4, 3), (1, 2, 2)), channels=2)
        pair.model.__self__.float()
        return Pair(pair.model, pair.guide, tuple(x.float() for x in pair.args))

    found = both(float32, AnalyticELBO, sizes=(4, 4), whole=True)
    assert found.replayed[-1]
    assert len(set(found.losses)) == 2


def test_a_fresh_hierarchy_starts_at_the_marginals_of_the_data() -> None:
    pair = built()
    vae, (x,) = pair.model.__self__, pair.args
    torch.testing.assert_close(
        vae.likelihood.offset.sigmoid().squeeze(0), x.mean(0).clamp(1e-3, 1 - 1e-3)
    )
    standardized = vae.upward[0][0](x)
    assert standardized.mean().abs() < 1e-10


def test_a_fresh_posterior_hears_the_data() -> None:
    """Signals that shrink on the way up and through a branch leave latents that start unused."""
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(40, 1, 2, 2)).repeat_interleave(4, -1).repeat_interleave(4, -2)
    vae = TopDownVAE.assemble((1, 8, 8), ((4,), (4,), (4,)), data=x, channels=16)
    with Program(vae.model, vae.guide).running(), torch.no_grad():
        trace = poutine.trace(vae.guide).get_trace(x)
    for layer in (1, 2, 3):
        posterior = trace.nodes[f"z{layer}"]["fn"]
        assert 0.03 < posterior.mean.std(0).mean() < 3.0, layer


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (((4,), (8,), (16,)), [(4, 14, 14), (8, 7, 7), (16, 4, 4)]),
        (((4, 14, 14), (4, 14, 14), (8,)), [(4, 14, 14), (4, 14, 14), (8, 7, 7)]),
        (((1, 28, 28), (2, 1, 1), (3,)), [(1, 28, 28), (2, 1, 1), (3, 1, 1)]),
    ],
)
def test_one_list_sets_layers_and_resolutions(given: Any, expected: Any) -> None:
    assert image_shapes((1, 28, 28), given) == expected


@pytest.mark.parametrize(("small", "large"), [((4, 4), (8, 8)), ((4, 3), (7, 5)), ((2, 1), (2, 3))])
def test_sub_pixels_reach_every_pixel(small: Any, large: Any) -> None:
    network = SubPixel((3, *small), (2, 1, *large)).double()
    h = torch.randn(2, 4, 3, *small, dtype=torch.float64)
    out = network(h)
    assert out.shape == (2, 4, 2, 1, *large)
    assert bool((out != 0).all())
    for s in range(2):
        torch.testing.assert_close(network(h[s]), out[s])


REFUSED: dict[str, tuple[Any, str]] = {
    "vectors": (lambda: TopDownVAE((5,), ((2,),)), r"no images .* but \(5,\)"),
    "no layer": (lambda: TopDownVAE(EVENT, ()), r"latent_shapes=\(\)"),
    "a layer too large": (
        lambda: TopDownVAE(EVENT, ((2, 4, 4), (2, 5, 4))),
        r"latent shape \(2, 5, 4\) above 4 x 4",
    ),
    "two sizes": (lambda: TopDownVAE(EVENT, ((2, 4),)), r"latent shape \(2, 4\) above 7 x 5"),
    "no channels": (lambda: TopDownVAE(EVENT, ((0,),)), r"event_shape=\(0, 4, 3\)"),
    "one channel": (lambda: TopDownVAE(EVENT, ((2,),), channels=1), "channels=1"),
    "full covariance": (
        lambda: TopDownVAE(EVENT, ((2,),), posterior=FullNormal),
        "FullNormal over .* no image",
    ),
    "likelihood of a vector": (lambda: SubPixel((2, 4, 4), (5,)), r"not \(5,\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_said_on_one_line(name: str) -> None:
    build, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_below_a_prior_without_raw_numbers_layers_are_normal() -> None:
    vae = TopDownVAE(EVENT, LATENTS)
    assert {type(block.prior_family) for block in vae.blocks} == {DiagonalNormal}
