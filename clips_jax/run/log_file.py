"""`train.log`: everything that is logged, in the workdir."""

import contextlib
import logging as standard_logging
import sys
from collections.abc import Iterator

from absl import logging
from etils import epath


class _Handler(standard_logging.FileHandler):
    """Says once that it cannot write (a full disk), instead of a traceback for each line."""

    _silent = False

    def handleError(self, record: standard_logging.LogRecord) -> None:
        if not self._silent:
            self._silent = True
            print(f"{self.baseFilename}: cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


@contextlib.contextmanager
def log_to_file(workdir: str) -> Iterator[None]:
    """Sends INFO, clu's metric lines among them, to `WORKDIR/train.log`; process 0 calls it.

    Local folders only: objects in a store cannot grow line by line, and machines that train there collect stderr.
    """
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if "://" in workdir:
        yield
        return
    handler = _Handler(folder / "train.log")
    handler.setFormatter(logging.PythonFormatter())
    logging.get_absl_logger().addHandler(handler)
    try:
        yield
    finally:
        logging.get_absl_logger().removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
