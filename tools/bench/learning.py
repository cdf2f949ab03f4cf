"""Show what the models learn on the demo's game play, by the commands that a user gives.

Usage: python tools/bench/learning.py WORK [--parts PART …] [--json FILE]

Every step is a `vidbrain` command in a process of its own; figures are read from the summaries of the runs. Commands
that are done are not given again, and one that was stopped goes on: parts can be asked for one by one, in this order.

source: plays and shards what the demo plays (vidbrain/recipes/demo.toml); whole recordings are held out.
vqvae: trains a VQ-VAE and encodes all clips, one every 16 source frames.
gpt: trains a GPT on the codes, and compares its loss on held-out clips with guesses by counting.
widths: the same GPT at 6, 30 and 126 channels. Of three rates the one that ends with the lowest loss on the *training*
batches of another seed at 30 channels serves all widths, carried by mup; then each width is trained with three seeds.
rates: the same three rates at all widths, to see whether the one that was carried is theirs, too.
precision_gpt, precision_vqvae: the same data and steps in fp32, bf16 and fp16, with three seeds.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

PARTS = ("source", "vqvae", "gpt", "widths", "rates", "precision_gpt", "precision_vqvae")
RECIPE = "vidbrain/recipes/demo.toml"
SEEDS = (0, 1, 2)
WIDTHS, BASE_WIDTH = (6, 30, 126), 30
RATES, RATE_SEED = (4e-3, 1e-2, 2.5e-2), 10
ARMS = ("fp32", "bf16", "fp16")
WANTED = {"psnr": 30.0, "active": 0.5, "precision": 0.01}

VQVAE = {
    "steps": 400,
    "batch-size": 16,
    "lr": 2e-3,
    "warmup": 20,
    "log-every": 50,
    "eval-every": 100,
    "checkpoint-every": 50,
    "model.downsample": (4, 8, 8),
    "model.patch": (2, 8, 8),
    "model.n-hidden": 64,
    "model.n-res-layers": 2,
    "model.n-codes": 512,
    "model.code-dim": 32,
}
STRIDE = 16
GPT = {"batch-size": 8, "log-every": 50, "eval-every": 1000, "checkpoint-every": 100, "model.n-heads": 2}
ONE_GPT = GPT | {"steps": 500, "warmup": 50, "lr": 5e-3, "model.hidden": 64, "model.n-layers": 4}
WIDTH_GPT = GPT | {
    "steps": 400,
    "warmup": 50,
    "model.n-layers": 2,
    "model.parametrization": "mup",
    "model.base-hidden": BASE_WIDTH,
}
PRECISION_GPT = WIDTH_GPT | {"steps": 120, "warmup": 20, "eval-clips": 64, "model.hidden": BASE_WIDTH}
PRECISION_VQVAE = VQVAE | {"steps": 30, "batch-size": 4, "warmup": 5, "model.n-hidden": 16, "model.n-res-layers": 1}
PRECISION_VQVAE |= {"model.n-codes": 128, "model.code-dim": 16, "eval-every": 1000, "eval-clips": 32}

Row = dict[str, Any]


def words_of(settings: dict[str, Any]) -> list[str]:
    """Settings as a command line has them."""
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


class Work:
    """A folder of game play, codes and runs, and what has been done in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = root / "commands.json"
        root.mkdir(parents=True, exist_ok=True)
        self.done: list[str] = json.loads(self._path.read_text()) if self._path.is_file() else []

    def give(self, *words: str) -> None:
        """Give a `vidbrain` command, unless it is done."""
        told = self.told(words)
        if told in self.done:
            return
        print(told, flush=True)
        subprocess.run([sys.executable, "-m", "vidbrain", *words], check=True, stdout=subprocess.DEVNULL)
        self.done.append(told)
        self._path.write_text(json.dumps(self.done, indent=1))

    def told(self, words: tuple[str, ...]) -> str:
        return " ".join(["vidbrain", *words]).replace(str(self.root), "WORK")

    def train(self, kind: str, name: str, settings: dict[str, Any]) -> Row:
        """Train, and return what the run says."""
        out = self.root / "runs" / name
        source = self.root / ("data" if kind == "vqvae" else "codes")
        words = ("train", kind, str(source), "--out", str(out), "--device", "cpu", *words_of(settings))
        self.give(*words)
        return {"command": self.told(words), **json.loads((out / "summary.json").read_text())}


