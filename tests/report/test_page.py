"""The whole page of a toy root: numbers, escapes, missing parts, equal bytes, bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from vidbrain.errors import AlignmentError, EncodingError, StorageError
from vidbrain.report import maps, page
from vidbrain.report.evidence import role_of
from vidbrain.report.inputs import ReportInputs, gather
from vidbrain.report.page import write_report

HOSTILE = "<img src=x onerror=alert(1)> $x$"
VOID = {"img", "meta", "source", "br", "hr", "link", "use", "path"}


class Reader(HTMLParser):
    """Checks nesting; collects text, rows of tables and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.rows, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.attributes.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)
        if name == "tr":
            self.rows.append([])
        if name in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, name, attributes):
        self.attributes.append((name, dict(attributes)))

    def handle_endtag(self, name):
        if name not in VOID:
            assert self.open.pop() == name

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)
        if "th" in self.open or "td" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def quick(monkeypatch, anatomy):
    """Project the surfaces once for all tests of this file."""
    monkeypatch.setattr(maps, "load_anatomy", lambda: anatomy)


@pytest.fixture
def no_maps(monkeypatch):
    """Leave the brain out: it takes seconds, and the test asks for other parts."""
    monkeypatch.setattr(page, "_brain", lambda _: dict.fromkeys(("hero", "maps", "planted"), ""))


