"""The contenders of other toolkits, each imported only by the process that runs it.

    pip install -e '.[peers]'

They are what their own documentation shows: NumPyro's ``SVI.update`` under ``jit``, by steps and
inside a loop; pythae's trainer, epoch by epoch; pixyz's ``VAE.train``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial, wraps
from itertools import pairwise
from typing import Any

from programs import Contender, Epochs, NotHere, Perceptrons

__all__ = ["CONTENDERS"]

_RATE = 1e-3


def _where_installed(build: Callable[[Any], Epochs]) -> Callable[[Any], Epochs]:
    @wraps(build)
    def built(program: Perceptrons) -> Epochs:
        try:
            return build(program)
        except ImportError as error:
            raise NotHere(f"{error}; pip install -e '.[peers]'") from error

    return built


# ---------------------------------------------------------------------------- NumPyro


def _numpyro_svi(program: Perceptrons) -> Any:
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp
    from jax.example_libraries import stax
    from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

    def layers(sizes: list[int]) -> Any:
        pairs = [(_dense(wide, narrow), stax.Tanh) for wide, narrow in pairwise(sizes)]
        return stax.serial(*[layer for pair in pairs for layer in pair][:-1])

    encoder = layers([program.pixels, *program.hidden, 2 * program.latents])
    decoder = layers([program.latents, *program.hidden, program.pixels])

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (program.batch, program.latents))
        with numpyro.plate("data", program.batch):
            zeros = jnp.zeros(program.latents)
            z = numpyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", encoder, (program.batch, program.pixels))
        loc, log_scale = jnp.split(encode(x), 2, -1)
        with numpyro.plate("data", program.batch):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    many = program.particles > 1
    loss = RenyiELBO(0.0, num_particles=program.particles) if many else Trace_ELBO()
    return SVI(model, guide, numpyro.optim.Adam(_RATE), loss)


def _dense(wide: int, narrow: int) -> Any:
    """Return a dense layer whose weights start as torch's do."""
    from jax import random
    from jax.example_libraries import stax

    def start(key: Any, shape: Any) -> Any:
        return random.uniform(key, shape, minval=-(wide**-0.5), maxval=wide**-0.5)

    return stax.Dense(narrow, start, start)


@_where_installed
def numpyro_loop(program: Perceptrons) -> Epochs:
    """Run an epoch of NumPyro's updates inside one compiled loop."""
    import jax

    svi, data, size = _numpyro_svi(program), jax.numpy.asarray(program.data()), program.batch
    state = svi.init(jax.random.PRNGKey(0), data[:size])

    @jax.jit
    def epoch(state: Any, data: Any) -> tuple[Any, Any]:
        def update(number: Any, carried: tuple[Any, Any]) -> tuple[Any, Any]:
            state, total = carried
            x = jax.lax.dynamic_slice_in_dim(data, number * size, size)
            state, loss = svi.update(state, x)
            return state, total + loss

        return jax.lax.fori_loop(0, program.num_batches, update, (state, 0.0))

    def epochs(num: int) -> float:
        nonlocal state
        total: Any = math.nan
        for _ in range(num):
            state, total = epoch(state, data)
        return float(total) / len(data)

    return epochs


@_where_installed
def numpyro_steps(program: Perceptrons) -> Epochs:
    """Run NumPyro's updates one by one, each compiled."""
    import jax

    svi, data = _numpyro_svi(program), jax.numpy.asarray(program.data())
    batches = [data[i : i + program.batch] for i in range(0, len(data), program.batch)]
    state = svi.init(jax.random.PRNGKey(0), batches[0])
    update = jax.jit(svi.update)

    def epochs(num: int) -> float:
        nonlocal state
        losses: list[Any] = []
        for _ in range(num):
            losses = []
            for x in batches:
                state, loss = update(state, x)
                losses.append(loss)
        return sum(map(float, losses)) / len(data)

    return epochs


# ---------------------------------------------------------------------------- pythae and pixyz


@_where_installed
def pythae(program: Perceptrons) -> Epochs:
    """Run the training epochs of pythae's trainer, its progress bar included.

    What it reports for an IWAE is no bound, and is left out.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from torch import Tensor, from_numpy, zeros

    hidden, pixels, latents = program.hidden, program.pixels, program.latents

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = _torch_layers([pixels, *hidden, 2 * latents])

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2.0 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = _torch_layers([latents, *hidden, pixels])

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    sizes: dict[str, Any] = {"input_dim": (pixels,), "latent_dim": latents}
    if program.particles > 1:
        config = IWAEConfig(**sizes, reconstruction_loss="bce", number_samples=program.particles)
        model: Any = IWAE(config, Encoder(), Decoder())
    else:
        model = VAE(VAEConfig(**sizes, reconstruction_loss="bce"), Encoder(), Decoder())
    rows = from_numpy(program.data())
    folder = tempfile.TemporaryDirectory()
    settings = BaseTrainerConfig(
        output_dir=folder.name, per_device_train_batch_size=program.batch, learning_rate=_RATE
    )
    trainer = BaseTrainer(model, BaseDataset(rows, zeros(len(rows))), training_config=settings)
    trainer.prepare_training()

    def epochs(num: int) -> float:
        loss = math.nan
        for number in range(num):
            loss = trainer.train_step(number)
            trainer.callback_handler.on_epoch_end(training_config=trainer.training_config)
        assert folder.name  # the folder lasts as long as the trainer
        return math.nan if program.particles > 1 else float(loss)

    return epochs


@_where_installed
def pixyz(program: Perceptrons) -> Epochs:
    """Step pixyz's VAE on tensors."""
    from pixyz.distributions import Bernoulli, Normal
    from pixyz.losses import KullbackLeibler
    from pixyz.models import VAE
    from torch import Tensor, from_numpy, ones, zeros

    class Encoder(Normal):
        def __init__(self) -> None:
            super().__init__(var=["z"], cond_var=["x"], name="q")
            self.layers = _torch_layers([program.pixels, *program.hidden, 2 * program.latents])

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            loc, log_scale = self.layers(x).chunk(2, -1)
            return {"loc": loc, "scale": log_scale.exp()}

    class Decoder(Bernoulli):
        def __init__(self) -> None:
            super().__init__(var=["x"], cond_var=["z"], name="p")
            self.layers = _torch_layers([program.latents, *program.hidden, program.pixels])

        def forward(self, z: Tensor) -> dict[str, Tensor]:
            return {"probs": self.layers(z).sigmoid()}

    size, q, p = program.latents, Encoder(), Decoder()
    prior = Normal(loc=zeros(size), scale=ones(size), var=["z"], features_shape=[size], name="p0")
    vae = VAE(q, p, regularizer=KullbackLeibler(q, prior), optimizer_params={"lr": _RATE})
    batches = from_numpy(program.data()).split(program.batch)

    def epochs(num: int) -> float:
        losses: list[Any] = []
        for _ in range(num):
            # pixyz remembers what its networks made of its last tensors, with their old weights.
            losses = [vae.train({"x": x.view_as(x)}).detach() for x in batches]
        return sum(map(float, losses)) / len(losses)

    return epochs


def _torch_layers(sizes: list[int]) -> Any:
    from torch import nn

    pairs = [(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes)]
    return nn.Sequential(*[layer for pair in pairs for layer in pair][:-1])


_alone = partial(Contender, programs=(Perceptrons,))

CONTENDERS: dict[str, Contender] = {
    "NumPyro, jitted loop": _alone(numpyro_loop),
    "NumPyro, jitted steps": _alone(numpyro_steps),
    "pythae": _alone(pythae),
    "pixyz": _alone(pixyz, single=True),
}
