"""Collectives over real processes."""

import os
import socket
import subprocess
import sys

import torch

from vidbrain.models.processes import from_all_ranks, from_first_rank, reduce_in_place, rows_of_all_ranks

SCRIPT = """
import torch
from torch import distributed as dist
from vidbrain.models.processes import from_all_ranks, from_first_rank, reduce_in_place, rows_of_all_ranks
dist.init_process_group("gloo")
rank = dist.get_rank()
held = 0
for step in range(300):
    values = torch.full((3,), float(rank + step))
    reduce_in_place(values)
    held += values._use_count() - 1
    assert values.tolist() == [2.0 * step + 1] * 3
    kept = torch.tensor([float(rank)])
    assert from_all_ranks(kept).tolist() == [0.0, 1.0]
    held += kept._use_count() - 1
    first = from_first_rank(kept)
    assert first.tolist() == [0.0]
rows = torch.arange(6.0).reshape(3, 2) + 10 * rank
assert rows_of_all_ranks(rows, torch.tensor([5, 0, 2, 3])).tolist() == [[14, 15], [0, 1], [4, 5], [10, 11]]
print(held)
dist.destroy_process_group()
"""


def test_nobody_holds_the_tensors_after_a_collective():
    # A plain all_reduce leaves every fifth one held here for a moment.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | world | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert [out.strip() for out, _ in ends] == ["0", "0"]


def test_alone_values_stay():
    values = torch.arange(3.0)
    reduce_in_place(values)
    assert from_all_ranks(values) is values
    assert from_first_rank(values) is values
    assert rows_of_all_ranks(values, torch.tensor([2, 0])).tolist() == [2.0, 0.0]
    assert values.tolist() == [0.0, 1.0, 2.0]
