"""The integrator comes back and keeps energy; transitions leave a density where it is."""

import math

import pytest
import torch

from pyro_vae.inference.hmc import Point, adapted, first_step_sizes, leapfrog, transition

PRECISION = torch.tensor([[2.0, 1.2], [1.2, 1.5]], dtype=torch.float64)
LOC = torch.tensor([1.0, -0.5], dtype=torch.float64)


def gaussian(position, *, sign=1.0):
    offset = position - LOC
    force = offset @ PRECISION
    density = -0.5 * (offset * force).sum(-1)
    nothing = torch.zeros_like(density), torch.zeros_like(position)
    return Point(position, density, -sign * force, *nothing)


def quartic(position):
    density = -0.25 * position.pow(4).sum(-1) - 0.5 * position.prod(-1) ** 2
    gradient = -position.pow(3) - position.prod(-1, keepdim=True) * position.flip(-1)
    return Point(position, density, gradient, torch.zeros_like(density), torch.zeros_like(position))


def points(num, density):
    generator = torch.Generator().manual_seed(3)
    position, momentum = torch.randn(2, num, 2, generator=generator, dtype=torch.float64)
    return density(position), momentum


def energy(point, momentum):
    return 0.5 * momentum.square().sum(-1) - point.log_density


def steps(num, size):
    return torch.full((num,), size, dtype=torch.float64)


@pytest.mark.parametrize("density", [gaussian, quartic])
def test_the_integrator_comes_back_when_momenta_are_reversed(density):
    start, momentum = points(20, density)
    end, moved = leapfrog(density, start, momentum, steps(20, 0.2), num_steps=15)
    back, reversed_ = leapfrog(density, end, -moved, steps(20, 0.2), num_steps=15)
    assert (end.position - start.position).abs().mean() > 0.3
    torch.testing.assert_close(back.position, start.position, rtol=0, atol=1e-10)
    torch.testing.assert_close(-reversed_, momentum, rtol=0, atol=1e-10)


def energy_error(density, size):
    start, momentum = points(50, density)
    end, moved = leapfrog(density, start, momentum, steps(50, size), num_steps=round(1 / size))
    return (energy(end, moved) - energy(start, momentum)).abs().mean()


@pytest.mark.parametrize("density", [gaussian, quartic])
def test_the_error_of_the_energy_falls_as_the_square_of_the_step(density):
    ratio = energy_error(density, 0.04) / energy_error(density, 0.02)
    assert ratio == pytest.approx(4.0, rel=0.05)


def test_a_gradient_of_the_wrong_sign_does_not_keep_energy():
    wrong = lambda position: gaussian(position, sign=-1.0)  # noqa: E731
    assert energy_error(gaussian, 0.02) < 1e-3 < 0.5 < energy_error(wrong, 0.02)


def test_the_map_preserves_volume():
    start, momentum = points(1, quartic)

    def run(both):
        end, moved = leapfrog(
            quartic, quartic(both[None, :2]), both[None, 2:], steps(1, 0.3), num_steps=4
        )
        return torch.cat([end.position, moved], 1)[0]

    both = torch.cat([start.position, momentum], 1)[0]
    jacobian = torch.autograd.functional.jacobian(run, both)
    assert jacobian.det().item() == pytest.approx(1.0, abs=1e-10)


def moments_after(num_moves, size, *, num_chains=40_000):
    noise = torch.randn(num_chains, 2, dtype=torch.float64)
    root = torch.linalg.cholesky(PRECISION.inverse())
    point, acceptances = gaussian(LOC + noise @ root.T), []
    for _ in range(num_moves):
        point, acceptance = transition(gaussian, point, steps(num_chains, size), num_steps=3)
        acceptances.append(acceptance.mean())
    offset = point.position - LOC
    products = torch.cat([offset, (offset.unsqueeze(-1) * offset.unsqueeze(-2)).flatten(1)], 1)
    expected = torch.cat([torch.zeros(2).double(), PRECISION.inverse().flatten()])
    scores = (products.mean(0) - expected) / (products.std(0) / math.sqrt(num_chains))
    return scores.abs().max().item(), torch.stack(acceptances).mean().item()


def test_transitions_leave_the_density_invariant():
    score, acceptance = moments_after(5, 0.95)
    assert 0.3 < acceptance < 0.95
    assert score < 5


def test_moves_that_are_never_rejected_do_not(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    score, _ = moments_after(5, 0.95)
    assert score > 10


def test_chains_converge_to_the_density():
    point = gaussian(torch.zeros(20_000, 2, dtype=torch.float64))
    for _ in range(30):
        point, _ = transition(gaussian, point, steps(20_000, 0.5), num_steps=5)
    assert (point.position.mean(0) - LOC).abs().max() < 0.03
    torch.testing.assert_close(point.position.T.cov(), PRECISION.inverse(), rtol=0.06, atol=0.03)


def test_a_chain_that_leaves_the_numbers_stays_where_it_is_and_alone():
    start, _ = points(3, gaussian)
    sizes = torch.tensor([0.5, 1e200, 0.5], dtype=torch.float64)
    torch.manual_seed(0)
    end, acceptance = transition(gaussian, start, sizes, num_steps=4)
    assert torch.equal(end.position[1], start.position[1])
    assert acceptance[1] == 0
    assert bool(end.position.isfinite().all())
    torch.manual_seed(0)
    other, _ = transition(gaussian, start, steps(3, 0.5), num_steps=4)
    assert torch.equal(end.position[[0, 2]], other.position[[0, 2]])


def test_step_sizes_find_the_acceptance_that_is_asked_for():
    point, _ = points(400, gaussian)
    size = first_step_sizes(point.position)
    recent = []
    for _ in range(200):
        point, acceptance = transition(gaussian, point, size, num_steps=5)
        size = adapted(size, acceptance, target=0.8, rate=0.1)
        recent.append(acceptance.mean())
    assert torch.stack(recent[100:]).mean().item() == pytest.approx(0.8, abs=0.03)
