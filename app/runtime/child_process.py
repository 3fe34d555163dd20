"""Child processes that end with their parent, however it ends.

https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html

`spawn` starts this file as a tiny launcher (`python -I -S child_process.py PARENT COMMAND...`) that asks
the kernel for SIGKILL at its parent's death, raises the limit of open files and becomes the command
by exec. A launcher and not `preexec_fn`, because Python code between fork and exec can deadlock
where the parent has threads.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

PR_SET_PDEATHSIG = 1
SIGKILL = 9
OPEN_FILES = 64_000


def spawn(
    command: Sequence[str | os.PathLike[str]],
    *,
    output: IO[bytes] | int | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Start `command` so that it is killed when this process ends; its pid is the command's own.

    Standard output and error both go to `output`; `umask` is what files that it makes lack.
    The child has a session of its own: Ctrl-C reaches the parent only, which then stops its children in order. Where
    there is no such kernel call (not Linux), a parent that is killed leaves the child behind.

    Raises RuntimeError outside the main thread, because the kernel watches the thread that forked.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("child processes are started from the main thread only")
    return subprocess.Popen(  # noqa: S603 - commands are our own, never a client's
        [*launcher(), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        pass_fds=pass_fds,
        start_new_session=True,
        env=env,
        umask=umask,
    )


def launcher() -> tuple[str, ...]:
    """What a command is put behind so that it is killed when the thread that starts it ends, or its process."""
    return (sys.executable, "-I", "-S", __file__, str(os.getpid()))


def end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Ask a child to end, and kill it where it has not after so many seconds."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_with(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, ends."""
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call took effect
        sys.exit(1)


def _raise_open_files() -> None:
    """Debian's soft limit of 1,024 is too low for MongoDB with some hundred collections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"The limit of open files stays at {soft}: {error}\n")


def _become(parent: int, command: list[str]) -> None:
    end_with(parent)
    _raise_open_files()
    os.execv(command[0], command)  # noqa: S606 - no shell wanted


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
