"""Figures show what they were given, to the pixel, and files appear whole or not at all."""

from __future__ import annotations

import io
import math

import matplotlib.image
import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba

from pyro_vae.report import plots
from pyro_vae.report.curves import curves


def pixels(figure):
    """The picture as it will be seen: bytes [height, width, 4], read back from the PNG."""
    image = matplotlib.image.imread(io.BytesIO(plots.png(figure)), format="png")
    return np.round(image * 255).astype(np.uint8)


def shown(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        parts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        parts += axes.get_legend().get_texts() if axes.get_legend() else []
        found += [part.get_text() for part in parts]
    return [text for text in found if text]


FIGURES = {
    "curves": lambda: curves(history(3)),
    "image_grid": lambda: plots.image_grid(torch.rand(5, 1, 4, 4), title="t"),
    "reconstructions": lambda: plots.reconstructions(*torch.rand(3, 2, 3, 4, 4)),
    "interpolation": lambda: plots.interpolation(torch.rand(2, 3, 1, 4, 4)),
    "traversal": lambda: plots.traversal(torch.rand(2, 3, 1, 4, 4), ["z[0]", "z[1]"]),
    "manifold": lambda: plots.manifold(torch.rand(3, 3, 1, 4, 4)),
    "latent_scatter": lambda: plots.latent_scatter(torch.rand(9, 2), title="t"),
    "unit_bars": lambda: plots.unit_bars(torch.rand(5), torch.rand(5)),
    "layer_bars": lambda: plots.layer_bars(
        {"z1": (torch.rand(5), torch.rand(5)), "z2": (torch.rand(3), torch.rand(3))}
    ),
    "rate_distortion": lambda: plots.rate_distortion({"1": (20.0, 70.0), "4": (8.0, 90.0)}),
    "rows": lambda: plots.rows(torch.rand(5, 3), {"mean": torch.rand(4, 3)}, title="t"),
}


def history(num_epochs):
    return [
        {
            "epoch": n,
            "train_nats": -90.0 - 1 / n,
            "validation_elbo_nats": -92.0 - 1 / n,
            "validation_rate_nats": 25.0 + n,
            "validation_distortion_nats": 67.0 - n,
            "learning_rate": 1e-3 / n,
        }
        for n in range(1, num_epochs + 1)
    ]


# Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_becomes_a_png_of_its_own_size_and_always_the_same(name, tmp_path):
    torch.manual_seed(0)
    figure = FIGURES[name]()
    plots.save(figure, tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == tuple(int(side) for side in figure.bbox.size)
    assert min(width, height) > 60
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    torch.manual_seed(0)
    assert plots.png(FIGURES[name]()) == content


# Images ----------------------------------------------------------------------------------------


@examples(12)
@given(
    number=st.integers(1, 7),
    columns=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_each_image_pixel_is_a_square_of_the_picture(
    number, columns, channels, height, width, seed
):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 17, (number, channels, height, width), generator=generator)
    picture = pixels(plots.image_grid(images, title="", columns=columns, limits=(0, 16), gap=3))[
        ..., :3
    ]
    zoom = min(96 // max(height, width), 1100 // (columns * width))
    expected = np.round(images.double().numpy() / 16 * 255).astype(np.uint8)
    for n in range(number):
        top = 58 + (n // columns) * (height * zoom + 3)
        left = 24 + (n % columns) * (width * zoom + 3)
        cell = picture[top : top + height * zoom, left : left + width * zoom]
        want = expected[n].transpose(1, 2, 0).repeat(zoom, 0).repeat(zoom, 1)
        assert np.array_equal(cell, np.broadcast_to(want, cell.shape))
        assert (picture[top : top + height * zoom, left - 1] == 255).all()
        assert (picture[top - 1, left : left + width * zoom] == 255).all()


def test_values_are_scaled_by_the_limits_clipped_and_nan_is_pink():
    values = [-math.inf, -1.0, 2.0, 3.0, 6.0, math.inf, math.nan]
    images = torch.tensor(values).reshape(1, 1, 1, 7)
    picture = shown(plots.image_grid(images, title="", limits=(2.0, 6.0)))
    zoom = 96 // 7
    assert picture[0, ::zoom, 0].tolist() == [0, 0, 0, 64, 255, 255, 0xE7]
    assert picture[0, -1].tolist() == [0xE7, 0x00, 0x8A, 0xFF]


def test_default_limits_are_the_finite_extremes():
    images = torch.tensor([[-3.0, 1.0], [math.nan, math.inf]]).reshape(1, 1, 2, 2)
    picture = shown(plots.image_grid(images, title=""))
    assert picture[0, 0, 0] == 0
    assert picture[0, -1, 0] == 255
    constant = shown(plots.image_grid(torch.full((1, 1, 2, 2), 1e30), title=""))
    assert (constant[..., :3] == 0).all()


def test_transparency_is_kept():
    images = torch.ones(1, 4, 2, 2)
    images[:, 3, 0] = 0
    picture = shown(plots.image_grid(images, title="", limits=(0, 1)))
    assert picture[0, 0, 3] == 0
    assert picture[-1, -1, 3] == 255


def test_rows_and_columns_of_a_grid_are_kept_and_empty_cells_are_white():
    images = torch.arange(6.0).reshape(2, 3, 1, 1, 1)
    picture = shown(plots.image_grid(images, title="", limits=(0, 5), gap=0))
    assert picture[::96, ::96, 0].tolist() == [[0, 51, 102], [153, 204, 255]]
    wrapped = shown(plots.image_grid(images.flatten(0, 1)[:5], title="", columns=3, gap=0))
    assert wrapped[::96, ::96, 3].tolist() == [[255] * 3, [255, 255, 0]]


def test_a_huge_grid_is_averaged_down_to_a_picture():
    images = torch.zeros(36, 1, 512, 512)
    images[..., ::2] = 1.0
    picture = shown(plots.image_grid(images, title=""))
    assert max(picture.shape) < 2500
    assert set(np.unique(picture[:200, :200, 0])) <= {0, 128}


def test_reconstructions_are_three_named_rows_in_the_limits_of_the_data():
    x = torch.tensor([0.0, 4.0]).reshape(2, 1, 1, 1)
    figure = plots.reconstructions(x, x / 2, x * 9)
    step = 96 + 4
    assert shown(figure)[::step, ::step, 0].tolist() == [[0, 255], [0, 128], [0, 255]]
    assert texts(figure)[1:] == ["data", "mean", "sample"]
    with pytest.raises(ValueError, match=r"different shapes: \(2, 1, 1, 1\), \(1, 1, 1, 1\)"):
        plots.reconstructions(x, x[:1], x)


def test_interpolations_and_traversals_name_their_ends_and_units():
    images = torch.rand(2, 4, 1, 3, 3)
    assert texts(plots.interpolation(images))[1:] == ["from", "to"]
    figure = plots.traversal(images, ["z[7]", "z[2]"], values=[-3, -1, 1, 3])
    assert texts(figure)[1:] == ["z[7]", "z[2]", "-3", "-1", "+1", "+3"]
    with pytest.raises(ValueError, match="3 row_labels for 2"):
        plots.traversal(images, ["a", "b", "c"])


def test_a_manifold_has_no_gaps():
    picture = shown(plots.manifold(torch.rand(5, 5, 1, 2, 2)))
    assert picture.shape == (5 * 96, 5 * 96, 4)
    assert (picture[..., 3] == 255).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4, 4), r"shape \(3, 4, 4\) cannot be drawn: expected \(number"),
        ((3, 2, 4, 4), r"have 2 channels"),
        ((3, 28, 28, 1), r"have 28 channels.*channels first"),
        ((0, 1, 4, 4), r"nothing to draw"),
    ],
)
def test_what_is_no_image_is_refused_by_its_shape(shape, message):
    with pytest.raises(ValueError, match=message):
        plots.image_grid(torch.zeros(shape), title="t")


