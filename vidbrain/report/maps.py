"""Voxel maps on the MNI template and on the cortical surface, as images with nothing around them.

Labels, colour bars and layout belong to the page: they stay sharp, reflow on a phone and follow its theme. Anatomy is
what nilearn ships: the MNI152 template at 1 mm and fsaverage5. Left is shown on the left.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from nibabel.affines import apply_affine
from nilearn import datasets
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from vidbrain.report.html import Html, image, tag
from vidbrain.report.palette import Scale, rgb
from vidbrain.report.surface import View, look
from vidbrain.report.words import difference, score

Floats = NDArray[np.float64]

SIDES = {
    "left, outer side": ("left", -1),
    "left, inner side": ("left", 1),
    "right, inner side": ("right", -1),
    "right, outer side": ("right", 1),
}
"""The four views: hemisphere, and the side that it is seen from."""

CUTS_MM = {
    "z": (-20, -6, 8, 24, 40, 56),
    "y": (-94, -78, -50, -22, 8, 36),
    "x": (-46, -30, -8, 8, 30, 46),
}
"""Where the template is cut: the same for every map, so that maps can be compared."""

PLANES = {"z": "axial", "y": "coronal", "x": "sagittal"}
_AXES = {"z": (2, 0, 1), "y": (1, 0, 2), "x": (0, 1, 2)}
"""Axis cut, axis shown to the right, axis shown upwards."""

_PIXEL_MM = 0.6
_SURFACE_PIXELS_PER_MM = 4.0
_N_DEPTHS = 6


class Paint(Protocol):
    """Colours values; NaN is transparent. A `palette.Scale`, or `LabelPaint`."""

    def paint(self, values: Floats) -> NDArray[np.float32]:
        """Return RGBA (..., 4) in 0…1."""


@dataclass(frozen=True)
class LabelPaint:
    """Colours integer labels; a label without a colour is transparent."""

    colours: dict[int, str]

    def paint(self, values: Floats) -> NDArray[np.float32]:
        """Return RGBA (..., 4) in 0…1."""
        out = np.zeros((*values.shape, 4), np.float32)
        for label, colour in self.colours.items():
            out[values == label] = (*rgb(colour), 1.0)
        return out


@dataclass(frozen=True, eq=False)
class VoxelMap:
    """Values on a grid of voxels.

    Attributes
    ----------
    volume : (i, j, k)
        NaN outside the mask.
    affine : (4, 4)
        Voxel indices to millimetres in MNI space.
    labels
        Whether values are integer labels (nearest voxel) instead of a quantity (interpolated).
    """

    volume: Floats
    affine: Floats
    labels: bool = False

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where there is a value."""
        return np.isfinite(self.volume)

    def at(self, points_mm: Floats) -> Floats:
        """Value at points (..., 3) in millimetres; NaN outside the mask, which never pulls its neighbours down."""
        index = np.moveaxis(apply_affine(np.linalg.inv(self.affine), points_mm), -1, 0)
        filled = np.where(self.known, self.volume, 0.0)
        inside = ndimage.map_coordinates(self.known.astype(np.float64), index, order=1, cval=0.0)
        if self.labels:
            values = ndimage.map_coordinates(filled, index, order=0, cval=0.0)
        else:
            values = ndimage.map_coordinates(filled, index, order=1, cval=0.0) / np.maximum(inside, 1e-6)
        return np.where(inside >= 0.5, values, np.nan)

    def on_surface(self, pial: Floats, white: Floats) -> Floats:
        """Value at each vertex: the mean (of labels: the most frequent) over the depth of the cortex.

        The same as nilearn's ``vol_to_surf(kind="depth")``, but a vertex outside the mask is NaN without a warning.
        """
        depths = np.linspace(0, 1, _N_DEPTHS)[:, None, None]
        values = self.at(pial + depths * (white - pial))
        known = np.isfinite(values)
        n_known = known.sum(0)
        if self.labels:
            codes = np.unique(values[known])
            votes = np.stack([(values == code).sum(0) for code in codes]) if len(codes) else np.zeros((1, len(pial)))
            chosen = codes[votes.argmax(0)] if len(codes) else np.full(len(pial), np.nan)
            return np.where(n_known > 0, chosen, np.nan)
        return np.where(n_known > 0, np.where(known, values, 0.0).sum(0) / np.maximum(n_known, 1), np.nan)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What maps are drawn on; loaded and projected once for all maps.

    Attributes
    ----------
    template : (x, y, z)
        MNI152, 0 outside the brain, 0…1 inside.
    template_affine : (4, 4)
        Of the template.
    box_mm : (2, 3)
        Corners of the brain.
    meshes
        Pial and white surface by hemisphere.
    views
        By name as in `SIDES`.
    grey
        Brightness of the covered pixels of each view, from the folding (sulci are darker) and the light.
    """

    template: Floats
    template_affine: Floats
    box_mm: Floats
    meshes: dict[str, tuple[Floats, Floats]]
    views: dict[str, View]
    grey: dict[str, Floats]


def load_anatomy() -> Anatomy:
    """Read nilearn's bundled template and surfaces and project the four views; nothing is downloaded."""
    image_ = datasets.load_mni152_template(resolution=1)
    template = np.asarray(image_.get_fdata(), np.float64)
    template = np.clip(template / np.percentile(template[template > 0], 99.5), 0, 1)
    used = np.argwhere(template > 0.1)
    corners = apply_affine(image_.affine, np.array([used.min(0), used.max(0)]))
    fsaverage = datasets.load_fsaverage("fsaverage5")
    folding = datasets.load_fsaverage_data("fsaverage5", mesh_type="inflated", data_type="sulcal")
    views, grey = {}, {}
    for name, (hemisphere, from_x) in SIDES.items():
        mesh = fsaverage["inflated"].parts[hemisphere]
        view = look(
            np.asarray(mesh.coordinates, np.float64),
            np.asarray(mesh.faces, np.int64),
            from_x=from_x,
            pixels_per_mm=_SURFACE_PIXELS_PER_MM,
        )
        depth = view.sample(np.asarray(folding.data.parts[hemisphere], np.float64))
        views[name] = view
        grey[name] = 0.62 - 0.16 / (1 + np.exp(-depth / 1.5))
    meshes = {
        hemisphere: (_points(fsaverage["pial"], hemisphere), _points(fsaverage["white_matter"], hemisphere))
        for hemisphere in ("left", "right")
    }
    box = np.array([corners.min(0) - 2, corners.max(0) + 2])
    return Anatomy(template, np.asarray(image_.affine, np.float64), box, meshes, views, grey)


