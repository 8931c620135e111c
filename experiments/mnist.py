"""How good are the defaults on dynamically binarised MNIST, and what do they cost?

    python experiments/mnist.py accuracy --data_root FOLDER
    python experiments/mnist.py cost --data_root FOLDER

Held against, on the first 1,000 test images, by hand-written PyTorch with two SiLU layers of 500,
40 latents, the output bias at the data's logits, batch 128 and Adam 1e-3 with a cosine schedule,
30 epochs: ELBO -91.0, log-likelihood -88.0 nats. Published, with one stochastic layer of 50 units
and two tanh layers of 200, trained on 60,000 images for 3,280 epochs: log-likelihood -86.76
(Importance Weighted Autoencoders; Burda, Grosse & Salakhutdinov, 2016; table 1, k = 1).
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from pathlib import Path

import record
import torch
from jsonargparse import auto_cli
from pyro.infer import TraceMeanField_ELBO

from pyro_vae import SVI, VAE, datasets, evaluation, fit
from pyro_vae.engine import Binarize, fast_arithmetic
from pyro_vae.engine.data import OBSERVATION_SEED, Batches, observe_once
from pyro_vae.engine.optimizers import adam
from pyro_vae.report import plots


def accuracy(
    data_root: Path, epochs: int = 30, num_samples: int = 1000, seed: int = 0, name: str = "mnist"
) -> None:
    """Train with the defaults; measure ELBO and log-likelihood on all 10,000 test images."""
    data, vae = _data_and_program(data_root, seed)
    done = fit(
        vae, data, observation=Binarize(255), epochs=epochs, seed=seed, progress=True,
        weights="last",
    )  # fmt: skip
    trained_mib = _peak_mib()
    x = observe_once(data.test, Binarize(255), seed=OBSERVATION_SEED + 2, device="cpu").x
    start = time.perf_counter()
    bound = evaluation.elbo(vae, x)
    estimate = evaluation.importance_sampling(
        vae, x, num_samples=num_samples, progress=sys.stderr.isatty()
    )
    seconds = time.perf_counter() - start
    activity = evaluation.unit_activity(vae, x)["z"]
    path = record.write(
        name,
        {
            "protocol": "MNIST 50,000/10,000/10,000, dynamic binarisation, test set drawn once",
            "command": record.command(),
            "epochs": epochs,
            "seed": seed,
            "test_elbo_nats": bound.elbo_nats,
            "test_elbo_standard_error": bound.elbo_nats.standard_error,
            "test_rate_nats": bound.rate_nats,
            "test_distortion_nats": bound.distortion_nats,
            "test_log_likelihood_nats": estimate.mean,
            "test_log_likelihood_standard_error": estimate.mean.standard_error,
            "num_importance_samples": num_samples,
            "first_1000_log_likelihood_nats": float(estimate.log_p[:1000].double().mean()),
            "first_1000_elbo_nats": evaluation.elbo(vae, x[:1000], num_particles=20).elbo_nats,
            "active_units": activity.num_active,
            "training_seconds": done.seconds,
            "evaluation_seconds": seconds,
            "peak_mib_after_training": trained_mib,
            "peak_mib_after_evaluation": _peak_mib(),
        },
    )
    _draw(vae, x, path.with_suffix(".png"))
    print(path.read_text())


def _draw(vae: VAE, x: torch.Tensor, path: Path) -> None:
    """Draw ten test images, their reconstructions, and twenty means from the prior."""
    few = x[:10]
    rows = [
        few,
        evaluation.reconstruct(vae, few),
        evaluation.reconstruct(vae, few, stochastic=True),
        *evaluation.prior_samples(vae, few, 20).split(10),
    ]
    names = ["test data", "mean", "sample", "from the", "prior"]
    figure = plots.image_grid(
        torch.stack(rows), title="MNIST, binarised", row_labels=names, limits=(0.0, 1.0)
    )
    plots.save(figure, path)


def cost(data_root: Path, rounds: int = 5, seed: int = 0, name: str = "mnist_epoch_cost") -> None:
    """Compare an epoch end to end with its training steps alone, in turn."""
    data, vae = _data_and_program(data_root, seed)
    observation = Binarize(255)
    batches = Batches(data.train, observation, batch_size=128, seed=seed, device="cpu")
    ready = [batch for batch, _ in zip(batches.epoch(0), range(40), strict=False)]
    svi = SVI(vae.model, vae.guide, adam, TraceMeanField_ELBO(), engine="recorded")
    end_to_end, steps_alone = [], []
    for number in range(rounds + 1):
        one, four = (
            fit(vae, data, observation=observation, epochs=epochs, engine="recorded").seconds
            for epochs in (1, 4)
        )
        start = time.perf_counter()
        with fast_arithmetic():
            for step in range(batches.num_batches):
                svi.step(*ready[step % len(ready)])
        if number:  # the first round warms up
            end_to_end.append((four - one) / 3)
            steps_alone.append(time.perf_counter() - start)
    ratios = [whole / steps for whole, steps in zip(end_to_end, steps_alone, strict=True)]
    path = record.write(
        name,
        {
            "protocol": "an epoch of fit (four epochs less one, over three; validation on 10,000 "
            "images included) against as many SVI steps on 40 batches that are ready in memory, "
            "both recorded and with fast arithmetic; interleaved, medians",
            "command": record.command(),
            "rounds": rounds,
            "epoch_seconds": statistics.median(end_to_end),
            "steps_alone_seconds": statistics.median(steps_alone),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        },
    )
    print(path.read_text())


def _data_and_program(data_root: Path, seed: int) -> tuple[datasets.Dataset, VAE]:
    data = datasets.load("mnist", root=data_root)
    torch.manual_seed(seed)
    seen = observe_once(
        datasets.Data(data.train.x[:10_000]), Binarize(255), seed=OBSERVATION_SEED, device="cpu"
    )
    return data, VAE.assemble(data.event_shape, (40,), data=seen.x)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    auto_cli([accuracy, cost], as_positional=False)
