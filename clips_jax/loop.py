"""The training loop: steps, and what happens between them."""

import dataclasses
import time
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from clips_jax.ahead import BatchesAhead
from clips_jax.checkpoint import Checkpoints
from clips_jax.config import ConfigError, to_dict
from clips_jax.data.bad_records import BadRecordCounter, Replaced
from clips_jax.data.pipeline import train_batches
from clips_jax.encode import Encoder
from clips_jax.evaluators.results import flatten, results_table, write_results
from clips_jax.evaluators.run import Results, evaluate_all, evaluator_names, headline
from clips_jax.evaluators.split import Splits
from clips_jax.metrics import MetricWriter, Speed, progress_line, read_metrics
from clips_jax.program import Program
from clips_jax.report.report import write_report
from clips_jax.run.guards import Guards
from clips_jax.run.nonfinite import NonFiniteCounter, NonFiniteError, Rewind
from clips_jax.run.profiler import Profiler
from clips_jax.run.replicas import make_replica_check
from clips_jax.run.stops import Preempted
from clips_jax.sharding import process_rows, to_devices
from clips_jax.train_step import TrainState


class _StopHere(Exception):
    """A preemption notice between two batches of an evaluation."""


@dataclasses.dataclass
class _Saves:
    """How long the loop stood still for saving, in seconds."""

    count: int = 0
    total: float = 0.0
    longest: float = 0.0
    unlogged: float = 0.0  # since the last logged row

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        self.unlogged += seconds
        self.longest = max(self.longest, seconds)


