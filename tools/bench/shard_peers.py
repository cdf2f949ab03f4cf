"""One writer of `tools/bench/shard.py`, in a process of its own: it writes, and prints its seconds as JSON.

Every writer decodes and scales with the same call, `vidbrain.video.decode.read_frames`, and stores the same samples:
runs of frames of one recording, with their key. The clock runs from the first call to the last byte, after all imports,
with two workers that are started inside; peers fork them, so that nothing is imported twice. Peers run in the
environment of `make bench-env`, which has no vidbrain: its sources come by PYTHONPATH.

Forms: `raw` stores arrays as they are, `zstd` compresses at level 3: webdataset's members by zstandard, for it has no
compression of its own but gzip; litdata's and MosaicML's chunks by their own option.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vidbrain.video.decode import read_frames

LEVEL = 3
CHUNK_BYTES = 1 << 26


def runs(path: str, n_owned: int, n_margin: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Decode a recording and cut it into runs: the frames that each owns, and those of its margin."""
    held, first = np.empty((0, size, size, 3), np.uint8), 0
    for block in read_frames(path, size=(size, size)):
        held = np.concatenate([held, block])
        while len(held) >= n_owned + n_margin:
            yield first, held[: n_owned + n_margin]
            held, first = held[n_owned:], first + n_owned
    while len(held):
        yield first, held[: n_owned + n_margin]
        held, first = held[n_owned:], first + n_owned


def key_of(path: str, first: int) -> str:
    return f"{Path(path).stem}_frame-{first:07d}"


def shares(paths: list[str]) -> list[list[str]]:
    """Split the recordings between two workers, the longest files first to whom has least."""
    parts: list[list[str]] = [[], []]
    sizes = [0, 0]
    for path in sorted(paths, key=lambda path: -Path(path).stat().st_size):
        least = sizes.index(min(sizes))
        parts[least].append(path)
        sizes[least] += Path(path).stat().st_size
    return parts


def in_two(work: Callable[[int, list[str]], None], paths: list[str]) -> None:
    """Run a function over both halves, each in a forked process."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(number, part)) for number, part in enumerate(shares(paths))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit("a worker failed")


class Floor:
    """Decode, scale and compress as vidbrain's codec does; write nothing."""

    def __init__(self, form: str) -> None:
        from vidbrain.sharding.codecs import get_codec

        self.codec = get_codec(form)

    def write(self, paths: list[str], out: Path, cut: tuple[int, int, int]) -> None:
        def work(number: int, part: list[str]) -> None:
            for path in part:
                for _, frames in runs(path, *cut):
                    self.codec.encode(frames)

        in_two(work, paths)

    def read(self, out: Path) -> Iterator[tuple[str, np.ndarray]]:
        return iter(())


class Vidbrain:
    """`vidbrain.sharding`, with all that it does: plan, spool, checksums, index, root record."""

    def __init__(self, form: str) -> None:
        from vidbrain import cluster
        from vidbrain.sharding.plan import ShardConfig
        from vidbrain.sharding.writer import write_shards

        self.cluster, self.config, self.write_shards, self.form = cluster, ShardConfig, write_shards, form

    def write(self, paths: list[str], out: Path, cut: tuple[int, int, int]) -> None:
        config = self.config(frame_size=cut[2], segment_frames=cut[0], codec=self.form)
        if config.margin != cut[1]:
            raise SystemExit(f"the margin is {config.margin} frames, not {cut[1]}")
        with self.cluster.client("local", 2) as client:
            self.write_shards(Path(paths[0]).parent, out, config, client=client)

    def read(self, out: Path) -> Iterator[tuple[str, np.ndarray]]:
        from vidbrain.sharding.codecs import decode_segment, get_codec
        from vidbrain.sharding.manifest import open_manifest, shard_path

        for row in open_manifest(out).segments.itertuples():
            with shard_path(out, row.shard).open("rb") as file:
                file.seek(row.offset)
                data = file.read(row.n_bytes)
            record = json.loads((out / "dataset.json").read_text())
            yield row.key, decode_segment(get_codec(self.form), data, row.parts, record["height"], record["width"])


class WebDataset:
    """`webdataset.ShardWriter`, one pattern a worker."""

    def __init__(self, form: str) -> None:
        import webdataset
        import zstandard

        self.webdataset, self.zstandard, self.form = webdataset, zstandard, form

    def write(self, paths: list[str], out: Path, cut: tuple[int, int, int]) -> None:
        def work(number: int, part: list[str]) -> None:
            compressor = self.zstandard.ZstdCompressor(level=LEVEL)
            with self.webdataset.ShardWriter(f"{out}/{number}-%06d.tar", maxsize=CHUNK_BYTES, verbose=0) as writer:
                for path in part:
                    for first, frames in runs(path, *cut):
                        sample = {"__key__": key_of(path, first), "json": {"shape": frames.shape}}
                        if self.form == "raw":
                            writer.write({**sample, "npy": frames})
                        else:
                            writer.write({**sample, "zst": compressor.compress(frames.tobytes())})

        out.mkdir()
        in_two(work, paths)

    def read(self, out: Path) -> Iterator[tuple[str, np.ndarray]]:
        urls = sorted(map(str, out.glob("*.tar")))
        for sample in self.webdataset.WebDataset(urls, shardshuffle=False).decode():
            if self.form == "raw":
                yield sample["__key__"], sample["npy"]
            else:
                raw = self.zstandard.ZstdDecompressor().decompress(sample["zst"])
                yield sample["__key__"], np.frombuffer(raw, np.uint8).reshape(sample["json"]["shape"])