def play(work: Work) -> Row:
    game, data = str(work.root / "game"), str(work.root / "data")
    commands = [
        ("play", game, "--config", RECIPE, "--workers", "1"),
        ("shard", game, "--out", data, "--config", RECIPE, "--workers", "1"),
    ]
    for words in commands:
        work.give(*words)
    record = json.loads((work.root / "data" / "dataset.json").read_text())
    names = ("n_frames", "n_recordings", "n_segments", "fingerprint")
    segments = pd.read_parquet(work.root / "data" / "index.parquet")
    held_out = segments[segments["split"] == "val"]
    return {
        "commands": [work.told(words) for words in commands],
        **{name: record[name] for name in names},
        "held_out_frames": int(held_out["n_frames"].sum()),
        "held_out_recordings": sorted(set(held_out["recording"])),
    }


def tokenizer(work: Work) -> Row:
    run = work.train("vqvae", "vqvae", VQVAE)
    words = ("tokenize", str(work.root / "data"), "--vqvae", str(work.root / "runs" / "vqvae"))
    words += ("--out", str(work.root / "codes"), "--device", "cpu", "--stride", str(STRIDE))
    work.give(*words)
    found = run["held_out"]
    names = ("n_parameters", "steps", "clips_seen", "n_codes", "grid", "preset", "precision", "threads")
    return {
        "commands": [run["command"], work.told(words)],
        **{name: run[name] for name in names},
        "held_out": found,
        "wanted": {"psnr": WANTED["psnr"], "active": WANTED["active"]},
        "holds": found["psnr"] > WANTED["psnr"] and found["active"] > WANTED["active"],
    }


def figures(run: Row) -> Row:
    """What is told of a GPT's run."""
    names = ("unigram_loss", "bigram_loss", "bigram_loss_later")
    held_out = {f"held_out_{name}": run["held_out"][name] for name in ("loss", "loss_later", "clips")}
    return {
        **{name: run[name] for name in ("command", "n_parameters", "steps", "clips_seen", "preset", "threads")},
        "training_loss": run["loss_last"],
        **held_out,
        **{name: run[name] for name in names},
    }


def below_guesses(row: Row) -> bool:
    """Whether a GPT beats all guesses by counting, also where the guess by the code before has one."""
    return bool(
        row["held_out_loss"] < min(row["unigram_loss"], row["bigram_loss"])
        and row["held_out_loss_later"] < row["bigram_loss_later"]
    )


def one_gpt(work: Work) -> Row:
    row = figures(work.train("gpt", "gpt", ONE_GPT))
    return {**row, "smoothing": "unigram: add one; bigram in time: Witten-Bell, method C", "holds": below_guesses(row)}


def best_rate(rows: list[Row]) -> float:
    """Rate that ends with the lowest loss on training batches."""
    return float(min(rows, key=lambda row: row["training_loss"])["lr"])


def sweep(work: Work, hidden: int) -> list[Row]:
    """Loss on training batches at the end, by rate, at a width."""
    rows = []
    for lr in RATES:
        settings = WIDTH_GPT | {"lr": lr, "seed": RATE_SEED, "model.hidden": hidden}
        run = work.train("gpt", f"rate-{hidden}-{lr:g}", settings)
        rows.append({"hidden": hidden, "lr": lr, "seed": RATE_SEED, "training_loss": run["loss_last"]})
    return rows


def widths(work: Work) -> Row:
    rates = sweep(work, BASE_WIDTH)
    lr, rows = best_rate(rates), []
    for seed, hidden in itertools.product(SEEDS, WIDTHS):
        settings = WIDTH_GPT | {"lr": lr, "seed": seed, "model.hidden": hidden}
        run = work.train("gpt", f"width-{hidden}-{seed}", settings)
        rows.append({"hidden": hidden, "seed": seed, **figures(run)})
    return {"rates": rates, "base_hidden": BASE_WIDTH, "lr": lr, "runs": rows, "holds": falls_with_width(rows)}


def other_rates(work: Work) -> Row:
    swept = {hidden: sweep(work, hidden) for hidden in WIDTHS}
    return {
        "carried": best_rate(swept[BASE_WIDTH]),
        "best": {hidden: best_rate(rows) for hidden, rows in swept.items()},
        "rows": [row for rows in swept.values() for row in rows],
    }


