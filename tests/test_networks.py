"""Networks take any shape they say, any leading dimensions, and treat rows alike."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from laws import NETWORKS, NORMALISED, SEQUENCES, Pair
from quick import some
from recorded import both, run
from torch import nn

from pyro_vae import VAE
from pyro_vae.cli.names import offered
from pyro_vae.cli.options import training_parser
from pyro_vae.cli.parser import components_built
from pyro_vae.components import (
    MLP,
    Convolutional,
    ConvolutionalResidual,
    GatedMLP,
    Recurrent,
    RecurrentDecoder,
    Residual,
    SkipMLP,
    Standardize,
    Transformer,
    TransformerDecoder,
    glorot,
    he,
    orthogonal,
)
from pyro_vae.inference import IWAE

networks = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())
DOWN, UP = ((1, 6, 5), (2, 3)), ((3,), (2, 1, 6, 5))
directions = pytest.mark.parametrize(("in_shape", "out_shape"), [DOWN, UP], ids=["down", "up"])
ALL = {
    **{f"{name}, down": (build, *DOWN) for name, build in NETWORKS.items()},
    **{f"{name}, up": (build, *UP) for name, build in NETWORKS.items()},
    **{f"{name}, normalised, down": (build, *DOWN) for name, build in NORMALISED.items()},
    **{f"{name}, normalised, up": (build, *UP) for name, build in NORMALISED.items()},
    **{name: (each.build, each.in_shape, each.out_shape) for name, each in SEQUENCES.items()},
}
all_networks = pytest.mark.parametrize("name", ALL)


def built(name: str, **options) -> nn.Module:
    build, in_shape, out_shape = ALL[name]
    return build(in_shape, out_shape, **options).double()


def inputs(name: str, *batch: int) -> torch.Tensor:
    if name in SEQUENCES:
        return SEQUENCES[name].inputs(*batch)
    return torch.randn(*batch, *ALL[name][1]).double()


# Shapes ------------------------------------------------------------------------------------------


@networks
@given(height=st.integers(1, 33), width=st.integers(1, 33), channels=st.sampled_from([1, 3]))
@examples(12)
def test_any_image_size(build, height: int, width: int, channels: int) -> None:
    image = (channels, height, width)
    x = torch.zeros(2, *image)
    assert build(image, (2, 3))(x).shape == (2, 2, 3)
    z = torch.zeros(2, 3)
    assert build((3,), (2, *image))(z).shape == (2, 2, *image)


def test_all_image_sides() -> None:
    for side in range(1, 34):
        up = Convolutional((2,), (1, side, 34 - side), channels=(1, 1, 1), hidden=1)
        assert up(torch.zeros(1, 2)).shape == (1, 1, side, 34 - side)


@networks
@directions
def test_every_output_depends_on_every_input_of_a_small_image(build, in_shape, out_shape) -> None:
    network = build(in_shape, out_shape).double()
    x = torch.randn(in_shape).double()
    jacobian = torch.autograd.functional.jacobian(network, x)
    assert bool((jacobian != 0).any(-1).any(-1).all() if x.dim() > 1 else jacobian.any(-1).all())


# What holds for all -------------------------------------------------------------------------------


@all_networks
def test_leading_dimensions_and_rows(name) -> None:
    network = built(name).eval()
    _, in_shape, out_shape = ALL[name]
    for batch in ((), (1,), (0,), (2, 3)):
        x = inputs(name, *batch)
        y = network(x)
        assert y.shape == (*batch, *out_shape)
    rows = torch.stack([network(row) for row in x.reshape(-1, *in_shape)])
    torch.testing.assert_close(y.reshape(-1, *out_shape), rows)
    order = torch.randperm(len(rows))
    torch.testing.assert_close(network(x.reshape(-1, *in_shape)[order]), rows[order])


@all_networks
def test_gradients_reach_every_parameter(name) -> None:
    network = built(name)
    (network(inputs(name, 40)) - torch.randn(ALL[name][2])).square().sum().backward()
    for path, parameter in network.named_parameters():
        size = parameter.grad.abs()
        if path == "symbols.embedding.weight":
            assert not size[0].any()  # padding
            size = size[1:]
        # The corners of a 3x3 convolution may lie outside a small image.
        size = size.amax((2, 3)) if size.dim() == 4 else size
        assert 0 < 1e-9 * size.max() < size.min(), path


@all_networks
def test_the_last_layer_has_no_bias(name) -> None:
    network = built(name)
    *_, last = (each for each in network.modules() if hasattr(each, "weight"))
    nn.init.zeros_(last.weight)
    assert not network(inputs(name, 3)).any()


@all_networks
def test_weights_can_be_set_as_papers_do(name) -> None:
    for initialise in (glorot, he, orthogonal):
        weights_are_set(name, initialise)


def weights_are_set(name, initialise) -> None:
    torch.manual_seed(1)
    network = built(name)
    torch.manual_seed(1)
    other = built(name, initialise=initialise)
    changed = {
        path: not torch.equal(value, before)
        for (path, value), before in zip(
            other.named_parameters(), network.parameters(), strict=True
        )
    }
    for path, layer in other.named_modules():
        for name_of, parameter in layer.named_parameters(recurse=False):
            is_set = isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.RNNBase))
            assert changed[f"{path}.{name_of}".lstrip(".")] == is_set
            if is_set and parameter.dim() == 1:
                assert not parameter.any()


# What each computes -------------------------------------------------------------------------------


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("oi,bi->bo", layer.weight, x) + (0 if layer.bias is None else layer.bias)


def test_gated_layers_multiply_by_their_gates() -> None:
    network = GatedMLP((3,), (2,), hidden=(5,)).double()
    gated, last = network.layers
    x = torch.randn(7, 3).double()
    gate = 1 / (1 + (-linear(gated.gate, x)).exp())
    torch.testing.assert_close(network(x), linear(last, linear(gated.value, x) * gate))


def test_residual_blocks_add() -> None:
    network = Residual((3,), (2,), width=4, num_blocks=1, activation=nn.Tanh).double()
    first, block, _, last = network.layers
    _, inner, _, outer = block.layers
    x = torch.randn(7, 3).double()
    h = linear(first, x)
    h = h + linear(outer, linear(inner, h.tanh()).tanh())
    torch.testing.assert_close(network(x), linear(last, h.tanh()))


def test_every_layer_sees_the_input_again() -> None:
    network = SkipMLP((2,), (3,), hidden=(4, 5), activation=nn.Tanh).double()
    z = torch.randn(7, 2).double()
    h = linear(network.layers[0][0], z).tanh()
    weight = network.layers[1][0].weight
    h = (h @ weight[:, :4].T + z @ weight[:, 4:].T + network.layers[1][0].bias).tanh()
    y = h @ network.last.weight[:, :5].T + z @ network.last.weight[:, 5:].T
    torch.testing.assert_close(network(z), y)
    # What has to be caught: without its own V z, the last layer sees z through h alone.
    nn.init.zeros_(network.layers[1][0].weight)
    assert torch.autograd.functional.jacobian(network, z[0]).any(-1).all()


def test_convolutional_blocks_add() -> None:
    down = ConvolutionalResidual((1, 5, 4), (2,), channels=(3,), activation=nn.Tanh).double()
    first, block, *_ = down.layers
    conv = nn.functional.conv2d
    h = first(torch.randn(2, 1, 5, 4).double())
    _, inner, _, outer = block.layers
    past = block.past
    expected = conv(h[..., ::2, ::2], past.weight, past.bias) + conv(
        conv(h.tanh(), inner.weight, inner.bias, stride=2, padding=1).tanh(),
        outer.weight, outer.bias, padding=1,
    )  # fmt: skip
    torch.testing.assert_close(block(h), expected)
    up = ConvolutionalResidual((2,), (1, 5, 4), channels=(3,)).double()
    grown = next(each for each in up.layers if isinstance(each, nn.Upsample))
    small = torch.arange(6.0).reshape(1, 1, 3, 2).double()
    assert grown(small)[0, 0].tolist() == [
        [2.0 * (i * 3 // 5) + (j // 2) for j in range(4)] for i in range(5)
    ]


# Weights and biases of two sizes.
def full(before: int, after: int, *, kernel: int = 1) -> int:
    return before * after * kernel + after


COUNTS = {
    "MLP": (MLP((3, 2), (4,), hidden=(5, 7)), full(6, 5) + full(5, 7) + 7 * 4),
    "MLP, linear": (MLP((3, 2), (4,), hidden=()), 6 * 4),
    "MLP, batch norm": (
        MLP((6,), (4,), hidden=(5,), normalise=nn.BatchNorm1d),
        6 * 5 + 2 * 5 + 5 * 4,
    ),
    "GatedMLP": (GatedMLP((6,), (4,), hidden=(5, 7)), 2 * full(6, 5) + 2 * full(5, 7) + 7 * 4),
    "Residual": (
        Residual((6,), (4,), width=5, num_blocks=3),
        full(6, 5) + 3 * 2 * full(5, 5) + 5 * 4,
    ),
    "SkipMLP": (SkipMLP((6,), (4,), hidden=(5, 7)), full(6, 5) + full(11, 7) + 13 * 4),
    "Convolutional": (
        Convolutional((2, 9, 5), (4,), channels=(3, 5), hidden=7),
        full(2, 3, kernel=9) + full(3, 5, kernel=9) + full(5 * 3 * 2, 7) + 7 * 4,
    ),
    "ConvolutionalResidual": (
        ConvolutionalResidual((2, 9, 5), (4,), channels=(3, 5), hidden=7, num_blocks=2),
        full(2, 3, kernel=9)
        + (4 * full(3, 3, kernel=9) + full(3, 3))
        + (full(3, 5, kernel=9) + 3 * full(5, 5, kernel=9) + full(3, 5))
        + full(5 * 3 * 2, 7) + 7 * 4,
    ),
    "ConvolutionalResidual, up": (
        ConvolutionalResidual((4,), (2, 9, 5), channels=(3, 5), hidden=7),
        full(4, 7) + full(7, 5 * 3 * 2) + 2 * full(5, 5, kernel=9)
        + (full(5, 3, kernel=9) + full(3, 3, kernel=9) + full(5, 3)) + 3 * 2 * 9,
    ),
    "GRU": (
        Recurrent((6,), (4,), hidden=5, num_symbols=8, embedding=3),
        8 * 3 + 3 * (full(3, 5) + full(5, 5)) + 5 * 4,
    ),
    "LSTM decoder": (
        RecurrentDecoder((2,), (4, 6), hidden=5, num_layers=2, cell=nn.LSTM),
        full(2, 10) + 4 * (full(2, 5) + full(5, 5)) + 4 * 2 * full(5, 5) + 5 * 4,
    ),
    "Transformer": (
        Transformer((6, 3), (4,), width=8, num_layers=3),
        full(3, 8) + 8 + 6 * 8 + 3 * (4 * full(8, 8) - 8 + full(8, 32) + full(32, 8) + 2 * 16)
        + 16 + 8 * 4,
    ),
    "TransformerDecoder": (
        TransformerDecoder((3,), (4, 6, 2), width=8, num_layers=1),
        full(3, 8) + 6 * 8 + (4 * full(8, 8) - 8 + full(8, 32) + full(32, 8) + 2 * 16) + 16 + 8 * 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("network", "count"), COUNTS.values(), ids=COUNTS)
def test_parameters_are_as_many_as_the_sizes_say(network, count) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_initial_weights_are_of_their_distributions() -> None:
    layers = {
        nn.Linear(200, 300): (200, 300),
        nn.Conv2d(20, 30, 3): (180, 270),
        nn.ConvTranspose2d(20, 30, 3): (180, 270),
    }
    for layer, (fan_in, fan_out) in layers.items():
        glorot(layer)
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.999 * bound < layer.weight.abs().max() <= bound
        assert abs(layer.weight.var() * 3 / bound**2 - 1) < 0.05
        he(layer)
        assert abs(layer.weight.var() * fan_in / 2 - 1) < 0.06
        assert layer.weight.abs().max() > 3 * math.sqrt(2 / fan_in)
    for cell, num_gates in ((nn.GRU(5, 7), 3), (nn.LSTM(5, 7), 4)):
        orthogonal(cell)
        for gate in cell.weight_hh_l0.chunk(num_gates):
            torch.testing.assert_close(gate @ gate.T, torch.eye(7))
    square = nn.Linear(7, 3)
    orthogonal(square)
    torch.testing.assert_close(square.weight @ square.weight.T, torch.eye(3))


# Sequences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SEQUENCES if "symbols" in name])
def test_padding_at_the_end_changes_nothing(name) -> None:
    member = SEQUENCES[name]
    options = {"num_symbols": 5, "padding": 0}
    short, long = (member.build((length,), (2,), **options).double() for length in (4, 9))
    state = short.state_dict()
    if "places" in state:
        state["places"] = torch.cat([state["places"], torch.randn(5, state["places"].shape[1])])
    long.load_state_dict(state)
    x = torch.tensor([[1, 2, 3, 4], [4, 4, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]]).double()
    padded = torch.cat([x, torch.zeros(4, 5).double()], 1)
    torch.testing.assert_close(long(padded), short(x))
    # What has to be caught: a network that reads padding like any symbol.
    reads = member.build((9,), (2,), num_symbols=5, padding=None).double()
    reads.load_state_dict(state)
    assert (reads(padded) - short(x)).abs().min() > 1e-6


@pytest.mark.parametrize("name", [name for name in SEQUENCES if "symbols" in name])
def test_every_symbol_that_is_read_counts(name) -> None:
    network = built(name)
    x = torch.tensor([1, 2, 3, 1, 0, 0]).double()
    y = network(x)
    for place in range(4):
        other = x.clone()
        other[place] = 2 if x[place] != 2 else 3
        assert (network(other) - y).abs().max() > 1e-9
    assert (network(x[[1, 0, 2, 3, 4, 5]]) - y).abs().max() > 1e-9  # order, too


def test_padding_between_symbols_is_not_looked_at() -> None:
    network = built("Transformer, symbols")
    x = torch.tensor([1, 0, 3, 1, 0, 2]).double()
    y = network(x)
    with torch.no_grad():
        network.symbols.embedding.weight[0] += 1.0
        network.places[[1, 4]] -= 1.0
    assert torch.equal(network(x), y)


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_a_recurrent_network_ends_in_the_state_after_the_last_symbol(cell) -> None:
    network = Recurrent((4,), (2,), hidden=5, num_symbols=3, padding=0, embedding=2, cell=cell)
    step = {nn.GRU: nn.GRUCell, nn.LSTM: nn.LSTMCell}[cell](2, 5)
    step.load_state_dict({name[:-3]: value for name, value in network.cell.state_dict().items()})
    for symbols in ([1, 2, 2, 1], [2, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]):
        end = max((place + 1 for place, symbol in enumerate(symbols) if symbol), default=0)
        state, of_cell = torch.zeros(1, 5), torch.zeros(1, 5)
        for symbol in symbols[:end]:
            given = network.symbols.embedding.weight[symbol][None]
            if cell is nn.GRU:
                state = step(given, state)
            else:
                state, of_cell = step(given, (state, of_cell))
        torch.testing.assert_close(network(torch.tensor(symbols)), network.last(state)[0])


def test_the_blocks_of_a_transformer_are_torchs() -> None:
    network = Transformer((6,), (2,), width=8, num_heads=2, num_symbols=4, padding=0).double()
    x = SEQUENCES["Transformer, symbols"].inputs(5)
    h = torch.cat(
        [network.before.expand(5, 1, -1), network.symbols.embedding(x.long()) + network.places], 1
    )
    hidden = torch.cat([torch.zeros(5, 1, dtype=torch.bool), x == 0], 1)
    for block in network.blocks:
        theirs = nn.TransformerEncoderLayer(
            8, 2, 32, dropout=0.0, activation=nn.functional.silu, batch_first=True, norm_first=True
        ).double()
        with torch.no_grad():
            query, key, value = block.query, block.key, block.value
            theirs.self_attn.in_proj_weight.copy_(
                torch.cat([query.weight, key.weight, value.weight])
            )
            theirs.self_attn.in_proj_bias.copy_(torch.cat([query.bias, torch.zeros(8), value.bias]))
        norm, wider, _, narrower = block.dense
        for part, ours in (
            (theirs.self_attn.out_proj, block.heads), (theirs.norm1, block.norm),
            (theirs.norm2, norm), (theirs.linear1, wider), (theirs.linear2, narrower),
        ):  # fmt: skip
            part.load_state_dict(ours.state_dict())
        h = theirs(h, src_key_padding_mask=hidden)
    torch.testing.assert_close(network(x), network.last(network.norm(h[:, 0])))


@pytest.mark.parametrize("name", [name for name in SEQUENCES if "Decoder" in name])
def test_a_decoder_writes_each_step_from_the_vector(name) -> None:
    network, (_, _, out_shape) = built(name), ALL[name]
    z = inputs(name)
    jacobian = torch.autograd.functional.jacobian(network, z)
    assert jacobian.any(-1).all()
    y = network(z).movedim(1, 0)  # steps first
    assert len(y) == out_shape[1]
    assert (y[1:] - y[:-1]).abs().amax(tuple(range(1, y.dim()))).min() > 1e-9


def test_numbers_of_a_step_stand_in_the_first_axis() -> None:
    network = TransformerDecoder((3,), (4, 6, 2), width=8)
    z = torch.randn(5, 3)
    h = network.first(z)[:, None] + network.places
    for block in network.blocks:
        h = block(h, None)
    steps = network.last(network.norm(h))  # [rows, L, K * 2]
    for k in range(4):
        torch.testing.assert_close(network(z)[:, k], steps[..., 2 * k : 2 * k + 2])


# A program of each --------------------------------------------------------------------------------


def of_images(name: str) -> VAE:
    return VAE.assemble((1, 5, 4), (2,), network=NETWORKS[name])


def of_texts(encoder: str, decoder: str) -> VAE:
    return VAE.assemble(
        (4,), (3,), encoder=SEQUENCES[encoder].build, decoder=SEQUENCES[decoder].build
    )


PROGRAMS = {
    "convolutional": (partial(of_images, "ConvolutionalResidual"), (1, 5, 4)),
    "recurrent": (partial(of_texts, "Recurrent, symbols", "RecurrentDecoder"), (4,)),
    "transformer": (partial(of_texts, "Transformer, symbols", "TransformerDecoder"), (4,)),
}


def program(name: str) -> Pair:
    build, shape = PROGRAMS[name]
    vae = build()
    bits = torch.randint(0, 2, (6, *shape), generator=torch.Generator().manual_seed(7))
    return Pair(vae.model, vae.guide, (bits.float(),))


@pytest.mark.parametrize("name", some(PROGRAMS, "transformer"))
def test_recorded_steps_are_eager_ones(name) -> None:
    found = both(partial(program, name), partial(IWAE, 2), sizes=(6, 6), whole=True)
    assert found.replayed == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_steps_are_eager_ones(name) -> None:
    losses = {}
    for engine in ("eager", "compiled"):
        found = run(partial(program, name), IWAE(2), engine, sizes=[6] * 5, whole=True)
        losses[engine] = found.losses
    assert found.replayed == [False] + [True] * 4
    torch.testing.assert_close(losses["compiled"], losses["eager"], rtol=1e-4, atol=1e-4)


def test_encoder_and_decoder_may_have_networks_of_their_own() -> None:
    parts = {"network": partial(MLP, hidden=(3,)), "data": torch.randn(9, 4)}
    for encoder, decoder in ((None, None), (GatedMLP, None), (None, SkipMLP), (GatedMLP, SkipMLP)):
        vae = VAE.assemble((4,), (2,), encoder=encoder, decoder=decoder, **parts)
        assert type(vae.posterior.network) is (encoder or MLP)
        assert type(vae.likelihood.network) is (decoder or MLP)
        assert vae.posterior.inputs.known
        assert not vae.likelihood.inputs.known


def test_symbols_are_not_standardised() -> None:
    network = partial(Recurrent, num_symbols=4, hidden=3)
    data = torch.randint(0, 4, (9, 5)).float()
    vae = VAE.assemble((5,), (2,), encoder=network, data=data)
    assert isinstance(vae.posterior.network, Recurrent)
    assert vae.posterior(data).batch_shape == (9,)


# Bad sizes ----------------------------------------------------------------------------------------

BAD = {
    "no shape": (lambda: MLP(None, (2,)), r"MLP: in_shape=None: expected a tuple"),
    "no size": (lambda: SkipMLP((3, 0), (2,)), r"SkipMLP: in_shape=\(3, 0\) is no shape"),
    "a negative one": (lambda: GatedMLP((3,), (-1,)), r"GatedMLP: out_shape=\(-1,\) is no shape"),
    "a fraction": (lambda: Residual((2.5,), (2,)), r"in_shape=\(2.5,\): expected a whole number"),
    "hidden 0": (lambda: MLP((3,), (2,), hidden=(4, 0)), r"hidden=\(4, 0\): layer sizes are pos"),
    "hidden None": (lambda: MLP((3,), (2,), hidden=None), "hidden=None: expected a sequence"),
    "hidden 5": (lambda: MLP((3,), (2,), hidden=5), "hidden=5: expected a sequence"),
    "hidden True": (lambda: MLP((3,), (2,), hidden=(True,)), r"hidden=\(True,\): "),
    "no gated layer": (lambda: GatedMLP((3,), (2,), hidden=()), r"hidden=\(\): at least one"),
    "width None": (lambda: Residual((3,), (2,), width=None), "width=None: expected a whole number"),
    "no block": (lambda: Residual((3,), (2,), num_blocks=0), "num_blocks=0: give a positive int"),
    "channels": (lambda: Convolutional(*DOWN, channels=(-1,)), r"channels=\(-1,\): layer sizes"),
    "no channels": (lambda: Convolutional(*DOWN, channels=()), r"channels=\(\): at least one"),
    "hidden": (lambda: Convolutional(*DOWN, hidden=None), "hidden=None: expected a whole number"),
    "no image": (lambda: Convolutional((4,), (2,)), r"got \(4,\) and \(2,\): use MLP"),
    "two images": (lambda: ConvolutionalResidual((1, 4, 4), (1, 4, 4)), "an image .* and a vector"),
    "blocks": (lambda: ConvolutionalResidual(*DOWN, num_blocks=0), "num_blocks=0: give a positive"),
    "a vector": (lambda: Recurrent((3,), (2,)), r"got \(3,\): give num_symbols"),
    "an image of symbols": (lambda: Transformer((3, 4), (2,), num_symbols=3), r"got \(3, 4\)"),
    "no symbols": (lambda: Recurrent((3,), (2,), num_symbols=0), "num_symbols=0: give a positive"),
    "no such padding": (
        lambda: Recurrent((3,), (2,), num_symbols=4, padding=4),
        "padding=4: it is one of the symbols 0 to 3",
    ),
    "padded numbers": (lambda: Transformer((3, 4), (2,), padding=0), "padding=0: only symbols are"),
    "no state": (lambda: RecurrentDecoder((3,), (2, 4), hidden=0), "hidden=0: give a positive int"),
    "another cell": (lambda: Recurrent((3, 1), (2,), cell=nn.RNN), "give torch.nn.GRU or torch.nn"),
    "no sequence": (lambda: RecurrentDecoder((3,), (2,)), r"got \(2,\): it is a decoder"),
    "no sequence either": (lambda: TransformerDecoder((3,), ()), r"got \(\): it is a decoder"),
    "heads": (
        lambda: Transformer((3, 4), (2,), width=6, num_heads=4),
        "num_heads=4: as many heads cannot share width=6 equally",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "said"), BAD.values(), ids=BAD)
def test_bad_sizes_say_which(build, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


# On the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", offered("network"))
def test_defaults_on_the_command_line_are_those_of_python(name) -> None:
    # An option of MLP's, the default, stays where the class that is named has one of that name.
    part = offered("network")[name]
    network = components_built(training_parser().parse(["--network", name])).network
    given = {"num_symbols": 3} if name in ("Recurrent", "Transformer") else {}
    shapes = {"Recurrent": ((4,), (2,)), "Transformer": ((4,), (2,))}.get(name, ((1, 4, 4), (2,)))
    shapes = ((2,), (3, 4)) if name.endswith("Decoder") else shapes
    shapes = ((1, 4, 4), (2, 2, 2)) if name == "FullyConvolutional" else shapes
    assert repr(network(*shapes, **given)) == repr(part(*shapes, **given))


# Inputs -------------------------------------------------------------------------------------------


def test_standardize_centres_and_scales() -> None:
    x = torch.randn(50, 4).double() * 3 + 5
    x[:, 2] = 7.0
    y = Standardize.of(x)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(4).double(), atol=1e-12, rtol=0)
    expected = torch.tensor([1.0, 1.0, 0.0, 1.0]).double()
    torch.testing.assert_close(y.std(0, correction=0), expected)
    images = torch.rand(10, 1, 3, 3).double()
    y = Standardize.of(images)(images)
    assert y.mean().abs() < 1e-12
    assert (y.std(correction=0) - 1).abs() < 1e-12
