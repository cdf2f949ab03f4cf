"""Networks of other people's by forward hooks, against a plain forward pass of the same modules."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vidbrain.errors import ConfigError, ModelError
from vidbrain.features.extract import ExtractConfig, extract
from vidbrain.features.modules import ClipInput, ModuleSource, load_factory, open_module, prepare
from vidbrain.features.pooled import Pooled
from vidbrain.features.pooling import Pooling
from vidbrain.features.store import open_features

CLIPS = ClipInput(n_frames=8, step=4, layout="BCTHW")
SIZE = {"frame_size": (32, 32)}


class Convolutions(nn.Module):
    """Two stages that halve time and space, a pooled head, and a module that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv3d(3, 4, 3, stride=2, padding=1)
        self.two = nn.Conv3d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 5)
        self.spare = nn.Linear(2, 2)
        self.n_heads_run = 0

    def forward(self, x):
        x = torch.relu(self.one(x))
        x = torch.relu(self.two(x))
        self.n_heads_run += 1
        return self.head(x.mean((2, 3, 4)))


class Transformer(nn.Module):
    """Patches of 2 x 8 x 8 with a class token, in blocks that return tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, 12, (2, 8, 8), stride=(2, 8, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.blocks = nn.ModuleList(Tupled() for _ in range(3))

    def forward(self, x):
        x = self.patches(x.movedim(2, 1)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x, _ = block(x)
        return x


class Tupled(nn.TransformerEncoderLayer):
    def __init__(self) -> None:
        super().__init__(12, 2, 16, batch_first=True)

    def forward(self, x):
        return super().forward(x), None


@pytest.fixture
def video(rng):
    return rng.integers(0, 256, (3, 8, 32, 32, 3), np.uint8)


def test_convolutions_equal_a_plain_forward(video):
    torch.manual_seed(0)
    network = Convolutions()
    source = ModuleSource(network, ("one", "two", "head"), shown=CLIPS, **SIZE)
    # Slices along time: 4, 2, and 1 of the head: all are averaged to one.
    assert source.window.n_slices == 1
    assert [(layer.grid, layer.n_channels) for layer in source.layers] == [((16, 16), 4), ((8, 8), 6), ((), 5)]
    x = torch.from_numpy(video).permute(0, 4, 1, 2, 3).float() / 255
    with torch.no_grad():
        one = network.one(x)
        two = network.two(one.relu())
        head = network(x)
    found = source.extract(video)
    torch.testing.assert_close(found["one"][:, 0], one.mean(2).permute(0, 2, 3, 1))
    torch.testing.assert_close(found["two"][:, 0], two.mean(2).permute(0, 2, 3, 1))
    torch.testing.assert_close(found["head"][:, 0], head)
    alone = ModuleSource(network, ("one",), shown=CLIPS, **SIZE)
    assert alone.window.n_slices == 4
    torch.testing.assert_close(alone.extract(video)["one"], one.permute(0, 2, 3, 4, 1))


def test_the_forward_pass_ends_with_the_deepest_layer(video):
    network = Convolutions()
    source = ModuleSource(network, ("one", "two"), shown=CLIPS, **SIZE)
    before = network.n_heads_run
    source.extract(video)
    assert network.n_heads_run == before
    assert not network.one._forward_hooks
    assert not network.training


def test_tokens_lie_on_their_grid_without_the_class_token(video):
    torch.manual_seed(0)
    network = Transformer().eval()
    shown = replace(CLIPS, layout="BTCHW", token_grid=(4, 4, 4), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    source = ModuleSource(network, ("blocks.1",), shown=shown, **SIZE)
    x = torch.from_numpy(video).permute(0, 1, 4, 2, 3).float() / 255
    x = (x - torch.tensor(shown.mean).view(3, 1, 1)) / torch.tensor(shown.std).view(3, 1, 1)
    caught = []
    handle = network.blocks[1].register_forward_hook(lambda *call: caught.append(call[2][0]))
    with torch.no_grad():
        network(x)
    handle.remove()
    torch.testing.assert_close(source.extract(video)["blocks.1"], caught[0][:, 1:].reshape(3, 4, 4, 4, 12))
    loose = ModuleSource(network, ("blocks.1",), shown=replace(shown, token_grid=None), **SIZE)
    torch.testing.assert_close(loose.extract(video)["blocks.1"], caught[0][:, None])
    with pytest.raises(ModelError, match=r"65 positions that lie in no known grid") as told:
        Pooled(loose, Pooling(kind="grid", grid=2))
    assert "--token-grid" in told.value.hint


def test_a_network_of_images_sees_every_frame_by_itself(video):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15 * 15, 7))
    source = ModuleSource(network, ("0", "3"), shown=replace(CLIPS, layout="BCHW"), **SIZE)
    assert (source.window.n_slices, source.layers[0].sees_before, source.layers[0].sees_after) == (8, 0, 0)
    found = source.extract(video)
    with torch.no_grad():
        for clip, frame in ((0, 0), (2, 5)):
            x = torch.from_numpy(video[clip, frame]).permute(2, 0, 1)[None].float() / 255
            torch.testing.assert_close(found["0"][clip, frame], network[0](x)[0].permute(1, 2, 0))
            torch.testing.assert_close(found["3"][clip, frame], network(x)[0], rtol=1e-4, atol=1e-6)


def test_frames_are_scaled_as_torch_scales_images(video):
    small = prepare(torch.from_numpy(video), replace(CLIPS, size=(8, 16), layout="BTCHW"))
    image = torch.from_numpy(video[1, 2]).permute(2, 0, 1)[None].float() / 255
    expected = nn.functional.interpolate(image, (8, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(small[1, 2], expected[0])
    assert prepare(torch.from_numpy(video), CLIPS).shape == (3, 3, 8, 32, 32)


def test_real_clips_are_seen_at_the_right_time(world, tmp_path):
    torch.manual_seed(0)
    source = Pooled(ModuleSource(Convolutions(), ("one",), shown=CLIPS, **SIZE), Pooling(kind="mean"))
    extract(source, world.data, tmp_path / "out", ExtractConfig(tr_s=1.0))
    dataset = open_features(tmp_path / "out").read("one", "sub-01_ses-001_task-toy_run-1")
    assert dataset["features"].shape == (11, 4)
    assert dataset["features"].values[dataset["valid"].values].std(0).min() > 1e-4
    assert dataset.attrs["row_s"] == pytest.approx(8 / 60, rel=0.01)  # 32 frames in 4 slices
    assert dataset.attrs["sees_before_s"] == dataset.attrs["sees_after_s"] == pytest.approx(24 / 60, rel=0.01)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("tow",), r"no layer 'tow'; did you mean 'two'"),
        (("spare",), "spare takes no part in the forward pass"),
    ],
)
def test_layers_that_cannot_be_read_are_refused(layers, message):
    with pytest.raises(ModelError, match=message) as told:
        ModuleSource(Convolutions(), layers, shown=CLIPS, **SIZE)
    assert told.value.hint


def test_a_module_that_is_called_twice_is_refused():
    shared = nn.Conv3d(3, 3, 1)
    with pytest.raises(ModelError, match="0 is called 2 times by the forward pass"):
        ModuleSource(nn.Sequential(shared, shared), ("0",), shown=CLIPS, **SIZE)


def test_clips_of_a_wrong_shape_are_refused(video):
    with pytest.raises(ModelError, match=r"cannot look at clips of shape \(1, 8, 3, 32, 32\), BTCHW.*channels"):
        ModuleSource(Convolutions(), ("one",), shown=replace(CLIPS, layout="BTCHW"), **SIZE)
    source = Pooled(ModuleSource(Convolutions(), ("one",), shown=CLIPS, **SIZE))
    with pytest.raises(ModelError, match=r"looks at clips of 8 frames.* not at uint8 \(3, 7, 32, 32, 3\)"):
        source.rows(video[:, :7])
    with pytest.raises(ModelError, match=r"stated that one is \(3, 4, 16, 16, 4\), and gives \(3, 4, 8, 8, 4\)"):
        source.rows(video[:, :, ::2, ::2])
    with pytest.raises(ModelError, match="gives 4 tokens, which cannot lie on a grid"):
        ModuleSource(
            nn.Sequential(nn.Conv3d(3, 4, (2, 8, 8), (2, 8, 8)), nn.Flatten(2)),
            ("1",), shown=replace(CLIPS, token_grid=(8, 8, 8)), **SIZE,
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"a token grid of BCHW is \(h, w\)"):
        ClipInput(layout="BCHW", token_grid=(1, 2, 3))
    with pytest.raises(ConfigError, match="divided by"):
        ClipInput(std=(1.0, 0.0, 1.0))


def test_activations_that_are_not_finite_name_layer_and_clip(world, tmp_path):
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()
            self.n_clips = 0

        def forward(self, x):
            x = x.clone()
            for k in range(len(x)):
                self.n_clips += 1
                if self.n_clips == 4:  # one is the probe
                    x[k, 0, 0, 0, 0] = torch.nan
            return self.inner(x)

    source = Pooled(ModuleSource(Breaks(), ("inner",), shown=CLIPS, **SIZE))
    # Clips cover 32 frames: the third begins at frame 64.
    expected = r"inner is not finite in 1 of \d+ clips; the first begins at frame 64 of \S+rep-01"
    with pytest.raises(ModelError, match=expected):
        extract(source, world.data, tmp_path / "out", ExtractConfig())
    assert not (tmp_path / "out" / "info.json").exists()


FACTORY = """
import os, pathlib, torch
pathlib.Path(os.environ["MARK"]).write_text("imported")

