from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vidbrain.errors import VideoError
from vidbrain.records import RunKey
from vidbrain.testing.videos import toy_frames, write_video
from vidbrain.video.gamelogs import read_events
from vidbrain.video.replay import ReplayConfig, plan_replay
from vidbrain.video.sources import find_recordings, survey

STEM = "sub-99_ses-002_task-shinobi_run-{run:02d}"
LOGS = "sub-99/ses-002/gamelogs"


def stim(run: int, level: int, rep: str) -> str:
    return f"{LOGS}/{STEM.format(run=run)}_level-{level}_rep-{rep}.bk2"


def write_events(root: Path, run: int, rows: list[tuple], *, header: str | None = None) -> Path:
    path = root / "sub-99/ses-002/func" / f"{STEM.format(run=run)}_events.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header or "trial_type\tonset\tduration\tduration_bk2\tlevel\tstim_file"]
    lines += ["\t".join(["gym-retro_game", *map(str, row)]) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tree(tmp_path, write_bk2):
    """Two runs in the shape of the Shinobi data set, with its traps; the numbers are invented."""
    root = tmp_path / "shinobi"
    root.mkdir()
    (root / "dataset_description.json").write_text("{}")
    write_events(
        root,
        1,
        [
            (0.0091, 1.98, 121 / 60, "1-0", stim(1, 1, "00")),
            # Not in the order of their onsets, and named by plays of the level.
            (20.5, 1.99, 2.0, "1-0", stim(1, 1, "010")),
            (10.2, 1.99, 2.0, "4-1", stim(1, 4, "01")),
            (30.2, 7.5, 2.0, "5-0", "Missing file"),
        ],
    )
    write_events(
        root,
        2,
        [
            (0.01, 5.2, 2.0, "1-0", ""),
            (12.0, 1.99, 2.0, "1-0", stim(2, 1, "02")),
            (22.0, 5.2, 2.0, "4-1", "n/a"),
        ],
    )
    for name, n_lines in ((stim(1, 1, "00"), 121), (stim(1, 1, "010"), 120), (stim(1, 4, "01"), 120)):
        write_bk2(root / name, n_lines)
    write_bk2(root / stim(2, 1, "02"))
    write_bk2(root / stim(3, 5, "01"))  # in no events file
    func = root / "sub-99/ses-002/func"
    shutil.copy(next(func.glob("*run-01_events.tsv")), func / f"{STEM.format(run=1)}_events__dup-01.tsv")
    (func / f"{STEM.format(run=1)}_desc-annotated_events.tsv").write_text("\ttrial_type\n0\tframe\n")
    (func / f"{STEM.format(run=4)}_bold.nii.gz").write_bytes(b"")
    (func / f"{STEM.format(run=5)}_bold__dup-01.nii.gz").write_bytes(b"")
    (root / LOGS / f"{STEM.format(run=1)}_level-1_rep-00__dup-01.bk2").write_bytes(b"")
    return root


def test_every_row_is_kept_in_the_order_of_onsets(tree):
    rows = read_events(tree).rows
    assert [(row.run.run, row.row, row.level) for row in rows] == [
        (1, 0, "1-0"),
        (1, 2, "4-1"),
        (1, 1, "1-0"),
        (1, 3, "5-0"),
        (2, 0, "1-0"),
        (2, 1, "1-0"),
        (2, 2, "4-1"),
    ]
    assert [row.movie is None for row in rows] == [False, False, False, True, True, False, True]
    # On a missing row duration_bk2 is stale: the wall-clock duration is what counts.
    assert (rows[3].duration_s, rows[3].duration_bk2_s) == (7.5, 2.0)
    assert rows[0].run == RunKey.parse("sub-99_ses-002_task-shinobi_run-1")


def test_recordings_carry_their_clock_and_their_names(tree):
    found = {recording.key: recording for recording in find_recordings(tree)}
    assert list(found) == sorted(found)
    assert len(found) == 5
    one = found[Path(stim(1, 1, "010")).stem]
    assert (one.level, one.repetition, one.onset_s, one.duration_s, one.video) == ("1-0", "010", 20.5, 1.99, None)
    assert one.run is not None
    assert one.run.label == "sub-99_ses-002_task-shinobi_run-1"
    alone = found[Path(stim(3, 5, "01")).stem]
    assert (alone.run, alone.onset_s, alone.level, alone.skip_first_step) == (None, None, "5", False)
    notes = survey(tree).notes
    assert any("1 recording(s) are in no events file" in note for note in notes)
    assert any("1 run(s) have no events" in note and "run-4" in note for note in notes)


@pytest.mark.parametrize(
    ("first_skip", "skipped"),
    [("row", [stim(1, 1, "00")]), ("file", [stim(1, 1, "00"), stim(2, 1, "02")]), ("never", [])],
)
def test_who_skips_the_first_step(tree, first_skip, skipped):
    found = find_recordings(tree, first_skip=first_skip)
    assert [r.key for r in found if r.skip_first_step] == [Path(name).stem for name in skipped]
    facts = plan_replay(tree, None, ReplayConfig(first_skip=first_skip))
    assert facts["n_frames"] == 121 + 4 * 120 - len(skipped)


def test_absent_content_is_listed_at_once_with_the_line_that_fetches_it(tree):
    names = [stim(1, 1, "00"), stim(2, 1, "02")]
    for name in names:
        (tree / name).unlink()
    (tree / names[0]).symlink_to("../../../.git/annex/objects/xx/yy/MD5E-s100.bk2/MD5E-s100.bk2")
    (tree / names[1]).write_text("/annex/objects/MD5E-s100--0123456789abcdef.bk2\n")
    events = next((tree / "sub-99/ses-002/func").glob("*run-02_events.tsv"))
    events.unlink()
    events.symlink_to("../../../.git/annex/objects/zz/MD5E-s1.tsv")
    with pytest.raises(VideoError, match=r"content of 3 file\(s\) has not been fetched") as caught:
        find_recordings(tree)
    for name in (*names, events.name):
        assert name in str(caught.value)
    assert f"datalad get -d {tree} " in str(caught.value)
    with pytest.raises(VideoError, match="datalad get"):
        plan_replay(tree, None, ReplayConfig())


def test_a_ready_made_video_stands_in_for_an_absent_recording(tree):
    path = tree / stim(1, 1, "00")
    path.unlink()
    path.symlink_to("../../../.git/annex/objects/gone")
    write_video(path.with_suffix(".mp4"), toy_frames(20))
    found = {r.key: r for r in find_recordings(tree)}[path.stem]
    assert (found.movie, found.video) == (None, str(path.with_suffix(".mp4")))


def test_a_named_file_that_is_not_there_is_an_error(tree):
    (tree / stim(1, 4, "01")).unlink()
    with pytest.raises(VideoError, match=r"1 recording\(s\) that the source names are not") as caught:
        find_recordings(tree)
    assert "level-4_rep-01" in str(caught.value)


def test_all_faults_of_all_events_are_listed_at_once(tree):
    write_events(
        tree,
        1,
        [
            (0.01, 5.0, 2.0, "4-1", stim(1, 1, "00")),
            ("soon", 5.0, 2.0, "1-0", "Missing file"),
            (10.0, -1.0, 2.0, "1-0", "Missing file"),
            (20.0, 5.0, 2.0, "1-0", "../../../etc/passwd"),
            (30.0, 5.0, 2.0, "1-0", stim(2, 1, "07")),
            (40.0, 5.0, 2.0, "1-0", ""),
            (43.0, 5.0, 2.0, "1-0", ""),
        ],
    )
    write_events(tree, 2, [(0.1, 5.0)], header="trial_type\tonset\tduration")
    with pytest.raises(VideoError, match=r"7 fault\(s\)") as caught:
        read_events(tree)
    for words in (
        "level '4-1', but the file says level-1",
        "onset 'soon'",
        "duration '-1.0'",
        "leaves the data set",
        "belongs to sub-99_ses-002_task-shinobi_run-2",
        "begins before row 5 has ended",
        "no column level, stim_file",
    ):
        assert words in str(caught.value)


def test_a_recording_named_twice_is_an_error(tree):
    write_events(tree, 1, [(0.01, 1.0, 2.0, "1-0", stim(1, 1, "00")), (9.0, 1.0, 2.0, "1-0", stim(1, 1, "00"))])
    with pytest.raises(VideoError, match="and again by"):
        read_events(tree)


def test_a_recording_longer_than_its_events_say_is_an_error(tree, write_bk2):
    write_bk2(tree / stim(1, 4, "01"), 150)
    with pytest.raises(VideoError, match="150 input lines, the events say 120"):
        plan_replay(tree, None, ReplayConfig())


def test_folders_of_videos_and_single_files(tmp_path):
    write_video(tmp_path / "b.mp4", toy_frames(5))
    write_video(tmp_path / "deep" / "a 1.2.mkv", toy_frames(5))
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / ".hidden.mp4").write_bytes(b"")
    assert [r.key for r in find_recordings(tmp_path)] == ["b", "deep_a-1-2"]
    (alone,) = find_recordings(tmp_path / "b.mp4")
    assert (alone.key, alone.run, alone.video) == ("b", None, str(tmp_path / "b.mp4"))


def test_two_files_of_one_name_are_an_error(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        write_video(tmp_path / name, toy_frames(5))
    with pytest.raises(VideoError, match="would both be 'a'"):
        find_recordings(tmp_path)


def test_nothing_to_find_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="no recording"):
        find_recordings(tmp_path)
    with pytest.raises(VideoError, match="no such file or folder"):
        find_recordings(tmp_path / "nowhere")
    (tmp_path / "a.avi").write_text("")
    with pytest.raises(VideoError, match="no video that is read here"):
        find_recordings(tmp_path / "a.avi")
