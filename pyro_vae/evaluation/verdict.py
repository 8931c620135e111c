"""A plain verdict on the latents: which layers are used, and what to try where they are not."""

from __future__ import annotations

from collections.abc import Mapping

from pyro_vae.evaluation.latents import UnitActivity

__all__ = ["verdict"]

# Of a layer's units; below it the others are dead weight.
_FEW = 0.1
_ADVICE = (
    "to make the model use them, try free bits (--objective FreeBits), a KL weight that rises from "
    "zero (--objective BetaVAE, or the handler KLWeight, with a Scheduled weight), a less powerful "
    "decoder or one that sees z in every layer, or leave unused layers out (--latent)"
)


def verdict(activity: Mapping[str, UnitActivity], kl_nats: Mapping[str, float]) -> list[str]:
    """Say of each layer of latents on one line how much it is used, and of collapse what to try.

    A layer is unused where none of its units is active, and hardly used where fewer than a tenth
    are.

    Args:
        activity: From ``unit_activity``, by latent site.
        kl_nats: The average KL of each site in nats, as in ``Bound``.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), for active units
    """
    lines, collapsed = [], False
    for name, site in activity.items():
        num_units, num_active = site.activity.numel(), site.num_active
        use = "is used"
        if num_active < _FEW * num_units:
            use, collapsed = "is hardly used" if num_active else "is unused", True
        # Zero, by sampling, may come out a little below it.
        rate = f", {round(kl_nats[name], 2) + 0.0:,.2f} nats" if name in kl_nats else ""
        lines.append(f"layer {name} {use}: {num_active} of {num_units} units active{rate}")
    return [*lines, _ADVICE] if collapsed else lines