def test_limits_without_room_and_columns_below_one_are_refused():
    with pytest.raises(ValueError, match=r"limits \(1, 1\)"):
        plots.image_grid(torch.rand(1, 1, 2, 2), title="", limits=(1, 1))
    with pytest.raises(ValueError, match="-1 columns"):
        plots.image_grid(torch.rand(1, 1, 2, 2), title="", columns=-1)


@pytest.mark.parametrize("title", [r"$\frac$", "\N{CJK UNIFIED IDEOGRAPH-6570}", "_", ""])
def test_any_title_can_be_drawn(title):
    plots.png(plots.image_grid(torch.rand(1, 1, 2, 2), title=title, row_labels=[title]))
    plots.png(plots.latent_scatter(torch.rand(2, 2), title=title, axis_labels=(title, title)))
    plots.png(plots.rows(torch.rand(2, 2), {title: torch.rand(2, 2)}, title=title))


# Curves ----------------------------------------------------------------------------------------


def test_curves_draw_each_series_against_its_epoch():
    record = history(5)
    figure = curves(record)
    drawn = [line.get_xydata().T.tolist() for axes in figure.axes for line in axes.lines]
    keys = ["train_nats", "validation_elbo_nats", "validation_rate_nats",
            "validation_distortion_nats", "learning_rate"]  # fmt: skip
    assert drawn == [[[1, 2, 3, 4, 5], [epoch[key] for epoch in record]] for key in keys]
    assert "ELBO (nats per datum)" in texts(figure)
    assert f"validation, last {record[-1]['validation_elbo_nats']:.2f}" in texts(figure)


