"""One run per workdir: a second one started by mistake refuses, a restart right after kill -9 does not."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging
from etils import epath

from clips_jax.run.stops import RunStopped, is_disk_full

LOCK_FILE = "lock.json"
# A lease is renewed this often, in seconds, and is void when it was not renewed for three times as long (assumption).
LEASE = 20.0


class WorkdirInUse(RunStopped):
    """Another run writes into this workdir."""


class WorkdirNotWritable(RunStopped):
    """Nothing can be written there: another user's, a read-only disk, a file."""


@contextlib.contextmanager
def workdir_lock(workdir: str, on_lost: Callable[[str], None], lease: float = LEASE) -> Iterator[None]:
    """Holds the workdir; process 0 of a run calls it.

    On a local disk `flock` on `lock.json`: the kernel drops it with the process, however that ends. On object stores,
    and on file systems without `flock`, a lease in the same file: renewed by a thread, taken over when it stands still.

    Args:
      workdir: created if it is not there.
      on_lost: called if a lease that could not be renewed for long was taken over.
      lease: seconds between renewals.

    Raises:
      WorkdirInUse: names who holds it. WorkdirNotWritable.
    """
    folder = epath.Path(workdir)
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        locked = None if "://" in workdir else _flock(path)
        locked = locked or contextlib.closing(_Lease(path, lease, on_lost))
    except OSError as error:
        if is_disk_full(error):
            raise
        raise WorkdirNotWritable(
            f"{folder} cannot be written: {error}. Make it writable for this user, or use another --workdir."
        ) from error
    with locked:
        yield


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _refuse(path: epath.Path, holder: dict[str, Any]) -> WorkdirInUse:
    return WorkdirInUse(
        f"{path.parent}: another run writes here, on {holder.get('host', 'an unknown host')}, process "
        f"{holder.get('pid', 'unknown')}. Stop it first, or use another --workdir."
    )


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def _held(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _flock(path: epath.Path) -> contextlib.AbstractContextManager[Any] | None:
    """The lock; None where the file system knows no locks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited: data workers do not hold it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _refuse(path, _read(path)) from None
    except OSError as error:
        os.close(descriptor)
        logging.warning("%s: no file locks here (%s), a lease is used.", path, error)
        return None
    with contextlib.suppress(OSError):  # who holds it is for the message alone; the disk may be full
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(_me()) + "\n").encode(), 0)
    return _held(descriptor)


class _Lease:
    """A file that its holder rewrites; who finds it unchanged for long enough may take it.

    Two that take over within the same second are told apart by reading it back. Times are measured by the reader's own
    clock, so hosts need not agree on the time.
    """

    def __init__(self, path: epath.Path, lease: float, on_lost: Callable[[str], None]):
        self._path, self._lease, self._on_lost, self._number = path, lease, on_lost, 0
        self._content = _me() | {"owner": uuid.uuid4().hex}
        holder = _read(path)
        if holder.get("owner") and not self._is_gone(holder):
            logging.warning("%s: held by %s; waiting whether it is renewed.", path, holder)
            deadline = time.monotonic() + 3 * lease
            while time.monotonic() < deadline:
                time.sleep(lease / 4)
                if _read(path) != holder:
                    raise _refuse(path, holder)
        self._write()
        time.sleep(min(1.0, lease / 4))
        if (winner := _read(path)).get("owner") != self._content["owner"]:
            raise _refuse(path, winner)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @staticmethod
    def _is_gone(holder: dict[str, Any]) -> bool:
        """A process of this host that no longer exists."""
        if holder.get("host") != socket.gethostname():
            return False
        if holder.get("pid") == os.getpid():  # a container that was restarted
            return True
        try:
            os.kill(int(holder["pid"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _write(self) -> None:
        self._number += 1
        self._path.write_text(json.dumps(self._content | {"renewed": self._number}) + "\n")

    def _renew(self) -> None:
        while not self._closed.wait(self._lease):
            try:
                if _read(self._path).get("owner") not in (None, self._content["owner"]):
                    self._on_lost(f"{self._path}: another run has taken this workdir over.")
                    return
                self._write()
            except Exception as error:  # a store that is away for a moment
                logging.warning("%s: not renewed: %s", self._path, error)

    def close(self) -> None:
        """Frees the workdir."""
        self._closed.set()
        self._thread.join(self._lease)
        if _read(self._path).get("owner") == self._content["owner"]:
            self._path.unlink(missing_ok=True)
