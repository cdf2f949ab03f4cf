"""Watch a benchmark's processes from outside: what they hold in memory while they run."""

import os
import subprocess
import time
from pathlib import Path


def watch(process: subprocess.Popen, interval_s: float = 0.2) -> dict[str, int]:
    """Follow a process that leads a session, with all that it starts, to its end.

    Returns
    -------
    dict
        Peak resident bytes of the largest process, and of all together.
    """
    page, largest, together = os.sysconf("SC_PAGE_SIZE"), 0, 0
    while process.poll() is None:
        sizes = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == process.pid:  # its session
                sizes.append(int(fields[21]) * page)
        largest, together = max([largest, *sizes]), max(together, sum(sizes))
        time.sleep(interval_s)
    return {"largest_process_bytes": largest, "all_processes_bytes": together}