def _points(mesh: Any, hemisphere: str) -> Floats:  # noqa: ANN401 -- nilearn's PolyMesh is untyped
    return np.asarray(mesh.parts[hemisphere].coordinates, np.float64)


def surface_panel(anatomy: Anatomy, voxels: VoxelMap, paint: Paint, *, label: str) -> Html:
    """Draw a map on the inflated cortical surface: both hemispheres, from outside and inside.

    Parameters
    ----------
    anatomy
        From `load_anatomy`.
    voxels
        The map.
    paint
        Colours of its values.
    label
        What is shown, for those who cannot see it.
    """
    vertex_values = {name: voxels.on_surface(*meshes) for name, meshes in anatomy.meshes.items()}
    figures = []
    for name, view in anatomy.views.items():
        values = vertex_values[SIDES[name][0]]
        if voxels.labels:
            # NaN cannot be an integer; -1 is no label.
            codes = np.where(np.isfinite(values), np.rint(values), -1).astype(np.int64)
            colours = paint.paint(view.nearest(codes).astype(np.float64))
        else:
            colours = paint.paint(view.sample(values))
        light = (0.62 + 0.48 * view.light)[:, None]
        grey = np.repeat(anatomy.grey[name][:, None], 3, axis=1)
        mixed = colours[:, 3:] * colours[:, :3] + (1 - colours[:, 3:]) * grey
        figures.append(_picture(_soften(view.picture(np.clip(mixed * light, 0, 1))), name))
    return tag("div", *figures, class_="surfaces", role="img", aria_label=label)


