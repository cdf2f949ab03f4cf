import io
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vidbrain.errors import ConfigError, ModelError, ResumeError, StorageError
from vidbrain.features.activations import open_model
from vidbrain.models.pretrained import load_vqvae
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.info import expected_fingerprint
from vidbrain.storage.locks import LOCK, locked
from vidbrain.stream.codes import load_codes
from vidbrain.stream.sequential import frames_of
from vidbrain.training.gpt import train_gpt
from vidbrain.training.samples import SamplesConfig, write_samples
from vidbrain.training.tokenize import TokenizeConfig, tokenize


def test_codes_are_those_of_the_frames(shards, vqvae, codes):
    manifest, model, table = open_manifest(shards), load_vqvae(vqvae), load_codes(codes)
    frames = {key: np.concatenate([f for _, f in frames_of(manifest, key)]) for key in manifest.recordings.index}
    expected = {(key, s) for key, f in frames.items() for s in range(0, len(f) - 14, 4)}
    assert set(zip(table.recording, table.start_frame.tolist(), strict=True)) == expected
    assert len(table) == len(expected)
    for i in range(0, len(table), 11):
        start = table.start_frame[i]
        clip = frames[table.recording[i]][start : start + 15 : 2]
        with torch.no_grad():
            own = model.encode(torch.from_numpy(clip[None].copy()))[0]
        # A batch of another size may round another way and tip a code on a border.
        assert (own.numpy() == table.codes[i]).mean() > 0.98
    assert table.info["n_codes"] == 16
    assert table.info["config"]["clip"] == {"n_frames": 8, "step": 2, "stride": 4}


def test_any_tar_and_numpy_read_them(shards, codes):
    names, n = [], 0
    for path in sorted((codes / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".codes.npy"):
                    continue
                names.append(member.name)
                array = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)
                assert array.dtype == np.uint16
                assert array.shape[1:] == (4, 4, 4)
                n += len(array)
    assert names == [f"{key}.codes.npy" for key in open_manifest(shards).segments["key"]]
    assert n == len(load_codes(codes))


def test_killed_and_started_again_gives_the_same_bytes(shards, vqvae, codes, tmp_path, stop_at, stop):
    config = TokenizeConfig(stride=4, batch_size=16)
    with pytest.raises(stop):
        tokenize(shards, vqvae, tmp_path / "codes", config, progress=stop_at(6))
    assert not (tmp_path / "codes" / "dataset.json").exists()
    tokenize(shards, vqvae, tmp_path / "codes", config)
    files = sorted(p.relative_to(codes) for p in codes.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "codes") for p in (tmp_path / "codes").rglob("*") if p.is_file())
    for name in files:
        assert (codes / name).read_bytes() == (tmp_path / "codes" / name).read_bytes(), name


def test_codes_have_one_writer(shards, vqvae, codes, tmp_path):
    config = TokenizeConfig(stride=4, batch_size=16)
    with locked(tmp_path / "codes"), pytest.raises(StorageError, match="another process writes here"):
        tokenize(shards, vqvae, tmp_path / "codes", config)
    (tmp_path / "codes" / LOCK).touch()  # as a kill leaves it
    tokenize(shards, vqvae, tmp_path / "codes", config)
    (tmp_path / "codes" / LOCK).touch()
    tokenize(shards, vqvae, tmp_path / "codes", config)
    assert not (tmp_path / "codes" / LOCK).exists()


def test_what_does_not_fit_is_refused(shards, vqvae, codes, tmp_path):
    with pytest.raises(StorageError):
        tokenize(shards, tmp_path / "nothing", tmp_path / "codes")
    with pytest.raises(ResumeError, match="stride"):
        tokenize(shards, vqvae, codes, TokenizeConfig(stride=8))
    with pytest.raises(ValueError, match="at least 1"):
        TokenizeConfig(stride=0)


