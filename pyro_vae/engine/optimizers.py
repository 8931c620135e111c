"""Torch optimisers: built from what the user gives, and run inside a recorded step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

from pyro_vae.arguments import shown
from pyro_vae.files import reason

__all__ = [
    "Optim",
    "TensorRates",
    "adam",
    "add_parameters",
    "build",
    "check_constant_rate",
    "clip_as_pyro",
    "factor_of_turn",
    "rate_factors",
    "resting",
]

Optim = Callable[[Iterable[Any]], torch.optim.Optimizer]

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_OTHER_KERNELS = ("fused", "foreach", "capturable", "differentiable")


def adam(parameters: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9) -> torch.optim.Adam:
    """Return Adam over parameters or groups of them; momentum is its beta1."""
    return torch.optim.Adam(parameters, lr=lr, betas=(momentum, 0.999))


def rate_factors(modules: Iterable[nn.Module]) -> dict[int, float]:
    """Return by what the learning rates of parameters are multiplied, by their id.

    A module says it of the parameters in it, its submodules' included, by an attribute
    ``rate_factor``; so does a parameter of itself. Factors of modules within each other multiply.
    """
    factors: dict[int, float] = {}
    distinct = {id(part): part for module in modules for part in module.modules()}
    for part in distinct.values():
        own = getattr(part, "rate_factor", 1.0)
        for parameter in part.parameters() if own != 1 else ():
            factors[id(parameter)] = factors.get(id(parameter), 1.0) * own
        for parameter in part.parameters(recurse=False):
            if hasattr(parameter, "rate_factor"):
                factor = factors.get(id(parameter), 1.0) * parameter.rate_factor
                factors[id(parameter)] = factor
    return factors


def build(
    optim: Optim | PyroOptim,
    parameters: dict[str, Tensor],
    factors: Mapping[int, float] = MappingProxyType({}),
) -> tuple[Any, Any]:
    """Return a torch optimiser, and the scheduler that a ``pyro.optim`` object brings, or None.

    Parameters have the learning rate of ``optim``, times their factor if ``rate_factors`` has one.

    Adam, AdamW and SGD take their fused kernel, the same arithmetic in one pass, unless another
    one was asked for.
    """
    try:
        optimizer, scheduler = _built(optim, _groups(optim, parameters, factors), parameters)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"optim={shown(optim)} cannot build an optimiser of the program's parameters "
            f"({reason(error)}): give one such as functools.partial(torch.optim.Adam, lr=1e-3)"
        ) from error
    _check(optim, optimizer)
    _take_fused_kernels(optimizer)
    return optimizer, scheduler


def _check(optim: Any, optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optim={shown(optim)} returns {shown(optimizer)}, no torch optimiser: give one such "
            "as functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"optim: {type(optimizer).__name__} evaluates the loss several times for a step, on a "
            "closure, where each evaluation here has its own noise: take one that needs the "
            "gradient alone, such as torch.optim.Adam"
        )
    groups = optimizer.param_groups
    if any(g.get("capturable") for g in groups) and any(
        parameter.device.type == "cpu" for group in groups for parameter in group["params"]
    ):
        raise ValueError(
            "optim: capturable=True is for steps that CUDA captures, and these parameters are on "
            "the CPU: leave it out"
        )
    if any(group.get("differentiable") for group in groups):
        raise ValueError(
            "optim: differentiable=True is for gradients through a step, which none are taken of "
            "here: leave it out"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            "optim: SparseAdam takes sparse gradients alone, and those of networks are dense: take "
            "torch.optim.Adam"
        )


def check_constant_rate(optim: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a learning rate that an optimiser would move by itself, where a schedule sets it.

    Raises:
        ValueError: If it is a ``pyro.optim`` scheduler, a torch scheduler was made with it, it
            decays its rate, or has none; names what to take.
    """
    if any("lr" not in group for group in optimizer.param_groups):
        raise ValueError(
            f"optim: {type(optimizer).__name__} has no learning rate lr, which fit sets at every "
            "step from its schedule: take one that has, such as torch.optim.Adam, or train with SVI"
        )
    decays = [group["lrd"] for group in optimizer.param_groups if group.get("lrd", 1.0) != 1.0]
    if isinstance(optim, PyroLRScheduler):
        moves = f"a pyro.optim scheduler ({optim.pt_scheduler_constructor.__name__})"
    elif decays:
        moves = f"{type(optimizer).__name__}(lrd={decays[0]})"
    elif hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        moves = "a torch.optim.lr_scheduler"
    else:
        return
    raise ValueError(
        f"optim: {moves} moves the learning rate, which fit sets at every step from its schedule: "
        "give the optimiser alone, and the factor of its rate as schedule=, such as Cosine() or "
        "lambda done: 0.1**done, where done goes from 0 to 1"
    )


def add_parameters(
    optimizer: torch.optim.Optimizer,
    optim: Optim | PyroOptim,
    parameters: dict[str, Tensor],
    factors: Mapping[int, float] = MappingProxyType({}),
) -> None:
    """Let an optimiser built by ``build`` train more parameters."""
    for group in _groups(optim, parameters, factors):
        optimizer.add_param_group(group)
        _scale(optimizer.param_groups[-1:])
    _take_fused_kernels(optimizer)


def clip_as_pyro(optim: Any, parameters: dict[str, Tensor]) -> None:
    """Apply a ``pyro.optim`` object's ``clip_args``, to each parameter by itself as Pyro does."""
    if not isinstance(optim, PyroOptim):
        return
    for name, parameter in parameters.items():
        clip = optim.pt_clip_args
        if callable(clip):
            module, _, stripped = normalize_param_name(name).rpartition(".")
            clip = clip(module, stripped)
        if clip and parameter.grad is not None:
            optim._clip_grad(parameter, **clip)


