"""Evaluates a checkpoint.

  python -m clips_jax.evaluate --workdir runs/demo
  python -m clips_jax.evaluate --workdir runs/demo --step 1000 --output runs/at_1000 --only retrieval/unseen_drawings

Restores the newest checkpoint (or `--step`) of a training workdir onto whatever devices are there, runs the evaluators
of its config, prints the table and writes `results.json` into `--output` (default: the workdir).
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from clips_jax.checkpoint import CheckpointMismatch, Checkpoints, check_tokenizer
from clips_jax.config import Config, ConfigError, MeshConfig
from clips_jax.config.parse import from_config_dict
from clips_jax.encode import Encoder
from clips_jax.evaluators.results import results_table, write_results
from clips_jax.evaluators.run import evaluate_all, evaluator_names
from clips_jax.program import make_program
from clips_jax.sharding import join_processes


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's model, ready to encode.

    Attributes:
      config: the run's, but for the mesh, which is that of the devices here.
      samples_seen: by the checkpoint.
    """

    config: Config
    encoder: Encoder
    step: int
    samples_seen: int


def restore(workdir: str, step: int | None = None, data_dir: str = "", mesh: MeshConfig | None = None) -> Restored:
    """The model of a checkpoint on all devices.

    Args:
      workdir: of a training run.
      step: None is the newest complete checkpoint.
      data_dir: TFDS folder, if the data has moved since.
      mesh: None spreads the batch over all devices, each with all parameters.

    Raises:
      FileNotFoundError: no such workdir or step. CheckpointMismatch: another tokenizer lies where the run's was.
    """
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        steps = checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise FileNotFoundError(f"{checkpoints.directory} has no complete {wanted}; there are steps {steps}.")
        step = steps[-1] if step is None else step
        meta: dict[str, Any] = checkpoints.meta(step)
        config = from_config_dict(meta["config"])
        # The batch size plays no part here, but must divide over the devices.
        changes: dict[str, Any] = {"mesh": mesh or MeshConfig(), "batch_size": config.batch_size * jax.device_count()}
        if data_dir:
            changes["data"] = dataclasses.replace(config.data, data_dir=data_dir)
        program = make_program(dataclasses.replace(config, **changes))
        check_tokenizer(meta["tokenizer"], program.tokenizer_identity(), checkpoints.path(step))
        params = checkpoints.restore_params(step, program.state_shapes.params)
    encoder = Encoder(program.config, program.model, program.tokenizer, program.mesh, params)
    return Restored(program.config, encoder, step, meta["samples_seen"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="workdir of a training run")
    parser.add_argument("--step", type=int, help="checkpoint to evaluate (default: the newest)")
    parser.add_argument("--output", help="folder for results.json (default: the workdir)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="evaluators to run (default: all; see --list)")
    parser.add_argument("--list", action="store_true", help="print the names of the run's evaluators and stop")
    parser.add_argument("--data_dir", default="", help="TFDS folder, if the data has moved since")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share one copy of the parameters (default 1)")
    parser.add_argument("--distributed", action="store_true", help="join other processes, as in clips_jax.main")
    arguments = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what was opened for reading is read-only
    if arguments.distributed:
        join_processes()
    try:
        model = restore(arguments.workdir, arguments.step, arguments.data_dir, MeshConfig(fsdp=arguments.fsdp))
        if arguments.list:
            print("\n".join(evaluator_names(model.config)))
            return
        results = evaluate_all(model.config, model.encoder, only=arguments.only)
    except (ConfigError, CheckpointMismatch, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")  # the message says what to do; a traceback would bury it
    folder = epath.Path(arguments.output or arguments.workdir)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{results_table(results)}\n\nwritten to {folder / 'results.json'}")
    write_results(folder / "results.json", model.step, model.samples_seen, results)


if __name__ == "__main__":
    main()
