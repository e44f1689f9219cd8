"""The training loop: the one place where everything meets."""

import contextlib
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from clips_jax.batch import Batch
from clips_jax.checkpoint import Checkpoints, check_config, check_tokenizer
from clips_jax.config import Config, to_dict
from clips_jax.data.bad_records import Replaced
from clips_jax.data.pipeline import train_batches
from clips_jax.encode import Encoder
from clips_jax.evaluators.results import flatten, results_table, write_results
from clips_jax.evaluators.run import check_evaluators, evaluate_all, evaluator_names, headline
from clips_jax.evaluators.split import Splits
from clips_jax.metrics import MetricWriter, Speed, progress_line
from clips_jax.program import Program, make_program
from clips_jax.report.report import write_report
from clips_jax.sharding import process_rows, to_devices
from clips_jax.train_step import TrainState


class NonFiniteError(RuntimeError):
    """The loss or a gradient stopped being a number."""


def train(config: Config, workdir: str) -> dict[str, dict[str, float]]:
    """Trains to the end, from the newest checkpoint if there is one; returns the final results.

    Leaves in `workdir`: `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `results.json` and
    `report.html`; `main` adds `train.log`.

    Raises:
      ConfigError, CheckpointMismatch: before anything compiles.
      NonFiniteError: see `_Loop.read`.
    """
    program = make_program(config)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    with contextlib.closing(checkpoints):
        step = checkpoints.latest_step()
        if step is not None:
            meta = checkpoints.meta(step)
            check_config(meta["config"], to_dict(config), checkpoints.path(step))
            check_tokenizer(meta["tokenizer"], program.tokenizer_identity(), checkpoints.path(step))
        first_params = _handed_over(program) if step is None and config.init_from else None
        check_evaluators(config)
        rows = process_rows(program.mesh, config.batch_size)
        batches = train_batches(config, rows, step or 0, config.total_steps)
        # What can be wrong with config, data and workdir has been found by now; from here on things compile.
        if step is not None:
            state, counters = checkpoints.restore(step, program.state_shapes), meta["counters"]
            _say(f"resuming from {checkpoints.path(step)}")
        else:
            state, counters = program.initial_state(), {"bad_records": 0}
            state = TrainState(state.step, first_params or state.params, state.opt_state)
        _say(f"{program.mesh.size} devices {dict(program.mesh.shape)}, {_count(state.params):,} parameters")
        if jax.process_index() == 0:
            (epath.Path(workdir) / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")
        loop = _Loop(program, checkpoints, workdir, step or 0, counters)
        with contextlib.closing(loop.writer), contextlib.closing(batches):
            return loop.evaluate(loop.run(state, batches))


def _handed_over(program: Program) -> Any:
    """Parameters of the newest checkpoint of `init_from`; the tokenizer must be the same, its lengths need not."""
    source = Checkpoints(program.config.init_from)
    with contextlib.closing(source):
        step = source.latest_step()
        if step is None:
            raise FileNotFoundError(f"init_from: no complete checkpoint in {source.directory}.")
        saved = {k: v for k, v in source.meta(step)["tokenizer"].items() if not k.startswith("length/")}
        check_tokenizer(saved, program.tokenizer.identity(), source.path(step))
        _say(f"parameters from {source.path(step)}, fresh optimizer")
        return source.restore_params(step, program.state_shapes.params)


class _Loop:
    """Steps, and what happens between them."""

    def __init__(
        self, program: Program, checkpoints: Checkpoints, workdir: str, first_step: int, counters: dict[str, int]
    ):
        self.program, self.config, self.workdir = program, program.config, workdir
        self.checkpoints, self.counters = checkpoints, dict(counters)
        self.bad_records_here = 0  # on this process, since they were last counted together
        self.writer = MetricWriter(workdir, first_step)
        self.speed = Speed(self.config.batch_size, first_step)
        self.encoder = Encoder(self.config, program.model, program.tokenizer, program.mesh, None)
        self.splits = Splits(self.config, self.encoder)  # opened once, embedded anew at each evaluation
        self.last_saved = first_step if checkpoints.latest_step() == first_step else None

    def run(self, state: TrainState, batches: Iterator[tuple[Batch, Replaced]]) -> TrainState:
        """All remaining steps; `batches` are theirs."""
        config, mesh, total = self.config, self.program.mesh, self.config.total_steps
        step_function = self.program.step()
        first = int(state.step)
        unread: tuple[int, Any, int] | None = None  # a step's metrics, read once the next step is dispatched
        for step in range(first + 1, total + 1):
            batch, stats = next(batches)
            state, metrics = step_function(state, to_devices(batch, mesh, config.batch_size))
            if unread:
                self.read(*unread)
            unread = (step, metrics, stats["bad_records"])
            if step == first + 1:
                jax.block_until_ready(metrics)  # compiled: the speed counts from here
                self.speed.resume(step)
            self.checkpoints.check()
            saves = step == total or step % config.checkpoint.every_steps == 0
            if saves or self.evaluates(step):
                self.read(*unread)
                unread = None
                if self.evaluates(step):
                    self.evaluate_during(step, state)
                if saves:
                    self.save(step, state)
                self.speed.resume(step)
        return state

    def evaluates(self, step: int) -> bool:
        """Whether the schedule evaluates at this step; the end is `evaluate`'s."""
        every = self.config.evaluation.every_steps
        return bool(every) and step % every == 0 and step < self.config.total_steps

    def read(self, step: int, device_metrics: Any, bad_records: int) -> None:
        """Metrics of one step: checked always, logged at the interval, at evaluations and at the end.

        Raises:
          NonFiniteError: with the step, the loss parts and the last good checkpoint. The update was not applied.
        """
        metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        self.bad_records_here += bad_records
        total = self.config.total_steps
        if not metrics.pop("finite"):
            self.writer.write(step, metrics)
            parts = (f"{k} {v:.4g}" for k, v in metrics.items() if k.startswith(("loss", "gradient_norm")))
            # Parameters are proven good by the next step's loss and gradient: if these are what failed, a checkpoint of
            # the step before this one is suspect.
            self.checkpoints.wait()
            proven = step - 1 if math.isfinite(metrics["loss"] + metrics["gradient_norm"]) else step - 2
            good = [saved for saved in self.checkpoints.steps() if saved <= proven]
            raise NonFiniteError(
                f"step {step}: the loss, a gradient or a parameter is not finite ({', '.join(parts)}). The update was "
                f"not applied. Last good checkpoint: {self.checkpoints.path(good[-1]) if good else 'none yet'}. Try a "
                "lower optimizer.learning_rate, a longer optimizer.warmup_samples, or optimizer.clip_norm=1."
            )
        if step % self.config.log_every_steps == 0 or step == total or self.evaluates(step):
            metrics["samples_seen"] = step * self.config.batch_size
            metrics["data/bad_records"] = self.count_bad_records()
            metrics["time/images_per_second"] = self.speed.measure(step)
            self.writer.write(step, metrics)
            _say(progress_line(step, total, metrics, self.speed.seconds_per_step * (total - step)))

    def count_bad_records(self) -> int:
        """Bad records replaced since the run began, on all processes; they call this together."""
        here = np.array([self.bad_records_here])
        self.bad_records_here = 0
        self.counters["bad_records"] += int(multihost_utils.process_allgather(here).sum())
        return self.counters["bad_records"]

    def evaluate_during(self, step: int, state: TrainState) -> None:
        """The evaluators on the schedule; the pixel baseline does not change, so it waits for the end."""
        self.encoder.params = state.params
        names = [name for name in evaluator_names(self.config) if not name.startswith("pixel_baseline/")]
        results = evaluate_all(self.config, self.encoder, only=names, splits=self.splits)
        self.writer.write(step, flatten(results))
        _say(
            "  ".join(
                [
                    f"step {step} ",
                    *(f"{k.removeprefix('retrieval/')} {v:.1f}" for k, v in headline(self.config, results).items()),
                ]
            )
        )

    def save(self, step: int, state: TrainState) -> None:
        """Metrics up to here go to disk first: a resumed run keeps every row up to its checkpoint."""
        self.writer.flush()
        self.count_bad_records()
        meta = {
            "config": to_dict(self.config),
            "tokenizer": self.program.tokenizer_identity(),
            "samples_seen": step * self.config.batch_size,
            "counters": dict(self.counters),  # a copy: it is written in the background
        }
        if self.last_saved != step:
            self.checkpoints.save(state, meta)
        self.last_saved = step

    def evaluate(self, state: TrainState) -> dict[str, dict[str, float]]:
        """The final table, `results.json` and `report.html`."""
        self.encoder.params = state.params
        step = int(state.step)
        samples, folder = step * self.config.batch_size, epath.Path(self.workdir)
        results = evaluate_all(self.config, self.encoder, splits=self.splits)
        self.writer.write(step, flatten(results))
        self.writer.flush()
        write_results(folder / "results.json", step, samples, results)
        report = write_report(folder, self.config, self.encoder, results, step, samples, self.splits)
        _say(f"\n{results_table(results)}\n\nreport: {report}")
        return results


def _count(params: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
        logging.info(line.strip())
