"""A run killed at any moment goes on to the same bits."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from bits import same
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from quick import some
from runs import child, final

from pyro_vae import VAE, fit
from pyro_vae.components import MLP, Convolutional, DiagonalNormal, Normal
from pyro_vae.engine import Binarize, CheckpointError, checkpoint
from pyro_vae.engine.checkpoint import latest, load
from pyro_vae.engine.run_folder import lock

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
EPOCHS = 4


def train(out: Path | None, *, resume: bool, **options):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae = VAE.assemble(
        (3,), (2,), prior=DiagonalNormal, likelihood=Normal, network=partial(MLP, hidden=(8,))
    )
    settings = {"epochs": EPOCHS, "batch_size": 7, "checkpoint_seconds": 0.0, **options}
    return vae, fit(vae, X, out=out, resume=resume, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that came to its end, which no test may change."""
    out = tmp_path_factory.mktemp("whole")
    train(out, resume=False)
    return out


@pytest.fixture
def uninterrupted(whole):
    return final(whole)


@pytest.fixture
def finished(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "finished"))


def at_call(number: int, function: Callable[[], object]) -> None:
    """Call ``function`` when so many functions have been called or left from here on."""
    left = itertools.count(number, -1)
    sys.setprofile(lambda *event: next(left) or function())


def test_killed_at_random_moments(tmp_path, uninterrupted):
    """Moments are counted in calls, so that they are the same on any machine."""
    seen = itertools.count()
    sys.setprofile(lambda *event: next(seen))
    train(tmp_path, resume=False, checkpoint_seconds=1e9)
    sys.setprofile(None)
    rng, num_calls, kills = random.Random(0), next(seen), 0
    for _ in range(3):
        moment = rng.randrange(1, num_calls)

        def run(moment=moment):
            at_call(moment, lambda: os._exit(137))
            train(tmp_path / "run", resume=True)

        _, status = os.waitpid(child(run), 0)
        assert os.WEXITSTATUS(status) in (0, 137)
        kills += status != 0
    assert kills >= 2
    train(tmp_path / "run", resume=True)
    assert same(final(tmp_path / "run"), uninterrupted)


CALLS = ("fsync", "replace", "rename", "open")


def test_killed_at_each_call_of_a_write(tmp_path, uninterrupted):
    """Die at each of the first calls, of a checkpoint's writing, and at ever later ones."""
    originals = {name: getattr(os, name) for name in CALLS}
    died_at, nth = set(), 0
    for attempt in itertools.count(1):
        after = attempt % 2
        nth = attempt if attempt < 15 else nth + nth // 2
        count = itertools.count(1)

        def dying(name, *args, after=after, nth=nth, count=count, **options):
            now = next(count) == nth
            if now and not after:
                os._exit(100 + CALLS.index(name))
            result = originals[name](*args, **options)
            if now:
                os._exit(100 + CALLS.index(name))
            return result

        def run(dying=dying):
            for name in CALLS:
                setattr(os, name, partial(dying, name))
            train(tmp_path, resume=True, checkpoint_seconds=0.0)

        _, status = os.waitpid(child(run), 0)
        if os.WEXITSTATUS(status) == 0:
            break
        died_at.add(CALLS[os.WEXITSTATUS(status) - 100])
    assert same(final(tmp_path), uninterrupted)
    assert died_at >= {"fsync", "rename", "open"}


@pytest.mark.parametrize("step", [1, 5, 7, 20])
def test_stopped_at_a_step_resumes_to_the_same_bits(tmp_path, uninterrupted, step):
    """At the first step, at an epoch's last batch, in the middle of one, at the last step."""

    def stop_after(*args, **options):
        path = original(*args, **options)
        if options["step"] == step:
            os._exit(137)
        return path

    original = checkpoint.save

    def run():
        checkpoint.save = stop_after
        train(tmp_path, resume=False)

    _, status = os.waitpid(child(run), 0)
    assert os.WEXITSTATUS(status) in (0, 137)
    train(tmp_path, resume=True)
    assert same(final(tmp_path), uninterrupted)


def test_how_often_checkpoints_are_written_changes_nothing(tmp_path, uninterrupted):
    train(tmp_path, resume=False, checkpoint_seconds=1e9)
    assert same(final(tmp_path), uninterrupted)


def test_writing_nothing_gives_the_same_weights(uninterrupted):
    vae, done = train(None, resume=False, weights="last")
    assert done.history == uninterrupted[0]["progress"]["history"]
    assert same(dict(vae.state_dict()), uninterrupted[0]["weights"]["modules"][0])