def seeded():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3, stride=2, padding=1), torch.nn.ReLU())

def unseeded():
    return torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3, stride=2, padding=1))

def number():
    return 4
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "toy_factories.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    yield tmp_path / "mark"
    sys.modules.pop("toy_factories", None)


def test_code_is_imported_only_when_it_is_trusted(factories):
    with pytest.raises(ConfigError, match="imports toy_factories and calls seeded") as told:
        load_factory("toy_factories.seeded", trust=False)
    assert "--trust" in told.value.hint
    assert not factories.exists()
    for hostile in (
        "os",
        "toy_factories.seeded()",
        "../toy_factories.seeded",
        "toy_factories:seeded",
        "a.b;import os",
        "",
    ):
        with pytest.raises(ConfigError, match="is not the name of a factory"):
            load_factory(hostile, trust=True)
    assert not factories.exists()
    assert isinstance(load_factory("toy_factories.seeded", trust=True), nn.Sequential)
    assert factories.exists()
    with pytest.raises(ModelError, match=r"toy_factories\.none\(\) failed: AttributeError"):
        load_factory("toy_factories.none", trust=True)
    with pytest.raises(ModelError, match="gives a int, not a network"):
        load_factory("toy_factories.number", trust=True)


def test_factories_travel_by_name_and_must_give_the_same_weights(factories, video):
    source = open_module("toy_factories.seeded", trust=True, layers=("0",), shown=CLIPS, **SIZE)
    message = pickle.dumps(source)
    assert len(message) < 2000
    torch.testing.assert_close(pickle.loads(message).extract(video)["0"], source.extract(video)["0"])
    other = pickle.dumps(open_module("toy_factories.unseeded", trust=True, shown=CLIPS, **SIZE))
    with pytest.raises(ModelError, match=r"a worker finds other weights in toy_factories\.unseeded"):
        pickle.loads(other)
    with pytest.raises(TypeError, match="stay in their process"):
        pickle.dumps(ModuleSource(Convolutions(), ("one",), shown=CLIPS, **SIZE))
