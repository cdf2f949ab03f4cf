"""What was run: data, ridge penalties, wall times, fingerprints and versions."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np

from vidbrain.report import curves
from vidbrain.report.evidence import Evidence
from vidbrain.report.html import Html, facts, join, missing, paragraph, table, tag
from vidbrain.report.words import DASH, count, duration, percent, score

_PACKAGES = ("vidbrain", "torch", "numpy", "scipy", "xarray", "zarr", "dask", "nilearn", "nibabel", "matplotlib")


def what_was_run(evidence: Evidence) -> Html:
    """List data, settings, versions, provenance, penalties and times."""
    parts: list[object] = [tag("h3", "Data")]
    if evidence.data:
        d = evidence.data
        parts.append(
            facts(
                [
                    ("frames", f"{count(d['frames'])} of {d['height']} \u00d7 {d['width']}"),
                    ("video", f"{duration(3600 * d['hours'])} at {score(d['fps'], 2)} Hz"),
                    ("recordings", count(d["recordings"])),
                    ("subjects, sessions, runs", f"{d['subjects']}, {d['sessions']}, {d['runs']}"),
                    ("held out of training", f"{count(d['held_out_frames'])} frames"),
                    ("segments, shards", f"{count(d['segments'])}, {count(d['shards'])}"),
                    ("size of the shards", f"{d['n_bytes'] / 1e6:.1f} MB"),
                    ("clips as codes", count(evidence.artefacts.get("codes", {}).get("n_clips"))),
                ]
            )
        )
    else:
        parts.append(missing(evidence.missing["data"]))
    parts += [tag("h3", "Simulated BOLD" if evidence.simulated else "BOLD"), _bold(evidence)]
    parts += [tag("h3", "Feature sets"), _designs(evidence)]
    parts += [tag("h3", "Ridge penalties"), _penalties(evidence)]
    parts += [tag("h3", "Wall time"), _times(evidence)]
    parts += [tag("h3", "Where everything came from"), _provenance(evidence)]
    versions = [(name, _version(name)) for name in _PACKAGES]
    parts += [tag("h3", "Versions"), facts((name, version) for name, version in versions if version)]
    return join(parts)


def _bold(evidence: Evidence) -> Html:
    store = evidence.store
    clean = dict(store.info["config"].get("clean") or {})
    return facts(
        [
            ("voxels", f"{count(store.n_voxels)} in {store.info.get('space')}"),
            ("runs", count(len(store.runs))),
            ("volumes", f"{count(sum(store.n_trs(run) for run in store.runs))}, one each {store.tr_s:g} s"),
            ("constant voxels", count(int((~evidence.alive).sum()))),
            ("confounds, high-pass", f"{clean.get('confounds', DASH)}, {clean.get('high_pass', DASH)}"),
        ]
    )


def _designs(evidence: Evidence) -> Html:
    rows = []
    for s in evidence.sets:
        config, design = s.info["config"], s.info.get("design") or {}
        delays = ", ".join(str(delay) for delay in config.get("delays", ()))
        layers = ", ".join(str(layer) for layer in config.get("layers", ()))
        row = [s.title, layers or DASH, delays or DASH, count(design.get("n_columns")), count(design.get("n_rows"))]
        rows.append(row)
    head = ["feature set", "layer", "delays in TRs", "columns with delays", "volumes used"]
    return table(head, rows, caption="What the ridge regression was given", text=(0, 1, 2))


def _penalties(evidence: Evidence) -> Html:
    mask = evidence.alive if evidence.kinds is None else evidence.alive & (evidence.kinds > 0)
    which = "all" if evidence.kinds is None else "planted"
    rows = []
    for s in evidence.sets:
        low, high = s.edge_shares(mask)
        middle = float(np.median(s.alpha[:, mask]))
        rows.append([s.title, f"{middle:.2g}", percent(low, 1), percent(high, 1)])
    main = evidence.main
    groups = {kind or "all voxels": main.alpha[:, mask] for kind, mask in evidence.voxels()}
    parts = [
        curves.draw_alphas(groups, title=f"Penalties chosen: {main.title}"),
        table(
            ["feature set", "median alpha", "at the smallest", "at the largest"],
            rows,
            caption=f"Share of {which} voxels (in each fold) whose penalty lies at an end of the grid",
        ),
    ]
    note = (
        "Where there is a signal, many voxels at an end of the grid would mean that the grid is too narrow. Where "
        "there is none, every penalty predicts equally badly, and the ends are chosen often."
    )
    return join([tag("div", *parts, class_="panels"), paragraph(note, class_="note")])


def _times(evidence: Evidence) -> Html:
    times = evidence.stage_seconds()
    if not times:
        return missing(evidence.missing.get("times", "The summary holds no wall seconds."))
    total = sum(times.values())
    rows: list[list[object]] = [
        [name, duration(seconds), tag("i", class_="meter", style=f"--share:{seconds / max(total, 1e-9):.3f}")]
        for name, seconds in times.items()
    ]
    rows.append(["all stages", duration(total), ""])
    return table(["stage", "wall time", ""], rows, caption="Wall seconds by stage", text=(0, 2), class_="narrow")


def _provenance(evidence: Evidence) -> Html:
    names = {str(record.get("fingerprint")): name for name, record in evidence.artefacts.items()}
    rows = []
    for name, record in evidence.artefacts.items():
        sources = [
            f"{names[str(value)]}" if str(value) in names else f"{key} {value}"
            for key, value in dict(record.get("made_from") or {}).items()
        ]
        mark: Any = tag("code", record.get("fingerprint", DASH))
        rows.append([name, mark, ", ".join(sources) or DASH])
    return table(
        ["artefact", "fingerprint", "made from"],
        rows,
        caption="Each artefact is named by its settings and by what it was made from",
        text=(0, 1, 2),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
