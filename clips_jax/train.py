"""A run from its start to its end: the one place where everything meets."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax

from clips_jax.checkpoint import Checkpoints, check_tokenizer
from clips_jax.config import Config, to_dict
from clips_jax.evaluators.run import Results, check_evaluators
from clips_jax.handover import prepare as prepare_handover
from clips_jax.loop import Loop, say
from clips_jax.program import Program, make_program
from clips_jax.run.guards import Guards, guard_run
from clips_jax.run.lock import workdir_lock
from clips_jax.run.log_file import log_to_file
from clips_jax.run.nonfinite import Rewind
from clips_jax.run.profiler import Profiler
from clips_jax.run.record import check_config, check_data, check_started, data_manifest, write_record
from clips_jax.run.stops import FAILED, Preempted
from clips_jax.train_step import TrainState


def train(
    config: Config, workdir: str, join: bool = False, allow_config_change: bool = False, profile: bool = False
) -> Results:
    """Trains to the end, from the newest checkpoint if there is one; returns the final results.

    Leaves in `workdir`: `config.json`, `run.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `train.log`,
    `results.json` and `report.html`.

    Args:
      config: of the run.
      workdir: local or an object store's folder, the same one for all processes.
      join: whether to find the other processes of the run first.
      allow_config_change: goes on in a workdir that belongs to another config.
      profile: traces a few steps into the workdir, see `run.profiler`.

    Raises:
      ConfigError, CheckpointMismatch, WorkdirInUse: before anything compiles.
      RunStopped: `Preempted`, `NonFiniteError`, `DiskFull`, `ReplicaMismatch`, `LostProcess`; each says what to do.
    """
    with guard_run(config, workdir, join) as guards, contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            held.enter_context(workdir_lock(workdir, lambda reason: guards.watchdog.stop(reason, FAILED)))
            held.enter_context(log_to_file(workdir))
        program = make_program(config)
        check_started(workdir, config, allow_config_change)
        checkpoints = Checkpoints(workdir, config.checkpoint, config.limits.save)
        with _finished(checkpoints, guards):
            return _train(program, checkpoints, workdir, guards, allow_config_change, profile)


@contextlib.contextmanager
def _finished(checkpoints: Checkpoints, guards: Guards) -> Iterator[None]:
    """Waits for the last save at the end; also after an error, unless other processes may be gone that it needs."""
    try:
        yield
    except Exception as error:
        if not guards.peers or isinstance(error, Preempted):
            guards.watchdog.beat("save", "the last one")
            checkpoints.close()
        raise
    guards.watchdog.beat("save", "the last one")
    checkpoints.close()


def _train(
    program: Program, checkpoints: Checkpoints, workdir: str, guards: Guards, allow_config_change: bool, profile: bool
) -> Results:
    config, step = program.config, checkpoints.latest_step()
    meta: dict[str, Any] = checkpoints.meta(step) if step is not None else {}
    data = data_manifest(config)
    if step is not None:
        check_config(meta["config"], to_dict(config), checkpoints.path(step), allow_config_change)
        check_tokenizer(meta["tokenizer"], program.tokenizer_identity(), checkpoints.path(step))
        check_data(meta.get("data"), data, checkpoints.path(step), allow_config_change)
    handover = prepare_handover(program) if step is None and config.init_from else None
    check_evaluators(config)
    loop = Loop(program, checkpoints, workdir, guards, step or 0, meta | {"data": data})
    loop.profiler = Profiler(workdir, step or 0, profile)
    with contextlib.closing(loop):
        batches = loop.batches(step or 0)
        # What can be wrong with config, data and workdir has been found by now; from here on things compile.
        if step is not None:
            state = checkpoints.restore(step, program.state_shapes)
            say(f"resuming from {checkpoints.path(step)}")
        else:
            state = program.initial_state()
            checkpoints.checksums(state)  # compiled here, so that the first save need not wait for it
            if handover:
                state = TrainState(state.step, handover.onto(state.params), state.opt_state)
                say("\n  ".join([f"parameters from {config.init_from}, fresh optimizer", *handover.notes]))
        say(f"{program.mesh.size} devices {dict(program.mesh.shape)}, {_count(state.params):,} parameters")
        if jax.process_index() == 0:
            write_record(workdir, config, program.mesh, program.tokenizer_identity(), data, step or 0)
        while True:
            try:
                with contextlib.closing(batches):
                    return loop.evaluate(loop.run(state, batches))
            except Rewind as rewind:
                state, batches = loop.rewind(rewind)


def _count(params: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
