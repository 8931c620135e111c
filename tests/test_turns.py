"""Guide and model take turns; the encoder trains until it has caught up."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from pyro_vae import VAE, fit
from pyro_vae.cli.config_files import read_config
from pyro_vae.components import MLP, DiagonalNormal, Normal, Sylvester, VampPrior
from pyro_vae.engine import Turns
from pyro_vae.inference import IWAE, Constant, ProgramError
from pyro_vae.laboratory import Aggressive, aggressive

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(2))


class Alternating(Turns):
    """The guide's turn and the model's by turns; the guide begins."""

    def __init__(self) -> None:
        super().__init__()
        self.model.zero_()

    def observe(self, loss: Tensor) -> None:
        self.guide.copy_(1 - self.guide)
        self.model.copy_(1 - self.model)


def build(**parts) -> VAE:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = {"prior": DiagonalNormal, "likelihood": Normal, **parts}
    return VAE.assemble((3,), (2,), network=partial(MLP, hidden=(8,)), **parts)


def train(vae: VAE, **options):
    settings = {"epochs": 2, "batch_size": 15, "schedule": Constant(), "device": "cpu", **options}
    return fit(vae, X, **settings)


def weights(vae: VAE) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in vae.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("turn", "expected", "engine"),
    [
        ("guide", {"posterior"}, "eager"),
        pytest.param("guide", {"posterior"}, "recorded", marks=pytest.mark.slow),
        ("model", {"prior", "likelihood"}, "eager"),
    ],
)
def test_only_the_part_whose_turn_it_is_moves(turn, expected, engine):
    class Always(Turns):
        def observe(self, loss: Tensor) -> None:
            pass

    turns = Always()
    getattr(turns, {"guide": "model", "model": "guide"}[turn]).zero_()
    vae = build()
    with torch.no_grad():
        vae.likelihood.offset.add_(0.1)  # not new: fit would start a new one at the data
    before = weights(vae)
    train(vae, turns=turns, engine=engine)
    assert moved(before, weights(vae)) == expected


def test_steps_of_the_guide_are_those_of_a_run_with_a_fixed_model():
    """The model's momentum must not move it either, and its gradients not the guide's."""
    frozen = build()
    for part in (frozen.prior, frozen.likelihood):
        part.requires_grad_(False)
    train(frozen, engine="eager")

    class OfGuide(Turns):
        def __init__(self) -> None:
            super().__init__()
            self.model.zero_()

        def observe(self, loss: Tensor) -> None:
            pass

    vae = build()
    train(vae, turns=OfGuide(), engine="eager")
    for name, weight in weights(frozen).items():
        torch.testing.assert_close(weights(vae)[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("turns", "objective"),
    [
        pytest.param(Alternating, IWAE(3), id="Alternating, IWAE", marks=pytest.mark.slow),
        pytest.param(partial(Aggressive, window=2, longest=5), None, id="Aggressive, ELBO"),
    ],
)
def test_recorded_is_eager_to_the_same_bits(turns, objective):
    found = {}
    for engine in ("eager", "recorded"):
        vae = build()
        train(vae, turns=turns(), engine=engine, objective=objective)
        found[engine] = weights(vae)
    for name, weight in found["eager"].items():
        assert torch.equal(found["recorded"][name], weight), name


def test_parameters_of_both_are_the_guides():
    vae = build(prior=partial(VampPrior, num_pseudo_inputs=3), data=X)
    before = weights(vae)
    train(vae, turns=Alternating(), epochs=1, batch_size=48)
    assert moved(before, weights(vae)) == {"posterior"}


def test_a_run_is_resumed_in_the_middle_of_a_row_of_turns(tmp_path):
    """One epoch is four steps, so that a row of three and one of the model go beyond its end."""
    turns = partial(Aggressive, window=3, longest=3)
    whole = build()
    expected = train(whole, turns=turns(), epochs=4, out=tmp_path / "whole")
    stopped = build()

    class Stop(Exception):
        pass

    class Stopping(Constant):
        def __call__(self, progress: float) -> float:
            if progress > 0.4:
                raise Stop
            return 1.0

        def __repr__(self) -> str:
            return "Constant()"

    with pytest.raises(Stop):
        train(
            stopped, turns=turns(), epochs=4, out=tmp_path / "run", schedule=Stopping(),
            checkpoint_seconds=0.0,
        )  # fmt: skip
    again = build()
    found = train(again, turns=turns(), epochs=4, out=tmp_path / "run", resume=True)
    assert found.history == expected.history
    for name, weight in weights(whole).items():
        assert torch.equal(weights(again)[name], weight)


def test_another_way_of_taking_turns_is_not_resumed(tmp_path):
    train(build(), turns=Aggressive(window=2), out=tmp_path)
    with pytest.raises(ValueError, match=r"turns: 'Aggressive\(window=2.*None now"):
        train(build(), out=tmp_path, resume=True)


def test_replicas_take_turns_of_their_own():
    alone = build()
    train(alone, turns=Aggressive(window=2, longest=4))
    several = fit(
        build(), X, epochs=2, batch_size=15, schedule=Constant(), device="cpu", num_replicas=2,
        turns=Aggressive(window=2, longest=4),
    )  # fmt: skip
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(several.replicas[0].program)[name], weight)


@pytest.mark.parametrize("part", ["posterior", "model"])
def test_who_has_nothing_to_train_takes_no_turns(part):
    vae = build()
    for module in [vae.posterior] if part == "posterior" else [vae.prior, vae.likelihood]:
        module.requires_grad_(False)
    whose = "guide" if part == "posterior" else "model"
    with pytest.raises(ProgramError, match=f"cannot take turns: .* {whose}'s alone"):
        train(vae, turns=Alternating())


# When the encoder has caught up -------------------------------------------------------------------


def turns_taken(losses: list[float], **options) -> str:
    turns, found = Aggressive(**options), ""
    for loss in losses:
        assert turns.guide + turns.model == 1
        found += "g" if turns.guide else "m"
        turns.observe(torch.tensor(loss))
    return found


def as_published(losses: list[float], window: int, longest: int) -> str:
    """The same decisions in plain Python, from the paper's section 3."""
    found, rest = "", list(losses)
    while rest:
        before, num = math.inf, 0
        while rest:
            found += "g"
            recent = [rest.pop(0)]
            num += 1
            while rest and num % window:
                recent.append(rest.pop(0))
                found += "g"
                num += 1
            mean = sum(recent) / window
            if (num % window == 0 and mean >= before) or num >= longest:
                break
            before = mean
        if rest:
            found += "m"
            rest.pop(0)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("window", "longest"), [(1, 4), (3, 9), (5, 20)])
