"""Curves, frames, words and markup."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from vidbrain.report import curves, frames, words
from vidbrain.report.html import Html, escape, table, tag

HOSTILE = '$x$<script>"&日本</script>'


def svg_of(html):
    found = re.search(r"<svg.*</svg>", html, re.DOTALL)
    # The HTML parser knows xlink and SVG; an XML parser must be told.
    text = found.group(0).replace("<svg ", '<svg xmlns="s" xmlns:xlink="x" ', 1)
    return ElementTree.fromstring(text)


def texts(html):
    return ["".join(node.itertext()).strip() for node in svg_of(html).iter("{s}text")]


@pytest.fixture
def distributions():
    rng = np.random.default_rng(0)
    values = {"trained": rng.normal(0.4, 0.1, 500), HOSTILE: rng.normal(0.2, 0.1, 500)}
    html = curves.draw_distributions(
        values, title=HOSTILE, kind="visual", ceiling=np.full(500, 0.7), limits=(-0.2, 1), emphasis="trained"
    )
    return values, html


def test_distributions_say_the_medians(distributions):
    values, html = distributions
    said = texts(html)
    for scores in values.values():
        assert f"{np.median(scores):.2f}" in said
    assert "ceiling 0.70" in said


def test_svg_is_well_formed_themed_and_alone(distributions):
    _, html = distributions
    root = svg_of(html)
    assert "http" not in html
    assert "<metadata" not in html
    assert "var(--visual)" in html
    assert "#0606" not in html
    assert "<script" not in html
    assert any("$x$" in text for text in texts(html)), "dollar signs are no formula"
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([\w.-]+)', html))
    assert used <= set(ids)


def test_ids_of_two_figures_differ(distributions):
    _, first = distributions
    second = curves.draw_distributions(
        {"a": np.arange(9.0)}, title="b", kind=None, ceiling=None, limits=(0, 9), emphasis=None
    )
    ids = [set(re.findall(r' id="([^"]+)"', html)) for html in (first, second)]
    assert all(ids)
    assert not ids[0] & ids[1]


def test_loss_curve_holds_every_split_and_reference():
    steps = np.arange(0, 100.0, 10)
    curve = curves.LossCurve(
        title="GPT", splits={"train": (steps, 5 - steps / 50), "val": (steps, 6 - steps / 50)},
        references={"unigram entropy": 5.5}, unit="nats",
    )  # fmt: skip
    html = curves.draw_loss(curve)
    assert {"training", "held out", "unigram entropy", "step", "nats"} <= set(texts(html))
    assert html == curves.draw_loss(curve)


def test_running_median_is_scipys_choice_of_the_middle():
    values = np.array([1.0, 9, 2, 3, 100, 4, 5])
    np.testing.assert_array_equal(curves._running_median(values)[1:-1], [2, 3, 3, 4, 5])


def test_against_ceiling_and_alphas_draw_extreme_input():
    for ceiling, scores in ((np.zeros(20), np.full(20, -0.9)), (np.full(1, 0.5), np.full(1, 0.4))):
        svg_of(curves.draw_against_ceiling(ceiling, scores, title="t", high=1.0))
    html = curves.draw_alphas({"visual": np.array([1e-3, 1e-3, 1e8]), "noise": np.array([1e8])}, title="t")
    assert {"visual", "noise", "1e8"} <= set(texts(html))


@pytest.mark.parametrize("error", [1, 5, 255])
def test_psnr_of_a_constant_error(error):
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert frames.psnr_db(black, black + np.uint8(error)) == pytest.approx(20 * np.log10(255 / error))


def test_psnr_of_equal_frames_is_infinite_and_said_so():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert frames.psnr_db(black, black) == np.inf
    assert words.decibels(np.inf) == "\u221e dB"


def test_guesses_are_the_mean_frame_and_the_held_frame():
    clip = np.zeros((4, 2, 2, 3), np.uint8)
    clip[2:] = 100
    fidelity = frames.reconstruction_fidelity(clip, clip + np.uint8(1))
    assert fidelity.baseline_db == pytest.approx(20 * np.log10(255 / 50))
    assert fidelity.gain_db == pytest.approx(20 * np.log10(50))
    after = frames.continuation_fidelity(clip, clip + np.uint8(2), 2)
    assert after.psnr_db == pytest.approx(20 * np.log10(255 / 2))
    assert after.baseline_db == pytest.approx(20 * np.log10(255 / 100))


def decode(html):
    data = re.search(r'src="data:image/webp;base64,([^"]+)"', html).group(1)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_strip_and_animation_keep_every_pixel():
    video = np.random.default_rng(0).integers(0, 256, (16, 8, 10, 3), dtype=np.uint8)
    strip = np.asarray(decode(frames.strip(video, "alt")))
    shown = frames.frames_shown(16)
    assert shown[0] == 0
    assert shown[-1] == 15
    for position, frame in enumerate(shown):
        np.testing.assert_array_equal(strip[:, 12 * position : 12 * position + 10, :3], video[frame])
    moving = decode(frames.animation(video, "alt"))
    assert moving.n_frames == 16
    for number in (0, 7, 15):
        moving.seek(number)
        np.testing.assert_array_equal(np.asarray(moving.convert("RGB")), video[number])
    assert "prefers-reduced-motion" in frames.animation(video, "alt")


def test_short_clips_show_what_they_have():
    assert frames.frames_shown(1).tolist() == [0]
    assert frames.frames_shown(3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (words.count(66_536), "66\u202f536"),
        (words.count(None), "\u2013"),
        (words.count(float("nan")), "\u2013"),
        (words.score(-0.0004), "0.00"),
        (words.score(-0.5), "\u22120.50"),
        (words.score(None), "\u2013"),
        (words.difference(0.1), "+0.10"),
        (words.difference(-0.1), "\u22120.10"),
        (words.difference(0.001), "0.00"),
        (words.percent(0.931, 1), "93.1\u202f%"),
        (words.percent(None), "\u2013"),
        (words.duration(200), "3 min 20 s"),
        (words.duration(18_120), "5 h 02 min"),
    ],
)
def test_numbers_are_written_for_people(call, said):
    assert call == said


def test_text_is_escaped_and_markup_is_not():
    assert escape(HOSTILE) == "$x$&lt;script&gt;&quot;&amp;日本&lt;/script&gt;"
    element = tag("a", HOSTILE, tag("b", "x"), None, title=HOSTILE, href=None)
    assert "<script" not in element
    assert "<b>x</b>" in element
    assert "href" not in element
    assert '"1"' not in element, "a quotation mark must not end an attribute"
    assert tag("p", Html("<i>")) == "<p><i></p>"


def test_tables_name_their_rows_and_columns():
    html = table(["set", "r"], [[HOSTILE, 1]], caption="Scores")
    assert html.count('scope="col"') == 2
    assert html.count('scope="row"') == 1
    assert "<caption>Scores</caption>" in html
    assert "<script" not in html