class TensorRates:
    """An optimiser's learning rates as tensors, so that a recorded step reads them anew.

    Args:
        optimizer: One whose kernels read the rate from a tensor, see ``readable``.
        device: Where the tensors live.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        # A float64 is what a Python float is; kernels on a GPU read a float32.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.values = [float(group["lr"]) for group in optimizer.param_groups]
        self.tensors = [torch.tensor(rate, dtype=dtype, device=device) for rate in self.values]
        self.states = [state for state in optimizer.state.values() if state]
        self._facts = self._settings()

    @staticmethod
    def readable(optimizer: torch.optim.Optimizer | None) -> bool:
        """Whether a step of the optimiser can be recorded: its state is there, its kernels fused.

        Hooks would run only once.
        """
        if type(optimizer) not in _FUSED or optimizer is None:
            return False
        hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        return all(group["fused"] for group in optimizer.param_groups) and not any(hooks)

    def changed(self) -> bool:
        """Whether anything but the rates differs from the time of recording."""
        return self._settings() != self._facts

    def update(self) -> None:
        """Take over the rates that the optimiser's groups hold now."""
        for place, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self.values[place]:
                self.values[place] = group["lr"]
                self.tensors[place].fill_(group["lr"])

    @contextmanager
    def read_by_kernels(self, failed: Tensor | None, turns: Any = None) -> Iterator[None]:
        """Let the optimiser read the tensors.

        Args:
            failed: Where it is 1, a step changes nothing.
            turns: Whose turn it is, where the groups take turns.
        """
        for group, tensor in zip(self.optimizer.param_groups, self.tensors, strict=True):
            group["lr"] = tensor if turns is None else tensor * factor_of_turn(group, turns)
        if failed is not None:
            self.optimizer.found_inf = failed  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for group, rate in zip(self.optimizer.param_groups, self.values, strict=True):
                group["lr"] = rate
            if failed is not None:
                del self.optimizer.found_inf  # type: ignore[attr-defined]

    def _settings(self) -> list[Any]:
        groups = self.optimizer.param_groups
        settings: list[Any] = [
            {name: value for name, value in group.items() if name not in ("lr", "params")}
            for group in groups
        ]
        members = [id(parameter) for group in groups for parameter in group["params"]]
        states = [id(state) for state in self.optimizer.state.values() if state]
        return [settings, members, states]


def factor_of_turn(group: dict[str, Any], turns: Any) -> Any:
    """Return the tensor that is 1 where it is the group's turn and 0 where it rests; 1 at any."""
    return getattr(turns, group["turn"]) if "turn" in group else 1


@contextmanager
def resting(optimizer: torch.optim.Optimizer, turns: Any) -> Iterator[None]:
    """Give those groups whose turn it is not the learning rate 0."""
    if turns is None:
        yield
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * float(factor_of_turn(group, turns))
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _take_fused_kernels(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser use one kernel for all parameters, where there is one."""
    if type(optimizer) not in _FUSED:
        return
    for group in optimizer.param_groups:
        free = not any(group.get(option) is not None and group[option] for option in _OTHER_KERNELS)
        if free and group["fused"] is None and all(map(_has_fused_kernel, group["params"])):
            group["fused"] = True


def _has_fused_kernel(parameter: Tensor) -> bool:
    return parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()


def _built(
    optim: Any, groups: list[dict[str, Any]], parameters: dict[str, Tensor]
) -> tuple[torch.optim.Optimizer, Any]:
    if not isinstance(optim, PyroOptim):
        # One group is handed over as torch's own optimisers are: what takes some of them can.
        plain = [*groups[0]] == ["params"] if len(groups) == 1 else False
        optimizer = optim(groups[0]["params"] if plain else groups)
        _scale(optimizer.param_groups)
        return optimizer, None
    shared = optim.pt_optim_args if isinstance(optim.pt_optim_args, dict) else {}
    optimizer = optim.pt_optim_constructor(groups, **shared)
    _scale(optimizer.param_groups)
    if not isinstance(optim, PyroLRScheduler):
        return optimizer, None
    scheduler = optim.pt_scheduler_constructor(optimizer, **optim.kwargs)
    # Pyro scripts step the pyro.optim object, which hands on to the schedulers it holds.
    optim.optim_objs = {next(iter(parameters.values())): scheduler}
    return optimizer, scheduler


def _scale(groups: Iterable[dict[str, Any]]) -> None:
    for group in groups:
        if "rate_factor" in group and "lr" in group:
            group["lr"] = group["lr"] * group["rate_factor"]


def _groups(
    optim: Any, parameters: dict[str, Tensor], factors: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Return one group for each factor of the rate; one of each where their arguments differ."""
    per_parameter = isinstance(optim, PyroOptim) and callable(optim.pt_optim_args)
    if per_parameter:
        return [
            {"params": [p], **_arguments(optim, name), **_said(factors.get(id(p), 1.0))}
            for name, p in parameters.items()
        ]
    members: dict[float, list[Tensor]] = {}
    for parameter in parameters.values():
        members.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    plain_first = sorted(members, key=lambda factor: factor != 1)
    return [{"params": members[factor], **_said(factor)} for factor in plain_first]


def _said(factor: float) -> dict[str, float]:
    return {} if factor == 1 else {"rate_factor": factor}


def _arguments(optim: PyroOptim, name: str) -> dict[str, Any]:
    if len(inspect.signature(optim.pt_optim_args).parameters) == 1:
        return optim.pt_optim_args(normalize_param_name(name))
    module, _, parameter = normalize_param_name(name).rpartition(".")
    return optim.pt_optim_args(module, parameter)