def test_samples(shards, vqvae, codes, gpt_config, tmp_path):
    train_gpt(codes, tmp_path / "gpt", replace(gpt_config, steps=3))
    for name in ("a", "b"):
        write_samples(vqvae, tmp_path / "gpt", shards, tmp_path / name, SamplesConfig(n_clips=3))
    with np.load(tmp_path / "a" / "samples.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    for name in ("original", "reconstruction", "true", "sampled"):
        assert found[name].shape == (3, 8, 32, 32, 3)
        assert found[name].dtype == np.uint8
    np.testing.assert_array_equal(found["true"], found["reconstruction"])
    assert found["prompt_frames"] == 4
    manifest = open_manifest(shards)
    held_out = manifest.recordings.index[manifest.recordings["split"] == "val"]
    frames = [np.concatenate([f for _, f in frames_of(manifest, key)]) for key in held_out]
    for clip, start in zip(found["original"], found["start_frame"], strict=True):
        assert any(np.array_equal(clip, f[start : start + 15 : 2]) for f in frames)
    assert (tmp_path / "a" / "samples.npz").read_bytes() == (tmp_path / "b" / "samples.npz").read_bytes()


def test_samples_of_models_that_do_not_belong_together(shards, vqvae, codes, gpt_config, tmp_path):
    train_gpt(codes, tmp_path / "gpt", replace(gpt_config, steps=2))
    record = json.loads((tmp_path / "gpt" / "info.json").read_text())
    record["made_from"]["vqvae"] = "another"
    (tmp_path / "gpt" / "info.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="VQ-VAE another"):
        write_samples(vqvae, tmp_path / "gpt", shards, tmp_path / "out")


@pytest.mark.parametrize("clip", [None, 5, {}, {"n_frames": "x", "step": 2}, {"n_frames": 0, "step": 2}])
def test_a_tokenizer_whose_record_says_no_clip_is_refused(shards, vqvae, tmp_path, clip):
    shutil.copytree(vqvae, tmp_path / "vqvae")
    path = tmp_path / "vqvae" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": {} if clip is None else {"clip": clip}}))
    with pytest.raises((ConfigError, ModelError), match=r"n_frames|clip"):
        tokenize(shards, tmp_path / "vqvae", tmp_path / "codes")
    with pytest.raises((ConfigError, ModelError), match=r"n_frames|clip"):
        write_samples(tmp_path / "vqvae", None, shards, tmp_path / "samples", SamplesConfig(n_clips=1))
    with pytest.raises((ConfigError, ModelError), match=r"n_frames|clip"):
        open_model("model", vqvae=tmp_path / "vqvae", gpt=None, frame_size=(32, 32))
    assert not (tmp_path / "codes").exists()
    assert not (tmp_path / "samples").exists()


@pytest.fixture(scope="module")
def twin(vqvae, tmp_path_factory):
    """The tokenizer with one other number in its encoder, and the same record."""
    root = tmp_path_factory.mktemp("twin") / "vqvae"
    shutil.copytree(vqvae, root)
    tensors = load_file(root / "model.safetensors")
    name = next(name for name in tensors if name.startswith("encoder") and tensors[name].is_floating_point())
    tensors[name].view(-1)[0] += 1
    save_file(tensors, root / "model.safetensors")
    return root


def test_codes_of_other_weights_with_the_same_settings_are_refused(
    shards, vqvae, codes, twin, gpt_config, tmp_path, stop_at, stop
):
    config = TokenizeConfig(stride=4, batch_size=16)
    assert tokenize(shards, vqvae, codes, config)["made_from"].keys() == {"shards", "vqvae", "vqvae_weights"}
    with pytest.raises(ResumeError, match="vqvae_weights was"):
        tokenize(shards, twin, codes, config)
    with pytest.raises(stop):
        tokenize(shards, vqvae, tmp_path / "codes", config, progress=stop_at(6))
    with pytest.raises(ResumeError, match="vqvae_weights was"):
        tokenize(shards, twin, tmp_path / "codes", config)
    with pytest.raises(ModelError, match="belongs to a VQ-VAE of weights"):
        train_gpt(codes, tmp_path / "none", gpt_config, vqvae=twin)
    write_samples(vqvae, None, shards, tmp_path / "eye", SamplesConfig(n_clips=1))
    with pytest.raises(ResumeError, match="vqvae_weights was"):
        write_samples(twin, None, shards, tmp_path / "eye", SamplesConfig(n_clips=1))
    train_gpt(codes, tmp_path / "gpt", replace(gpt_config, steps=2), vqvae=vqvae)
    with pytest.raises(ModelError, match="belongs to a VQ-VAE of weights"):
        write_samples(twin, tmp_path / "gpt", shards, tmp_path / "samples", SamplesConfig(n_clips=1))
    for name in ("model", "untrained"):
        open_model(name, vqvae=vqvae, gpt=tmp_path / "gpt", frame_size=(32, 32))
        with pytest.raises(ModelError, match="belongs to a VQ-VAE of weights"):
            open_model(name, vqvae=twin, gpt=tmp_path / "gpt", frame_size=(32, 32))


def test_codes_from_before_they_named_the_weights_are_known_by_their_codebook(shards, vqvae, codes, tmp_path):
    shutil.copytree(codes, tmp_path / "codes")
    path = tmp_path / "codes" / "dataset.json"
    record = json.loads(path.read_text())
    made_from = {name: value for name, value in record["made_from"].items() if name != "vqvae_weights"}
    record |= {"made_from": made_from, "fingerprint": expected_fingerprint("codes", record["config"], made_from)}
    path.write_text(json.dumps(record))
    config = TokenizeConfig(stride=4, batch_size=16)
    assert tokenize(shards, vqvae, tmp_path / "codes", config) == record
    path.write_text(json.dumps(record | {"codebook": "0123"}))
    with pytest.raises(ResumeError, match="made with another tokenizer"):
        tokenize(shards, vqvae, tmp_path / "codes", config)
