"""Classes and clusters that a guide finds: their probabilities, and how they agree with labels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.evaluation.batching import batches, check_counts, cycled
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.evaluation.samples import Generated, codes, generate, generated
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.terms import site_terms

__all__ = [
    "analogies",
    "class_probabilities",
    "class_samples",
    "cluster_accuracy",
    "confusion",
    "normalized_mutual_information",
]


@takes_program
def class_probabilities(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    site: str | None = None,
    batch_size: int = 1000,
    seed: int = 0,
) -> Tensor:
    r"""Return :math:`q(y = k \mid x)` of each value of an enumerated latent, ``[N, K]``.

    Where the guide draws another latent first, the average over one draw of that. Rows whose
    label is given to the program have all classes alike: hand them over without, as -1.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        site: The latent; None: the first that is enumerated.
        batch_size: How many data at once, of one value each.
        seed: Of the draws; the random state outside is not touched.

    Raises:
        ValueError: If no site is enumerated, or not this one, or it cannot be; if ``x`` is empty or
            the program breaks the convention.
    """
    check_counts(batch_size=batch_size)
    strata, site = probe.layout.strata, _checked_site(probe, site)
    known = [stratum.name for stratum in strata.sites]
    sizes, found = [stratum.num for stratum in strata.sites], []
    others = tuple(place for place, name in enumerate(known) if name != site)
    with probe.program.evaluating(seed=seed):
        for batch in batches((x, *fields), max(1, batch_size // strata.num)):
            terms = site_terms(probe.program, probe.layout, *batch, bounded=False, in_strata=True)
            assert terms.log_share is not None
            shares = terms.log_share.exp().unflatten(0, sizes)
            found.append((shares.sum(others) if others else shares).T)
    return torch.cat(found)


@takes_program
def analogies(
    probe: Probe, x: Tensor, *fields: Tensor, site: str | None = None, seed: int = 0
) -> Generated:
    """Return each datum in the style that it has, as every class, ``[N, K, *event_shape]``.

    The other latents stay at the posterior mean of the datum, the class is moved.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each; labels as -1.
        site: The latent that is the class; None: the first that is enumerated.
        seed: Of the draws of what has no mean; the random state outside is not touched.

    Raises:
        ValueError: As ``class_probabilities`` does.
    """
    site, args = _checked_site(probe, site), (x, *fields)
    with probe.program.evaluating(seed=seed):
        classes = _values_of(probe, site)
        found = codes(probe.program, probe.layout, args)
        times = len(classes)
        values = {name: part.repeat_interleave(times, 0) for name, part in found.items()}
        values[site] = classes.repeat(len(x), *[1] * (classes.dim() - 1))
        rows = tuple(arg.repeat_interleave(times, 0) for arg in args)
        images = generate(probe.program, probe.layout, values, rows)
    return generated(images, (len(x), times))


@takes_program
def class_samples(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_samples: int = 10,
    site: str | None = None,
    seed: int = 0,
) -> Generated:
    """Return draws of the model given each class, ``[K, num_samples, *event_shape]``.

    The other latents are drawn from their prior given the class; data are means of p(x | z).

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``: only shape, type and device count.
        fields: What else the program takes, ``[N, ...]`` each; labels as -1.
        num_samples: How many of each class.
        site: The latent that is the class; None: the first that is enumerated.
        seed: Of the draws; the random state outside is not touched.

    Raises:
        ValueError: As ``class_probabilities`` does.
    """
    check_counts(num_samples=num_samples)
    site = _checked_site(probe, site)
    with probe.program.evaluating(seed=seed):
        classes = _values_of(probe, site)
        values = {site: classes.repeat_interleave(num_samples, 0)}
        rows = cycled((x, *fields), len(values[site]))
        images = generate(probe.program, probe.layout, values, rows, center=False)
    return generated(images, (len(classes), num_samples))


def _checked_site(probe: Probe, site: str | None) -> str:
    """Return the site that is enumerated; mixtures are none, whose components are no classes."""
    strata = probe.layout.strata
    known = [stratum.name for stratum in strata.sites if not stratum.of_components]
    found = site or next(iter(known), None)
    if found is None or found not in known:
        listed = ", ".join(map(repr, known)) or "none"
        raise ValueError(f"{found!r} is no site that is enumerated; those that are: {listed}")
    if strata.obstacle is not None:
        raise ValueError(strata.obstacle)
    return found


def _values_of(probe: Probe, site: str) -> Tensor:
    """Return all values of an enumerated site, ``[K, *event_shape]``; call while evaluating."""
    few, strata = tuple(row[:1] for row in probe.rows), probe.layout.strata
    terms = site_terms(probe.program, probe.layout, *few, bounded=False, in_strata=True)
    values = terms.values[site][:, 0].unflatten(0, [stratum.num for stratum in strata.sites])
    for place, stratum in reversed(list(enumerate(strata.sites))):
        values = values if stratum.name == site else values.select(place, 0)
    return values


@at_the_door
def confusion(found: Tensor, labels: Tensor) -> Tensor:
    """Return how many data of each class are in each cluster, ``[num_classes, num_clusters]``.

    Args:
        found: Clusters or classes by number, ``[N]``.
        labels: True classes, ``[N]``, and -1 where there is none; those data are not counted.

    Raises:
        ValueError: If there are not as many labels as data, or no label at all.
    """
    found, labels = _checked(found, labels)
    num_classes, num_found = int(labels.max()) + 1, int(found.max()) + 1
    pairs = torch.bincount(labels * num_found + found, minlength=num_classes * num_found)
    return pairs.reshape(num_classes, num_found)


@at_the_door
def cluster_accuracy(found: Tensor, labels: Tensor) -> float:
    """Return the part of the data, 0 to 1, whose cluster is that of their class.

    Each class has one cluster and each cluster one class, those that agree in most data.

    Args:
        found: Clusters by number, ``[N]``.
        labels: True classes, ``[N]``, and -1 where there is none.

    Raises:
        ValueError: As ``confusion`` does.

    References:
        Unsupervised Deep Embedding for Clustering Analysis (Xie, Girshick & Farhadi, 2016)
    """
    from scipy.optimize import linear_sum_assignment

    counts = confusion(found, labels)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


@at_the_door
def normalized_mutual_information(found: Tensor, labels: Tensor) -> float:
    r"""Return :math:`2 I(c; y) / (H(c) + H(y))` of clusters and classes, 0 to 1.

    Args:
        found: Clusters by number, ``[N]``.
        labels: True classes, ``[N]``, and -1 where there is none.

    Raises:
        ValueError: As ``confusion`` does.
    """
    joint = confusion(found, labels).double()
    joint = joint / joint.sum()
    entropies = [_entropy(joint.sum(axis)) for axis in (0, 1)]
    information = sum(entropies) - _entropy(joint.flatten())
    total = float(sum(entropies))
    return float(2 * information / total) if total > 0 else 1.0


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum()


def _checked(found: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    found, labels = found.cpu().long(), labels.cpu().long()
    if found.dim() != 1 or found.shape != labels.shape:
        raise ValueError(
            f"there are {tuple(labels.shape)} labels for {tuple(found.shape)} data: give one number"
            " for each"
        )
    given = labels >= 0
    if not bool(given.any()):
        raise ValueError("no datum has a label to compare with: all are -1")
    return found[given], labels[given]