@pytest.fixture(scope="session")
def whole_page(whole_toy):
    facts = write_report(ReportInputs.of(whole_toy.path), whole_toy.path / "report.html")
    return facts, (whole_toy.path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def copy(whole_toy, tmp_path):
    """A root of one's own to damage."""
    return Path(shutil.copytree(whole_toy.path, tmp_path / "copy"))


def test_page_holds_the_numbers_of_the_stores(whole_toy, whole_page):
    facts, text = whole_page
    reader = Reader(text)
    rows = {row[0]: row for row in reversed(reader.rows)}  # the first of a name counts
    titles = {"trained": "trained model", "untrained": "untrained model", "pixels": "pixels",
              "motion": "motion energy", "drivers": "planted drivers"}  # fmt: skip
    for name, title in titles.items():
        for column, code in enumerate((1, 2, 3, 0), start=1):
            median = np.median(whole_toy.r[name][whole_toy.kind == code])
            assert abs(float(rows[title][column].replace("\u2212", "-")) - median) < 6e-4
            kind = ("noise", "visual", "motor", "event")[code]
            assert facts["median_r"][name][kind] == pytest.approx(median, abs=1e-6)
    ceilings = [float(cell) for cell in rows["noise ceiling"][1:4]]
    assert [round(facts["noise_ceiling"][kind], 3) for kind in ("visual", "motor", "event")] == ceilings
    assert rows["VQ-VAE"][1:3] == ["1\u202f234\u202f567", "600"]
    assert rows["train vqvae"][1] == "1 min 02 s"
    assert rows["all stages"][1] == "1 min 14 s"
    assert ["motion energy", "motion.layer", "1, 2, 3", "1\u202f296", "240"] in reader.rows
    shares = re.findall(r"[\d.]+", rows["trained model"][5])
    expected = np.median(whole_toy.r["trained"][whole_toy.kind == 1]) / facts["noise_ceiling"]["visual"]
    assert abs(float(shares[0]) / 100 - expected) < 0.006


def test_page_tells_the_result_and_that_bold_is_simulated(whole_toy, whole_page):
    _, text = whole_page
    reader = Reader(text)
    median = np.median(whole_toy.r["trained"][whole_toy.kind == 1])
    assert f"r = {median:.2f}" in reader.text
    assert "Simulated BOLD." in reader.text
    for place in ('class="notice"', 'class="lead"', 'class="hero'):
        part = text[text.index(place) :]
        assert (
            "imulated"
            in part[: part.index("</p>" if "lead" in place else "</aside>" if "notice" in place else "</figure>")]
        )
    assert "ahead of the best of these" in reader.text


def test_page_is_one_file(whole_page):
    facts, text = whole_page
    reader = Reader(text)
    assert facts["n_bytes"] == len(text.encode()) < 8e6
    assert "http" not in re.sub(r'http-equiv|"data:[^"]*"', "", text)
    names = {name for name, _ in reader.attributes}
    assert not names & {"script", "link", "iframe", "object", "embed", "form"}
    for name, attributes in reader.attributes:
        for key in ("src", "href", "srcset", "xlink:href", "data", "poster"):
            value = attributes.get(key, "#")
            assert value.startswith(("#", "data:image/")), f"{name} loads {value[:60]}"
        assert not any(key.startswith("on") for key in attributes)
    assert "url(" not in re.sub(r"url\(#", "", text)
    policy = next(a["content"] for n, a in reader.attributes if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_everything_seen_is_also_said(whole_page):
    reader = Reader(whole_page[1])
    images = [attributes for name, attributes in reader.attributes if name == "img"]
    assert len(images) > 40
    assert all("alt" in attributes for attributes in images)
    groups = [attributes for name, attributes in reader.attributes if attributes.get("role") == "img"]
    assert all(attributes["aria-label"] for attributes in groups)
    anchors = {a["href"][1:] for name, a in reader.attributes if name == "a"}
    ids = [a["id"] for _, a in reader.attributes if "id" in a]
    assert anchors <= set(ids)
    assert len(ids) == len(set(ids))


def test_equal_inputs_give_equal_bytes_in_another_process(whole_toy, whole_page, tmp_path):
    out = tmp_path / "again.html"
    environment = os.environ | {"PYTHONHASHSEED": "7", "MPLBACKEND": "pdf", "TZ": "Asia/Tokyo"}
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "vidbrain",
        "report",
        str(whole_toy.path),
        "--out",
        str(out),
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["median_r"] == whole_page[0]["median_r"]
    assert out.read_text(encoding="utf-8") == whole_page[1]


def test_measured_data_without_models_say_what_is_missing(bare_toy, quick):
    facts = write_report(ReportInputs.of(bare_toy.path), bare_toy.path / "report.html")
    text = (bare_toy.path / "report.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert "imulated" not in reader.text.replace("vidbrain bold simulate", "")
    assert facts["simulated"] is False
    assert facts["noise_ceiling"] is None
    assert set(facts["missing"]) >= {"truth", "samples", "models", "times", "data"}
    for reason in facts["missing"].values():
        assert reason in reader.text
    rows = {row[0]: row for row in reversed(reader.rows)}  # the first of a name counts
    assert float(rows["trained model"][1]) == pytest.approx(np.median(bare_toy.r["trained"]), abs=6e-4)


def test_missing_controls_are_said(bare_toy, no_maps):
    for name in ("untrained", "pixels", "motion", "drivers"):
        shutil.rmtree(bare_toy.path / "results" / name)
    write_report(ReportInputs.of(bare_toy.path), bare_toy.path / "report.html")
    text = Reader((bare_toy.path / "report.html").read_text(encoding="utf-8")).text
    assert "No controls were encoded" in text
    assert "A model predicts BOLD" in text, "nothing is known of its frames"


def test_a_missing_gpt_is_said(copy, no_maps):
    shutil.rmtree(copy / "runs" / "gpt")
    samples = copy / "runs" / "samples" / "samples.npz"
    with np.load(samples) as archive:
        np.savez(samples, original=archive["original"], reconstruction=archive["reconstruction"])
    facts = write_report(ReportInputs.of(copy), copy / "report.html")
    text = Reader((copy / "report.html").read_text(encoding="utf-8")).text
    assert "vidbrain train gpt" in facts["missing"]["gpt"]
    assert text.count(facts["missing"]["gpt"]) == 2, "where its losses and where its continuation would be"
    assert "Mean PSNR over 4 clips" in text


def test_a_control_that_wins_is_said(bare_toy, no_maps):
    shutil.rmtree(bare_toy.path / "results/trained")
    bare_toy.add_set("trained", bare_toy.r["pixels"] - 0.01)
    write_report(ReportInputs.of(bare_toy.path), bare_toy.path / "report.html")
    text = Reader((bare_toy.path / "report.html").read_text(encoding="utf-8")).text
    assert "The trained model is not ahead of the best of these" in text


def test_other_spaces_than_mni_are_not_drawn_on_mni(bare_toy):
    record = bare_toy.path / "bold" / "info.json"
    record.write_text(record.read_text().replace("MNI152NLin2009cAsym", "T1w"))
    write_report(ReportInputs.of(bare_toy.path), bare_toy.path / "report.html")
    text = (bare_toy.path / "report.html").read_text(encoding="utf-8")
    assert "voxels lie in the space T1w" in text
    assert 'class="surfaces"' not in text


def test_hostile_names_stay_text(copy, no_maps):
    (copy / "results" / "trained").rename(copy / "results" / HOSTILE)
    (copy / "runs" / "gpt").rename(copy / "runs" / HOSTILE)
    summary = {"wall_s": {HOSTILE: 3.0}}
    (copy / "summary.json").write_text(json.dumps(summary))
    root = copy.rename(copy.with_name(HOSTILE.replace("/", "")))
    facts = write_report(ReportInputs.of(root), root / "report.html")
    text = (root / "report.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert HOSTILE in facts["median_r"]
    assert "onerror" not in {key for _, attributes in reader.attributes for key in attributes}
    assert "<img src=x" not in text
    assert reader.text.count(HOSTILE) >= 5


def test_roots_without_a_result_name_the_command(bare_toy, tmp_path):
    shutil.rmtree(bare_toy.path / "results")
    for root in (bare_toy.path, tmp_path / "nowhere"):
        with pytest.raises(StorageError) as error:
            write_report(ReportInputs.of(root), tmp_path / "out" / "report.html")
        assert "vidbrain encode" in str(error.value)
    assert not (tmp_path / "out" / "report.html").exists()


def test_unfinished_results_are_not_read(bare_toy):
    (bare_toy.path / "results" / "pixels" / "info.json").unlink()
    assert "pixels" not in {scores.name for scores in gather(ReportInputs.of(bare_toy.path)).sets}


def test_results_of_another_bold_store_are_refused(bare_toy):
    record = bare_toy.path / "results" / "pixels" / "info.json"
    info = json.loads(record.read_text())
    info["made_from"]["bold"] = "0" * 16
    record.write_text(json.dumps(info))
    with pytest.raises(AlignmentError, match="0000000000000000"):
        gather(ReportInputs.of(bare_toy.path))


def test_a_brain_without_live_voxels_is_refused(bare_toy):
    bare_toy.add_set("dead", np.zeros(len(bare_toy.kind)), dead=True)
    with pytest.raises(EncodingError, match=f"none of the {len(bare_toy.kind)} voxels"):
        gather(ReportInputs.of(bare_toy.path))


def test_resumed_and_killed_training_records(copy):
    metrics = copy / "runs" / "vqvae" / "metrics.jsonl"
    metrics.write_text(
        '{"step": 0, "split": "train", "loss": 3.0}\n{"step": 5, "split": "train", "loss": 9.0}\n'
        '{"step": 5, "split": "train", "loss": 1.0}\n{"step": 9, "split": "train", "loss": null}\n{"step": 10, "sp'
    )
    steps, losses = gather(ReportInputs.of(copy)).models["vqvae"].losses["train"]
    np.testing.assert_array_equal(steps, [0, 5])
    np.testing.assert_array_equal(losses, [3.0, 1.0])


def test_damaged_training_records_are_named(copy):
    (copy / "runs" / "vqvae" / "metrics.jsonl").write_text('nonsense\n{"step": 5, "split": "train", "loss": 1.0}\n')
    with pytest.raises(StorageError, match="line 1"):
        gather(ReportInputs.of(copy))


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"original": np.zeros((1, 2, 8, 8, 3), np.float32), "reconstruction": np.zeros((1, 2, 8, 8, 3))}, "uint8"),
        ({"original": np.zeros((1, 2, 8, 8, 3), np.uint8)}, "belong together"),
        ({"true": np.zeros((1, 2, 8, 8, 3), np.uint8), "sampled": np.zeros((2, 2, 8, 8, 3), np.uint8)}, "together"),
        ({"original": np.array([{}], object)}, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_damaged_samples_are_named(copy, arrays, what):
    path = copy / "runs" / "samples" / "samples.npz"
    if arrays is None:
        path.write_bytes(path.read_bytes()[:500])
    else:
        np.savez(path, **arrays)
    with pytest.raises(StorageError, match=what):
        gather(ReportInputs.of(copy))


def test_a_page_is_replaced_whole_or_not_at_all(bare_toy, no_maps, monkeypatch):
    out = bare_toy.path / "report.html"
    out.write_text("the page before")

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(page.sections, "tiles", fail)
    with pytest.raises(RuntimeError, match="middle"):
        write_report(ReportInputs.of(bare_toy.path), out)
    assert out.read_text() == "the page before"
    assert [path.name for path in out.parent.iterdir() if ".part-" in path.name] == []


@pytest.mark.parametrize(
    ("name", "role"),
    [("trained", "trained"), ("gpt-untrained", "untrained"), ("gpt", "trained"), ("motion_energy", "motion"),
     ("pixels", "pixels"), ("planted", "drivers"), ("truth-drivers", "drivers"), ("wav2vec", "other")],
)  # fmt: skip
def test_roles_from_names(name, role):
    assert role_of(name) == role