def _litdata_samples(path: str, cut: tuple[int, int, int]) -> Iterator[dict]:
    for first, frames in runs(path, *cut):
        yield {"key": key_of(path, first), "frames": frames}


class LitData:
    """`litdata.optimize`."""

    def __init__(self, form: str) -> None:
        import litdata

        self.litdata, self.compression = litdata, "zstd" if form == "zstd" else None

    def write(self, paths: list[str], out: Path, cut: tuple[int, int, int]) -> None:
        import functools

        self.litdata.optimize(
            fn=functools.partial(_litdata_samples, cut=cut),
            inputs=paths,
            output_dir=str(out),
            num_workers=2,
            chunk_bytes=CHUNK_BYTES,
            compression=self.compression,
            start_method="fork",
            verbose=False,
        )

    def read(self, out: Path) -> Iterator[tuple[str, np.ndarray]]:
        for sample in self.litdata.StreamingDataset(str(out)):
            yield sample["key"], np.asarray(sample["frames"])


class MosaicML:
    """`streaming.MDSWriter`, one folder a worker, and one index over both."""

    def __init__(self, form: str) -> None:
        import streaming
        from streaming.base.util import merge_index

        self.streaming, self.merge = streaming, merge_index
        self.compression = f"zstd:{LEVEL}" if form == "zstd" else None

    def write(self, paths: list[str], out: Path, cut: tuple[int, int, int]) -> None:
        def work(number: int, part: list[str]) -> None:
            with self.streaming.MDSWriter(
                out=str(out / str(number)),
                columns={"key": "str", "frames": "ndarray:uint8"},
                compression=self.compression,
                size_limit=CHUNK_BYTES,
            ) as writer:
                for path in part:
                    for first, frames in runs(path, *cut):
                        writer.write({"key": key_of(path, first), "frames": frames})

        out.mkdir()
        in_two(work, paths)
        self.merge(str(out), keep_local=True)

    def read(self, out: Path) -> Iterator[tuple[str, np.ndarray]]:
        for sample in self.streaming.StreamingDataset(local=str(out), shuffle=False, batch_size=1):
            yield sample["key"], sample["frames"]


WRITERS = {
    "floor": Floor,
    "vidbrain": Vidbrain,
    "webdataset": WebDataset,
    "litdata": LitData,
    "mosaicml-streaming": MosaicML,
}


def fidelity(writer: object, out: Path, paths: list[str], cut: tuple[int, int, int]) -> dict:
    """Read everything back by the writer's own reader, and compare it with what was decoded."""
    wanted = {key_of(path, first): frames for path in paths for first, frames in _copies(path, cut)}
    n_frames, squares, n_values, keys = 0, 0.0, 0, []
    for key, frames in writer.read(out):
        keys.append(key)
        if key in wanted:
            squares += float(np.square(frames.astype(np.int32) - wanted[key]).sum(dtype=np.float64))
            n_values += frames.size
            n_frames += len(frames)
    if len(set(keys)) != len(keys) or not wanted.keys() <= set(keys):
        raise SystemExit(f"{len(wanted.keys() - set(keys))} samples are lost, {len(keys) - len(set(keys))} are double")
    error = squares / n_values
    return {"psnr_db": None if error == 0 else round(10 * np.log10(255**2 / error), 2), "n_frames_compared": n_frames}


def _copies(path: str, cut: tuple[int, int, int]) -> Iterator[tuple[int, np.ndarray]]:
    for first, frames in runs(path, *cut):
        yield first, frames.copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("writer", choices=WRITERS)
    parser.add_argument("form")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("cut", type=int, nargs=3, help="frames that a sample owns, of its margin, and pixels")
    parser.add_argument("--compare", type=int, default=0, help="recordings that are read back and compared")
    options = parser.parse_args()
    paths = sorted(map(str, options.source.glob("*.mp4")))
    cut = tuple(options.cut)
    with contextlib.redirect_stdout(sys.stderr):
        writer = WRITERS[options.writer](options.form)
        began = time.perf_counter()
        writer.write(paths, options.out, cut)
        seconds = time.perf_counter() - began
        # Before anything is read back: a reader may unpack files beside those that were written.
        files = [path for path in options.out.rglob("*") if path.is_file()]
        found = {"seconds": seconds, "n_files": len(files), "n_bytes": sum(path.stat().st_size for path in files)}
        if options.compare:
            found |= fidelity(writer, options.out, paths[: options.compare], cut)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
