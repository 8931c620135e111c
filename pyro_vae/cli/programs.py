"""Build the program of a run: its class, the sizes of its latents, its arguments."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import Tensor, nn

from pyro_vae.cli.classes import arguments_of, imported
from pyro_vae.cli.components import Component, built, check_given
from pyro_vae.cli.options import latent_sizes
from pyro_vae.components import (
    assemble,
    assemble_conditional,
    assemble_hierarchy,
    assemble_ladder,
)
from pyro_vae.components.conditional import Shape
from pyro_vae.datasets import Dataset
from pyro_vae.engine.data import representative
from pyro_vae.engine.observations import Observation
from pyro_vae.fields import KNOWN
from pyro_vae.inference.explaining import explaining

__all__ = ["build_program", "default_program", "latent_shapes", "unused_options"]

_NUM_LATENTS = 40
_PARTS = ("prior", "likelihood", "posterior", "network", "encoder", "decoder")


def default_program(config: Any) -> None:
    """Set the options of program and latents, where the command line left them open; in place.

    One size of latents makes a ``VAE``, several a ``HierarchicalVAE``; a program that is named
    has the sizes that its ``assemble`` takes unless given, or 40 latents.
    """
    if config.model is None:
        name = "HierarchicalVAE" if "," in str(config.latent) else "VAE"
        config.model = Component(f"pyro_vae.models.{name}")
    if config.latent is None:
        config.latent = latent_sizes(_default_latents(imported(config.model.path)))


def unused_options(config: Any) -> set[str]:
    """Return the options of components and latents that a program has no argument for."""
    model_class = imported(config.model.path)
    wanted = set(inspect.signature(model_class).parameters)
    takes = _assembles(model_class, config.model.all_arguments())
    if takes:
        return set() if "**" in takes else {name for name in _PARTS if name not in takes}
    if {"priors", "posteriors"} & wanted:
        return set()
    unused = {name for name in ("prior", "likelihood", "posterior") if name not in wanted}
    unused |= {"decoder"} if "likelihood" in unused else set()
    unused |= {"encoder"} if "posterior" in unused else set()
    unused |= {"network"} if {"decoder", "encoder"} <= unused else set()
    all_unused = {*_PARTS} <= unused and not {"latent_shape", "latent_shapes"} & wanted
    return unused | ({"latent"} if all_unused else set())


def latent_shapes(sizes: int | str) -> tuple[Shape, ...]:
    """Return the shape of each layer of latents, from the data up: "64,8x7x7" is two."""
    return tuple(tuple(map(int, word.split("x"))) for word in str(sizes).split(","))


def build_program(config: Any, objects: Any, data: Dataset, observation: Observation) -> nn.Module:
    """Build the program that a configuration names.

    A class with an ``assemble`` of its own is built by it; the constructor of any other is given
    what its arguments are named after.

    Args:
        config: The values of the options.
        objects: The objects that they stand for, by role.
        data: The data set.
        observation: How its rows become observations.

    Raises:
        ValueError: If it cannot have so many layers of latents, takes classes that the data have
            not, or is no program.
    """
    model_class = imported(config.model.path)
    shapes = latent_shapes(config.latent)
    wanted = set(inspect.signature(model_class).parameters)
    own = _own_arguments(config.model)
    takes = _assembles(model_class, own)
    if len(shapes) > 1 and not {"latent_shapes", "priors", "posteriors"} & (wanted | takes):
        raise ValueError(
            f"--latent {config.latent}: {model_class.__name__} has one layer of latents; give one "
            "size, or a program of several, such as --model HierarchicalVAE"
        )
    families = {name: getattr(objects, name) for name in _PARTS}
    if "num_classes" in wanted:
        families |= _classes(data, observation, model_class.__name__)
    _check_fields(model_class, data)
    if takes:
        families["data"] = _seen(data, observation)
        given = {k: v for k, v in families.items() if k in takes or "**" in takes}
        latents = shapes if "latent_shapes" in takes else shapes[0]
        build = partial(model_class.assemble, data.event_shape, latents, **given, **own)
    else:
        named = _by_name(wanted, families, shapes, data, observation)
        build = partial(model_class, **named, **own)
    with explaining(f"{model_class.__name__} cannot be built", ()):
        program = build()
    for role in ("model", "guide"):
        if not callable(getattr(program, role, None)):
            name = model_class.__name__
            raise ValueError(f"{name} has no method {role!r}: a program has model(x) and guide(x)")
    return program


def _default_latents(model_class: Any) -> str:
    if "assemble" not in vars(model_class):
        return str(_NUM_LATENTS)
    taken = inspect.signature(model_class.assemble).parameters
    found = next((taken[n].default for n in ("latent_shapes", "latent_shape") if n in taken), None)
    if not isinstance(found, tuple):
        return str(_NUM_LATENTS)
    layers = found if isinstance(found[0], tuple) else (found,)
    return ",".join("x".join(map(str, shape)) for shape in layers)


def _assembles(model_class: Any, own: dict[str, Any]) -> set[str]:
    """Return what a class's own ``assemble`` takes; nothing if it has none, or not these too."""
    if "assemble" not in vars(model_class):
        return set()
    parameters = inspect.signature(model_class.assemble).parameters.values()
    takes = {"**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}
    return takes if own.keys() <= takes else set()


def _by_name(
    wanted: set[str],
    families: dict[str, Any],
    shapes: tuple[Shape, ...],
    data: Dataset,
    observation: Observation,
) -> dict[str, Any]:
    """Return what the names of a constructor's arguments ask for."""
    known: dict[str, Any] = {
        "event_shape": data.event_shape, "latent_shape": shapes[0], "latent_shapes": shapes,
        "num_classes": families.get("num_classes"),
    }  # fmt: skip
    known |= {f"{name}_shape": tuple(x.shape[1:]) for name, x in data.train.fields.items()}
    several, one = {"priors", "posteriors"}, {"prior", "likelihood", "posterior"}
    if several & wanted:
        build = assemble_ladder if "upward" in wanted else assemble_hierarchy
        known |= build(data.event_shape, shapes, data=_seen(data, observation), **families)
    elif one & wanted:
        given: Any = assemble_conditional if "num_classes" in wanted else assemble
        known |= given(data.event_shape, shapes[0], data=_seen(data, observation), **families)
    return {name: value for name, value in known.items() if name in wanted}


def _classes(data: Dataset, observation: Observation, name: str) -> dict[str, Any]:
    """Return how many classes all parts have together, and the labels of seen rows."""
    if data.train.labels is None or data.classes is None:
        raise ValueError(
            f"--model {name}: it takes a class for each datum, 0, 1, ..., which {data.name} has "
            "not; name data with labels, such as --data digits, or take --model VAE"
        )
    seen = representative(data.train, observation).labels
    return {"num_classes": len(data.classes), "labels": seen}


def _check_fields(model_class: Any, data: Dataset) -> None:
    """Refuse a class that needs the shape of a field which the data have not."""
    for name, argument in inspect.signature(model_class).parameters.items():
        field = name.removesuffix("_shape")
        missing = f"{field}_shape" == name and field in KNOWN and field not in data.train.fields
        if missing and argument.default is argument.empty:
            raise ValueError(
                f"--model {model_class.__name__}: it takes {field}, which {data.name} has not; "
                f"name a .npz file with an array {field!r} beside x"
            )


def _seen(data: Dataset, observation: Observation) -> Tensor:
    """Return training data as they are observed, to start the program from."""
    return representative(data.train, observation).x


def _own_arguments(model: Component) -> dict[str, Any]:
    """Return the arguments of a program's own, as objects.

    Raises:
        ValueError: If one is missing.
    """
    known, given = arguments_of(model.path), model.all_arguments()
    check_given("--model", known, given)
    return {name: built(f"--model.{name}", known[name].hint, given[name]) for name in given}
