import numpy as np
import torch

from vidbrain.records import World
from vidbrain.training.gpt import GPTTask
from vidbrain.training.resident import ResidentCodes, fits, resident_codes

CPU = torch.device("cpu")


def test_gathered_codes_are_those_of_the_rows():
    codes = np.random.default_rng(0).integers(0, 65_536, (7, 2, 3, 4), dtype=np.uint16)
    codes[0, 0, 0, :2] = 0, 65_535
    rows = np.array([6, 0, 0, 3])
    found = ResidentCodes(codes, CPU).gather(rows)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), codes[rows])


def test_codes_stay_resident_only_where_they_fit():
    assert fits(25, 100)
    assert not fits(26, 100)
    assert resident_codes(np.zeros((1, 1, 1, 1), np.uint16), CPU) is None


def test_a_step_from_resident_codes_is_a_step_from_the_stream(codes, gpt_config):
    torch.manual_seed(0)
    task = GPTTask(codes, gpt_config, World(), CPU)
    torch.nn.init.normal_(task.model.head.weight)
    task.model.eval()
    batch = next(iter(task.loader))
    assert not task.facts()["codes_resident"]
    streamed, _ = task.loss(task.model, batch)
    task._resident = ResidentCodes(task.loader._source.table.codes, CPU)
    resident, _ = task.loss(task.model, batch)
    assert torch.equal(streamed, resident)
