"""Callbacks see the same run with every engine, and change nothing that they do not mean to."""

from __future__ import annotations

import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bits import same

from pyro_vae import VAE, fit
from pyro_vae.components import MLP, Normal
from pyro_vae.engine import Callback

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
NUM_BATCHES = 4  # of 32 rows for training
README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def train(*callbacks: Callback, **options: Any) -> Any:
    torch.manual_seed(0)
    vae = VAE.assemble((3,), (2,), likelihood=Normal, network=partial(MLP, hidden=(4,)))
    settings = {"epochs": 2, "batch_size": 8, "device": "cpu", "checkpoint_seconds": 0.0}
    return vae, fit(vae, X, callbacks=callbacks, **{**settings, **options})


class Noted(Callback):
    """Notes what it sees at each place."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, list[torch.Tensor]]] = []

    def note(self, place: str, run: Any, *more: torch.Tensor) -> None:
        weights = [p.detach().clone() for p in run.program.parameters().values()]
        self.seen.append((place, run.progress.step, [*weights, *more]))

    def start(self, run: Any) -> None:
        self.note("start", run)

    def step(self, run: Any, loss: torch.Tensor) -> None:
        self.note("step", run, torch.as_tensor(loss).double())

    def epoch(self, run: Any, record: Any) -> dict[str, float]:
        assert record["step"] == run.progress.step
        self.note("epoch", run)
        return {"twice_nats": 2 * record["train_nats"]}

    def end(self, run: Any) -> None:
        self.note("end", run)


class Drawing(Callback):
    """Draws random numbers wherever it can."""

    def start(self, run: Any) -> None:
        torch.randn(3), random.random(), np.random.rand()

    def step(self, run: Any, loss: torch.Tensor) -> None:
        self.start(run)

    def epoch(self, run: Any, record: Any) -> dict[str, float]:
        self.start(run)
        return {}


class Shrinking(Callback):
    """Changes weights in place after each step."""

    @torch.no_grad()
    def step(self, run: Any, loss: torch.Tensor) -> None:
        for parameter in run.program.parameters().values():
            parameter.mul_(0.9)


@pytest.mark.parametrize("engine", ["recorded", pytest.param("compiled", marks=pytest.mark.slow)])
def test_every_engine_shows_the_same_run(engine):
    eagerly, otherwise = Noted(), Noted()
    one, of_one = train(Shrinking(), eagerly, engine="eager")
    other, of_other = train(Shrinking(), otherwise, engine=engine)
    steps = [("step", n + 1) for n in range(2 * NUM_BATCHES)]
    places = [*steps[:NUM_BATCHES], ("epoch", NUM_BATCHES), *steps[NUM_BATCHES:]]
    places = [("start", 0), *places, ("epoch", 2 * NUM_BATCHES), ("end", 2 * NUM_BATCHES)]
    assert [seen[:2] for seen in eagerly.seen] == places
    assert [seen[:2] for seen in otherwise.seen] == places
    if engine == "recorded":
        assert same([seen[2] for seen in eagerly.seen], [seen[2] for seen in otherwise.seen])
        assert same(one.state_dict(), other.state_dict())
        assert of_one.history == of_other.history


def test_a_callback_that_only_looks_changes_no_bit():
    plain, expected = train()
    watched, found = train(Noted(), Drawing())
    assert same(plain.state_dict(), watched.state_dict())
    for record, its in zip(expected.history, found.history, strict=True):
        assert its == record | {"twice_nats": 2 * record["train_nats"]}


def test_the_end_has_the_weights_that_are_left():
    noted = Noted()
    vae, found = train(noted, epochs=4, optim=partial(torch.optim.Adam, lr=0.3))
    assert same(noted.seen[-1][2], [p.detach() for p in vae.parameters()])
    assert found.weights == "best"


def test_each_replica_calls_them_with_a_run_of_its_own():
    noted, seeds = Noted(), []
    noted.start = lambda run: seeds.append(run.seed)  # type: ignore[method-assign]
    vae, _ = train(noted, num_replicas=2, engine="eager", epochs=1)
    assert seeds == [0, 1]
    ends = [seen[2] for seen in noted.seen if seen[0] == "end"]
    assert same(ends[0], [p.detach() for p in vae.parameters()])
    assert not same(ends[0], ends[1])


def test_a_resumed_run_starts_where_it_stands(tmp_path):
    class Stops(Noted):
        def step(self, run: Any, loss: torch.Tensor) -> None:
            super().step(run, loss)
            if run.progress.step == NUM_BATCHES + 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Stops(), out=tmp_path)
    noted = Noted()
    vae, found = train(noted, out=tmp_path, resume=True)
    whole, expected = train(Noted())
    assert noted.seen[0][1] == NUM_BATCHES + 1
    assert same(vae.state_dict(), whole.state_dict())
    assert found.history == expected.history


class Returning(Callback):
    def __init__(self, **found: Any) -> None:
        self.found = found

    def epoch(self, run: Any, record: Any) -> dict[str, Any]:
        return self.found


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (Noted, TypeError, r"expected a Callback; write Noted\(\)"),
        (lambda run: None, TypeError, "callbacks=.*expected a Callback"),
        (Returning(words="x"), TypeError, r"Returning.epoch returns words='x': expected a number"),
        (Returning(step=1), ValueError, "'step', which the record has already"),
    ],
)
def test_what_is_no_callback_is_refused(callback, error, message):
    with pytest.raises(error, match=message):
        train(callback)


def test_the_example_of_the_readme_enters_the_history(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (code,) = [code for code in blocks if "Callback" in code]
    names: dict[str, Any] = {"torch": torch}
    exec(code, names)
    _, found = train(names["Spread"]())
    assert all(record["loss_spread"] > 0 for record in found.history)
    assert capsys.readouterr().out == f"{2 * NUM_BATCHES} steps\n"
