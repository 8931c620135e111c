"""Refuse pairs of objective and program that cannot work, and name an objective that can.

Pyro's own objectives take every program, and some then follow a gradient that is zero, or report
a number that is no bound. Ours say so themselves, by ``Objective.refusal``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro
import torch
from pyro.infer import (
    ELBO,
    EnergyDistance,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_MMD,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.quantities import ELBO_NATS
from pyro_vae.inference.sites import latent_sites, line_of, observed_sites
from pyro_vae.inference.support import check_support
from pyro_vae.inference.terms import SiteTerms, no_density

__all__ = ["check_bound", "check_loss", "check_objective", "refusal", "refusals", "unfollowed"]

_Rule = Callable[[Any, SiteTerms, Trace], str | None]


def check_objective(objective: Any, probe: Probe) -> None:
    """Refuse an objective that cannot train a program, before the first step.

    Args:
        objective: An objective of ours or a ``pyro.infer.ELBO``; other functions are not checked.
        probe: Of the program.

    Raises:
        ValueError: If it cannot; says why, and names the nearest objective that can.
    """
    if not isinstance(objective, ELBO):
        return
    if objective.num_particles < 1:
        raise ValueError(
            f"{type(objective).__name__}: num_particles={objective.num_particles}: at least one "
            "sample is needed, without which there is no gradient; give 1 or more"
        )
    if probe.terms.points and getattr(objective, "quantity", ELBO_NATS).is_bound:
        raise ValueError(no_density(probe.terms.points[0]))
    reason = _of_ours(objective, probe) if isinstance(objective, Objective) else None
    if not isinstance(objective, Objective):
        terms = probe.terms
        with probe.looking():
            reason = _uneven_weights(terms) or _reason_of_pyros(objective, terms, probe.model_trace)
    if reason is not None:
        raise ValueError(reason)


def _of_ours(objective: Objective, probe: Probe) -> str | None:
    reason = objective.refuses(probe.layout)
    if reason is not None:
        return reason
    terms, looks_itself = probe.terms, type(objective).table is not Objective.table
    with probe.looking():
        if looks_itself or probe.layout.strata.sites:
            terms = objective.table(probe.program, probe.layout, *probe.rows)
        return _uneven_weights(terms) or objective.refusal(terms)


def check_bound(objective: ELBO) -> None:
    """Refuse an objective that reports no bound, where bounds are compared.

    Raises:
        ValueError: Names what it reports.
    """
    quantity = getattr(objective, "quantity", ELBO_NATS)
    if not quantity.is_bound:
        raise ValueError(
            f"{type(objective).__name__} reports {quantity.key}, which is no bound of log p(x): it "
            "cannot be compared with bounds; train it by itself"
        )


def check_loss(loss: Any, program: Program, *args: Any, **kwargs: Any) -> None:
    """Refuse a loss of Pyro's that ``SVI`` would follow to a wrong place, before its first step.

    As ``check_objective``, but for any program, also one without a plate of data, and of what an
    objective reports only where that is wrong. Losses of other makers are not checked.

    Args:
        loss: A ``pyro.infer.ELBO``, an ``EnergyDistance``, or a method of one.
        program: The model and the guide.
        args: What a step is called with.
        kwargs: Likewise.

    Raises:
        ValueError: If it cannot train the program; says why, and names an objective that can.
    """
    objective = getattr(loss, "__self__", loss)
    rules = _rules(objective, _WRONG)
    if not rules:
        return
    with program.evaluating(seed=0), pyro.validation_enabled(False):
        model_trace, guide_trace = program.traces(*args, **kwargs)
        terms = _terms_of(model_trace, guide_trace)
        reason = _first_reason(rules, objective, terms, model_trace)
    if reason is not None:
        raise ValueError(reason)


def _terms_of(model_trace: Trace, guide_trace: Trace) -> SiteTerms:
    """Return the table without its numbers, for a program of any shape."""
    nothing = torch.zeros(())
    in_model = [name for name, _ in (*latent_sites(model_trace), *observed_sites(model_trace))]
    in_guide = dict(latent_sites(guide_trace))
    pathwise = {name: site["fn"].has_rsample for name, site in in_guide.items()}
    log_p, log_q = dict.fromkeys(in_model, nothing), dict.fromkeys(in_guide, nothing)
    return SiteTerms(log_p, log_q, {}, pathwise=pathwise)


def refusal(
    model: Callable[..., Any], guide: Callable[..., Any], *data: Tensor, objective: Any = None
) -> str | None:
    """Say why a program cannot be fitted to data, in the words of ``fit``; None if it can.

    Args:
        model: Declares p(x, z).
        guide: Declares q(z | x).
        data: Observations, ``[N, *event_shape]``, and what else the program takes.
        objective: What it would be fitted with; the program alone is looked at if there is none.
    """
    return refusals(model, guide, *data, objectives={"": objective})[""]


def refusals(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Tensor,
    objectives: Mapping[str, Any],
) -> dict[str, str | None]:
    """Say of each objective what ``refusal`` says, but look at the program once.

    Args:
        model: Declares p(x, z).
        guide: Declares q(z | x).
        data: As in ``refusal``.
        objectives: What it might be fitted with, by name.
    """
    try:
        probe = Probe(Program(model, guide), *data)
        check_support(probe, *data)
    except ValueError as reason:
        return dict.fromkeys(objectives, str(reason))
    found: dict[str, str | None] = {}
    for name, objective in objectives.items():
        try:
            check_objective(objective, probe)
            found[name] = None
        except ValueError as reason:
            found[name] = str(reason)
    return found


def _reason_of_pyros(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    rules = [*_rules(objective, _WRONG), *_rules(objective, _NOT_HERE)]
    return _first_reason(rules, objective, terms, model_trace)


def _rules(objective: Any, table: dict[type, tuple[_Rule, ...]]) -> list[_Rule]:
    return [rule for kind, rules in table.items() if isinstance(objective, kind) for rule in rules]


def _first_reason(
    rules: list[_Rule], objective: Any, terms: SiteTerms, model_trace: Trace
) -> str | None:
    reasons = (rule(objective, terms, model_trace) for rule in rules)
    return next((reason for reason in reasons if reason is not None), None)


def _uneven_weights(terms: SiteTerms) -> str | None:
    of_model = list(terms.scale_p.values())
    as_one = all(_alike(weight, of_model[0]) for weight in of_model)
    if as_one and all(_alike(weight, 1.0) for weight in terms.scale_q.values()):
        return None  # the model as a whole: its density to a power
    for name, scale_q in terms.scale_q.items():
        scale_p = terms.scale_p.get(name, scale_q)
        if not _alike(scale_p, scale_q):
            return (
                f"site {name!r} weighs {_mean(scale_p):g} in the model and {_mean(scale_q):g} in "
                "the guide, so that no KL is weighed: apply the same KLWeight (or poutine.scale) "
                "to both"
            )
    return None


def _alike(weight: Any, other: Any) -> bool:
    one, two = (torch.as_tensor(w, dtype=torch.float64).cpu() for w in (weight, other))
    return bool(torch.isclose(one, two, rtol=1e-5).all())


def _mean(weight: Any) -> float:
    return float(torch.as_tensor(weight, dtype=torch.float64).mean())


def _enumerated(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    for name, site in latent_sites(model_trace):
        sites = [site, *(latent.guide for latent in terms.latents.get(name, ()))]
        if any(found["infer"].get("enumerate") for found in sites):
            return (
                f"RenyiELBO does not sum out the site {name!r}{line_of(site)}, which is marked for "
                "enumeration; use TraceEnum_ELBO"
            )
    return None


def _zero_gradient(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    for name, pathwise in terms.pathwise.items():
        if not pathwise:
            gradient = "exactly zero" if objective.alpha == 0 else "a part of the exact one"
            return (
                f"RenyiELBO(alpha={objective.alpha:g}) does not train the guide of site {name!r}, "
                f"whose samples carry no gradients: its gradient is {gradient}; use VIMCO or RWS"
            )
    return None


def _without_scores(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    for name, pathwise in terms.pathwise.items():
        if not pathwise:
            return (
                f"{type(objective).__name__} compares samples, and those of the guide's site "
                f"{name!r} carry no gradients: its guide would not be trained by them; use ELBO, "
                "RLOO or NVIL"
            )
    return None


def _without_auxiliary(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    return unfollowed(objective, terms.auxiliary)


def unfollowed(loss: Any, auxiliary: Collection[str]) -> str | None:
    """Say which auxiliary loss a loss of Pyro's leaves out; None if it is one of ours, or none.

    Args:
        loss: A ``pyro.infer.ELBO``.
        auxiliary: The names of those that the program declares.
    """
    for name in auxiliary if not isinstance(loss, Objective) else ():
        return (
            f"{type(loss).__name__} does not follow the auxiliary loss {name!r}, which a component "
            "of the program declares: use ELBO or AnalyticELBO of pyro_vae"
        )
    return None


def _no_bound(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    return (
        f"{type(objective).__name__} is no bound on log p(x), in whose nats a run is reported; use "
        "InfoVAE, which follows the same penalty and reports the ELBO"
    )


def _scaled_weights(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    for name, site in [*latent_sites(model_trace), *observed_sites(model_trace)]:
        scale = _mean(site["scale"])
        if not _alike(site["scale"], 1.0):
            return (
                f"RenyiELBO takes the power {scale:.4g} of the importance weights, since site "
                f"{name!r} is scaled (by a subsampled plate or a handler): the result is no bound; "
                "use IWAE or Renyi, which scale the bound"
            )
    return None


def _joint_weights(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    ours = "RWS" if isinstance(objective, ReweightedWakeSleep) else "DReG or IWAE"
    return (
        f"{type(objective).__name__} weighs the particles of the whole batch jointly, not those of "
        f"each datum: its loss depends on the batch size and is no bound; use {ours}"
    )


def _score_function(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    for name, pathwise in terms.pathwise.items():
        if not pathwise:
            return (
                f"TraceMeanField_ELBO needs reparameterised latents, but samples of site {name!r} "
                "carry no gradients; use AnalyticELBO, or TraceGraph_ELBO"
            )
    return None


def _not_mean_field(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    in_model = [name for name in terms.log_p if name in terms.log_q]
    in_guide = [name for name in terms.log_q if name in terms.log_p]
    if in_model == in_guide:
        return None
    return (
        "TraceMeanField_ELBO gives a wrong number where the guide is not mean-field: the model "
        f"declares {', '.join(map(repr, in_model))}, the guide {', '.join(map(repr, in_guide))}; "
        "use AnalyticELBO, or declare independent sites in one order"
    )


def _no_closed_form(objective: Any, terms: SiteTerms, model_trace: Trace) -> str | None:
    for name in terms.log_q:
        if terms.closed_kl(name) is None:
            return (
                f"TraceMeanField_ELBO finds no closed form for the KL of site {name!r}; use "
                "AnalyticELBO, which samples it, or ELBO"
            )
    return None


# What leads a step to a wrong place, whoever takes it.
_WRONG: dict[type, tuple[_Rule, ...]] = {
    RenyiELBO: (_enumerated, _zero_gradient, _scaled_weights),
    TraceMeanField_ELBO: (_score_function, _not_mean_field),
    ReweightedWakeSleep: (_joint_weights,),
    TraceTailAdaptive_ELBO: (_joint_weights,),
    Trace_MMD: (_without_scores,),
    EnergyDistance: (_without_scores,),
}
# What reports, beside that, something else than a run or a comparison says.
_NOT_HERE: dict[type, tuple[_Rule, ...]] = {
    ELBO: (_without_auxiliary,),
    TraceMeanField_ELBO: (_no_closed_form,),
    Trace_MMD: (_no_bound,),
}
