import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidbrain.config import to_mapping
from vidbrain.errors import ConfigError, ModelError, ResumeError, ShardError, StorageError
from vidbrain.models.pretrained import load_vqvae
from vidbrain.models.vqvae import VQVAEConfig
from vidbrain.records import ClipSpec
from vidbrain.sharding.manifest import open_manifest
from vidbrain.storage.info import read_info
from vidbrain.storage.locks import LOCK, locked
from vidbrain.stream.codes import load_codes
from vidbrain.stream.loader import stream
from vidbrain.training.checkpoint import Metrics
from vidbrain.training.gpt import GPTTask, GPTTrainConfig, train_gpt
from vidbrain.training.vqvae import VQVAETrainConfig, train_vqvae

SCRIPT = """
import os, signal, sys
from pathlib import Path
from vidbrain.config import from_mapping
from vidbrain.training.vqvae import VQVAETrainConfig, train_vqvae
import json
data, out, config, at, name = sys.argv[1:]
class Killer:
    left = int(at)
    def start(self, stage, total, unit, done=0): print("done", done, flush=True)
    def advance(self, amount=1, **numbers):
        self.left -= amount
        if self.left == 0: os.kill(os.getpid(), getattr(signal, name))
    def note(self, message): print(message, flush=True)
    def finish(self): pass
train_vqvae(Path(data), Path(out), from_mapping(VQVAETrainConfig, json.loads(config)), progress=Killer())
"""


def in_a_process(data, out, config, *, at=0, kill="SIGKILL"):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(data), str(out), json.dumps(to_mapping(config)), str(at), kill],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_a_training_leaves(shards, vqvae, vqvae_config):
    summary = json.loads((vqvae / "summary.json").read_text())
    rows = [json.loads(line) for line in (vqvae / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 4, 8, 12]
    assert [row["step"] for row in rows if row["split"] == "val"] == [1, 6, 12]
    assert summary["loss_first"] == rows[0]["loss"]
    assert summary["held_out"]["psnr"] == rows[-1]["psnr"]
    assert 0 < summary["held_out"]["active"] <= 1
    assert sorted(p.name for p in (vqvae / "checkpoints").iterdir()) == ["step-00000009", "step-00000012"]
    assert summary["best"]["loss"] == min(row["loss"] for row in rows if row["split"] == "val")
    load_vqvae(vqvae / "best")
    info = read_info(vqvae, "vqvae")
    assert info["made_from"] == {"shards": open_manifest(shards).fingerprint}
    assert train_vqvae(shards, vqvae, vqvae_config) == summary  # nothing is done again


def test_held_out_numbers_are_what_they_say(shards, vqvae):
    model, squared, of_mean, used = load_vqvae(vqvae), [], [], set()
    clip = ClipSpec(8, 2, 16)
    for batch in stream(shards, clip=clip, batch_size=8, seed=0, split="val", tail="mask"):
        batch = batch.unmasked()
        video = batch.video / 255.0
        with torch.no_grad():
            codes = model.encode(torch.from_numpy(batch.video))
            found, _ = model.reconstruct(torch.from_numpy(batch.video))
        used |= set(codes.flatten().tolist())
        squared.append(((found.numpy() + 0.5 - video) ** 2).ravel())
        of_mean.append(((video.mean(1, keepdims=True) - video) ** 2).ravel())
        if sum(len(s) for s in squared) >= 16 * video[0].size:
            break
    held_out = json.loads((vqvae / "summary.json").read_text())["held_out"]
    assert held_out["psnr"] == pytest.approx(-10 * np.log10(np.concatenate(squared).mean()), abs=1e-3)
    assert held_out["psnr_mean_frame"] == pytest.approx(-10 * np.log10(np.concatenate(of_mean).mean()), abs=1e-3)
    assert held_out["active"] == pytest.approx(len(used) / 16)


def test_killed_and_started_again_ends_with_the_same_bits(shards, vqvae, vqvae_config, tmp_path, weights):
    # Step 8: two steps after a checkpoint and an evaluation, in the middle of an interval of the log.
    killed = in_a_process(shards, tmp_path, vqvae_config, at=8)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "info.json").exists()
    again = in_a_process(shards, tmp_path, vqvae_config)
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "done 6" in out
    weights(vqvae, tmp_path)
    weights(vqvae / "best", tmp_path / "best")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (vqvae / "metrics.jsonl").read_bytes()
    assert (tmp_path / "info.json").read_bytes() == (vqvae / "info.json").read_bytes()


