"""How a run ends before its time: exit codes, and the exceptions that carry them to `main`."""

import errno
import os

# "Temporary failure" of sysexits.h: the same command again goes on where this run stopped. Launchers restart on it, and
# on death by a signal (137 is kill -9 or the kernel out of memory, 134 the coordination service ending a lost process).
RESTART = os.EX_TEMPFAIL  # 75
FAILED = 1
INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT, as shells say it


class RunStopped(RuntimeError):
    """The run cannot or must not go on; the message says what to do. Attributes: exit_code: of the process."""

    exit_code = FAILED


class Preempted(RunStopped):
    """A signal asked the run to stop, and everything is saved."""

    def __init__(self, message: str, exit_code: int = RESTART):
        super().__init__(message)
        self.exit_code = exit_code


class DiskFull(RunStopped):
    """The workdir's disk takes no more."""


# No space, quota used up, and the limit of `ulimit -f`.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = tuple(os.strerror(number) for number in _FULL)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one it came from, says that a disk is full.

    TensorStore and TensorFlow raise types of their own and keep the system's words.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(text in str(error) for text in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False
