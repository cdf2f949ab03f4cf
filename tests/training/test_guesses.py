"""Guesses by counting, against scipy, scikit-learn and the definition written out."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import log_loss

from vidbrain.models.pretrained import load_gpt
from vidbrain.stream.codes import load_codes
from vidbrain.training import guesses
from vidbrain.training.gpt import train_gpt
from vidbrain.training.guesses import bigram_nats, unigram_nats


def chain(seed, shape=(40, 4, 2, 3), n_codes=6, stay=0.6):
    """Codes that often stay as they were one slice before; code 5 is rare, code 4 absent."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(n_codes, shape, p=[0.4, 0.3, 0.2, 0.08, 0, 0.02]).astype(np.uint16)
    for k in range(1, shape[1]):
        codes[:, k] = np.where(rng.random(codes[:, k].shape) < stay, codes[:, k - 1], codes[:, k])
    return codes


def test_unigram_agrees_with_scipy_and_sklearn():
    train, held_out = chain(0), chain(1)
    found = unigram_nats(train, held_out, 6)
    counts = np.bincount(train.ravel(), minlength=6)
    assert found["unigram_entropy"] == pytest.approx(entropy(counts))
    p = (counts + 1) / (counts + 1).sum()
    expected = log_loss(held_out.ravel(), np.tile(p, (held_out.size, 1)), labels=range(6))
    assert found["unigram_loss"] == pytest.approx(expected)


@pytest.mark.parametrize("unseen", [False, True])
def test_bigram_agrees_with_its_definition(unseen, monkeypatch):
    monkeypatch.setattr(guesses, "CHUNK", 7)
    train, held_out = chain(0), chain(1)
    if unseen:
        held_out[0, 1, 0, 0] = 4

    def neighbours(codes):
        return zip(codes[:, :-1].ravel().tolist(), codes[:, 1:].ravel().tolist(), strict=True)

    pairs = Counter(neighbours(train))
    counts = Counter(train.ravel().tolist())

    def alone(c):
        return (counts[c] + 1) / (train.size + 6)

    def p(b, c):
        followers = {d: n for (a, d), n in pairs.items() if a == b}
        total, different = sum(followers.values()), len(followers)
        return (followers.get(c, 0) + different * alone(c)) / (total + different) if total else alone(c)

    later = [-np.log(p(b, c)) for b, c in neighbours(held_out)]
    start = [-np.log(alone(c)) for c in held_out[:, 0].ravel().tolist()]
    found = bigram_nats(train, held_out, 6)
    assert found["bigram_loss_later"] == pytest.approx(np.mean(later))
    assert found["bigram_loss"] == pytest.approx(np.mean(start + later))
    for b in range(6):
        assert sum(p(b, c) for c in range(6)) == pytest.approx(1)


def test_bigram_finds_what_time_tells_and_nothing_else():
    still = np.repeat(chain(0, (200, 1, 2, 3)), 4, axis=1)
    assert bigram_nats(still, still, 6)["bigram_loss_later"] < 0.02
    noise, other = chain(0, (400, 4, 2, 3), stay=0), chain(1, (400, 4, 2, 3), stay=0)
    alone = unigram_nats(noise, other, 6)["unigram_loss"]
    assert bigram_nats(noise, other, 6)["bigram_loss"] == pytest.approx(alone, rel=0.01)


def test_one_slice_has_nothing_before():
    train, held_out = chain(0)[:, :1], chain(1)[:, :1]
    found = bigram_nats(train, held_out, 6)
    assert found["bigram_loss_later"] is None
    assert found["bigram_loss"] == pytest.approx(unigram_nats(train, held_out, 6)["unigram_loss"])


def test_all_levels_are_of_the_clips_that_judge(codes, gpt_config, tmp_path):
    train_gpt(codes, tmp_path / "gpt", replace(gpt_config, steps=4, warmup=0, eval_clips=5))
    summary = json.loads((tmp_path / "gpt" / "summary.json").read_text())
    train, held_out = load_codes(codes, split="train").codes, load_codes(codes, split="val").codes
    assert len(held_out) > 5
    judged = held_out[np.linspace(0, len(held_out) - 1, 5).round().astype(int)]
    levels = unigram_nats(train, judged, 16) | bigram_nats(train, judged, 16)
    assert levels.items() <= summary.items()
    model, clips = load_gpt(tmp_path / "gpt"), torch.from_numpy(judged.astype(np.int32))
    with torch.no_grad():
        p = model.logits(clips).double().softmax(-1).numpy()
    found = summary["held_out"]
    assert found["clips"] == 5
    for name, first in (("loss", 0), ("loss_later", 1)):
        expected = log_loss(judged[:, first:].ravel(), p[:, first:].reshape(-1, 16), labels=range(16))
        assert found[name] == pytest.approx(expected, rel=1e-5)