def test_killed_between_the_last_step_and_the_record(vqvae, shards, vqvae_config, tmp_path, weights):
    shutil.copytree(vqvae, tmp_path / "run")
    for name in ("info.json", "summary.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    summary = train_vqvae(shards, tmp_path / "run", vqvae_config)
    weights(vqvae, tmp_path / "run")
    before = json.loads((vqvae / "summary.json").read_text())
    assert {k for k in before if before[k] != summary[k]} <= {"clips_per_s", "stall_share", "cost"}


def test_a_signal_writes_a_checkpoint_and_leaves(shards, vqvae, vqvae_config, tmp_path, weights):
    left = in_a_process(shards, tmp_path, vqvae_config, at=5, kill="SIGTERM")
    out, err = left.communicate()
    assert left.returncode == 128 + signal.SIGTERM, err
    assert "stopped by a signal at step 5" in out
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()
    train_vqvae(shards, tmp_path, vqvae_config)
    weights(vqvae, tmp_path)


def test_gpt_resumes_exactly_and_beats_the_unigram(codes, gpt_config, tmp_path, weights, stop_at, stop):
    whole = train_gpt(codes, tmp_path / "whole", gpt_config)
    for steps in (5, 10, 9):
        with pytest.raises(stop):
            train_gpt(codes, tmp_path / "parts", gpt_config, progress=stop_at(steps))
    parts = train_gpt(codes, tmp_path / "parts", gpt_config)
    weights(tmp_path / "whole", tmp_path / "parts")
    assert parts["held_out"] == whole["held_out"]
    assert whole["held_out"]["loss"] < whole["unigram_loss"]
    assert (
        read_info(tmp_path / "whole", "gpt")["made_from"]["vqvae"]
        == open_manifest(codes, kind="codes").info["made_from"]["vqvae"]
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_train_as_well(shards, vqvae, vqvae_config, tmp_path, precision):
    half = train_vqvae(shards, tmp_path, replace(vqvae_config, precision=precision, eval_every=12))
    full = json.loads((vqvae / "summary.json").read_text())
    assert half["precision"] == precision
    assert half["loss_last"] == pytest.approx(full["loss_last"], rel=0.1)


def test_sixteen_bits_end_within_one_percent_of_thirty_two(codes, gpt_config, tmp_path):
    for seed in range(3):
        losses = {}
        for precision in ("fp32", "bf16", "fp16"):
            config = replace(gpt_config, seed=seed, precision=precision, steps=20, eval_every=20, checkpoint_every=20)
            summary = train_gpt(codes, tmp_path / f"{precision}-{seed}", config)
            losses[precision] = summary["held_out"]["loss"]
            assert summary["precision"] == precision
        assert losses["fp32"] < 2.6  # ln 16 = 2.77: it has learned something
        assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
        assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.01)


def test_other_settings_are_refused(shards, vqvae, vqvae_config, tmp_path, stop_at, stop):
    with pytest.raises(ResumeError, match=r"lr was 0.001, is 0.002"):
        train_vqvae(shards, vqvae, replace(vqvae_config, lr=2e-3))
    with pytest.raises(stop):
        train_vqvae(shards, tmp_path, vqvae_config, progress=stop_at(4))
    with pytest.raises(ResumeError, match=r"seed was 0, is 1"):
        train_vqvae(shards, tmp_path, replace(vqvae_config, seed=1))


def test_a_loss_that_is_no_number_names_its_step(shards, vqvae_config, tmp_path):
    hot = replace(vqvae_config, lr=1e30, clip_norm=0.0, warmup=0, checkpoint_every=100)
    with pytest.raises(ModelError, match=r"held-out loss .* finite number after step 1, on clips .* from") as caught:
        train_vqvae(shards, tmp_path, hot)
    assert "--lr" in caught.value.hint
    assert "no checkpoint before it" in caught.value.likely
    assert not (tmp_path / "model.safetensors").exists()


def test_a_loss_that_is_no_number_names_its_clips_and_the_last_good_checkpoint(
    codes, gpt_config, tmp_path, monkeypatch
):
    seen, honest = [], GPTTask.loss

    def poisoned(task, model, batch):
        seen.append(batch.index.tolist())
        loss, numbers = honest(task, model, batch)
        return (loss * float("nan") if len(seen) == 7 else loss), numbers

    monkeypatch.setattr(GPTTask, "loss", poisoned)
    config = replace(gpt_config, checkpoint_every=3, log_every=4, batch_size=10)
    with pytest.raises(ModelError, match="since step 7, on clips") as caught:
        train_gpt(codes, tmp_path, config)
    table = load_codes(codes, split="train")
    places = [f"{table.recording[clip]} from frame {table.start_frame[clip]}" for clip in seen[6]]
    assert "; ".join(places[:8]) + "; and 2 more" in str(caught.value)
    assert "the last good checkpoint is of step 6" in caught.value.likely


def test_weights_that_are_no_numbers_reach_no_checkpoint(codes, gpt_config, tmp_path, monkeypatch):
    seen, honest = [], GPTTask.loss

    def steep(task, model, batch):
        seen.append(batch.index.tolist())
        loss, numbers = honest(task, model, batch)
        if len(seen) == 6:  # the loss is a number, its gradient is not
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss, numbers

    monkeypatch.setattr(GPTTask, "loss", steep)
    config = replace(gpt_config, checkpoint_every=3, log_every=100, eval_every=100)
    with pytest.raises(ModelError, match="the weights are not finite numbers after step 6, on clips") as caught:
        train_gpt(codes, tmp_path, config)
    table = load_codes(codes, split="train")
    assert f"{table.recording[seen[5][0]]} from frame {table.start_frame[seen[5][0]]}" in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_run_folder_has_one_writer(codes, gpt_config, tmp_path, stop_at, stop):
    config = replace(gpt_config, steps=3)
    with locked(tmp_path), pytest.raises(StorageError, match="another process writes here"):
        train_gpt(codes, tmp_path, config)
    assert not list(tmp_path.iterdir())
    with pytest.raises(stop):
        train_gpt(codes, tmp_path, config, progress=stop_at(1))
    summary = train_gpt(codes, tmp_path, config)
    (tmp_path / LOCK).touch()  # as a kill after the root record leaves it
    assert train_gpt(codes, tmp_path, config) == summary
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    "line", [b"5", b"{}", b'{"step": "x"}', b"\xff", b"[" * 100_000, b'{"step": 1, "split": "val", "loss": NaN}']
)
def test_damaged_metrics_are_named_by_their_line(tmp_path, line):
    metrics, rows = Metrics(tmp_path), [{"step": step, "split": "train", "loss": 0.5} for step in (1, 2)]
    for row in rows:
        metrics.append(row)
    whole = metrics.path.read_bytes()
    metrics.path.write_bytes(whole + b'{"step": 3, "spl')
    assert metrics.rows() == rows
    metrics.path.write_bytes(whole.replace(b"\n", b"\n" + line + b"\n", 1))
    with pytest.raises(ModelError, match="line 2 of the metrics is no row of numbers") as caught:
        metrics.keep_until(1)
    assert caught.value.where == str(metrics.path)


