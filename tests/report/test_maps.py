"""Maps against nilearn and scipy; left is left."""

import io
import re

import nibabel
import numpy as np
import pytest
from nilearn import datasets, surface
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from vidbrain.report import maps
from vidbrain.report.palette import HEAT, Scale, ceil_nicely, difference_scale, r_scale, rgb


@pytest.fixture
def grid():
    rng = np.random.default_rng(0)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = (-84, -116, -76)
    volume = rng.standard_normal((22, 26, 22))
    return maps.VoxelMap(volume, affine)


def pictures(html):
    import base64

    found = re.findall(r"data:image/webp;base64,([^\"]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"), int) for data in found]


def coloured(picture):
    """Pixels that are not grey."""
    return (np.ptp(picture[..., :3], axis=2) > 60) & (picture[..., 3] > 128)


def test_values_between_voxels_are_scipys(grid):
    points = np.random.default_rng(1).uniform(-60, 50, (200, 3))
    axes = [grid.affine[i, 3] + grid.affine[i, i] * np.arange(n) for i, n in enumerate(grid.volume.shape)]
    theirs = RegularGridInterpolator(axes, grid.volume)(points)
    np.testing.assert_allclose(grid.at(points), theirs, atol=1e-9)


def test_outside_of_the_mask_never_pulls_a_value_down(grid):
    volume = np.where(np.arange(26)[None, :, None] < 13, 5.0, np.nan) * np.ones((22, 26, 22))
    values = maps.VoxelMap(volume, grid.affine).at(np.random.default_rng(2).uniform(-60, 50, (500, 3)))
    assert np.isnan(values).any()
    np.testing.assert_allclose(values[np.isfinite(values)], 5.0)


def test_on_surface_is_nilearns_vol_to_surf(grid):
    meshes = datasets.load_fsaverage("fsaverage5")
    pial, white = meshes["pial"].parts["left"], meshes["white_matter"].parts["left"]
    ours = grid.on_surface(pial.coordinates.astype(float), white.coordinates.astype(float))
    image = nibabel.Nifti1Image(grid.volume.astype(np.float32), grid.affine)
    theirs = surface.vol_to_surf(image, pial, inner_mesh=white, n_samples=6)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_labels_on_the_surface_are_the_most_frequent(grid):
    volume = np.where(np.arange(22)[:, None, None] < 11, 2.0, 7.0) * np.ones((22, 26, 22))
    pial = np.array([[-50.0, 0, 0], [50.0, 0, 0], [5.0, 0, 0], [500.0, 0, 0]])
    white = pial.copy()
    white[2, 0] = -20  # from right to left, most of its depth on the left
    values = maps.VoxelMap(volume, grid.affine, labels=True).on_surface(pial, white)
    np.testing.assert_array_equal(values, [2, 7, 2, np.nan])


def test_left_is_on_the_left(anatomy, grid):
    volume = np.where((np.arange(22) * 8 - 84 < -4)[:, None, None], 1.0, 0.0) * np.ones((22, 26, 22))
    left_only = maps.VoxelMap(volume, grid.affine)
    surfaces = pictures(maps.surface_panel(anatomy, left_only, r_scale(1.0), label="x"))
    shares = [coloured(picture).mean() for picture in surfaces]
    assert min(shares[:2]) > 0.2, "both views of the left hemisphere"
    assert max(shares[2:]) < 0.05, "none of the right"
    for picture in pictures(maps.slice_panel(anatomy, left_only, r_scale(1.0), ("z", "y"), label="x")):
        half = picture.shape[1] // 2
        assert coloured(picture[:, :half]).sum() > 20 * coloured(picture[:, half + 4 :]).sum()


def test_slices_are_cut_where_they_say(anatomy, grid):
    """A map that is coloured at the back only shows in the first coronal cuts and not in the last."""
    volume = np.where((np.arange(26) * 8 - 116 < -60)[None, :, None], 1.0, 0.0) * np.ones((22, 26, 22))
    drawn = pictures(maps.slice_panel(anatomy, maps.VoxelMap(volume, grid.affine), r_scale(1.0), ("y",), label="x"))
    shown = [bool(coloured(picture).mean() > 0.1) for picture in drawn]
    assert shown == [cut < -60 for cut in maps.CUTS_MM["y"]]


def test_a_map_of_nothing_is_anatomy_without_colour(anatomy, grid):
    empty = maps.VoxelMap(np.full(grid.volume.shape, np.nan), grid.affine)
    for html in (
        maps.surface_panel(anatomy, empty, r_scale(1.0), label="x"),
        maps.slice_panel(anatomy, empty, r_scale(1.0), ("z",), label="x"),
    ):
        drawn = pictures(html)
        assert not any(coloured(picture).any() for picture in drawn)
        assert all((picture[..., 3] > 128).mean() > 0.2 for picture in drawn)


def test_labels_are_painted_with_their_colour(anatomy, grid):
    ones = maps.VoxelMap(np.ones(grid.volume.shape), grid.affine, labels=True)
    paint = maps.LabelPaint({1: "#2b8fd6"})
    picture = pictures(maps.slice_panel(anatomy, ones, paint, ("z",), label="x"))[2]
    centre = picture[picture.shape[0] // 2, picture.shape[1] // 2]
    np.testing.assert_allclose(centre[:3], np.array(rgb("#2b8fd6")) * 255, atol=12)


def luminance(colours):
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_scales_rise_in_luminance_so_that_hue_is_not_needed():
    values = np.linspace(0, 0.6, 50)
    assert (np.diff(luminance(r_scale(0.6).paint(values)[:, :3])) > 0).all()
    signed = difference_scale(0.2)
    for side in (1, -1):
        strong = luminance(signed.paint(side * np.linspace(0.09, 0.2, 20))[:, :3])
        assert (np.diff(strong) > 0).all()


def test_scale_ends_and_unknown_values():
    painted = r_scale(0.5).paint(np.array([np.nan, -3.0, 0.0, 0.5, 9.0]))
    np.testing.assert_array_equal(painted[:3, 3], 0)
    np.testing.assert_allclose(painted[3:], [[*rgb(HEAT[-1]), 1.0]] * 2, atol=1e-6)


@pytest.mark.parametrize(("value", "end"), [(0.11, 0.15), (0.6, 0.6), (0.61, 0.8), (0.049, 0.05), (97, 100)])
def test_ends_are_round(value, end):
    assert ceil_nicely(value) == pytest.approx(end)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_no_end_for_nonsense(value):
    with pytest.raises(ValueError, match="positive"):
        ceil_nicely(value)


def test_colour_bar_names_its_ends():
    bar = maps.colour_bar(Scale(low=-0.2, high=0.2, anchors=HEAT, fade_from=0, fade_to=0.1), "r & <more>", n_ticks=3)
    assert re.findall(r"<span>([^<]+)</span>", bar) == ["\u22120.20", "0.00", "0.20"]
    assert "r &amp; &lt;more&gt;" in bar
