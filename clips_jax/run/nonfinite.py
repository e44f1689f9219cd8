"""What to do when numbers go wrong: count, go on, go back, or stop."""

import math
from collections.abc import Mapping

from clips_jax.config import NonFiniteConfig
from clips_jax.run.stops import RunStopped


class NonFiniteError(RunStopped):
    """The loss, a gradient or a parameter stopped being a number, again and again."""


class Rewind(Exception):
    """Back to a checkpoint, and on with the data after the bad steps.

    Attributes: step: the last bad one; proven: the last step whose parameters are known to be good.
    """

    def __init__(self, step: int, proven: int):
        super().__init__(step, proven)
        self.step, self.proven = step, proven


# The counters, all 0 at the start of a run.
_NAMES = ("nonfinite_steps", "nonfinite_in_a_row", "nonfinite_proven", "rewinds")


class NonFiniteCounter:
    """Follows the steps of a run. The step itself leaves parameters and optimizer as they were, on all processes alike.

    Attributes:
      counters: "nonfinite_steps" and "rewinds" since the run began, the present "nonfinite_in_a_row" and, of these,
        "nonfinite_proven" (see `proven`). Saved with each checkpoint, so that a resumed run decides as the
        uninterrupted one would.
    """

    def __init__(self, config: NonFiniteConfig, counters: Mapping[str, int]):
        self._config = config
        self.counters = {name: counters.get(name, 0) for name in _NAMES}

    @property
    def proven(self) -> int:
        """Once a bad step was seen: the last step whose parameters are known to be good."""
        return self.counters["nonfinite_proven"]

    def see(self, step: int, metrics: Mapping[str, float], finite: bool) -> None:
        """One step's metrics, in order.

        Raises:
          Rewind, NonFiniteError: after `stop_after` skipped updates in a row.
        """
        counters = self.counters
        if finite:
            counters["nonfinite_in_a_row"] = 0
            return
        counters["nonfinite_steps"] += 1
        counters["nonfinite_in_a_row"] += 1
        if counters["nonfinite_in_a_row"] == 1:
            # Parameters are proven good by the next step's loss and gradient: if these are what failed, a checkpoint
            # of the step before this one is suspect.
            good = math.isfinite(metrics["loss"] + metrics["gradient_norm"])
            counters["nonfinite_proven"] = max(step - (1 if good else 2), 0)
        in_a_row = counters["nonfinite_in_a_row"]
        if in_a_row < self._config.stop_after:
            return
        if counters["rewinds"] < self._config.rewinds:
            counters["rewinds"] += 1
            counters["nonfinite_in_a_row"] = 0
            raise Rewind(step, self.proven)
        parts = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k.startswith(("loss", "gradient_norm")))
        raise NonFiniteError(
            f"step {step}: the loss, a gradient or a parameter is not finite, {in_a_row} steps in a row ({parts}). "
            "These updates were not applied."
        )
