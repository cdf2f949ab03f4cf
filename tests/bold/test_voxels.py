import numpy as np
import pytest

from vidbrain.bold.voxels import centres_mm, flat_index, morton_code, ordered_voxels, to_volume


def test_morton_codes_interleave_the_bits():
    rng = np.random.default_rng(0)
    ijk = rng.integers(0, 1 << 21, size=(50, 3))
    expected = [sum(((int(v[a]) >> bit) & 1) << (3 * bit + a) for bit in range(21) for a in range(3)) for v in ijk]
    assert morton_code(ijk).tolist() == expected


def test_neighbours_share_a_chunk():
    ijk = ordered_voxels(np.ones((32, 32, 32)))
    first = ijk[:4096]
    assert np.ptp(first, axis=0).tolist() == [15, 15, 15]


def test_values_go_to_their_voxels_and_back():
    rng = np.random.default_rng(1)
    mask = rng.random((5, 6, 7)) > 0.5
    ijk = ordered_voxels(mask)
    values = rng.normal(size=len(ijk))
    volume = to_volume(values, ijk, mask.shape, fill=-1.0)
    assert np.array_equal(volume[tuple(ijk.T)], values)
    assert (volume[~mask] == -1.0).all()
    assert np.array_equal(volume.ravel(order="F")[flat_index(ijk, mask.shape)], values)
    assert to_volume(values > 0, ijk, mask.shape).dtype == np.uint8


def test_centres_follow_the_affine():
    affine = np.array([[-4.0, 0, 0, 90], [0, 4, 0.5, -126], [0, 0, 4, -72], [0, 0, 0, 1]])
    expected = affine @ np.array([2, 3, 5, 1])
    assert np.allclose(centres_mm([[2, 3, 5]], affine)[0], expected[:3])


def test_indices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2\\*\\*21"):
        morton_code([[1 << 21, 0, 0]])
