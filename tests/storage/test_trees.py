import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vidbrain.cli.app import run
from vidbrain.cli.doctor import storage
from vidbrain.errors import ResumeError, StorageError
from vidbrain.storage.clients import PART_BYTES
from vidbrain.storage.info import write_info
from vidbrain.storage.objects import open_root
from vidbrain.storage.trees import CLAIM, download_tree, upload_tree
from vidbrain.testing.servers import Fault

N_SHARDS = 6


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def shards(tmp_path):
    return make(tmp_path / "data", seed=0)


def make(root, *, seed):
    """Files as a data set of shards has them; their content does not matter here."""
    rng = np.random.default_rng(seed)
    (root / "shards").mkdir(parents=True)
    for n in range(N_SHARDS):
        (root / "shards" / f"{n:06d}.tar").write_bytes(rng.bytes(20_000 + n))
        (root / "shards" / f"{n:06d}.json").write_text(json.dumps({"shard": n, "seed": seed}))
    (root / "index.parquet").write_bytes(rng.bytes(3000))
    write_info(root, "shards", config={"seed": seed}, made_from={}, name="dataset.json")
    return root


def test_a_folder_is_a_root_too(shards, tmp_path):
    (shards / "large.bin").write_bytes(bytes(PART_BYTES + 1))
    upload_tree(shards, str(tmp_path / "copy"))
    download_tree(str(tmp_path / "copy"), tmp_path / "back")
    assert tree(tmp_path / "copy") == tree(tmp_path / "back") == tree(shards)


def test_there_and_back(remote, shards, tmp_path):
    (shards / "shards" / "half.part-1").write_bytes(b"what a killed writer left")
    sent = upload_tree(shards, remote.root)
    assert (sent.kind, sent.n_objects, sent.n_sent) == ("shards", 14, 14)
    back = download_tree(remote.root, tmp_path / "back")
    assert (back.n_objects, back.n_sent, back.fingerprint) == (14, 14, sent.fingerprint)
    (shards / "shards" / "half.part-1").unlink()
    assert tree(tmp_path / "back") == tree(shards)
    assert [found.key for found in remote.root.list()] == sorted(tree(shards))
    assert upload_tree(shards, remote.root).n_sent == 0
    assert download_tree(remote.root, tmp_path / "back").n_sent == 0


def test_data_before_markers_before_the_root_record(honest, shards):
    upload_tree(shards, honest.root)
    puts = [seen.path.rpartition("deep/")[2] for seen in honest.proxy.seen if seen.method == "PUT"]
    assert puts[0] == CLAIM
    assert puts[-1] == "dataset.json"
    kinds = [path.rpartition(".")[2] for path in puts[1:-1]]
    assert set(kinds[: N_SHARDS + 1]) == {"tar", "parquet"}
    assert set(kinds[N_SHARDS + 1 :]) == {"json"}