def test_panels_without_values_are_left_out():
    record = [{"epoch": n, "train_nats": -1.0, "learning_rate": 1e-3} for n in (1, 2)]
    assert len(curves(record).axes) == 1
    assert "validation, none" in texts(curves(record))


def test_values_that_are_not_finite_leave_a_gap():
    record = history(6)
    for row, bad in zip(record[1:], (math.nan, math.inf, -math.inf, None), strict=False):
        row["validation_elbo_nats"] = bad
    figure = curves(record)
    drawn = figure.axes[0].lines[1].get_ydata()
    assert np.isnan(drawn).tolist() == [False, True, True, True, True, False]
    plots.png(figure)


@pytest.mark.parametrize("num_epochs", [0, 1])
def test_curves_of_hardly_any_epochs_can_be_drawn(num_epochs):
    figure = curves(history(num_epochs))
    plots.png(figure)
    assert ("no values recorded" in texts(figure)) == (num_epochs == 0)
    plots.png(curves([dict.fromkeys(epoch, math.nan) for epoch in history(num_epochs)]))


def test_first_epochs_that_flatten_the_rest_leave_the_panel_with_a_word():
    values = [-500.0, -300.0] + [-100.0 + n / 10 for n in range(28)]
    record = [{"epoch": n, "train_nats": v, "validation_elbo_nats": v}
              for n, v in enumerate(values)]  # fmt: skip
    figure = curves(record)
    low, high = figure.axes[0].get_ylim()
    assert -110 < low < -100
    assert high > values[-1]
    assert "epoch (the first 2 lie below the panel)" in texts(figure)
    assert "epoch" in texts(curves(record[2:]))


# Latents and rows ------------------------------------------------------------------------------


def test_bars_are_the_kl_sorted_and_coloured_by_activity():
    kl = torch.tensor([0.001, 2.0, 0.5, 1.0])
    activity = torch.tensor([0.0, 0.9, 0.01, 0.011])
    figure = plots.unit_bars(kl, activity)
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([2.0, 1.0, 0.5, 0.001])
    active = [bar.get_facecolor() == to_rgba(plots.BLUE) for bar in bars]
    assert active == [True, True, False, False]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "3", "2", "0"]
    assert "KL per latent unit: 2 of 4 active, 3.50 nats in all" in texts(figure)


@pytest.mark.parametrize("num_units", [0, 1, 60, 1000])
def test_bars_of_any_number_of_units(num_units):
    figure = plots.unit_bars(torch.rand(num_units), torch.rand(num_units))
    plots.png(figure)
    assert len(figure.axes[0].patches) == min(num_units, 200)


def test_bars_that_are_not_finite_are_counted():
    figure = plots.unit_bars(torch.tensor([math.nan, 1.0, math.inf]), torch.ones(3))
    plots.png(figure)
    assert "2 not finite, left out" in texts(figure)
    assert any("1.00 nats" in text for text in texts(figure))


def test_each_layer_has_a_panel_of_its_own():
    layers = {"z1": (torch.tensor([1.0, 2.0]), torch.ones(2)), "z2": (torch.zeros(3),) * 2}
    figure = plots.layer_bars(layers)
    assert [len(axes.patches) for axes in figure.axes] == [2, 3]
    assert [bar.get_height() for bar in figure.axes[0].patches] == [2.0, 1.0]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert "KL per unit of z1: 2 of 2 active, 3.00 nats in all" in texts(figure)
    assert "KL per unit of z2: 0 of 3 active, 0.00 nats in all" in texts(figure)
    with pytest.raises(ValueError, match="no layer"):
        plots.layer_bars({})


