from pathlib import PurePosixPath

import pytest

from vidbrain.errors import VideoError
from vidbrain.records import RunKey
from vidbrain.testing.videos import toy_frames, write_video
from vidbrain.video.names import key_of
from vidbrain.video.sources import find_recordings, survey


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "deep/b.mkv", "c.mp4"):
        write_video(tmp_path / name, toy_frames(5))
    return tmp_path


def test_a_table_says_what_is_known(folder):
    (folder / "list.tsv").write_text(
        "path\tkey\tsubject\tsession\ttask\trun\tlevel\tonset_s\tduration_s\tsplit\n"
        "deep/b.mkv\tfilm.1\t01\t002\tfilm\t03\t4-1\t1.5\t0.1\tval\n"
        "a.mp4\t\t\t\t\t\thard\t\t\t\n"
    )
    found = survey(folder / "list.tsv")
    one, other = found.recordings
    assert (one.key, one.level, one.run, one.onset_s, one.duration_s) == ("a", "hard", None, None, None)
    assert (other.key, other.level, other.onset_s, other.duration_s) == ("film-1", "4-1", 1.5, 0.1)
    assert other.run == RunKey("01", "002", "film", 3)
    assert other.video == str(folder / "deep" / "b.mkv")
    assert found.split == {"film-1": "val"}


def test_all_faults_of_a_list_are_said_at_once(folder):
    rows = [
        "a.mp4,,,,,",
        "a.mp4,,,,,",
        ",,,,,",
        "c.mp4,01,,,,",
        "deep/b.mkv,01,x,soon,1,",
        "d.mp4,01,x,1,-1,",
        "e.mp4,../1,x,1,1,",
        "f.mp4,,,,,testing",
    ]
    (folder / "list.csv").write_text("path,subject,task,onset_s,duration_s,split\n" + "\n".join(rows) + "\n")
    with pytest.raises(VideoError, match=r"7 fault\(s\)") as caught:
        survey(folder / "list.csv")
    for words in (
        "row 2 (a.mp4): the name 'a' is taken twice",
        "row 3 (no path): it names no file",
        "gives subject, but not task, onset_s, duration_s",
        "onset_s 'soon' is not a number",
        "onset_s 1, duration_s -1",
        "subject '../1' is not letters and digits",
        "split 'testing' is none of train, val, test",
    ):
        assert words in caught.value.message


def test_files_that_are_not_there_are_listed_at_once(folder):
    (folder / "list.txt").write_text("a.mp4\nnowhere.mp4\n\n# comment\ngone/x.mkv\nfar.bk2\n")
    (folder / "far.bk2").symlink_to(".git/annex/objects/far")
    with pytest.raises(VideoError, match=r"2 recording\(s\) that the source names are not there") as caught:
        find_recordings(folder / "list.txt")
    assert "nowhere.mp4" in caught.value.message
    assert "gone/x.mkv" in caught.value.message
    (folder / "list.txt").write_text("a.mp4\nfar.bk2\n")
    with pytest.raises(VideoError, match="has not been fetched"):
        find_recordings(folder / "list.txt")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.tsv", "file\tlevel\na.mp4\t1\n", "not known: file"),
        ("l.csv", "level\n1\n", "no column path"),
        ("l.csv", "", "cannot be read"),
        ("l.txt", "\n", "no recording"),
        ("l.tsv", b"path\n\xff\xfe\n", "cannot be read"),
    ],
)
def test_what_is_no_list(tmp_path, name, text, said):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(VideoError, match=said):
        find_recordings(tmp_path / name)


def test_folders_named_train_and_val_are_a_split_only_where_they_hold_everything(tmp_path):
    for name in ("train/a.mp4", "train/x/b.mp4", "val/c.mp4"):
        write_video(tmp_path / name, toy_frames(5))
    assert survey(tmp_path).split == {"train_a": "train", "train_x_b": "train", "val_c": "val"}
    write_video(tmp_path / "d.mp4", toy_frames(5))
    assert survey(tmp_path).split == {}


def test_keys_keep_letters_and_lose_what_is_unsafe():
    for path, key in (
        ("a/b.c d", "a_b-c-d"),
        ("../../etc/passwd", "etc_passwd"),
        ("/abs/x", "abs_x"),
        ("cafe\u0301", "caf\u00e9"),  # one name, however its accent is spelled
        ("日本 1", "日本-1"),
        ("a\nb\x00c", "a-b-c"),
    ):
        assert key_of(PurePosixPath(path)) == key
