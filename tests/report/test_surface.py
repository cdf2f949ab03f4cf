"""The rasteriser against Matplotlib's triangulations and known solids."""

import numpy as np
import pytest
from matplotlib.tri import LinearTriInterpolator, Triangulation
from scipy.spatial import ConvexHull

from vidbrain.report.surface import look, rasterise, vertex_normals


def facing(points, faces):
    """Turn triangles of a plane so that they look at the viewer (rows grow downwards)."""
    a, b, c = (points[faces[:, i]] for i in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    return np.where((area > 0)[:, None], faces[:, ::-1], faces)


@pytest.fixture
def sphere():
    points = np.random.default_rng(0).standard_normal((600, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    faces = ConvexHull(points).simplices.astype(np.int64)
    a, b, c = (points[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    return points * 50, np.where(inward[:, None], faces[:, ::-1], faces)


def test_interpolates_as_matplotlib_does():
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 60, (80, 2))
    triangulation = Triangulation(*points.T)
    faces = facing(points, triangulation.triangles.astype(np.int64))
    values = rng.standard_normal(80)
    face, weights, pixels = rasterise(*points.T, np.zeros(80), faces, 61, 61)
    ours = (values[faces[face]] * weights).sum(1)
    theirs = LinearTriInterpolator(triangulation, values)(pixels % 61, pixels // 61)
    inside = ~np.ma.getmaskarray(theirs)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-9)
    rows, columns = np.mgrid[:61, :61]
    n_theirs = (triangulation.get_trifinder()(columns.ravel() * 1.0, rows.ravel() * 1.0) >= 0).sum()
    assert len(pixels) == n_theirs
    assert (np.diff(pixels) > 0).all()


@pytest.mark.parametrize("near", [0, 1])
def test_nearer_face_hides_the_other(near):
    corners = np.array([[0, 0], [20, 0], [0, 20], [0, 0], [20, 0], [0, 20]], float)
    faces = np.array([[0, 2, 1], [3, 5, 4]])
    depth = np.repeat([1.0, 0.0] if near == 0 else [0.0, 1.0], 3)
    face, _, pixels = rasterise(*corners.T, depth, faces, 21, 21)
    assert len(pixels) == 21 * 22 / 2
    assert set(face) == {near}


def test_faces_that_look_away_and_empty_ones_are_left_out():
    corners = np.array([[0, 0], [20, 0], [0, 20], [5, 5]], float)
    away, flat = [0, 1, 2], [3, 3, 3]
    face, weights, pixels = rasterise(*corners.T, np.zeros(4), np.array([away, flat]), 21, 21)
    assert len(face) == len(pixels) == 0
    assert weights.shape == (0, 3)


def test_a_sphere_is_a_disc_whose_normals_point_outwards(sphere):
    points, faces = sphere
    np.testing.assert_array_less(0.97, (vertex_normals(points, faces) * points / 50).sum(1))
    view = look(points, faces, from_x=1, pixels_per_mm=1.0)
    assert len(view.pixels) == pytest.approx(np.pi * 50**2, rel=0.03)
    seen_x = view.sample(points[:, 0])
    assert seen_x.min() > -5, "only the side towards the viewer is seen"


@pytest.mark.parametrize(("from_x", "front"), [(-1, "left"), (1, "right")])
def test_the_front_points_left_when_seen_from_the_left(sphere, from_x, front):
    points, faces = sphere
    view = look(points, faces, from_x=from_x, pixels_per_mm=1.0)
    y = view.sample(points[:, 1])
    column = view.pixels % view.width
    assert (np.corrcoef(column, y)[0, 1] > 0) == (front == "right")
    z = view.sample(points[:, 2])
    assert np.corrcoef(view.pixels // view.width, z)[0, 1] < -0.9, "up is up"


def test_unknown_corners_do_not_count(sphere):
    points, faces = sphere
    view = look(points, faces, from_x=1, pixels_per_mm=0.5)
    values = np.where(points[:, 1] > 0, 3.0, np.nan)
    sampled = view.sample(values)
    known = np.isfinite(sampled)
    assert 0.3 < known.mean() < 0.7
    np.testing.assert_allclose(sampled[known], 3.0)