def slice_panel(anatomy: Anatomy, voxels: VoxelMap, paint: Paint, axes: Sequence[str], *, label: str) -> Html:
    """Draw a map on slices of the template at `CUTS_MM`, a row an axis.

    Parameters
    ----------
    anatomy, voxels, paint
        As in `surface_panel`.
    axes
        Of ``"z"`` (axial), ``"y"`` (coronal), ``"x"`` (sagittal).
    label
        What is shown, for those who cannot see it.
    """
    rows = []
    for axis in axes:
        pictures = [
            _picture(_slice(anatomy, voxels, paint, axis, cut), f"{axis} = {difference(cut, 0)}")
            for cut in CUTS_MM[axis]
        ]
        rows.append(tag("div", *pictures, class_="slices"))
    return tag("div", *rows, role="img", aria_label=label)


def _slice(anatomy: Anatomy, voxels: VoxelMap, paint: Paint, axis: str, cut_mm: float) -> NDArray[np.float32]:
    cut, right, up = _AXES[axis]
    low, high = anatomy.box_mm
    across = np.arange(low[right], high[right], _PIXEL_MM)
    upward = np.arange(high[up], low[up], -_PIXEL_MM)
    points = np.empty((len(upward), len(across), 3))
    points[..., cut] = cut_mm
    points[..., right] = across
    points[..., up] = upward[:, None]
    index = np.moveaxis(apply_affine(np.linalg.inv(anatomy.template_affine), points), -1, 0)
    brain = ndimage.map_coordinates(anatomy.template, index, order=1, cval=0.0)
    # The template's white matter would outshine the map: its contrast is kept in the middle of the range.
    grey = np.repeat((0.12 + 0.62 * brain)[..., None], 3, axis=2)
    colours = paint.paint(voxels.at(points))
    over = colours[..., 3:]
    alpha = np.maximum(np.clip((brain - 0.06) / 0.12, 0, 1)[..., None], over)
    return np.concatenate([over * colours[..., :3] + (1 - over) * grey, alpha], axis=2).astype(np.float32)


def colour_bar(scale: Scale, title: str, *, n_ticks: int = 5, digits: int = 2) -> Html:
    """Draw the scale of a map, on the grey that it lies on."""
    positions = np.linspace(scale.low, scale.high, 33)
    painted = scale.paint(positions)
    ground = 0.52
    mixed = painted[:, 3:] * painted[:, :3] + (1 - painted[:, 3:]) * ground
    stops = ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in mixed * 255)
    ticks = [tag("span", score(float(value), digits)) for value in np.linspace(scale.low, scale.high, n_ticks)]
    bar = tag("div", class_="bar", style=f"background:linear-gradient(to right, {stops})")
    return tag("div", tag("span", title, class_="bar-title"), bar, tag("div", *ticks, class_="ticks"), class_="scale")


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Draw the legend of labels: (colour, name) pairs."""
    keys = [tag("span", tag("i", style=f"background:{colour}"), name) for colour, name in entries]
    return tag("div", *keys, class_="legend")


def webp(rgba: NDArray[np.float32], quality: int = 86) -> bytes:
    """Encode a picture (height, width, 4) of 0…1 as WebP."""
    buffer = io.BytesIO()
    pixels = np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8)
    # `exact` off: colours below full transparency are free, which saves bytes.
    Image.fromarray(pixels, "RGBA").save(buffer, "WEBP", quality=quality, method=4, alpha_quality=90)
    return buffer.getvalue()


def _picture(rgba: NDArray[np.float32], name: str) -> Html:
    height, width = rgba.shape[:2]
    # The group around it carries the description: an empty alt keeps screen readers from reading 18 slices.
    return tag("div", image(webp(rgba), "", width=width // 2, height=height // 2), tag("span", name), class_="cell")


def _soften(rgba: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blur by half a pixel, colours weighted by their opacity: a smooth outline without a dark fringe."""
    alpha = ndimage.gaussian_filter(rgba[..., 3], 0.6)
    colour = ndimage.gaussian_filter(rgba[..., :3] * rgba[..., 3:], (0.6, 0.6, 0)) / np.maximum(alpha, 1e-6)[..., None]
    return np.concatenate([colour, alpha[..., None]], axis=2)
