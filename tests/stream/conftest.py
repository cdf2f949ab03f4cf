"""The order by its definition, in plain Python."""

import hashlib

import pytest


@pytest.fixture(scope="session")
def oracle():
    return global_batches


def splitmix(key, number):
    """Vigna's splitmix64.c, the number-th output from this state."""
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def global_batches(counts, batch_size, seed, epoch, window, n_streams, tail):
    """All global batches, by the definition: every clip of every stream gets a place, and all places are sorted."""
    if not window:
        n_streams = 1
    keys = [
        int.from_bytes(hashlib.sha256(f"{seed}/{epoch}\x1f{name}".encode()).digest()[:8], "big")
        for name in ("shards", "clips")
    ]
    n, share, reach = sum(counts), batch_size // n_streams, -(-window // n_streams)
    shard_of = [shard for shard, count in enumerate(counts) for _ in range(count)]
    streams = []
    for c in range(n_streams):
        clips = range(n * c // n_streams, n * (c + 1) // n_streams)
        pieces = {}
        for clip in clips:
            pieces.setdefault(0 if reach >= len(clips) else shard_of[clip], []).append(clip)
        places, at = [], 0
        for piece in sorted(pieces.values(), key=lambda piece: splitmix(keys[0], piece[0])):
            width = max(reach, len(piece))
            low = at + (len(piece) - width) / 2
            places += [(low + (splitmix(keys[1], clip) >> 11) * 2.0**-53 * width, clip) for clip in piece]
            at += len(piece)
        streams.append([clip for _, clip in sorted(places)] if window else list(clips))
    batches = []
    for b in range(n // batch_size if tail == "drop" else -(-n // batch_size)):
        parts = [stream[b * share : (b + 1) * share] for stream in streams]
        batches.append([clip for part in parts for clip in part + [-1] * (share - len(part))])
    return batches