@pytest.mark.parametrize("claim", ["[]", "5", '{"config": 5}', '{"config": {}, "made_from": null}'])
def test_a_damaged_claim_is_refused(codes, gpt_config, tmp_path, claim):
    (tmp_path / "training.json").write_text(claim)
    with pytest.raises(ResumeError, match="its record is damaged"):
        train_gpt(codes, tmp_path, gpt_config)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_a_checkpoint_that_runs_code_is_refused(shards, vqvae_config, tmp_path, monkeypatch, stop_at, stop):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(stop):
        train_vqvae(shards, tmp_path / "run", vqvae_config, progress=stop_at(5))
    path = tmp_path / "run" / "checkpoints" / "step-00000003" / "state.pt"
    for write in (lambda: torch.save({"step": Hostile()}, path), lambda: path.write_bytes(pickle.dumps(Hostile()))):
        write()
        with pytest.raises(ModelError, match="training state is refused"):
            train_vqvae(shards, tmp_path / "run", vqvae_config)
    torch.save({"step": 3, "optimizer": 3, "scaler": {}, "stream": {}}, path)
    with pytest.raises(ModelError, match="lacks or mistypes"):
        train_vqvae(shards, tmp_path / "run", vqvae_config)
    assert not (tmp_path / "harm").exists()


def test_bad_settings_are_refused_before_work(shards, codes, tmp_path):
    with pytest.raises(ModelError, match="8 x 32 x 32 are not multiples"):
        train_vqvae(
            shards, tmp_path, VQVAETrainConfig(model=VQVAEConfig(downsample=(4, 64, 8)), clip=ClipSpec(8, 2, 4))
        )
    with pytest.raises(ShardError, match="spans 61 frames"):
        train_vqvae(shards, tmp_path, VQVAETrainConfig())
    with pytest.raises(StorageError, match="expected a shards artefact"):
        train_vqvae(codes, tmp_path, VQVAETrainConfig())
    with pytest.raises(StorageError):
        train_gpt(shards, tmp_path, GPTTrainConfig())
    with pytest.raises(ConfigError, match="tf32"):
        train_gpt(codes, tmp_path, GPTTrainConfig(precision="tf32"), device="cpu")
    with pytest.raises(ConfigError, match="unknown device"):
        train_gpt(codes, tmp_path, GPTTrainConfig(), device="abacus")
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        GPTTrainConfig(steps=0)
    assert not list(tmp_path.iterdir())
