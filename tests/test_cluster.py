import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from vidbrain import cluster
from vidbrain.errors import StorageError, VidbrainError


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fails_with_a_hidden_cause(row):
    try:
        raise UnpicklableError("from", "PyAV")
    except UnpicklableError as error:
        raise StorageError("the disk is full", where=row, hint="free some space") from error


def fails_unforeseen(row):
    raise UnpicklableError("never", row)


@pytest.fixture(scope="module")
def client():
    with cluster.client("local", 2) as made:
        yield made


def test_the_error_of_a_row_comes_home_whole_and_nothing_is_logged(client, capfd):
    with pytest.raises(StorageError, match="the disk is full") as caught:
        list(client.run(fails_with_a_hidden_cause, ["/a/place"]))
    assert (caught.value.where, caught.value.hint) == ("/a/place", "free some space")
    assert "fails_with_a_hidden_cause" in str(caught.value.__cause__)  # for --debug
    with pytest.raises(VidbrainError, match="UnpicklableError: never 3"):
        list(client.run(fails_unforeseen, [3]))
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_ends_in_one_interrupt_and_no_traceback_of_a_worker(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        textwrap.dedent(
            """
            import signal, time
            from vidbrain import cluster

            if __name__ == "__main__":
                # As in a terminal: a shell that starts the tests in the background has them ignore it.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                try:
                    with cluster.client("local", 2) as client:
                        print("ready", flush=True)
                        list(client.run(time.sleep, [30, 30]))
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, script], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    out, errors = process.communicate(timeout=60)
    assert (out, errors) == ("interrupted\n", "")
