"""The orphan guard: a process that outlives the supervisor by a moment, to end what the supervisor started.

The supervisor holds the write end of the guard's stdin. However the supervisor ends, SIGKILL and the kernel's
out-of-memory killer included, the kernel closes that pipe. The guard then kills every process of the server's process
session (setsid(2): API servers, EngineCores and workers all stay in it) and removes the run directory. It uses the
standard library only, so that it starts in milliseconds and keeps few megabytes: ``python -I -S guard.py RUN_DIR``.

Lines on stdin: ``+SID`` watches a process session, ``-SID`` forgets it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time


def in_process_session(pid: int, sid: int) -> bool:
    """Whether a process that is no zombie belongs to the process session (proc(5), fields 3 and 6 of stat)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command name, field 2, is in parentheses and may hold blanks itself.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:  # it ended meanwhile
        return False
    return int(fields[3]) == sid and fields[0] not in (b"Z", b"X")


def process_session_members(sid: int) -> list[int]:
    """The live processes of a process session."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and in_process_session(int(name), sid)]


def _is_tracker(pid: int) -> bool:
    """Whether it is a resource tracker of multiprocessing, which unlinks shared memory once its owners are gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"multiprocessing.resource_tracker" in file.read()
    except OSError:
        return False


def end_process_session(sid: int, timeout: float = 10.0, tracker_timeout: float = 2.0) -> bool:
    """SIGKILL until no process of a process session is left. One may fork while it is being killed, hence the loop.

    Resource trackers have ``tracker_timeout`` seconds to finish, or a dead engine's shared memory would stay behind in
    /dev/shm.

    Returns:
        False when processes are left after ``timeout`` seconds (stuck in the kernel).
    """
    begin = time.monotonic()
    while members := process_session_members(sid):
        elapsed = time.monotonic() - begin
        if elapsed > timeout:
            return False
        for pid in members:
            if elapsed < tracker_timeout and _is_tracker(pid):
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return True


def main() -> int:
    # Signals meant for the supervisor's group must not take the guard first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sessions: set[int] = set()
    for line in sys.stdin:
        word = line.strip()
        if word[:1] == "+":
            sessions.add(int(word[1:]))
        elif word[:1] == "-":
            sessions.discard(int(word[1:]))
    clean = all([end_process_session(sid) for sid in sessions])
    if len(sys.argv) > 1:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
