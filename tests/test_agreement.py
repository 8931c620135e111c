"""Each leaf of a checkpoint, edited in every way, is refused in a sentence, or harmless."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from bits import same
from pyro.infer import Trace_ELBO
from runs import forge
from torch import Tensor, nn

from pyro_vae import VAE, fit
from pyro_vae.components import MLP, Normal
from pyro_vae.engine import CheckpointError, checkpoint
from pyro_vae.engine.checkpoint import latest, load
from pyro_vae.engine.restoring import random_state, set_random_state
from pyro_vae.engine.training import Training
from pyro_vae.engine.weights import load_weights
from pyro_vae.fitting import Interrupted
from pyro_vae.inference.schedules import Constant

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "engine": "eager"}


def program(scale: float = 1.0, activation: Callable[[], nn.Module] = nn.Tanh) -> VAE:
    torch.manual_seed(0)
    network = partial(MLP, hidden=(4,), activation=activation)
    return VAE.assemble((3,), (2,), likelihood=partial(Normal, scale=scale), network=network)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped in the middle of its second epoch, with moments and a history."""
    out = tmp_path_factory.mktemp("stopped")
    after_step = Training.after_step

    def stop(run: Training, *args: Any) -> None:
        after_step(run, *args)
        if run.progress.step == 4:
            run.save()
            raise Interrupted(2, "stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "after_step", stop)
        with pytest.raises(Interrupted):
            fit(program(), X, out=out, **SETTINGS)
    return out


def while_restoring(out: Path, look: Callable[[Training], None]) -> None:
    """Call ``look`` with a run that is about to take up its state."""

    def restore(run: Training) -> None:
        look(run)
        raise Interrupted(2, "restored")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "restore", restore)
        with pytest.raises(Interrupted):
            fit(program(), X, out=out, resume=True, **SETTINGS)


# Edits --------------------------------------------------------------------------------------------


def leaves(value: Any, place: tuple = ()) -> Iterator[tuple]:
    if isinstance(value, (dict, list)):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield (*place, key)
            yield from leaves(value[key], (*place, key))


def edited(value: Any, place: tuple, edit: Callable[[Any], Any]) -> Any:
    """Return the value with one leaf edited, which shares all the rest."""
    first, *rest = place
    copied = copy.copy(value)
    if rest:
        copied[first] = edited(value[first], tuple(rest), edit)
    elif edit is delete:
        del copied[first]
    else:
        copied[first] = edit(value[first])
    return copied


def at(value: Any, place: tuple) -> Any:
    return at(value[place[0]], place[1:]) if place else value


def delete(value: Any) -> Any:
    raise AssertionError


def retyped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype != torch.float64 else value.float()
    return str(value) if not isinstance(value, str) else 7