def falls_with_width(rows: list[Row]) -> bool:
    """Whether, seed by seed, every larger width has the lower held-out loss."""
    holds = True
    for seed in {row["seed"] for row in rows}:
        losses = [row["held_out_loss"] for row in sorted(rows, key=lambda row: row["hidden"]) if row["seed"] == seed]
        holds &= all(b < a for a, b in itertools.pairwise(losses))
    return holds


def precisions(work: Work, kind: str, settings: dict[str, Any]) -> Row:
    rows = []
    for seed, arm in itertools.product(SEEDS, ARMS):
        run = work.train(kind, f"{kind}-{arm}-{seed}", settings | {"precision": arm, "seed": seed})
        row = {"precision": arm, "seed": seed, "command": run["command"], "steps": run["steps"]}
        rows.append(row | {"held_out_loss": run["held_out"]["loss"], "clips": run["held_out"]["clips"]})
    rows = against_fp32(rows)
    holds = all(abs(row["from_fp32"]) < WANTED["precision"] for row in rows)
    return {"wanted": WANTED["precision"], "runs": rows, "holds": holds}


def precision_gpt(work: Work) -> Row:
    return precisions(work, "gpt", PRECISION_GPT | {"lr": best_rate(sweep(work, BASE_WIDTH))})


def precision_vqvae(work: Work) -> Row:
    return precisions(work, "vqvae", PRECISION_VQVAE)


def against_fp32(rows: list[Row]) -> list[Row]:
    """Add to each run its loss relative to that of the fp32 run of the same seed, less one."""
    true = {row["seed"]: row["held_out_loss"] for row in rows if row["precision"] == "fp32"}
    return [row | {"from_fp32": row["held_out_loss"] / true[row["seed"]] - 1} for row in rows]


MAKERS = {
    "source": play,
    "vqvae": tokenizer,
    "gpt": one_gpt,
    "widths": widths,
    "rates": other_rates,
    "precision_gpt": precision_gpt,
    "precision_vqvae": precision_vqvae,
}


def table(record: Row) -> str:
    """Figures of the parts that are there, for the eye."""
    lines = []
    if found := record.get("vqvae"):
        held = found["held_out"]
        lines.append(f"VQ-VAE {held['psnr']:.2f} dB, {held['active']:.1%} of {found['n_codes']} codes used")
    if row := record.get("gpt"):
        lines.append(
            f"GPT {row['held_out_loss']:.3f}, unigram {row['unigram_loss']:.3f}, bigram {row['bigram_loss']:.3f}; "
            f"later slices {row['held_out_loss_later']:.3f}, bigram {row['bigram_loss_later']:.3f}"
        )
    if found := record.get("widths"):
        lines += [f"width {row['hidden']}, seed {row['seed']}: {row['held_out_loss']:.3f}" for row in found["runs"]]
    for row in (record.get("rates") or {}).get("rows", ()):
        lines.append(f"rate {row['lr']:g} at width {row['hidden']}: training loss {row['training_loss']:.3f}")
    for part in ("precision_gpt", "precision_vqvae"):
        for row in (record.get(part) or {}).get("runs", ()):
            named = f"{part} {row['precision']}, seed {row['seed']}"
            lines.append(f"{named}: {row['held_out_loss']:.4f} ({row['from_fp32']:+.2%})")
    lines += [f"{name}: {'holds' if value else 'DOES NOT HOLD'}" for name, value in verdicts(record).items()]
    return "\n".join(lines)


def verdicts(record: Row) -> dict[str, bool]:
    """Targets that were measured, by name."""
    return {name: part["holds"] for name, part in record.items() if isinstance(part, dict) and "holds" in part}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="record; parts that it holds and that are not asked for are kept")
    options = parser.parse_args()
    work = Work(options.work)
    kept = json.loads(options.json.read_text()) if options.json and options.json.is_file() else {}
    record: Row = {
        "command": "python tools/bench/learning.py WORK --json docs/benchmarks/learning.json",
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: importlib.metadata.version(name) for name in ("vidbrain", "torch", "numpy")},
        **{name: kept.get(name) for name in PARTS},
    }
    for name in PARTS:
        if name in options.parts:
            record[name] = MAKERS[name](work)
            record["missing"] = {other: "the part was not asked for" for other in PARTS if record[other] is None}
            if options.json:
                options.json.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))
    return int(not all(verdicts(record).values()))


if __name__ == "__main__":
    sys.exit(main())
