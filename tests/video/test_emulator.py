from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import stable_retro

from vidbrain.errors import MissingExtraError, VideoError
from vidbrain.video.emulator import Emulator, read_movie, rewrite_deterministic

GAME = "Airstriker-Genesis-v0"


def first_movie(world):
    return sorted(world.root.rglob("*.bk2"))[0]


def test_a_movie_reads_as_the_emulators_own_reader_does(world):
    path = first_movie(world)
    movie = read_movie(path, with_state=True)
    theirs = stable_retro.Movie(str(path))
    assert movie.game == theirs.get_game()
    assert movie.state == theirs.get_state()
    rows = []
    while theirs.step():
        rows.append([theirs.get_key(button, 0) for button in range(12)])
    np.testing.assert_array_equal(movie.presses, np.array(rows))
    assert movie.buttons == ("B", "A", "MODE", "START", "UP", "DOWN", "LEFT", "RIGHT", "C", "Y", "X", "Z")


def test_the_console_is_freed_and_can_be_opened_again():
    for _ in range(2):
        with Emulator(GAME) as console:
            console.reset()
            console.step(np.zeros(12, np.uint8))
            assert console.screen().shape == (*console.shape, 3) == (224, 320, 3)
            assert dict(zip(console.variables, console.read_ram(), strict=True))["lives"] == 3


def test_a_second_console_in_one_process_is_a_clear_error():
    with Emulator(GAME), pytest.raises(VideoError, match="refuses"):
        Emulator(GAME)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read"),
        (lambda _: b"", "cannot be read"),
        (lambda _: b"no zip at all", "cannot be read"),
    ],
)
def test_a_truncated_recording_is_a_clear_error(world, tmp_path, damage, message):
    path = tmp_path / "cut.bk2"
    path.write_bytes(damage(first_movie(world).read_bytes()))
    with pytest.raises(VideoError, match=message) as caught:
        read_movie(path)
    assert str(path) in str(caught.value)


def test_flipped_bytes_are_found_by_the_checksum(world, tmp_path):
    path = tmp_path / "flipped.bk2"
    data = bytearray(first_movie(world).read_bytes())
    with zipfile.ZipFile(first_movie(world)) as archive:
        start = archive.getinfo("Input Log.txt").header_offset
    data[start + 100] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(VideoError, match="cannot be read"):
        read_movie(path)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "bomb.bk2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Header.txt", b"\0" * (3 * 2**20))
        archive.writestr("Input Log.txt", "")
    assert path.stat().st_size < 10_000
    with pytest.raises(VideoError, match="unpacks to 3 MiB"):
        read_movie(path)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("[Input]\nP1 A|P1 B|\n[/Input]", "no frame"),
        ("", "one player"),
        ("[Input]\nP1 A|P1 B|P2 A|P2 B|\n|..|..|..|\n[/Input]", "found 2"),
        ("[Input]\nP1 A|P1 B|\n|..|...|\n[/Input]", "line 1 is not 2 buttons"),
    ],
)
def test_a_log_that_makes_no_sense_is_a_clear_error(tmp_path, log, message):
    path = tmp_path / "odd.bk2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Header.txt", f"GameName {GAME}\n")
        archive.writestr("Input Log.txt", log)
    with pytest.raises(VideoError, match=message):
        read_movie(path)


def test_a_zip_of_something_else_is_no_recording(tmp_path):
    path = tmp_path / "other.bk2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(VideoError, match=r"not a \.bk2"):
        read_movie(path)


def test_a_missing_rom_says_how_to_give_ones_own():
    with pytest.raises(VideoError, match="no ROM") as caught:
        Emulator("SonicTheHedgehog-Genesis-v0")
    assert "--integration" in str(caught.value)


@pytest.mark.parametrize("game", ["../../etc", "", "a/b"])
def test_a_game_name_cannot_leave_its_folder(game):
    with pytest.raises(VideoError, match="cannot be the name"):
        Emulator(game)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_retro", None)
    with pytest.raises(MissingExtraError, match="stable-retro") as caught:
        Emulator(GAME)
    assert "vidbrain[retro]" in str(caught.value)


def test_a_state_of_another_game_is_a_clear_error():
    with Emulator(GAME, empty=True) as console, pytest.raises(VideoError, match="does not fit"):
        console.reset(b"not a state")


def test_ones_own_integration_folder_is_used(tmp_path):
    shipped = Path(stable_retro.data.path()) / "stable" / GAME
    shutil.copytree(shipped, tmp_path / "MyGame-Genesis")
    with Emulator("MyGame-Genesis", integration=tmp_path) as console:
        console.reset()
        assert console.game == "MyGame-Genesis"
        assert console.variables == ("gameover", "lives", "score")
    with pytest.raises(VideoError, match="no ROM"):
        Emulator(GAME, integration=tmp_path)  # the folder, and nothing else, is searched
    with pytest.raises(VideoError, match="integration folder"):
        Emulator(GAME, integration=tmp_path / "nowhere")


def test_rewriting_keeps_the_content_and_drops_the_date(world, tmp_path):
    source = first_movie(world)
    redated = tmp_path / "redated.bk2"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(redated, "w") as new:
        for name in reversed(old.namelist()):
            new.writestr(zipfile.ZipInfo(name, (2020, 5, 5, 5, 5, 4)), old.read(name))
    rewrite_deterministic(redated, tmp_path / "again.bk2")
    assert (tmp_path / "again.bk2").read_bytes() == source.read_bytes()
