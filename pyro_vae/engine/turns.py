"""Choose which parameters a step moves: the guide's, the model's, or all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.inference.detached import reached
from pyro_vae.inference.program import Program, ProgramError
from pyro_vae.inference.sites import Layout

__all__ = ["Turns", "part_in_turns"]


class Turns(nn.Module):
    """Lets the guide's parameters and the model's move in different steps.

    In a step that is not its turn a part has the learning rate 0: it rests, while its gradients
    still enter the moments of its optimiser. What both depend on is the guide's. A leaf says in
    ``observe``, on the device and without asking the host, whose turn the next step is. Its state
    is in buffers: it belongs to a checkpoint.

    Attributes:
        guide: 1 where the next step moves the guide's parameters, else 0; a 0-d tensor.
        model: 1 where it moves those of the model.
    """

    guide: Tensor
    model: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("guide", torch.ones(()))
        self.register_buffer("model", torch.ones(()))

    def check(self, program: Program, *few: Tensor) -> None:
        """Refuse a program that cannot be looked at after an epoch, before the first step.

        Args:
            program: To be trained.
            few: Arguments of model and guide, a few rows.
        """

    def observe(self, loss: Tensor) -> None:
        """Decide whose turn the next step is, from the loss of this one.

        Args:
            loss: In nats per datum, a 0-d tensor.
        """
        raise NotImplementedError

    def end_epoch(self, program: Program, *validation: Tensor) -> dict[str, float]:
        """Look at a program after an epoch; return what belongs to the epoch's record.

        Args:
            program: In training.
            validation: The arguments of model and guide for what the turns depend on.
        """
        return {}


def part_in_turns(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    program: Program,
    layout: Layout,
    *args: Any,
) -> None:
    """Part each group of an optimiser in two, whose "turn" is "guide" and "model".

    Args:
        optimizer: Of the parameters.
        parameters: All that are trained.
        program: Whose they are.
        layout: Of the program.
        args: A few data, with which it is found out which parameters log q(z | x) depends on.

    Raises:
        ProgramError: If there is nothing that the guide or the model has to itself.
    """
    with program.running():
        of_guide = reached(program, layout, parameters, *args)["guide"]
    guides = {id(p) for p, is_its in zip(parameters, of_guide, strict=True) if is_its}
    groups = []
    for group in optimizer.param_groups:
        members: dict[str, list[Any]] = {"guide": [], "model": []}
        for parameter in group["params"]:
            members["guide" if id(parameter) in guides else "model"].append(parameter)
        groups += [{**group, "params": its, "turn": turn} for turn, its in members.items()]
    lacking = [
        turn
        for turn in ("guide", "model")
        if not any(group["params"] for group in groups if group["turn"] == turn)
    ]
    if lacking:
        raise ProgramError(
            f"guide and model cannot take turns: no trainable parameter is the {lacking[0]}'s alone"
        )
    optimizer.param_groups[:] = [group for group in groups if group["params"]]
