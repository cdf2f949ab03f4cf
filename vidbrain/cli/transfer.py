"""``vidbrain push`` and ``vidbrain pull``."""

from __future__ import annotations

from pathlib import Path

from vidbrain.cli.console import Console, Flag
from vidbrain.storage.trees import Transfer, download_tree, upload_tree


def push(local: Path, url: str, /, *, dry_run: Flag = False, json: Flag = False) -> None:
    """Copy a finished artefact to object storage.

    Example: `vidbrain push shards/demo/bold s3://bucket/bold`

    Parameters
    ----------
    local
        Its folder: shards, codes, a BOLD store, a set of features, a model or a result.
    url
        Where to: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, or a folder.
    dry_run
        Compare and count, and write nothing.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    done = upload_tree(local, url, progress=console.progress(), dry_run=dry_run)
    console.print_result({"from": str(local), "to": url, **_facts(done, dry_run=dry_run)})


def pull(url: str, local: Path, /, *, dry_run: Flag = False, json: Flag = False) -> None:
    """Copy a finished artefact from object storage.

    Example: `vidbrain pull s3://bucket/bold shards/bold`

    Parameters
    ----------
    url
        Its root: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, or a folder.
    local
        Folder to write; new, empty, or with a part of the same artefact.
    dry_run
        Compare and count, and write nothing.
    json
        Print the result as JSON.
    """
    console = Console(json=json)
    done = download_tree(url, local, progress=console.progress(), dry_run=dry_run)
    console.print_result({"from": url, "to": str(local), **_facts(done, dry_run=dry_run)})


def _facts(done: Transfer, *, dry_run: bool) -> dict[str, object]:
    sent = "to_send" if dry_run else "sent"
    return {
        "artefact": done.kind,
        "objects": done.n_objects,
        "n_bytes": done.n_bytes,
        sent: done.n_sent,
        f"{sent}_bytes": done.n_bytes_sent,
        "fingerprint": done.fingerprint,
    }
