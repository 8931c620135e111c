"""The settings of a run are one frozen object with the names and defaults of ``fit``."""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from pathlib import Path

import pytest
import torch

from pyro_vae import VAE, fit, fitting
from pyro_vae.components import MLP, Normal
from pyro_vae.datasets import from_arrays
from pyro_vae.engine.settings import Settings

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(2))
NOT_SETTINGS = {"model", "guide", "data", "data_weights", "num_replicas"}


def vae() -> VAE:
    torch.manual_seed(0)
    return VAE.assemble((3,), (2,), likelihood=Normal, network=partial(MLP, hidden=(4,)))


def test_they_have_the_names_and_defaults_of_fit():
    of_fit = inspect.signature(fit).parameters
    fields = {field.name: getattr(Settings(), field.name) for field in dataclasses.fields(Settings)}
    assert fields.keys() == of_fit.keys() - NOT_SETTINGS
    built = {"schedule", "observation"}  # by fit where they are None
    assert {name for name in fields if fields[name] != of_fit[name].default} == built


def test_a_single_run_is_what_the_settings_say_and_never_passes_the_replicas(monkeypatch):
    for name in ("Replicas", "replicated"):
        monkeypatch.setattr(fitting, name, None)
    by_name, by_settings = vae(), vae()
    options = {"epochs": 1, "batch_size": 8, "engine": "eager", "seed": 4}
    found = fit(by_name, X, **options)
    same = fitting.fit_as_set(by_settings, from_arrays(X), Settings(**options))
    assert same.history == found.history
    for name, weight in by_name.state_dict().items():
        assert torch.equal(weight, by_settings.state_dict()[name])
    (replica,) = found.replicas
    assert replica.program is by_name


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"batch_size": 0}, {"clip_norm": 0.0}, {"patience": 0}, {"seed": -1},
     {"checkpoint_seconds": -1.0}, {"weights": "first"}, {"log_tensorboard": True}],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused_where_it_is_made(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        Settings(**wrong)


def test_they_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().out = Path()  # type: ignore[misc]
