"""A verdict on posterior collapse: which layers are used, and what to try where they are not."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pyro_vae.arguments import at_the_door
from pyro_vae.evaluation.information import Information
from pyro_vae.evaluation.latents import UnitActivity
from pyro_vae.wording import option, part

__all__ = ["beyond_storage", "verdict"]

# A layer that tells less is hardly used: it tells apart fewer than e^2, seven kinds of data. Of a
# layer of few units, that may be all it can.
_HARDLY_NATS, _HARDLY_NATS_PER_UNIT = 2.0, 0.1
_UNUSED = 0.1  # of what a layer has to tell to be used
_RISING = "the handler KLWeight with a Scheduled weight"
_FEW = 0.1  # of a layer's units; below it the others are dead weight


@at_the_door
def verdict(
    activity: Mapping[str, UnitActivity],
    kl_nats: Mapping[str, float],
    information: Information | None = None,
    *,
    is_rising: bool = False,
) -> list[str]:
    """Say of each layer of latents on one line how much it is used, and of collapse what to try.

    What a layer tells of the data is its average KL in nats; or its mutual information, where that
    is given and less, as where a posterior costs nats whatever the datum is. A layer of U units is
    used if that is 0.1 U nats, or 2 nats if that is less; unused below a tenth of it; and hardly
    used in between. So it is for discrete latents and for flows, whose units have no KL of their
    own. Where a layer's KL is not known, it is hardly used if fewer than a tenth of its units are
    active, and unused if none is.

    Args:
        activity: From ``unit_activity``, by latent site.
        kl_nats: The average KL of each site in nats, as in ``Bound``.
        information: From ``mutual_information``.
        is_rising: Whether training stopped while the bound still rose; the first advice is then
            to train longer, since layers come into use late.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), for active units
    """
    lines, collapsed = [], False
    for name, site in activity.items():
        num_units, num_active = site.activity.numel(), site.num_active
        enough = min(_HARDLY_NATS, _HARDLY_NATS_PER_UNIT * num_units)
        nats = _nats_of(name, kl_nats, information, enough)
        use = _by_units(site) if nats is None else _by_nats(nats, enough)
        collapsed = collapsed or use != "is used"
        line = f"layer {name} {use}: {num_active} of {num_units} units active"
        if name in kl_nats:
            line += f", {_two_places(kl_nats[name])} nats"
            if nats is not None and nats < enough <= kl_nats[name]:
                line += f", of which {_two_places(nats)} tell of the data"
        if use == "is used" and num_active < _FEW * num_units:
            line += "; the others are dead weight, and fewer latents would do"
        lines.append(line)
    return [*lines, _advice(is_rising)] if collapsed else lines


def _advice(is_rising: bool) -> str:
    free_bits, rising = part("objective", "FreeBits"), option("kl_warmup", 0.3, python=_RISING)
    dropout = option("word_dropout", 0.3, python="CorruptedInputs")
    first = f"more epochs ({option('epochs')}: validation still improves), " if is_rising else ""
    return (
        f"to make the model use them, try {first}free bits ({free_bits}), a KL weight that rises "
        f"from zero ({rising}), a less powerful decoder (one that reads its own symbols: "
        f"{dropout}) or one that sees z in every layer, or "
        f"leave unused layers out ({option('latent', python='latent_shapes')})"
    )


def _nats_of(
    name: str, kl_nats: Mapping[str, float], information: Information | None, enough: float
) -> float | None:
    nats = kl_nats.get(name)
    if nats is None or information is None or name not in information.layers:
        return nats
    # Of few data, no layer can tell more than the logarithm of their number.
    return min(nats, information.layers[name].nats) if information.ceiling > 2 * enough else nats


def _by_nats(nats: float, enough: float) -> str:
    if not math.isfinite(nats) or nats >= enough:
        return "is used"
    return "is hardly used" if nats >= _UNUSED * enough else "is unused"


def _by_units(site: UnitActivity) -> str:
    if site.num_active >= _FEW * site.activity.numel():
        return "is used"
    return "is hardly used" if site.num_active else "is unused"


def _two_places(nats: float) -> str:
    return f"{round(nats, 2) + 0.0:,.2f}"  # zero, by sampling, may come out a little below it


def beyond_storage(bits_per_dim: float | None, levels: int | None) -> list[str]:
    """Say of data that are worse coded than stored that they are.

    Args:
        bits_per_dim: -ELBO in bits per integer of a datum; None where it has no such unit.
        levels: Integers take the values ``0..levels``; None of real data.
    """
    stored = math.inf if levels is None else math.log2(levels + 1)
    if bits_per_dim is None or levels is None or bits_per_dim <= stored:
        return []
    return [
        f"{bits_per_dim:,.3f} bits per dimension are more than the {stored:.3f} that "
        f"each number from 0 to {levels:,} takes as it is stored: the model says less than no "
        "model; train longer, or take another likelihood"
    ]
