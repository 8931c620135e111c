"""Aggressive training (He et al., 2019): train the encoder until it has caught up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.engine.turns import Turns
from pyro_vae.evaluation.information import mutual_information
from pyro_vae.inference.program import Program

__all__ = ["Aggressive"]


class Aggressive(Turns):
    r"""The encoder takes turns until its bound rises no more, then the decoder takes one.

    A posterior that lags behind its model makes the latents look useless early in training, and
    the decoder learns to do without them. So the guide is trained until the mean loss of
    ``window`` steps is no lower than that of the ``window`` before, or for ``longest`` steps; then
    the model takes a single step. Each time that the model has taken as many steps as an epoch has,
    the mutual information

    .. math:: I_q(x; z) = E_x KL(q(z \mid x) \,\|\, p(z)) - KL(q(z) \,\|\, p(z))

    of validation data is held against the last such time. When it has fallen, it ends: from then
    on all parameters move in every step.

    Other than in the paper, every step takes the next batch of the epoch: an epoch costs the same,
    and an epoch's steps of the model are spread over as many epochs as the guide has steps in a
    row, and one. So a run needs so many times more epochs. And the optimiser of the part that rests
    still takes note of its gradients.

    Args:
        window: How many losses are averaged.
        longest: The most steps in a row that the guide takes alone.
        num_data: The number of validation data for the mutual information.

    Raises:
        ValueError: If a number is less than 1, or ``longest`` less than ``window``.

    References:
        Lagging Inference Networks and Posterior Collapse in Variational Autoencoders
        (He, Spokoyny, Neubig & Berg-Kirkpatrick, 2019)
    """

    aggressive: Tensor
    num_in_row: Tensor
    total: Tensor
    before: Tensor
    information: Tensor
    num_steps: Tensor
    num_of_model: Tensor

    def __init__(self, window: int = 10, longest: int = 100, num_data: int = 500) -> None:
        for name, number in (("window", window), ("num_data", num_data)):
            if number < 1:
                raise ValueError(f"{name}={number}: give 1 or more")
        if longest < window:
            raise ValueError(f"longest={longest}: give window={window} or more")
        super().__init__()
        self.window, self.longest, self.num_data = window, longest, num_data
        self.model.zero_()
        self.register_buffer("aggressive", torch.ones(()))
        self.register_buffer("num_in_row", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("before", torch.tensor(math.inf))
        self.register_buffer("information", torch.zeros(()))
        self.register_buffer("num_steps", torch.zeros(()))  # of this epoch
        self.register_buffer("num_of_model", torch.zeros(()))  # since it was last estimated

    def check(self, program: Program, *few: Tensor) -> None:
        """Refuse a program whose mutual information cannot be estimated.

        Args:
            program: To be trained.
            few: Arguments of model and guide, a few rows.

        Raises:
            ValueError: If the guide has no density at values other than its own draws.
        """
        mutual_information(program.model, program.guide, *few)

    @torch.no_grad()
    def observe(self, loss: Tensor) -> None:
        """Give the model its turn where the loss of the guide's steps has stopped falling.

        Args:
            loss: In nats per datum, a 0-d tensor.
        """
        self.num_steps += 1
        self.num_of_model += self.model
        of_guide = self.model == 0
        num_in_row = self.num_in_row + 1
        total = self.total + loss.to(self.total)
        is_full = num_in_row % self.window == 0
        mean = total / self.window
        caught_up = is_full & (mean >= self.before) | (num_in_row >= self.longest)
        goes_on = of_guide & ~caught_up
        self.num_in_row.copy_(torch.where(goes_on, num_in_row, 0.0))
        self.before.copy_(torch.where(goes_on, torch.where(is_full, mean, self.before), math.inf))
        self.total.copy_(torch.where(goes_on & ~is_full, total, 0.0))
        to_model = of_guide & caught_up
        self.model.copy_((to_model | (self.aggressive == 0)).to(self.model))
        self.guide.copy_((~to_model | (self.aggressive == 0)).to(self.guide))

    def end_epoch(self, program: Program, *validation: Tensor) -> dict[str, float]:
        """End it where the mutual information has fallen, once the model has taken an epoch.

        Args:
            program: In training.
            validation: The arguments of model and guide for the mutual information.

        Returns:
            "mutual_information_nats"; nothing once it has ended.
        """
        if not self.aggressive.item():
            return {}
        is_due = bool(self.num_of_model >= self.num_steps)
        self.num_steps.zero_()
        rows = (argument[: self.num_data] for argument in validation)
        nats = mutual_information(program.model, program.guide, *rows).nats
        if is_due:
            self._compare(nats)
        return {"mutual_information_nats": nats}

    def _compare(self, nats: float) -> None:
        if nats < self.information.item():
            self.aggressive.zero_()
            self.guide.fill_(1.0)
            self.model.fill_(1.0)
        self.information.fill_(nats)
        self.num_of_model.zero_()

    def extra_repr(self) -> str:
        """Show the numbers."""
        return f"window={self.window}, longest={self.longest}, num_data={self.num_data}"
