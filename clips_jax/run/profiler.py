"""A trace of a few steps, for TensorBoard's profile page or xprof: `--profile`."""

from typing import Any

import jax
from etils import epath

WARM_UP = 3  # steps before the trace: compilation, and the buffers that fill up
TRACED = 5


class Profiler:
    """Traces `TRACED` steps into WORKDIR/profile, from the fourth step of this process on; nothing if not wanted."""

    def __init__(self, workdir: str, first_step: int, wanted: bool):
        self._folder = epath.Path(workdir) / "profile"
        self._begin = first_step + 1 + WARM_UP
        self._wanted, self._active = wanted, False

    def before(self, step: int) -> None:
        """Before a step is dispatched."""
        if self._wanted and step == self._begin:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._active = True

    def after(self, step: int, metrics: Any) -> None:
        """After a step is dispatched; waits for it where the trace ends, and only there."""
        if self._active and step == self._begin + TRACED - 1:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still going: the run has fewer steps."""
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
            if jax.process_index() == 0:
                print(f"profile of {TRACED} steps: tensorboard --logdir {self._folder} (needs xprof)", flush=True)
