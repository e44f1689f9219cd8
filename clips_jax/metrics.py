"""Where numbers go: `metrics.jsonl`, TensorBoard and the log (clu writers), and the progress line."""

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from etils import epath

from clips_jax.run.stops import DiskFull, is_disk_full

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, by step; a last line that was cut off by a kill, or any damaged one, is left out."""
    path = epath.Path(workdir) / METRICS_FILE
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:  # not JSON, or not even text
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            logging.warning("%s: left out a line that is not whole: %.60r", path, line)
    return rows


class MetricWriter:
    """Writes one object per logged step to `metrics.jsonl`, and the same numbers through clu to TensorBoard and log.

    Resumed at step s, rows after s are dropped and TensorBoard is rebuilt from the rest, so that no step appears twice.
    Only process 0 writes. A row is appended where files can grow; objects in a store cannot, there the whole file is
    written at saves and at the end (`flush(durable=True)`).

    A full disk does not end the run by itself: rows stay in memory, it is said once, and the next write that succeeds
    writes them all.
    """

    def __init__(self, workdir: str, resumed_step: int, stop_on_full_disk: bool = False):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        self._path = epath.Path(workdir) / METRICS_FILE
        self._grows = "://" not in workdir
        self._stop_on_full_disk = stop_on_full_disk
        self._behind = False  # whether the file lacks rows that memory has
        self._clu: Any = None
        self._open([row for row in read_metrics(workdir) if row["step"] <= resumed_step])

    def _open(self, rows: list[dict[str, Any]]) -> None:
        """Both files with these rows and no others."""
        from clu import metric_writers  # imports TensorFlow (seconds), so only where it is needed

        self._lines = [json.dumps(row) + "\n" for row in rows]
        self._written: dict[str, Any] = rows[-1] if rows else {}  # the last row on disk
        self._row: dict[str, Any] = {}  # the row being filled
        self._to_disk(self._rewrite)
        tensorboard = self._path.parent / "tensorboard"
        if tensorboard.exists():
            tensorboard.rmtree()
        summaries = metric_writers.SummaryWriter(os.fspath(tensorboard))
        for row in rows:
            summaries.write_scalars(row["step"], _scalars(row))
        self._clu = metric_writers.MultiWriter([summaries, metric_writers.LoggingWriter()])

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds to the row of this step; a new step closes the row before."""
        if not self._active:
            return
        if self._row and self._row["step"] != step:
            self.flush()
        self._row |= {"step": step, **metrics}

    def flush(self, durable: bool = False) -> None:
        """Closes the row: numbers that come later for the same step join it. `durable`: rows outlive a power failure.

        Raises:
          DiskFull: if the config says that a full disk stops the run.
        """
        if not self._active:
            return
        line = ""
        rewrite = self._behind or (durable and not self._grows)
        if self._row:
            same_step = self._row["step"] == self._written.get("step")
            # NaN is not JSON: a reader would choke on it.
            new = {key: value if math.isfinite(value) else str(value) for key, value in self._row.items()}
            row = (self._written if same_step else {}) | new
            line = json.dumps(row, allow_nan=False) + "\n"
            if same_step:
                self._lines[-1] = line
            else:
                self._lines.append(line)
            rewrite |= same_step and self._grows
            self._to_disk(lambda: self._to_tensorboard(self._row))
            self._written, self._row = row, {}
        if rewrite:
            self._to_disk(self._rewrite)
        elif self._grows and (line or durable):
            self._to_disk(lambda: self._append(line, durable))

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`: the run has gone back to it."""
        if self._active:
            self.flush()
            self._clu.close()
            self._open([row for row in map(json.loads, self._lines) if row["step"] <= step])

    def _to_disk(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            if not is_disk_full(error):
                raise
            if self._stop_on_full_disk:
                raise DiskFull(
                    f"{self._path}: the disk is full. Make room and start the same command again."
                ) from error
            if not self._behind:
                logging.error("%s: the disk is full; metrics stay in memory until there is room again.", self._path)
            self._behind = True

    def _to_tensorboard(self, row: dict[str, Any]) -> None:
        self._clu.write_scalars(row["step"], _scalars(row))
        self._clu.flush()

    def _append(self, line: str, durable: bool) -> None:
        with self._path.open("a") as file:
            file.write(line)
            if durable:
                _sync(file)

    def _rewrite(self) -> None:
        temporary = self._path.parent / f"{METRICS_FILE}.tmp"
        with temporary.open("w") as file:
            file.write("".join(self._lines))
            if self._grows:
                _sync(file)
        temporary.replace(self._path)
        self._behind = False

    def close(self) -> None:
        """Flushes and closes the clu writers."""
        if self._active:
            self.flush(durable=True)
            self._clu.close()


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _scalars(row: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if key != "step"}


def duration(seconds: float) -> str:
    """90 -> "1:30", 3700 -> "1:01:40", 200000 -> "2d 7:33:20"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Speed:
    """Training speed between logged steps; evaluation and other pauses do not count."""

    def __init__(self, batch_size: int, step: int):
        self._batch_size = batch_size
        self._step, self._time = step, time.perf_counter()
        self.seconds_per_step = math.nan

    def measure(self, step: int) -> float:
        """Images per second since the last call or `resume`."""
        now = time.perf_counter()
        if step > self._step:
            self.seconds_per_step = (now - self._time) / (step - self._step)
        self._step, self._time = step, now
        return self._batch_size / self.seconds_per_step  # NaN until two steps are apart

    def resume(self, step: int) -> None:
        """Starts anew after a pause."""
        self._step, self._time = step, time.perf_counter()


def progress_line(step: int, total: int, metrics: dict[str, float], seconds_left: float) -> str:
    """One line for people: step, loss and its parts, learning rate, images per second, time left.

    If the devices wait for data a twentieth of the time or more, it says so.
    """
    parts = "  ".join(
        f"{key.removeprefix('loss/').removeprefix('contrastive/')} {value:.3f}"
        for key, value in metrics.items()
        if key.startswith("loss/") and key != "loss/contrastive"
    )
    waits = metrics.get("time/data_wait", 0.0)
    waiting = f", {waits:.0%} of the time waiting for data" if waits >= 0.05 else ""
    left = "?" if math.isnan(seconds_left) else duration(seconds_left)
    return (
        f"step {step:>{len(str(total))}}/{total} {100 * step // total:3d}%  loss {metrics['loss']:.3f}  ({parts})  "
        f"lr {metrics['learning_rate']:.2e}  {metrics['time/images_per_second']:,.0f} images/s{waiting}  {left} left"
    )