class Loop:
    """Steps, and what happens between them."""

    def __init__(
        self,
        program: Program,
        checkpoints: Checkpoints,
        workdir: str,
        guards: Guards,
        first_step: int,
        meta: dict[str, Any],
    ):
        """`meta` is what the checkpoint of `first_step` says, and the manifest of the data."""
        self.program, self.config, self.workdir = program, program.config, workdir
        self.checkpoints, self.guards, self.data = checkpoints, guards, meta["data"]
        counters = meta.get("counters", {})
        self.nonfinite = NonFiniteCounter(self.config.nonfinite, counters)
        self.bad_records = BadRecordCounter(self.config.data.max_bad_fraction, counters)
        self.counted_step = first_step  # up to which bad records are summed over processes
        self.skipped_batches = counters.get("skipped_batches", 0)  # left out by rewinds
        self.writer = MetricWriter(workdir, first_step, self.config.checkpoint.on_full_disk == "stop")
        self.speed = Speed(self.config.batch_size, first_step)
        self.saves = _Saves()
        self.profiler = Profiler(workdir, first_step, wanted=False)
        self.encoder = Encoder(self.config, program.model, program.tokenizer, program.mesh, None)
        self.encoder.between_batches = self.between_batches
        self.splits = Splits(self.config, self.encoder)  # opened once, embedded anew at each evaluation
        self.last_saved = first_step if checkpoints.latest_step() == first_step else None
        self.evaluation_due = meta.get("evaluation_due", False)  # the notice came before this step was evaluated
        self.check_replicas = make_replica_check(program.mesh, program.state_shapes)
        if best := self.config.checkpoint.keep_best:
            checkpoints.values.update({row["step"]: row[best] for row in read_metrics(workdir) if best in row})

    def close(self) -> None:
        """Closes what writes into the workdir."""
        self.profiler.close()
        self.writer.close()

    def batches(self, step: int) -> BatchesAhead:
        """The batches after `step`: their positions in the data are the steps', and on by what was left out."""
        mesh, size, skipped = self.program.mesh, self.config.batch_size, self.skipped_batches
        loaded = train_batches(self.config, process_rows(mesh, size), step + skipped, self.config.total_steps + skipped)
        return BatchesAhead(loaded, lambda batch: to_devices(batch, mesh, size))

    def run(self, state: TrainState, batches: BatchesAhead) -> TrainState:
        """All remaining steps; `batches` are theirs.

        Raises:
          Preempted: everything is saved. Rewind, NonFiniteError, ReplicaMismatch, DiskFull.
        """
        config, total = self.config, self.config.total_steps
        step_function = self.program.step()
        first = int(state.step)
        if self.evaluation_due:
            self.evaluate_during(first, state)
        self.guards.watchdog.beat("compile", f"step {first + 1}")
        if config.check_replicas_every_steps:
            self.check_replicas(state)  # what was restored; and it compiles here, not within the limit of a step
        metrics: Any = None
        unread: tuple[int, Any, Replaced] | None = None  # a step's metrics, read once the next step is dispatched
        for step in range(first + 1, total + 1):
            batch, replaced = batches.next(metrics)
            self.profiler.before(step)
            state, metrics = step_function(state, batch)
            self.profiler.after(step, metrics)
            if unread:
                self.read(*unread, batches)
            unread = (step, metrics, replaced)
            if step == first + 1:
                jax.block_until_ready(metrics)  # compiled: the speed counts from here
                self.speed.resume(step)
                batches.restart()
            self.guards.watchdog.beat("step", str(step))
            self.checkpoints.check()
            if config.check_replicas_every_steps and step % config.check_replicas_every_steps == 0:
                self.check_replicas(state)
            stops = self.guards.preemption.reached()
            saves = step == total or step % config.checkpoint.every_steps == 0 or stops
            saves |= bool(config.checkpoint.keep_best) and self.evaluates(step)
            if saves or self.evaluates(step):
                self.read(*unread, batches)
                unread = None
                self.evaluation_due = self.evaluates(step)
                if self.evaluation_due and not stops:
                    self.evaluate_during(step, state)
                # While updates are skipped the state stands still: saves would only push out those known to be good.
                if saves and (step == total or stops or not self.nonfinite.counters["nonfinite_in_a_row"]):
                    self.save(step, state)
                if stops:
                    self.stop(step)
                self.speed.resume(step)
                batches.restart()
        return state

    def evaluates(self, step: int) -> bool:
        """Whether the schedule evaluates at this step; the end is `evaluate`'s."""
        every = self.config.evaluation.every_steps
        return bool(every) and step % every == 0 and step < self.config.total_steps

    def stop(self, step: int) -> None:
        """Ends the run where a signal wants it, once the save is whole; raises `Preempted`."""
        self.guards.watchdog.beat("save", str(step))
        self.checkpoints.wait()
        self.writer.flush(durable=True)
        saved = self.checkpoints.latest_step()
        raise Preempted(
            f"stopped by a signal after step {step} of {self.config.total_steps}; the newest checkpoint is of step "
            f"{saved}. The same command goes on from there.",
            self.guards.preemption.exit_code,
        )

    def between_batches(self) -> None:
        """Called by the encoder before each batch of an evaluation."""
        self.guards.watchdog.beat("evaluation")
        if self.guards.preemption.reached():
            raise _StopHere

    def read(self, step: int, device_metrics: Any, replaced: Replaced, batches: BatchesAhead) -> None:
        """Metrics of one step: checked always, logged at the interval, at evaluations, at the end and if not finite.

        Raises:
          NonFiniteError: with the step, the loss parts and the last good checkpoint. Rewind: see `NonFiniteConfig`.
        """
        metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        self.bad_records.add(replaced)
        total, finite = self.config.total_steps, bool(metrics.pop("finite"))
        if not finite:
            self.writer.write(step, metrics)
            logging.warning("step %d: not finite, the update is skipped", step)
        try:
            self.nonfinite.see(step, metrics, finite)
        except NonFiniteError as error:
            self.checkpoints.wait()
            good = [saved for saved in self.checkpoints.steps() if saved <= self.nonfinite.proven]
            raise NonFiniteError(
                f"{error} Last good checkpoint: {self.checkpoints.path(good[-1]) if good else 'none yet'}. Try a lower "
                "optimizer.learning_rate, a longer optimizer.warmup_samples, optimizer.clip_norm=1, or, if it is the "
                "data, nonfinite.rewinds=1 to leave these batches out."
            ) from None
        if step % self.config.log_every_steps == 0 or step == total or self.evaluates(step):
            metrics["samples_seen"] = step * self.config.batch_size
            metrics |= {f"data/{name}": count for name, count in self.count_bad_records(step).items()}
            metrics["nonfinite_steps"] = self.nonfinite.counters["nonfinite_steps"]
            metrics["time/images_per_second"] = self.speed.measure(step)
            metrics["time/data_wait"] = batches.wait_share()
            metrics["time/save_stall_seconds"], self.saves.unlogged = self.saves.unlogged, 0.0
            if self.checkpoints.failed_saves:
                metrics["failed_saves"] = self.checkpoints.failed_saves
            self.writer.write(step, metrics)
            say(progress_line(step, total, metrics, self.speed.seconds_per_step * (total - step)))

    def rewind(self, rewind: Rewind) -> tuple[TrainState, BatchesAhead]:
        """Back to the newest scheduled checkpoint that is proven good, and on with the data after the bad steps.

        Only scheduled ones: a run that was preempted has others, and must not end differently. Nothing has to be
        written down at once: killed here, the run meets the same bad steps again and decides the same.
        """
        self.checkpoints.wait()
        every = self.config.checkpoint.every_steps
        good = [step for step in self.checkpoints.steps() if step <= rewind.proven and step % every == 0]
        if not good:
            raise NonFiniteError(
                f"step {rewind.step}: not finite, and there is no checkpoint to go back to: none was due up to step "
                f"{rewind.proven}. Try a lower optimizer.learning_rate, or save more often (checkpoint.every_steps)."
            )
        step = good[-1]
        self.skipped_batches += rewind.step - step
        say(
            f"step {rewind.step}: not finite; back to {self.checkpoints.path(step)}, and on with the data after it "
            f"({rewind.step - step} batches left out)"
        )
        self.guards.watchdog.beat("compile", "rewinding")
        self.checkpoints.discard_after(step)
        self.writer.rewind(step)
        self.last_saved, self.counted_step, self.evaluation_due = step, step, False
        return self.checkpoints.restore(step, self.program.state_shapes), self.batches(step)

    def count_bad_records(self, step: int) -> dict[str, int]:
        """Bad records replaced since the run began, on all processes, by reason; they call this together."""
        records = max(step - self.counted_step, 0) * self.config.batch_size
        self.counted_step = step
        return self.bad_records.count(
            records, lambda here: multihost_utils.process_allgather(here).reshape(-1, len(here)).sum(0)
        )

    def counters(self) -> dict[str, int]:
        """What a checkpoint remembers: a copy, for it is written in the background."""
        return self.bad_records.totals() | self.nonfinite.counters | {"skipped_batches": self.skipped_batches}

    def evaluate_during(self, step: int, state: TrainState) -> None:
        """The evaluators on the schedule; the pixel baseline does not change, so it waits for the end."""
        self.encoder.params = state.params
        names = [name for name in evaluator_names(self.config) if not name.startswith("pixel_baseline/")]
        try:
            results = evaluate_all(self.config, self.encoder, only=names, splits=self.splits)
        except _StopHere:
            self.save(step, state)
            self.stop(step)
        numbers = flatten(results)
        self.evaluation_due = False
        self.writer.write(step, numbers)
        if best := self.config.checkpoint.keep_best:
            if best not in numbers:
                raise ConfigError(f"checkpoint.keep_best: no result {best!r}; there are {', '.join(sorted(numbers))}.")
            self.checkpoints.values[step] = numbers[best]
        say(
            "  ".join(
                [
                    f"step {step} ",
                    *(f"{k.removeprefix('retrieval/')} {v:.1f}" for k, v in headline(self.config, results).items()),
                ]
            )
        )

    def save(self, step: int, state: TrainState) -> None:
        """Metrics up to here go to disk first: a resumed run keeps every row up to its checkpoint."""
        if self.last_saved == step:
            return
        self.guards.watchdog.beat("save", str(step))
        start = time.perf_counter()
        self.writer.flush(durable=True)
        self.count_bad_records(step)
        meta = {
            "config": to_dict(self.config),
            "tokenizer": self.program.tokenizer_identity(),
            "data": self.data,
            "samples_seen": step * self.config.batch_size,
            "counters": self.counters(),
            "evaluation_due": self.evaluation_due,
        }
        if self.checkpoints.save(state, meta):
            self.last_saved = step
        self.saves.add(time.perf_counter() - start)
        logging.info("step %d: saving in the background; the loop waited %.2f s", step, time.perf_counter() - start)

    def evaluate(self, state: TrainState) -> Results:
        """The final table, `results.json` and `report.html`."""
        self.encoder.params = state.params
        step = int(state.step)
        samples, folder = step * self.config.batch_size, epath.Path(self.workdir)
        try:
            results = evaluate_all(self.config, self.encoder, splits=self.splits)
            self.writer.write(step, flatten(results))
            self.writer.flush(durable=True)
            write_results(folder / "results.json", step, samples, results)
            report = write_report(folder, self.config, self.encoder, results, step, samples, self.splits)
        except _StopHere:
            self.stop(step)
            raise
        say(f"\n{results_table(results)}\n\nreport: {report}")
        if self.saves.count:
            saves = self.saves
            say(f"{saves.count} saves; training waited {saves.total:.1f} s for them, {saves.longest:.1f} s at most")
        if skipped := self.nonfinite.counters["nonfinite_steps"]:
            say(f"{skipped} updates were skipped because they were not finite")
        return results


def say(line: str) -> None:
    """A line for people, in the terminal and the log; process 0 speaks."""
    if jax.process_index() == 0:
        print(line, flush=True)
        logging.info(line.strip())
