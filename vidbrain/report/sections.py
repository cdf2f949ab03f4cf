"""The parts of the page, each a function from evidence to markup; a part without its data says why it is missing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vidbrain.report import curves, frames, maps
from vidbrain.report.evidence import Evidence, ScoreSet
from vidbrain.report.html import Html, figure, join, missing, paragraph, table, tag
from vidbrain.report.numbers import Medians
from vidbrain.report.palette import KIND_COLOURS, ceil_nicely, difference_scale, r_scale
from vidbrain.report.words import DASH, count, decibels, difference, duration, percent, score

MAX_CLIPS = 4


def notice(evidence: Evidence) -> Html | None:
    """Say that the BOLD is simulated, where it is."""
    if not evidence.simulated:
        return None
    return tag(
        "aside",
        tag("strong", "Simulated BOLD."),
        " The video, the play and the models are real; the fMRI is not. Signals were planted in known voxels and "
        "covered with noise, so that what is found can be compared with what is there. Nothing here is a finding "
        "about a brain.",
        class_="notice",
    )


def summary(evidence: Evidence, medians: Medians) -> Html:
    """Tell the result in one paragraph."""
    main = evidence.main
    kind = next(iter(medians.kinds))
    where = "in all voxels" if kind is None else f"in the voxels that carry {kind} signals"
    bold = "simulated BOLD" if evidence.simulated else "BOLD"
    seen = ""
    if evidence.data:
        d = evidence.data
        seen = f" trained on {count(d['frames'] - d['held_out_frames'])} frames of video"
    subject = f"A model{seen}" if main.role == "trained" else f"The feature set “{main.title}”"
    parts: list[object] = [
        f"{subject} predicts {bold} of runs that it was not fitted to with a median correlation of ",
        tag("strong", f"r = {score(medians.r(main, kind))}"),
        f" {where}",
    ]
    ceiling = medians.ceiling(kind)
    if ceiling is not None:
        parts.append(f"; the noise in the data caps this at {score(ceiling)}")
    parts.append(". ")
    controls = [s for s in evidence.sets if s.role in ("untrained", "pixels", "motion") and s is not main]
    if controls:
        said = [f"{_control_name(s)} {score(medians.r(s, kind))}" for s in controls]
        again = "The trained model" if main.role == "trained" else f"“{main.title}”"
        ahead = medians.r(main, kind) - max(medians.r(s, kind) for s in controls)
        parts.append(f"Controls on the same voxels: {', '.join(said)}. ")
        if ahead >= 0.0005:
            parts.append(f"{again} is {score(ahead, 3)} ahead of the best of these. ")
        else:
            parts.append(f"{again} is not ahead of the best of these. ")
    else:
        parts.append("No controls were encoded, so this score cannot be read as a finding about the model. ")
    if "noise" in medians.kinds:
        parts.append(f"Where nothing was planted, the median is {score(medians.r(main, 'noise'), 3)}.")
    return paragraph(*parts, class_="lead")


def _control_name(scores: ScoreSet) -> str:
    names = {"untrained": "the same network untrained", "pixels": "plain pixels", "motion": "motion energy"}
    return names[scores.role]


def tiles(evidence: Evidence, medians: Medians) -> Html:
    """Show the numbers that matter most, large."""
    main, kind = evidence.main, next(iter(medians.kinds))
    cells: list[tuple[str, str, str]] = []
    name = "all voxels" if kind is None else f"{kind} voxels"
    cells.append((score(medians.r(main, kind)), f"median r, {name}", main.title))
    ceiling = medians.ceiling(kind)
    if ceiling is not None:
        share = medians.r(main, kind) / ceiling if ceiling > 0 else math.nan
        cells.append((percent(share), "of the noise ceiling", f"median ceiling {score(ceiling)}"))
    untrained = evidence.role("untrained")
    if untrained is not None and main.role == "trained":
        gain = float(np.median((main.r - untrained.r)[medians.kinds[kind]]))
        cells.append((difference(gain), "r gained by training", "median over the same voxels"))
    vqvae, gpt = evidence.model("vqvae"), evidence.model("gpt")
    if vqvae is not None and "psnr" in vqvae.held_out:
        more = f"{difference(vqvae.held_out['psnr_gain'], 1)} dB over the mean frame"
        cells.append((decibels(vqvae.held_out["psnr"]), "held-out PSNR of the VQ-VAE", more))
    if gpt is not None and "loss" in gpt.held_out:
        more = "".join(f"{name}: {score(level)}" for name, level in gpt.references.items())
        cells.append((score(gpt.held_out["loss"]), "nats per code, GPT on held-out clips", more))
    if evidence.data:
        cells.append((count(evidence.data["frames"]), "frames of video", duration(3600 * evidence.data["hours"])))
    return tag(
        "ul",
        *(tag("li", tag("b", value), tag("span", what), tag("small", more)) for value, what, more in cells),
        class_="tiles",
    )


def scores(evidence: Evidence, medians: Medians) -> Html:
    """Show how r is distributed, and the medians in a table."""
    every = [s.r[mask] for s in evidence.sets for mask in medians.kinds.values()]
    if evidence.ceiling is not None:
        every.append(evidence.ceiling)
    limits = curves.limits_of(every)
    panels = []
    for kind, mask in medians.kinds.items():
        name = "All" if kind is None else kind.capitalize()
        ceiling = None if evidence.ceiling is None or kind == "noise" else evidence.ceiling[mask]
        panels.append(
            curves.draw_distributions(
                {s.title: s.r[mask] for s in evidence.sets},
                title=f"{name} voxels ({count(int(mask.sum()))})",
                kind=kind,
                ceiling=ceiling,
                limits=limits,
                emphasis=evidence.main.title,
            )
        )
    caption = (
        "Each row is a feature set: the hill is the distribution of r over voxels, the bar its middle half, the dot "
        "and the number its median. r is the correlation of predicted and measured BOLD on runs that were left out, "
        "averaged over folds."
    )
    if evidence.ceiling is not None:
        caption += (
            " The dashed line is the median noise ceiling, the grey band its middle half: the correlation that the "
            "noiseless planted signal itself would reach."
        )
    return join([figure(tag("div", *panels, class_="panels"), caption), _score_table(evidence, medians)])


def _score_table(evidence: Evidence, medians: Medians) -> Html:
    kinds = list(medians.kinds)
    head = ["median r", *("all voxels" if kind is None else kind for kind in kinds)]
    with_ceiling = evidence.ceiling is not None
    if with_ceiling:
        head += [f"share of ceiling, {kind}" for kind in kinds if kind not in (None, "noise")]
    significant = any(np.isfinite(s.q).any() for s in evidence.sets)
    if significant:
        head += ["voxels with q < 0.05" if kind is None else f"q < 0.05, {kind}" for kind in kinds]
    rows: list[list[object]] = []
    for s in evidence.sets:
        row: list[object] = [s.title, *(score(medians.r(s, kind), 3) for kind in kinds)]
        if with_ceiling:
            for kind in kinds:
                if kind not in (None, "noise"):
                    ceiling = medians.ceiling(kind) or math.nan
                    row.append(percent(medians.r(s, kind) / ceiling))
        if significant:
            row += [percent(medians.significant(s, kind), 1) for kind in kinds]
        rows.append(row)
    if with_ceiling:
        row = ["noise ceiling", *(DASH if kind == "noise" else score(medians.ceiling(kind), 3) for kind in kinds)]
        rows.append(row + [""] * (len(head) - len(row)))
    caption = "Median r over voxels, on held-out runs"
    if significant:
        caption += "; share of voxels above chance at a false discovery rate of 5 %"
    return table(head, rows, caption=caption)


def brain_maps(evidence: Evidence, anatomy: maps.Anatomy, high: float) -> Html:
    """Show r of the main feature set on slices; the surface stands at the top of the page."""
    scale = r_scale(high)
    main = evidence.main
    caption = (
        f"{main.title.capitalize()}: mean r over held-out runs in each voxel, on slices of the MNI152 "
        "template (positions in millimetres, left is on the left). Values near zero and below are not coloured. "
        "Surfaces on this page are fsaverage5, inflated; dark grey is sulci."
    )
    slices = maps.slice_panel(
        anatomy, volume(evidence, main.r), scale, ("z", "y", "x"), label=f"Slices of r: {main.title}"
    )
    return figure(join([slices, maps.colour_bar(scale, "r")]), caption, class_="maps")


def difference_maps(evidence: Evidence, anatomy: maps.Anatomy) -> Html:
    """Show where training helps."""
    trained, untrained = evidence.role("trained"), evidence.role("untrained")
    if trained is None or untrained is None:
        return missing("The difference that training makes needs results of the trained and of the untrained model.")
    gain = trained.r - untrained.r
    scale = difference_scale(ceil_nicely(max(float(np.nanpercentile(np.abs(gain), 99)), 0.02)))
    voxels = volume(evidence, gain)
    label = "r of the trained model minus r of the same model untrained"
    body = join(
        [
            maps.surface_panel(anatomy, voxels, scale, label=f"Cortical surface: {label}"),
            maps.colour_bar(scale, "r trained \u2212 r untrained"),
            maps.slice_panel(anatomy, voxels, scale, ("z",), label=f"Slices: {label}"),
        ]
    )
    caption = (
        "r of the trained model minus r of the same model with random weights. Yellow and orange: "
        "the trained model predicts better; blue: the untrained one does."
    )
    return figure(body, caption, class_="maps")


def planted(evidence: Evidence, anatomy: maps.Anatomy, high: float, surface: Html) -> Html:
    """Show what was planted beside what was found, and r against the ceiling."""
    if evidence.kinds is None or evidence.ceiling is None:
        return missing(evidence.missing["truth"])
    names = {code: name for code, name in enumerate(evidence.kind_names) if code and (evidence.kinds == code).any()}
    paint = maps.LabelPaint({code: KIND_COLOURS[name] for code, name in names.items()})
    voxels = volume(evidence, evidence.kinds.astype(np.float64), labels=True)
    where = join(
        [
            tag("h3", "Planted"),
            maps.surface_panel(anatomy, voxels, paint, label=f"Planted voxels: {', '.join(names.values())}"),
            maps.legend([(KIND_COLOURS[name], f"{name} voxels") for name in names.values()]),
            maps.slice_panel(anatomy, voxels, paint, ("z",), label="Slices of the planted voxels"),
            tag("h3", f"Found: r, {evidence.main.title}"),
            surface,
            maps.colour_bar(r_scale(high), "r"),
        ]
    )
    signal = evidence.kinds > 0
    top = ceil_nicely(max(float(np.percentile(evidence.ceiling[signal], 99.8)), 0.1))
    shown = [s for s in (evidence.main, evidence.role("drivers")) if s is not None]
    against = [
        curves.draw_against_ceiling(evidence.ceiling[signal], s.r[signal], title=s.title.capitalize(), high=top)
        for s in dict.fromkeys(shown)
    ]
    caption = (
        "Top: the voxels into which a signal was planted (simulated BOLD), and r where the encoding found one. Grey "
        "voxels carry noise only."
    )
    below = (
        "Planted voxels, r against the noise ceiling; darker hexagons hold more voxels, dots are medians. A perfect "
        "model lies on the dashed line. The planted drivers are the simulation's own signals used as features: they "
        "show what the encoding can reach when nothing is missing from the model."
    )
    panels = figure(tag("div", *against, class_="panels"), below)
    return join([figure(where, caption, class_="maps"), panels])


def _reconstructions(evidence: Evidence) -> list[frames.Fidelity]:
    if evidence.samples is None or "original" not in evidence.samples:
        return []
    pairs = zip(evidence.samples["original"], evidence.samples["reconstruction"], strict=True)
    return [frames.reconstruction_fidelity(original, other) for original, other in pairs]


def reconstructions(evidence: Evidence) -> Html:
    """Show real frames beside what the VQ-VAE makes of them."""
    fidelities = _reconstructions(evidence)
    if evidence.samples is None or not fidelities:
        return missing(evidence.missing.get("samples", "The samples hold no reconstructions."))
    cards = []
    for i, fidelity in enumerate(fidelities[:MAX_CLIPS]):
        original, other = evidence.samples["original"][i], evidence.samples["reconstruction"][i]
        both = tag(
            "div",
            tag("div", frames.animation(original, f"Clip {i + 1}, real frames"), tag("span", "real")),
            tag("div", frames.animation(other, f"Clip {i + 1}, reconstructed frames"), tag("span", "reconstructed")),
            class_="pair",
        )
        text = f"{decibels(fidelity.psnr_db)} ({difference(fidelity.gain_db, 1)} dB)"
        cards.append(tag("div", both, tag("span", text, class_="psnr"), class_="clip"))
    original, other = evidence.samples["original"][0], evidence.samples["reconstruction"][0]
    strips = tag(
        "div",
        tag("span", "real"),
        frames.strip(original, "Real frames of clip 1, from first to last"),
        tag("span", "reconstructed"),
        frames.strip(other, "The same frames, reconstructed"),
        class_="strips",
    )
    mean = float(np.mean([f.psnr_db for f in fidelities]))
    gain = float(np.mean([f.gain_db for f in fidelities]))
    caption = (
        f"Held-out clips and what is left of them after the VQ-VAE's discrete codes. Mean PSNR over {len(fidelities)} "
        f"clips: {decibels(mean)}; in brackets, how much that is above repeating the clip's mean frame "
        f"(mean {difference(gain, 1)} dB)."
    )
    return figure(join([tag("div", *cards, class_="clips"), strips]), caption)


def continuations(evidence: Evidence) -> Html:
    """Show what the GPT makes of the first frames of a clip."""
    samples = evidence.samples
    if samples is None or "sampled" not in samples:
        reason = evidence.missing.get("gpt") or evidence.missing.get("samples") or "No continuation was sampled."
        return missing(reason)
    given = int(samples["prompt_frames"])
    rows, fidelities = [], []
    for i, (true, sampled) in enumerate(zip(samples["true"], samples["sampled"], strict=True)):
        if not 0 < given < len(true):
            return missing(f"The samples give {given} of {len(true)} frames, so there is nothing to continue.")
        fidelities.append(frames.continuation_fidelity(true, sampled, given))
        if i < 2:
            shown = frames.frames_shown(len(true))
            n_given = int((shown < given).sum())
            marks = tag(
                "div",
                tag("span", "given", style=f"flex:{n_given}"),
                tag("span", "continued", style=f"flex:{len(shown) - n_given}"),
                class_="marks",
            )
            rows.append(
                tag(
                    "div",
                    tag("span", ""),
                    marks,
                    tag("span", "true"),
                    frames.strip(true, f"Clip {i + 1}: what really happened"),
                    tag("span", "sampled"),
                    frames.strip(sampled, f"Clip {i + 1}: what the model sampled after {given} frames"),
                    class_="strips",
                )
            )
    model, held = (float(np.mean([getattr(f, name) for f in fidelities])) for name in ("psnr_db", "baseline_db"))
    caption = (
        f"A continuation sampled from the GPT after {given} given frames, beside the true one. Against the true frames "
        f"it reaches {decibels(model)} on average over {len(fidelities)} clips; holding the last given frame still "
        f"reaches {decibels(held)}. A sample is one of many possible futures, so it need not match."
    )
    return figure(join(rows), caption)


def training(evidence: Evidence) -> Html:
    """Show the loss curves and the models in a table."""
    if not evidence.models:
        return missing(evidence.missing["models"])
    drawn = [
        curves.draw_loss(
            curves.LossCurve(title=model.title, splits=model.losses, references=model.references, unit=model.unit)
        )
        for model in evidence.models.values()
        if model.losses
    ]
    rows = []
    for model in evidence.models.values():
        first, last, held = model.loss("train", 0), model.loss("train", -1), model.loss("val", -1)
        rows.append(
            [model.title, count(model.n_parameters), count(model.n_steps), score(first, 3), score(last, 3),
             score(held, 3), "; ".join(model.notes) or DASH]
        )  # fmt: skip
    head = ["model", "parameters", "steps", "first loss", "last loss", "held-out loss", "also"]
    parts: list[object] = [tag("div", *drawn, class_="panels"), table(head, rows, caption="Models", text=(0, 6))]
    if "gpt" in evidence.missing:
        parts.append(missing(evidence.missing["gpt"]))
    return join(parts)


def volume(evidence: Evidence, values: NDArray[np.float64], *, labels: bool = False) -> maps.VoxelMap:
    """Put voxel values on the grid; dead voxels and the outside are NaN."""
    store = evidence.store
    volume = store.to_volume(np.where(evidence.alive, values, np.nan), np.nan)
    return maps.VoxelMap(np.asarray(volume, np.float64), store.affine, labels=labels)
