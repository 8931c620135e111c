r"""Auxiliary losses: what a component asks for beside the bound, such as VQ-VAE's commitment.

A component declares one while it runs,

    auxiliary_loss("commitment", 0.25 * (z - code.detach()).square().sum(-1))

and every objective of ours follows its value less all of them. The value that is reported has none
in it. A loss belongs to a datum, as a log-density does: it is averaged over particles, multiplied
by what a datum counts (the scale of a subsampled plate, the data's weights), and summed over the
data, so that neither the batch size nor a plate changes what it weighs against the bound.
"""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor

__all__ = ["AuxiliaryLosses", "auxiliary_loss"]


def auxiliary_loss(name: str, loss: Tensor) -> None:
    """Declare a loss of the datum that the program is running on, in nats or as weighed.

    Args:
        name: What it is called in the run's metrics; losses of one name are added.
        loss: ``[*batch]``, the dimensions of the distribution's batch: one number for each datum,
            and for each particle where there is one. A loss of the batch as a whole is the same
            number for each datum, ``loss.expand(batch_shape)``.
    """
    _declared(loss, name=name)


@effectful(type="auxiliary")
def _declared(loss: Tensor) -> Tensor:
    return loss


class AuxiliaryLosses(Messenger):
    """Collects what components declare while it is entered.

    Attributes:
        declared: The losses by name, each in the order of their declaration.
    """

    def __init__(self) -> None:
        super().__init__()
        self.declared: dict[str, list[Tensor]] = {}

    def _pyro_post_auxiliary(self, msg: Any) -> None:
        self.declared.setdefault(msg["name"], []).append(msg["value"])