def test_rate_and_distortion_are_joined_by_rising_rate_and_named():
    points = {"beta 4": (5.0, 90.0), "beta 1": (20.0, 70.0), "beta 2": (10.0, 80.0)}
    figure = plots.rate_distortion(points)
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [5.0, 10.0, 20.0]
    assert line.get_ydata().tolist() == [90.0, 80.0, 70.0]
    assert {"beta 1", "beta 2", "beta 4"} <= set(texts(figure))
    # Two models have the same ELBO, and so one dotted line.
    assert len(figure.axes[0].lines) == 1 + 2


def test_points_of_a_curve_that_are_not_finite_are_counted():
    figure = plots.rate_distortion({"a": (math.nan, 1.0), "b": (2.0, math.inf)})
    plots.png(figure)
    assert "2 not finite, left out" in texts(figure)
    with pytest.raises(ValueError, match="no point"):
        plots.rate_distortion({})


def test_bars_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        plots.unit_bars(torch.rand(2), torch.rand(3))


@pytest.mark.parametrize(("num_classes", "groups"), [(1, 1), (2, 2), (20, 20), (21, 1)])
def test_points_are_grouped_by_class_up_to_twenty(num_classes, groups):
    points = torch.randn(60, 2)
    labels = torch.arange(60) % num_classes
    figure = plots.latent_scatter(points, labels, title="t")
    drawn = figure.axes[0].collections
    assert len(drawn) == groups
    assert (figure.axes[0].get_legend() is None) == (groups == 1)
    for label, group in enumerate(drawn if groups > 1 else []):
        assert np.allclose(group.get_offsets(), points[labels == label])
    looks = {
        (tuple(group.get_facecolor()[0]), str(group.get_paths()[0].vertices)) for group in drawn
    }
    assert len(looks) == groups


def test_points_that_are_not_finite_are_counted():
    points = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [math.inf, 1.0]])
    figure = plots.latent_scatter(points, torch.tensor([0, 1, 2]), title="t")
    plots.png(figure)
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[0.0, 1.0]]
    assert "2 not finite, left out" in texts(figure)
    plots.png(plots.latent_scatter(points[1:], title="t"))


def test_points_outside_the_plane_and_other_numbers_of_labels_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\) are not in a plane"):
        plots.latent_scatter(torch.rand(4, 3), title="t")
    with pytest.raises(ValueError, match=r"\(3,\) labels for 4 points"):
        plots.latent_scatter(torch.rand(4, 2), torch.zeros(3), title="t")


def test_rows_are_standardised_by_the_data_in_every_panel():
    x = torch.randn(50, 3, 2, dtype=torch.float64) * 7 + 100
    figure = plots.rows(x, {"mean": x[:5] + 7.0}, title="t")
    data, mean = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2])
    assert data.shape == (50, 6)
    assert np.allclose(data.mean(0), 0)
    assert np.allclose(data.std(0), 1)
    assert np.allclose((mean - data[:5]) * x.reshape(50, 6).std(0, correction=0).numpy(), 7.0)
    assert [text for text in texts(figure) if text in ("t", "data", "mean")] == [
        "t",
        "data",
        "mean",
    ]


def test_rows_with_constant_and_missing_values_can_be_drawn():
    x = torch.tensor([[1.0, math.nan, math.inf], [1.0, math.nan, 2.0]])
    figure = plots.rows(x, title="t")
    plots.png(figure)
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.mask.tolist() == [[False, True, True], [False, True, False]]
    assert drawn[0, 0] == 0
    plots.png(plots.rows(torch.rand(4), title="one feature"))


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"'mean' has shape \(2, 4\), data \(2, 3\)"):
        plots.rows(torch.rand(2, 3), {"mean": torch.rand(2, 4)}, title="t")
    with pytest.raises(ValueError, match="at least one row"):
        plots.rows(torch.rand(0, 3), title="t")


def test_classes_are_called_by_name_whatever_the_name() -> None:
    names = ("cat", "_dog", "$x", "\x1b[31m" + "z" * 40)
    points, labels = torch.rand(8, 2), torch.arange(8) % 4
    figure = plots.latent_scatter(points, labels, title="t", classes=names)
    plots.png(figure)
    legend = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["cat", "_dog", "$x", "[31m" + "z" * 15 + "…"]
    # A class without a point here renumbers no other.
    figure = plots.latent_scatter(points[:2], torch.tensor([1, 2]), title="t", classes=names)
    legend = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["_dog", "$x"]