def negated(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.dtype == torch.uint8 else -value - 1
    return -value - 1 if isinstance(value, (int, float)) else value


def reshaped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros((), dtype=value.dtype) if value.dim() else value.expand(2).clone()
    return value * 2 if isinstance(value, list) else value


def not_a_number(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.full_like(value, math.nan) if value.is_floating_point() else value
    return math.nan if isinstance(value, float) else value


def emptied(value: Any) -> Any:
    return type(value)() if isinstance(value, (dict, list)) else None


EDITS = [delete, retyped, negated, reshaped, not_a_number, emptied]
# Values that training may take as well as any other; what is set anew before a step; what may
# change with a warning. Each has its kind and shape all the same.
KERNELS = {"fused", "foreach", "capturable", "differentiable"}
FREE = KERNELS | {
    "init_from",
    "weights", "best", "train_nats", "lr", "exp_avg", "random", "seconds", "learning_rate",
    "epochs", "learning_rates", "patience", "clip_norm", "schedule", "environment",
}  # fmt: skip
WITHOUT_KIND = KERNELS | {
    "init_from",
    "environment", "epochs", "learning_rates", "patience", "clip_norm", "schedule",
}  # fmt: skip


def refusal(run: Training, state: Any, path: Path) -> str | None:
    try:
        run._check(state, path)
    except (CheckpointError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore:resuming, but not to the same bits")
def test_every_edit_of_a_state_is_refused_or_harmless(stopped):
    state = load(latest(stopped / "checkpoints"))
    taken, tried = [], 0

    def look(run: Training) -> None:
        nonlocal tried
        for place, edit in ((place, edit) for place in leaves(state) for edit in EDITS):
            if edit is not delete and same(edit(at(state, place)), at(state, place)):
                continue
            other = edited(state, place, edit)
            tried += 1
            told = refusal(run, other, stopped)
            if told is None:
                taken.append((place, edit.__name__))
            else:
                assert "\n" not in told, place
                assert len(told) < 1000, place

    while_restoring(stopped, look)
    assert tried > 600
    # Whatever the program is, a setting that is not told cannot differ.
    taken = [t for t in taken if t[0][1:2] != ("program",) or t[1] != "delete"]
    # That a run has no corruption, one of an earlier version does not say.
    taken = [t for t in taken if t != (("settings", "corruption"), "delete")]
    assert not [t for t in taken if not FREE & {*t[0]}]
    kinds = [t for t in taken if t[1] in ("delete", "retyped", "reshaped", "not_a_number")]
    assert not [t for t in kinds if not WITHOUT_KIND & {*t[0]}]


# Other programs and other settings ----------------------------------------------------------------

OTHERS = {
    "likelihood's scale": (lambda: program(scale=0.1), {}, "family.scale was 1.0 then, and is 0.1"),
    "activation": (
        lambda: program(activation=nn.ReLU),
        {},
        "was torch.Tanh then, and is torch.ReLU",
    ),
    "batch size": (program, {"batch_size": 7}, "batch_size: 8 then, 7 now"),
    "seed": (program, {"seed": 1}, "seed: 0 then, 1 now"),
    "objective": (program, {"objective": Trace_ELBO(num_particles=2)}, "objective: .* now"),
    "betas": (
        program,
        {"optim": partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9))},
        "betas is .* expected",
    ),
    "optimiser": (program, {"optim": partial(torch.optim.SGD, lr=1e-3)}, "optimizer: 'Adam' then"),
    "fewer epochs": (program, {"epochs": 1}, "epochs=1: .* in epoch 2 already"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_does_not_go_on_with_it(stopped, name):
    build, options, pattern = OTHERS[name]
    vae = build()
    before = {n: p.detach().clone() for n, p in vae.named_parameters()}
    with pytest.raises(ValueError, match=pattern):
        fit(vae, X, out=stopped, resume=True, **{**SETTINGS, **options})
    assert same({n: p.detach() for n, p in vae.named_parameters()}, before)


@pytest.mark.parametrize("name", ["likelihood's scale", "activation"])
def test_another_program_is_not_given_the_weights(stopped, name):
    vae = OTHERS[name][0]()
    with pytest.raises(CheckpointError, match=OTHERS[name][2]):
        load_weights(vae.model, vae.guide, stopped, X[:3])


MAY_CHANGE = {
    "epochs": ({"epochs": 4}, "epochs: 3 then, 4 now"),
    "learning rate": ({"optim": partial(torch.optim.Adam, lr=1e-4)}, "learning_rates: .*0.0001"),
    "schedule": ({"schedule": Constant()}, "schedule: .*Constant.* now"),
    "clipping": ({"clip_norm": 5.0}, "clip_norm: None then, 5.0 now"),
}


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_a_run_goes_on_with_what_may_change_and_says_that_bits_differ(stopped, tmp_path, name):
    options, pattern = MAY_CHANGE[name]
    out = Path(shutil.copytree(stopped, tmp_path / "copy"))
    with pytest.warns(UserWarning, match=f"not to the same bits .*{pattern}"):
        done = fit(program(), X, out=out, resume=True, **{**SETTINGS, **options})
    assert done.epochs == options.get("epochs", 3)


# Behind a right seal ------------------------------------------------------------------------------


def test_neither_file_of_a_checkpoint_can_be_exchanged_alone(stopped, tmp_path):
    """Whatever is negated, swapped or taken from another checkpoint, and sealed again."""
    path = Path(shutil.copytree(latest(stopped / "checkpoints"), tmp_path / "step-000000004"))
    state, tensors = (path / "state.json"), (path / "tensors.safetensors")
    text, data = state.read_bytes(), tensors.read_bytes()
    stored = safetensors.torch.load(data)
    one, other = [name for name in stored if name.endswith("exp_avg")][:2]
    with safetensors.safe_open(tensors, "pt") as file:
        about = file.metadata()
    for changed in ({one: -stored[one]}, {one: stored[other], other: stored[one]}):
        forge(path, tensors=safetensors.torch.save(stored | changed, metadata=about))
        with pytest.raises(CheckpointError, match="not as they were written together"):
            load(path)
    forge(path, tensors=data, state=text.replace(b'"seconds": ', b'"seconds": 1'))
    with pytest.raises(CheckpointError, match="not as they were written together"):
        load(path)
    forge(path, tensors=data, state=text)
    assert same(load(path), load(latest(stopped / "checkpoints")))


def test_a_moment_of_one_element_is_never_written_beyond(stopped, tmp_path):
    """As in ``attack_heap_overflow.py``: the kernel writes as much as the parameter holds."""
    out = Path(shutil.copytree(stopped, tmp_path / "copy"))
    path = latest(out / "checkpoints")
    for name in ("exp_avg", "exp_avg_sq", "step"):
        state = load(latest(stopped / "checkpoints"))
        moment = state["optimizer"]["state"][0]
        moment[name] = torch.zeros(()) if name != "step" else torch.zeros(2)
        checkpoint.save(path.parent, state, step=4)
        with pytest.raises(CheckpointError, match=rf"optimizer.state.0.{name} .*expected float32"):
            fit(program(), X, out=out, resume=True, **SETTINGS)


def test_numbers_of_numpy_are_never_read_beyond_their_table():
    state = random_state()
    for position in (625, 10**9, -1):
        state["numpy"][2] = position
        with pytest.raises(CheckpointError, match=r"random state.numpy.2 is .*from 0 to 624"):
            set_random_state(state)