def test_the_model_has_its_turn_when_the_loss_falls_no_more(window, longest, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = (torch.randn(200, generator=generator) - torch.arange(200) * 0.05).tolist()
    found = turns_taken(losses, window=window, longest=longest)
    assert found == as_published(losses, window, longest)
    assert "m" in found


def test_a_falling_loss_keeps_the_guide_at_work_for_so_long():
    falling = [-float(step) for step in range(42)]
    assert turns_taken(falling, window=5, longest=20) == ("g" * 20 + "m") * 2


def test_it_ends_when_mutual_information_falls(monkeypatch):
    """Half of the steps are the model's: it has taken an epoch after the second and the fourth."""
    rising = iter([9.0, 0.8, 0.7, 0.5, 0.6, 9.0])  # the first of a few data, before the first step

    class Known:
        def __init__(self) -> None:
            self.nats = next(rising)

    monkeypatch.setattr(aggressive, "mutual_information", lambda *_: Known())
    turns = Aggressive(window=1, longest=1)
    vae = build()
    history = train(vae, turns=turns, epochs=6).history
    found = [record.get("mutual_information_nats") for record in history]
    assert found == [0.8, 0.7, 0.5, 0.6, None, None]


def test_after_its_end_all_move():
    turns = Aggressive()
    turns.aggressive.zero_()
    for _ in range(3):
        turns.observe(torch.tensor(1.0))
    assert turns.guide == turns.model == 1


def test_a_guide_that_scores_its_own_draws_alone_is_refused_before_the_first_step(tmp_path):
    vae = build(posterior=partial(Sylvester, num_flows=1, rank=1, num_reflections=1))
    with pytest.raises(ValueError, match="scores its own draws alone"):
        train(vae, turns=Aggressive(), out=tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0: give 1 or more"),
        ({"num_data": 0}, "num_data=0: give 1 or more"),
        ({"window": 10, "longest": 5}, "longest=5: give window=10 or more"),
    ],
)
def test_unusable_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Aggressive(**options)


def test_a_configuration_of_an_older_version_finds_the_turns_where_they_are_now(tmp_path):
    old = "turns:\n  class_path: pyro_vae.evaluation.aggressive.Aggressive\n"
    (tmp_path / "config.yaml").write_text(old)
    read = read_config(tmp_path / "config.yaml", set())
    home = f"{Aggressive.__module__}.{Aggressive.__qualname__}"
    assert read == {"turns": {"class_path": home}}
