import numpy as np
import pytest
import torch
from scipy.cluster.vq import vq
from scipy.stats import entropy

from vidbrain.models.codebook import Codebook, nearest, perplexity, spread_sample


def blobs(n=400, k=6, dim=3, seed=0):
    """Well separated clusters of very different sizes, in random order."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, dim)) * 10
    share = np.array([0.8] + [0.2 / (k - 1)] * (k - 1))
    member = rng.choice(k, n, p=share)
    return torch.tensor(centres[member] + rng.normal(size=(n, dim)) * 0.1, dtype=torch.float32), member


def test_nearest_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(500, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    found, squared = nearest(torch.from_numpy(x), torch.from_numpy(codes))
    expected, distance = vq(x, codes)
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_allclose(squared.numpy(), distance**2, rtol=1e-4, atol=1e-5)


def test_perplexity_is_the_exponential_of_scipys_entropy():
    usage = torch.tensor([5, 0, 3, 9, 1])
    assert perplexity(usage) == pytest.approx(np.exp(entropy(usage.numpy())))
    assert perplexity(torch.ones(7, dtype=torch.int64)) == pytest.approx(7)


def test_start_from_data_reaches_every_cluster():
    torch.manual_seed(0)
    x, member = blobs()
    book = Codebook(12, 3).train()
    codes = book(x).codes.numpy()
    assert bool(book.ready)
    for cluster in range(6):
        others = codes[member != cluster]
        assert not np.isin(codes[member == cluster], others).any()


def test_gradient_passes_straight_through():
    x = torch.randn(2, 4, 3, requires_grad=True)
    book = Codebook(5, 3).eval()
    (book(x).vectors * 3).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 3.0))


@pytest.mark.parametrize("restart_below", [0.0, 30.0])
def test_parts_of_a_batch_move_the_codes_as_the_whole(restart_below):
    x, _ = blobs()
    books = []
    for cuts in ([400], [150, 150, 100]):
        torch.manual_seed(0)
        book = Codebook(8, 3, decay=0.5, restart_below=restart_below).train()
        book.start(x)
        for step in range(3):
            torch.manual_seed(step)
            parts = (x + step).split(cuts)
            before = book.embeddings.clone()
            with book.held():
                for part in parts[:-1]:
                    book(part)
            assert torch.equal(book.embeddings, before)
            book(parts[-1])
        books.append(book)
    assert (int(books[0].restarts) > 0) == (restart_below > 0)
    for name, value in books[0].state_dict().items():
        torch.testing.assert_close(books[1].state_dict()[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_ema_update_equals_the_equations_of_the_paper():
    torch.manual_seed(0)
    book = Codebook(4, 3, decay=0.9, restart_below=0).train()
    x = torch.randn(50, 3)
    book(x)  # starts from the data
    count, total = book.counts.numpy().copy(), book.z_avg.numpy().copy()
    y = torch.randn(60, 3)
    codes, _ = vq(y.numpy(), book.embeddings.numpy())
    book(y)
    one_hot = np.eye(4)[codes]
    count = 0.9 * count + 0.1 * one_hot.sum(0)
    total = 0.9 * total + 0.1 * one_hot.T @ y.numpy()
    np.testing.assert_allclose(book.embeddings.numpy(), total / count[:, None], rtol=1e-4)


def test_a_restarted_code_stays_where_it_was_put():
    torch.manual_seed(0)
    book = Codebook(3, 2, decay=0.9, restart_below=1.0).train()
    x = torch.tensor([[0.0, 0.0]] * 50 + [[5.0, 5.0]] * 50 + [[9.0, 0.0]] * 50)
    book(x)
    with torch.no_grad():  # a code that nobody can use, and that is overdue
        book.embeddings[0] = 1e3
        book.counts[0] = 0.5
    moved_to = torch.tensor([-7.0, 7.0])
    book(torch.cat([x, moved_to.expand(40, 2)]))
    assert int(book.restarts) == 1
    book(torch.cat([x, moved_to.expand(40, 2)]))
    # VideoGPT leaves z_avg and N as they were, and this update would throw the code back to 1e3.
    assert float((book.embeddings - moved_to).norm(dim=1).min()) < 0.5


def test_use_is_counted_over_batches_and_in_training_only():
    torch.manual_seed(0)
    book = Codebook(4, 3).train()
    book(torch.randn(30, 3))
    book(torch.randn(20, 3))
    book.eval()
    book(torch.randn(10, 3))
    usage, _ = book.take_usage()
    assert int(usage.sum()) == 50
    assert int(book.take_usage()[0].sum()) == 0


def test_stays_float32_under_autocast():
    book = Codebook(8, 4).eval()
    x = torch.randn(100, 4)
    plain = book(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = book(x)
    assert cast.vectors.dtype == torch.float32
    torch.testing.assert_close(cast.codes, plain.codes)


def test_spread_sample_of_fewer_vectors_than_codes():
    torch.manual_seed(0)
    assert spread_sample(torch.randn(3, 2), 10).shape == (10, 2)


def test_videogpts_restart_is_undone_by_the_next_update():
    torch.manual_seed(0)
    book = Codebook(3, 2, decay=0.9, restart_below=1.0, restart_sums=False).train()
    x = torch.tensor([[0.0, 0.0]] * 50 + [[5.0, 5.0]] * 50)
    book(x)
    with torch.no_grad():
        book.embeddings[0] = book.z_avg[0] = 1e3
        book.counts[0] = 0.5
    moved_to = torch.tensor([-7.0, 7.0]).expand(40, 2)
    sums = book.z_avg[0].clone()
    for _ in range(2):
        book(torch.cat([x, moved_to]))
        sums = 0.9 * sums
        # Its sums are those of the place where it was: dividing them takes the code back.
        assert float((book.z_avg[0] - sums).norm()) < 100
        assert float((book.z_avg[0] / book.counts[0]).norm()) > 100