def test_a_killed_push_goes_on_and_was_never_seen_as_whole(remote, shards, tmp_path):
    remote.proxy.inject(Fault("latency", method="PUT", path=".tar", delay_s=0.1, times=None))
    script = "import sys; from vidbrain.storage.trees import upload_tree; upload_tree(sys.argv[1], sys.argv[2])"
    slow = "import vidbrain.storage.trees as t; t.N_THREADS = 1; " + script
    process = subprocess.Popen([sys.executable, "-c", slow, str(shards), remote.url])
    for _ in range(600):
        if sum(seen.method == "PUT" and ".tar" in seen.path for seen in remote.proxy.seen) >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    remote.proxy.clear()
    there = {found.key for found in remote.root.list()}
    assert CLAIM in there
    assert "dataset.json" not in there
    with pytest.raises(StorageError, match="no finished artefact"):
        download_tree(remote.root, tmp_path / "back")
    done = upload_tree(shards, remote.root)
    assert 0 < done.n_sent <= 14 - 2
    assert sorted(found.key for found in remote.root.list()) == sorted(tree(shards))
    download_tree(remote.root, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(shards)


def test_a_killed_pull_goes_on(honest, shards, tmp_path):
    upload_tree(shards, honest.root)
    honest.proxy.inject(Fault("status", path="000004.tar", status=403, code="AccessDenied", times=None))
    with pytest.raises(StorageError, match="no permission"):
        download_tree(honest.root, tmp_path / "back")
    held = tree(tmp_path / "back")
    assert "dataset.json" not in held
    with pytest.raises(StorageError, match="no finished artefact"):
        upload_tree(tmp_path / "back", f"{honest.url}/elsewhere")
    honest.proxy.clear()
    done = download_tree(honest.root, tmp_path / "back")
    assert done.n_sent == 14 - len(set(held) - {CLAIM})
    assert tree(tmp_path / "back") == tree(shards)


def test_what_was_damaged_since_is_sent_again(honest, shards):
    upload_tree(shards, honest.root)
    honest.root.put("shards/000002.tar", b"x" * 20_002)
    honest.root.delete("shards/000001.json")
    assert upload_tree(shards, honest.root).n_sent == 2


def test_another_artefact_is_never_mixed_in(remote, shards, tmp_path):
    other = make(tmp_path / "other", seed=1)
    upload_tree(shards, remote.root)
    before = {found.key: found.etag for found in remote.root.list()}
    with pytest.raises(ResumeError, match="another artefact"):
        upload_tree(other, remote.root)
    with pytest.raises(ResumeError, match="another artefact"):
        download_tree(remote.root, other)
    # Nor into one that is only begun.
    begun = remote.root / "begun"
    begun.put(CLAIM, (other / "dataset.json").read_bytes())
    with pytest.raises(ResumeError, match="another artefact"):
        upload_tree(shards, begun)
    begun.delete(CLAIM)
    assert {found.key: found.etag for found in remote.root.list()} == before
    (remote.root / "used").put("thesis.docx", b"mine")
    with pytest.raises(StorageError, match=r"not empty: thesis\.docx"):
        upload_tree(shards, remote.root / "used")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.docx").write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"not empty: thesis\.docx"):
        download_tree(remote.root, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.docx"]


def test_only_finished_artefacts_travel(remote, shards, tmp_path):
    (shards / "dataset.json").unlink()
    with pytest.raises(StorageError, match="no finished artefact"):
        upload_tree(shards, remote.root)
    with pytest.raises(StorageError, match="read only"):
        upload_tree(shards, "http://127.0.0.1:9/a")
    with pytest.raises(StorageError, match="no such folder"):
        upload_tree(tmp_path / "none", remote.root)
    with pytest.raises(StorageError, match="no finished artefact"):
        download_tree(remote.root, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not remote.root.list()


def test_names_that_lead_out_of_the_folder_are_refused(shards, tmp_path, monkeypatch):
    source = tmp_path / "source"
    upload_tree(shards, open_root(source))
    listed = open_root(source).list()
    evil = [type(listed[0])("../outside.tar", 3, None), *listed]
    monkeypatch.setattr("vidbrain.storage.objects.Root.list", lambda *_: evil)
    with pytest.raises(StorageError, match="cannot be the name"):
        download_tree(open_root(source), tmp_path / "back")
    assert not (tmp_path / "outside.tar").exists()


def test_the_commands(honest, shards, tmp_path, capsys):
    push = ["push", str(shards), honest.url, "--json"]
    assert run([*push, "--dry-run"]) == 0
    captured = capsys.readouterr()
    planned = json.loads(captured.out)
    assert captured.err == ""
    assert (planned["objects"], planned["to_send"]) == (14, 14)
    assert not honest.root.list()
    assert run(push) == 0
    assert json.loads(capsys.readouterr().out)["sent"] == 14
    back = tmp_path / "back"
    assert run(["pull", honest.url, str(back), "--json", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["to_send"] == 14
    assert not back.exists()
    assert run(["pull", honest.url, str(back)]) == 0
    captured = capsys.readouterr()
    assert "14/14 objects" in captured.err
    assert tree(back) == tree(shards)
    assert run(["pull", "s3://KEY:hunter2@bucket/x", str(back)]) == 1
    captured = capsys.readouterr()
    assert "must hold no user" in captured.err
    assert "hunter2" not in captured.err + captured.out


def test_the_doctor_asks_a_place(honest, shards):
    empty = storage(honest.url)[0]
    assert (empty["found"], empty["problem"]) == (f"{honest.url} answers; no artefact is there", None)
    upload_tree(shards, honest.root)
    assert storage(honest.url)[0]["found"].endswith("it holds dataset.json")
    assert "no such bucket" in storage("s3://no-such-bucket/a")[0]["problem"]
    assert "must hold no user" in storage("s3://KEY:hunter2@bucket/a")[0]["problem"]


def test_a_storm_over_push_and_pull(remote, shards, tmp_path):
    for method in ("PUT", "HEAD", "GET"):
        for kind in ("status", "drop", "reset", "truncate"):
            remote.proxy.inject(Fault(kind, method=method, after_bytes=3000))
    upload_tree(shards, remote.root)
    remote.proxy.clear()
    for kind in ("drop", "reset", "truncate", "status"):
        for part in ("dataset.json", ".tar", ".parquet"):
            remote.proxy.inject(Fault(kind, path=part, after_bytes=1000))
    download_tree(remote.root, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(shards)


def test_the_same_push_twice_at_once(honest, shards):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: upload_tree(shards, honest.root), range(2)))
    assert both[0].fingerprint == both[1].fingerprint
    assert [found.key for found in honest.root.list()] == sorted(tree(shards))
    assert all(honest.root.get(key) == data for key, data in tree(shards).items())
