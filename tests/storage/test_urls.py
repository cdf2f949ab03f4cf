from pathlib import Path

import pytest

from vidbrain.errors import StorageError
from vidbrain.storage.objects import Root, open_root
from vidbrain.storage.roots import locate
from vidbrain.storage.urls import is_loopback, is_url, parse_url


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://bucket", "s3://bucket"),
        ("gs://bucket/a b", "gs://bucket/a b"),
        ("https://host:8080/a", "https://host:8080/a"),
        (Path("s3://bucket/a"), "s3://bucket/a"),  # a command line's path, which lost a slash
    ],
)
def test_urls_have_one_spelling(given, said):
    assert is_url(given)
    assert str(open_root(given)) == said
    assert locate(given) == Root(said)


def test_paths_stay_paths(tmp_path):
    assert locate(tmp_path) == locate(str(tmp_path)) == tmp_path
    assert locate(open_root(tmp_path)) == tmp_path
    assert not is_url("a/b:c")
    assert open_root("here").is_local
    assert Path(open_root("here").url).is_absolute()


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:hunter2@bucket/a",
        "https://hunter2@host/a",
        "az://container/a?sig=hunter2&se=1",
        "https://host/a#hunter2",
    ],
)
def test_a_url_with_a_secret_is_refused_and_the_secret_not_repeated(url):
    with pytest.raises(StorageError, match="must hold no user, password, token") as caught:
        open_root(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://host/a", "s3://bucket/a/../b", "s3://bucket/a//b", "s3://bucket/./a"])
def test_what_is_no_root_is_refused(url):
    with pytest.raises(StorageError):
        parse_url(url)


def test_places_below_a_root():
    root = open_root("s3://bucket/a")
    assert (root / "b" / "c.zarr").url == "s3://bucket/a/b/c.zarr"
    assert (root / "b").name == "b"
    with pytest.raises(StorageError):
        root / "../b"


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://127.0.0.1:9", True), ("http://localhost:9", True), ("http://[::1]:9", True), ("http://10.0.0.1", False)],
)
def test_loopback(url, expected):
    assert is_loopback(url) is expected