def test_resuming_a_finished_run_changes_nothing(finished, uninterrupted):
    _, done = train(finished, resume=True)
    assert done.epochs == EPOCHS
    assert same(final(finished), uninterrupted)


def test_tensorboard_shows_what_the_resumed_run_did_and_nothing_that_was_abandoned(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Killed before its first checkpoint, as all epochs are in the records already.
    options = {"log_tensorboard": True, "checkpoint_seconds": 1e9}

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, resume=False, **options)
    abandoned = (tmp_path / "metrics.jsonl").read_bytes()
    _, done = train(tmp_path, resume=True, optim=partial(torch.optim.Adam, lr=0.01), **options)
    assert abandoned != (tmp_path / "metrics.jsonl").read_bytes()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    shown = board.Scalars("train_nats")
    assert [event.step for event in shown] == [record["step"] for record in done.history]
    assert [event.value for event in shown] == pytest.approx(
        [record["train_nats"] for record in done.history]
    )


VARIANTS = {
    "several particles": {"objective": Trace_ELBO(num_particles=3, vectorize_particles=True)},
    "renyi": {"objective": RenyiELBO(num_particles=2, vectorize_particles=True)},
    "enumeration": {"objective": TraceEnum_ELBO(strict_enumeration_warning=False)},
    "patience": {"patience": 1, "schedule": lambda t: 1.0 if t < 0.5 else -5.0},
    "sgd with momentum": {"optim": partial(torch.optim.SGD, lr=1e-3, momentum=0.9)},
    "no state": {"optim": partial(torch.optim.SGD, lr=1e-3)},
    "static binarisation": None,
}


@pytest.mark.parametrize("variant", some(VARIANTS, "patience", "static binarisation"))
def test_every_kind_of_state_is_restored(tmp_path, variant):
    def run(out, resume):
        if VARIANTS[variant] is not None:
            return train(out, resume=resume, **VARIANTS[variant])
        torch.manual_seed(0)
        vae = VAE.assemble((1, 5, 5), (2,), network=partial(Convolutional, channels=(4,), hidden=8))
        x = (X.abs() * 60).clamp(max=255).repeat(1, 9)[:, :25].reshape(-1, 1, 5, 5).to(torch.uint8)
        return vae, fit(
            vae, x, observation=Binarize(255, resample=False), epochs=EPOCHS, batch_size=7,
            checkpoint_seconds=0.0, out=out, resume=resume,
        )  # fmt: skip

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    run(tmp_path / "a", False)
    original = checkpoint.save

    def stop_after(*args, **options):
        path = original(*args, **options)
        if options["step"] == 12:
            os._exit(137)
        return path

    def first():
        checkpoint.save = stop_after
        run(tmp_path / "b", False)

    os.waitpid(child(first), 0)
    run(tmp_path / "b", True)
    assert same(final(tmp_path / "b"), final(tmp_path / "a"))


def test_other_settings_are_refused_by_name(finished):
    with pytest.raises(CheckpointError, match="batch_size: 7 then, 8 now"):
        train(finished, resume=True, batch_size=8)
    with pytest.raises(CheckpointError, match="seed: 0 then, 9 now"):
        train(finished, resume=True, seed=9)


def test_another_model_is_refused_and_left_as_it_was(finished):
    torch.manual_seed(1)
    other = VAE.assemble((3,), (5,), likelihood=Normal, network=partial(MLP, hidden=(8,)))
    before = {n: p.detach().clone() for n, p in other.named_parameters()}
    with pytest.raises(CheckpointError, match=r"prior\.offset|shape"):
        fit(other, X, out=finished, resume=True, epochs=EPOCHS, batch_size=7)
    assert same({n: p.detach() for n, p in other.named_parameters()}, before)


def test_a_damaged_checkpoint_is_refused_with_the_one_to_go_back_to(finished):
    file = latest(finished / "checkpoints") / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="step-"):
        train(finished, resume=True)


def test_other_threads_warn(finished):
    path = latest(finished / "checkpoints")
    state = load(path)
    state["environment"]["threads"] = 64
    checkpoint.save(path.parent, state, step=state["progress"]["step"])
    with pytest.warns(UserWarning, match="threads: 64 then"):
        train(finished, resume=True)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with lock(tmp_path), pytest.raises(ValueError, match=str(os.getpid())):
        train(tmp_path, resume=False)
