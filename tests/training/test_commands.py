import json

import pytest

from vidbrain.cli.app import run

SHAPE = ["--model.downsample", "2", "8", "8", "--model.patch", "2", "8", "8", "--model.n-hidden", "8"]
SHAPE += ["--model.n-res-layers", "0", "--model.n-codes", "8", "--model.code-dim", "4"]
CLIP = ["--clip.n-frames", "8", "--clip.step", "2", "--clip.stride", "4"]
SHORT = ["--steps", "2", "--batch-size", "4", "--eval-clips", "4", "--json"]


def test_from_shards_to_a_gpt(shards, tmp_path, capsys):
    vqvae, codes, gpt = (str(tmp_path / name) for name in ("vqvae", "codes", "gpt"))
    assert run(["train", "vqvae", str(shards), "--out", vqvae, *SHAPE, *CLIP, *SHORT]) == 0
    assert json.loads(capsys.readouterr().out)["grid"] == [4, 4, 4]
    assert run(["tokenize", str(shards), "--vqvae", vqvae, "--out", codes, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_codes"] == 8
    assert run(["train", "gpt", codes, "--out", gpt, "--model.hidden", "8", "--model.n-heads", "2", *SHORT]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == 2
    assert summary["held_out"]["loss"] > 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "gpt", "{tmp}", "--model.hidden", "30", "--model.n-heads", "4"], "do not divide"),
        (["train", "vqvae", "{tmp}"], "vidbrain"),
        (["tokenize", "{tmp}"], "root record"),
    ],
)
def test_errors_are_one_screen(tmp_path, capsys, command, says):
    status = run([part.format(tmp=tmp_path) for part in command])
    assert status in (1, 2)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.splitlines()) < 15
