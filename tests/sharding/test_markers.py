"""Commit markers: an index is written from their numbers, so none of them is taken that cannot be."""

import json

import numpy as np
import pytest

from vidbrain.sharding.codes import write_codes
from vidbrain.sharding.manifest import DamagedMarkerError, open_manifest, read_marker
from vidbrain.sharding.repair import repair
from vidbrain.sharding.verify import verify
from vidbrain.sharding.writer import write_shards


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def in_place(name, value):
    return lambda marker: marker["segments"][1].update({name: value})


DAMAGES = {
    "a part longer": lambda marker: marker["segments"][1]["parts"].__setitem__(0, 1),
    "a part more": lambda marker: marker["segments"][1]["parts"].append(0),
    "no parts": in_place("parts", []),
    "parts that are one": in_place("parts", 7),
    "a negative part": lambda marker: marker["segments"][1]["parts"].extend([-5, 5]),
    "a place as text": in_place("offset", "512"),
    "a place before the tar": in_place("offset", -512),
    "a place beyond the tar": in_place("offset", 2**40),
    "a fraction": in_place("n_bytes", 12.0),
    "a truth": in_place("crc32", True),
    "no integer of Parquet": in_place("crc32", 2**63),
    "checksums that are one": in_place("part_crc32", 7),
    "no checksums": in_place("part_crc32", None),
    "a checksum as text": in_place("part_crc32", ["a", "b", "c"]),
    "no dictionary": lambda marker: marker["segments"].__setitem__(1, [1, 2]),
    "a segment more": lambda marker: marker["segments"].append(marker["segments"][1]),
    "a segment less": lambda marker: marker["segments"].pop(),
    "keys that are numbers": lambda marker: marker.update(keys=list(range(len(marker["keys"])))),
    "a checksum that is none": lambda marker: marker.update(sha256="../../etc"),
    "a length that is none": lambda marker: marker.update(n_bytes=True),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_marker_that_cannot_be_is_damaged_and_its_shard_is_made_again(videos, config, tmp_path, damage):
    root = tmp_path / "d"
    write_shards(videos, root, config)
    before = files_of(root)
    path = root / "shards" / "000001.json"
    marker = json.loads(path.read_text())
    damage(marker)
    path.write_text(json.dumps(marker))
    with pytest.raises(DamagedMarkerError, match="its marker is damaged"):
        read_marker(root, 1)
    assert [found.shard for found in verify(root)] == [1]
    assert repair(root, videos) == [1]
    assert files_of(root) == before
    path.write_text(json.dumps(marker))
    (root / "dataset.json").unlink()
    write_shards(videos, root, config)
    assert files_of(root) == before


def test_a_marker_nested_too_deeply_is_damaged(videos, config, tmp_path):
    write_shards(videos, tmp_path / "d", config)
    (tmp_path / "d" / "shards" / "000001.json").write_text("[" * 100_000)
    with pytest.raises(DamagedMarkerError):
        read_marker(tmp_path / "d", 1)


def test_the_only_part_in_a_marker_of_codes_counts_clips(videos, config, tmp_path):
    write_shards(videos, tmp_path / "d", config)
    manifest = open_manifest(tmp_path / "d")

    def encode(positions):
        for position in positions:
            yield position, np.zeros((3, 1, 2, 2), np.uint16)

    write_codes(tmp_path / "c", manifest, encode, config={}, made_from={"shards": manifest.fingerprint}, facts={})
    assert verify(tmp_path / "c", kind="codes") == []
    path = tmp_path / "c" / "shards" / "000000.json"
    marker = json.loads(path.read_text())
    assert [place["parts"] for place in marker["segments"]] == [[3]] * len(marker["keys"])
    marker["segments"][0]["parts"] = [1, 2]
    path.write_text(json.dumps(marker))
    assert [found.shard for found in verify(tmp_path / "c", kind="codes")] == [0]


def test_a_sound_index_knows_more_than_a_marker(videos, config, tmp_path):
    """Of an older form, which has no checksums of parts: an index made from it would be weaker than the one there."""
    root = tmp_path / "d"
    write_shards(videos, root, config)
    before = files_of(root)
    path = root / "shards" / "000001.json"
    marker = json.loads(path.read_text())
    for place in marker["segments"]:
        del place["part_crc32"]
    path.write_text(json.dumps(marker))
    assert repair(root, videos) == [1]
    assert files_of(root) == before
