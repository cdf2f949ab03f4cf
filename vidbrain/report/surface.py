"""Pictures of a triangle mesh: orthographic, smooth, without a window system.

Each view is projected once; every map then colours the same pixels. Nilearn's Matplotlib engine draws flat faces; here
values and light are interpolated within each face (barycentric), which shows a 10 242-vertex hemisphere smoothly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_LIGHT = np.array([0.25, 0.45, 0.85])
"""Direction of the light in the viewer's frame: right, up, towards the viewer."""


@dataclass(frozen=True, eq=False)
class View:
    """Pixels of a mesh seen from one side.

    Attributes
    ----------
    height, width
        Of the picture, in pixels.
    pixels : (n,)
        Flat index of every covered pixel.
    corners : (n, 3)
        The three vertices of the face seen in it.
    weights : (n, 3)
        Barycentric weights of these vertices.
    light : (n,)
        0 (away from the light) to 1.
    """

    height: int
    width: int
    pixels: Ints
    corners: Ints
    weights: Floats
    light: Floats

    def sample(self, values: Floats) -> Floats:
        """Interpolate vertex values (vertex,) at the covered pixels; corners that are NaN do not count."""
        corner_values = values[self.corners]
        known = np.isfinite(corner_values)
        weight = (self.weights * known).sum(1)
        total = (self.weights * np.where(known, corner_values, 0.0)).sum(1)
        return np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), np.nan)

    def nearest(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Label of the nearest corner at each covered pixel."""
        return labels[self.corners[np.arange(len(self.corners)), self.weights.argmax(1)]]

    def picture(self, rgb: Floats) -> NDArray[np.float32]:
        """Put colours (n, 3) in place; the rest is transparent. Returns (height, width, 4) in 0…1."""
        out = np.zeros((self.height * self.width, 4), np.float32)
        out[self.pixels, :3] = rgb
        out[self.pixels, 3] = 1.0
        return out.reshape(self.height, self.width, 4)


def look(points: Floats, faces: Ints, *, from_x: int, pixels_per_mm: float, margin: int = 4) -> View:
    """Project a hemisphere as seen along the left-right axis.

    Parameters
    ----------
    points : (vertex, 3)
        Millimetres: x to the right, y to the front, z up.
    faces : (face, 3)
        Vertex indices, counter-clockwise as seen from outside.
    from_x
        -1 looks from the left, +1 from the right.
    pixels_per_mm
        Resolution.
    margin
        Empty pixels around it.
    """
    # Viewer's frame: to the right, up, towards the viewer. From the left the front (y) points to the left.
    seen = np.column_stack([from_x * points[:, 1], points[:, 2], from_x * points[:, 0]])
    low, high = seen[:, :2].min(0), seen[:, :2].max(0)
    width, height = (np.ceil((high - low) * pixels_per_mm).astype(int) + 2 * margin).tolist()
    column = (seen[:, 0] - low[0]) * pixels_per_mm + margin
    row = (high[1] - seen[:, 1]) * pixels_per_mm + margin
    face, weights, pixels = rasterise(column, row, seen[:, 2], faces, height, width)
    normals = vertex_normals(seen, faces)
    corners = faces[face]
    normal = (normals[corners] * weights[:, :, None]).sum(1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    light = np.clip(normal @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, 1)
    return View(height, width, pixels, corners, weights, light)


def rasterise(
    column: Floats, row: Floats, depth: Floats, faces: Ints, height: int, width: int
) -> tuple[Ints, Floats, Ints]:
    """Find the face seen in each pixel, with a depth buffer; faces that look away are left out.

    Parameters
    ----------
    column, row, depth : (vertex,)
        Position in pixels (centres at integers) and nearness to the viewer.
    faces : (face, 3)
        Vertex indices.
    height, width
        Of the picture.

    Returns
    -------
    face : (n,)
        Index of the face seen.
    weights : (n, 3)
        Barycentric weights of its corners.
    pixels : (n,)
        Flat index of the pixel, ascending.
    """
    corner_x, corner_y = column[faces], row[faces]
    right, down = corner_x[:, 1:] - corner_x[:, :1], corner_y[:, 1:] - corner_y[:, :1]
    area = right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0]
    # Rows grow downwards, so a face whose corners run counter-clockwise has a negative area; the others look away.
    usable = area < -1e-9
    left = np.clip(np.ceil(corner_x.min(1)).astype(np.int64), 0, width)
    top = np.clip(np.ceil(corner_y.min(1)).astype(np.int64), 0, height)
    extent = np.maximum(
        np.minimum(np.floor(corner_x.max(1)).astype(np.int64), width - 1) - left,
        np.minimum(np.floor(corner_y.max(1)).astype(np.int64), height - 1) - top,
    )
    found_face, found_weights, found_pixels = [], [], []
    # Faces of similar size share one square of candidate pixels.
    size = 1
    previous = -1
    while previous < int(extent.max(initial=-1)):
        chosen = np.flatnonzero(usable & (extent > previous) & (extent <= size))
        previous, size = size, size + max(2, size // 3)
        if not len(chosen):
            continue
        offset_y, offset_x = (grid.ravel() for grid in np.mgrid[: previous + 1, : previous + 1])
        x = left[chosen, None] + offset_x
        y = top[chosen, None] + offset_y
        cx, cy = corner_x[chosen], corner_y[chosen]
        # Each weight is the share of the area opposite its corner.
        parts = [
            ((cx[:, b, None] - x) * (cy[:, c, None] - y) - (cx[:, c, None] - x) * (cy[:, b, None] - y))
            / area[chosen, None]
            for b, c in ((1, 2), (2, 0), (0, 1))
        ]
        inside = (parts[0] >= -1e-9) & (parts[1] >= -1e-9) & (parts[2] >= -1e-9) & (x < width) & (y < height)
        which, where = np.nonzero(inside)
        found_face.append(chosen[which])
        found_weights.append(np.column_stack([part[which, where] for part in parts]))
        found_pixels.append(y[which, where] * width + x[which, where])
    face = np.concatenate(found_face) if found_face else np.empty(0, np.int64)
    weights = np.concatenate(found_weights) if found_weights else np.empty((0, 3))
    pixels = np.concatenate(found_pixels) if found_pixels else np.empty(0, np.int64)
    nearness = (depth[faces[face]] * weights).sum(1)
    order = np.lexsort((face, nearness, pixels))
    last = np.flatnonzero(np.diff(pixels[order], append=-1))  # the nearest of each pixel stands last
    keep = order[last]
    return face[keep], weights[keep], pixels[keep]


def vertex_normals(points: Floats, faces: Ints) -> Floats:
    """Unit normals (vertex, 3): the mean of the adjoining faces' normals, weighted by their area."""
    a, b, c = (points[faces[:, i]] for i in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.zeros_like(points)
    for i in range(3):
        np.add.at(normals, faces[:, i], face_normals)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
