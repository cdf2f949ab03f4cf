import json
import shlex
import subprocess
import sys

import pytest

import vidbrain
from vidbrain.cli.app import _COMMANDS, _by_command, build, run
from vidbrain.cli.console import Console, duration, say
from vidbrain.testing.videos import toy_frames, write_video

COMMANDS = [row for rows in _COMMANDS.values() for row in rows]


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_silent_and_free():
    out = in_a_new_process(
        "import sys, vidbrain; print(sorted({'torch', 'dask', 'distributed', 'numpy', 'xarray'} & set(sys.modules)))"
    )
    assert out == "[]\n"


def test_help_loads_neither_torch_nor_dask():
    out = in_a_new_process(
        "import sys\nfrom vidbrain.cli.app import run\nassert run(['--help']) == 0\n"
        "print(sorted({'torch', 'dask', 'distributed', 'numpy', 'nilearn', 'av'} & set(sys.modules)), file=sys.stdout)"
    )
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("name", "target", "purpose", "example"), COMMANDS)
def test_every_command_has_a_purpose_and_an_example_that_parses(name, target, purpose, example, capsys):
    words = shlex.split(example)
    assert words[:2] == ["vidbrain", name]
    assert purpose.endswith(".")
    assert len(purpose) < 80
    command, _, ignored = build().parse_args(words[1:], exit_on_error=False, print_error=False)
    assert callable(command)
    assert not ignored
    assert run([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert purpose in shown
    assert example.split(" --")[0] in shown


@pytest.mark.parametrize("name", ["bold", "shards", "train"])
def test_every_subcommand_has_a_purpose_and_an_example(name, capsys):
    app = build()[name]
    subcommands = [sub for sub in app if not sub.startswith("-")]
    assert subcommands
    for sub in subcommands:
        assert run([name, sub, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"vidbrain {name} {sub}" in " ".join(shown.split("Example", 1)[1].split())


def test_public_names():
    for name in vidbrain.__all__:
        assert getattr(vidbrain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vidbrain.nothing  # noqa: B018 -- the access is what is tested


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["shrad"], 2, "did you mean 'shard'"),
        (["shard", "--frame-siz", "3"], 2, "Did you mean --frame-size"),
        (["shard", "--fit", "sqash"], 2, "squash"),
        (["shard", "--config", "/no/such/file.toml"], 1, "no such settings file"),
        (["shard", "/no/such/folder", "--workers", "0"], 1, "/no/such/folder"),
        (["verify", "/no/such/folder"], 1, "make it with `vidbrain shard`"),
        (["bold", "simulat"], 2, "vidbrain bold --help"),
    ],
)
def test_errors_are_one_screen_with_the_right_status(arguments, status, message, capsys):
    assert run(arguments) == status
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) < 12


@pytest.fixture
def video(tmp_path):
    write_video(tmp_path / "source" / "play.mp4", toy_frames(90))
    return tmp_path / "source"


def test_a_settings_file_is_used_a_flag_beats_it_and_a_typo_is_refused(video, tmp_path, capsys):
    settings = tmp_path / "s.toml"
    settings.write_text('[shard]\nsize = "40"\nframe_size = 16\n')
    base = ["shard", str(video), "--dry-run", "--json", "--config", str(settings)]
    assert run(base) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 40
    assert run([*base, "--size", "50"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 50
    settings.write_text("frame_siz = 16\n")
    assert run(base) == 2
    assert "frame_siz" in capsys.readouterr().err


def test_a_recipe_gives_each_command_its_own_table():
    values = {"play": {}, "simulate": {"grid": 2}, "gpt": {"steps": 3}, "vqvae": {"steps": 2}}
    features = {"clock": {"tr_s": 2.0}, "model": {"grid": 4}, "pixels": {"layers": ["pixels.rgb"]}}
    named = _by_command({**values, "features": features}, ("features", "untrained"))
    assert named["bold"] == {"simulate": {"grid": 2}}
    assert named["train"] == {"gpt": {"steps": 3}, "vqvae": {"steps": 2}}
    assert named["features"] == {"tr_s": 2.0, "grid": 4}
    assert _by_command({"features": features}, ("features", "pixels"))["features"]["layers"] == ["pixels.rgb"]
    assert features["clock"] == {"tr_s": 2.0}


def test_a_recipe_reaches_a_subcommand(tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[vqvae]\nsteps = -1\n")
    assert run(["train", "vqvae", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--config", str(recipe)]) != 0
    assert "-1" in capsys.readouterr().err


def test_help_shows_defaults_as_they_are_typed(capsys):
    assert run(["encode", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[default: 1 2 3 4 5]" in shown
    assert "--no-clean" in shown
    for noise in ("[default: ()]", "[default: False]", "[default: None]", "--empty-", "--no-json"):
        assert noise not in shown


def test_rows_are_whole_in_a_pipe_and_layers_keep_their_names(capsys):
    console = Console()
    path = "/a" * 200
    console.print_result({"n_rows": 3, "features": {"gpt.block_1": 512}, "maps": [path], "notes": []})
    assert capsys.readouterr().out.split() == [
        "n",
        "rows",
        "3",
        "features.gpt.block_1",
        "512",
        "maps",
        path,
        "notes",
        "\u2013",
    ]


def test_shard_and_verify_end_to_end(video, tmp_path, capsys):
    out = tmp_path / "data"
    arguments = ["shard", str(video), "--out", str(out), "--frame-size", "16", "--workers", "1"]
    assert run([*arguments, "--dry-run"]) == 0
    assert not out.exists()
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_frames"] == 90
    assert run(["verify", str(out), "--json", "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == 0
    tar = out / "shards" / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert run(["verify", str(out), "--workers", "1"]) == 1
    captured = capsys.readouterr()
    assert "checksum" in captured.out
    assert "damages in 1 of 1 shards" in captured.err


def test_numbers_are_written_for_people():
    assert say(None) == "\u2013"
    assert say(1234567) == "1\u202f234\u202f567"
    assert say([1, 2.34567]) == "1, 2.346"
    assert [duration(s) for s in (3.21, 42, 200, 3725)] == ["3.2 s", "42 s", "3 min 20 s", "1 h 02 min"]


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted: what is finished stays"),
        (OSError(28, "No space left on device", "/a/place"), 1, "the disk is full"),
        (MemoryError(), 1, "memory ran out"),
        (RuntimeError("a library's own\nlong story"), 1, "RuntimeError: a library's own"),
    ],
)
def test_whatever_happens_is_said_in_a_few_lines(monkeypatch, capsys, tmp_path, raised, status, said):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr("vidbrain.cli.shard.write_shards", fails)
    assert run(["shard", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1"]) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) <= 4


def test_a_root_record_that_is_no_record_is_one_clear_error(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text("[]")
    assert run(["verify", str(tmp_path)]) == 1
    assert "expected a shards artefact" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["report"], ["play", "--game", "NoSuchGame-Genesis"]])
def test_what_cannot_begin_leaves_no_folder(command, tmp_path, capsys):
    root = tmp_path / "nowhere"
    assert run([command[0], str(root), *command[1:]]) == 1
    assert "error:" in capsys.readouterr().err
    assert not root.exists()
