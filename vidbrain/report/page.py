"""One self-contained HTML page of a whole study: what was run, how well it predicts, where, and from what it came."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from vidbrain import __version__
from vidbrain.progress import SILENT, Progress
from vidbrain.report import maps, provenance, sections
from vidbrain.report.evidence import Evidence
from vidbrain.report.html import Html, escape, figure, join, missing, paragraph, tag
from vidbrain.report.inputs import ReportInputs, gather
from vidbrain.report.numbers import Medians
from vidbrain.report.palette import ceil_nicely, r_scale
from vidbrain.storage.atomic import check_writable, write_bytes

_HEADING = "How well a video model predicts the brain"


def write_report(inputs: ReportInputs, out: Path, *, progress: Progress = SILENT) -> dict[str, Any]:
    """Write the page.

    Parameters
    ----------
    inputs
        Where the artefacts are; what is missing is named on the page.
    out
        The HTML file; an existing one is replaced when the new one is whole. Equal inputs give equal bytes.
    progress
        Told of every part.

    Returns
    -------
    dict
        ``page``, ``n_bytes``, ``simulated``, ``median_r`` by feature set and kind of voxel, ``noise_ceiling`` by kind
        (None without a truth), and ``missing``: what is not shown, with the reason.

    Raises
    ------
    StorageError
        If there is no result, something is damaged, or the page cannot be written.
    AlignmentError
        If results, truth and BOLD do not hold the same voxels.
    EncodingError
        If no voxel has a score.
    """
    progress.start("report", 6, "parts")
    evidence = gather(inputs)  # first: where there is nothing to report on, no folder is made either
    check_writable(out.parent, 16 * 2**20)
    progress.advance()
    page = render(evidence, progress=progress).encode()
    write_bytes(out, page)
    progress.advance()
    progress.finish()
    medians = Medians.of(evidence)
    return {
        "page": str(out),
        "n_bytes": len(page),
        "simulated": evidence.simulated,
        "median_r": medians.as_facts(evidence),
        "noise_ceiling": None
        if evidence.ceiling is None
        else {str(kind): medians.ceiling(kind) for kind in medians.kinds if kind != "noise"},
        "missing": dict(evidence.missing),
    }


def render(evidence: Evidence, *, progress: Progress = SILENT) -> str:
    """Write the page as text; equal evidence gives equal text.

    Parameters
    ----------
    evidence
        From `inputs.gather`.
    progress
        Told of every part; the caller has begun the stage.
    """
    medians = Medians.of(evidence)
    score_part = sections.scores(evidence, medians)
    progress.advance()
    brain = _brain(evidence)
    progress.advance()
    frames_part = join(
        [
            tag("h3", "Reconstruction"),
            sections.reconstructions(evidence),
            tag("h3", "Continuation"),
            sections.continuations(evidence),
        ]
    )
    progress.advance()
    parts = [
        ("prediction", "Prediction", "How well does each feature set predict voxels on runs it never saw?", score_part),
        ("maps", "Brain maps", "Where does the prediction work, and where does training help?", brain["maps"]),
        ("planted", "Planted against found", "Does the encoding find what is there, and only that?", brain["planted"]),
        ("frames", "Frames", "What survives the codes, and what does the model expect next?", frames_part),
        ("training", "Training", "Did the models learn?", sections.training(evidence)),
        ("run", "What was run", "From which data, with which settings, how long?", provenance.what_was_run(evidence)),
    ]
    progress.advance()
    body = join(
        tag("section", tag("h2", title), paragraph(question, class_="question"), part, id=anchor)
        for anchor, title, question, part in parts
    )
    fingerprints = ", ".join(f"{s.name} {s.info['fingerprint']}" for s in evidence.sets)
    template = Template(files("vidbrain.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        version=escape(__version__),
        title=escape(f"vidbrain: {evidence.name}"),
        name=escape(evidence.name),
        heading=escape(_HEADING),
        notice=sections.notice(evidence) or "",
        summary=sections.summary(evidence, medians),
        hero=brain["hero"],
        tiles=sections.tiles(evidence, medians),
        contents=join(tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, _, _ in parts),
        sections=body,
        fingerprints=escape(fingerprints),
    )


def _brain(evidence: Evidence) -> dict[str, Html]:
    """Draw everything that needs anatomy; volumes in another space than MNI are not drawn on it."""
    space = str(evidence.store.info.get("space"))
    if "mni" not in space.lower():
        reason = missing(f"The voxels lie in the space {space}; maps are drawn for MNI space only.")
        return {"hero": Html(""), "maps": reason, "planted": reason}
    anatomy = maps.load_anatomy()
    main = evidence.main
    live = main.r[evidence.alive]
    high = ceil_nicely(max(float(np.percentile(live, 99.5)) if live.size else 0.0, 0.05))
    voxels = sections.volume(evidence, main.r)
    what = f"Cortical surface: r of the {main.title} on held-out runs"
    surface = maps.surface_panel(anatomy, voxels, r_scale(high), label=what)
    bold = "simulated BOLD" if evidence.simulated else "BOLD"
    caption = f"Correlation of predicted and measured signal ({bold}) on held-out runs; features: {main.title}."
    hero = figure(join([surface, maps.colour_bar(r_scale(high), "r")]), caption, class_="hero maps")
    return {
        "hero": hero,
        "maps": join(
            [
                sections.brain_maps(evidence, anatomy, high),
                tag("h3", "What training adds"),
                sections.difference_maps(evidence, anatomy),
            ]
        ),
        "planted": sections.planted(evidence, anatomy, high, surface),
    }
