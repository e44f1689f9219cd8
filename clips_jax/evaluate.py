"""Evaluates a checkpoint.

  python -m clips_jax.evaluate --workdir /tmp/demo
  python -m clips_jax.evaluate --workdir /tmp/demo --step 1000 --output /tmp/at_1000 --mesh.data=1

Restores the newest checkpoint (or `--step`) of a training workdir onto whatever devices are there, runs the evaluators
of its config, prints the table and writes `results.json` into `--output` (default: the workdir).
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from clips_jax.checkpoint import CheckpointMismatch, Checkpoints, check_tokenizer
from clips_jax.config import Config, ConfigError, MeshConfig
from clips_jax.config_parse import from_config_dict
from clips_jax.encode import Encoder
from clips_jax.evaluators.results import results_table, write_results
from clips_jax.evaluators.run import evaluate_all, evaluator_names
from clips_jax.program import make_program


def load_encoder(
    workdir: str, step: int | None = None, config_changes: dict[str, Any] | None = None
) -> tuple[Config, Encoder, int]:
    """The model of a checkpoint on all devices, data-parallel.

    Args:
      workdir: of a training run.
      step: None is the newest complete checkpoint.
      config_changes: top-level config keys to replace, as in the JSON form.

    Returns:
      the config, the encoder, the checkpoint's step.

    Raises:
      FileNotFoundError: no such workdir or step. CheckpointMismatch: another tokenizer lies where the run's was.
    """
    checkpoints = Checkpoints(workdir)
    steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        raise FileNotFoundError(
            f"{checkpoints.directory}: no complete checkpoint of step {step or 'any'}; there are {steps}."
        )
    step = steps[-1] if step is None else step
    meta = checkpoints.meta(step)
    config = from_config_dict(meta["config"] | (config_changes or {}))
    # The run's mesh need not exist here: parameters are laid out over the devices that do.
    config = dataclasses.replace(config, mesh=MeshConfig(), batch_size=config.batch_size * jax.device_count())
    program = make_program(config)
    check_tokenizer(meta["tokenizer"], program.tokenizer_identity(), checkpoints.path(step))
    params = checkpoints.restore_params(step, program.state_shapes.params)
    return config, Encoder(config, program.model, program.tokenizer, program.mesh, params), step


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="workdir of a training run")
    parser.add_argument("--step", type=int, help="checkpoint to evaluate (default: the newest)")
    parser.add_argument("--output", help="folder for results.json (default: the workdir)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="evaluators to run, e.g. retrieval/unseen_drawings")
    parser.add_argument("--data_dir", help="TFDS folder, if the data has moved since")
    parser.add_argument("--list", action="store_true", help="print the checkpoint's evaluators and stop")
    arguments = parser.parse_args(argv)
    try:
        changes = {}
        if arguments.data_dir:
            newest = Checkpoints(arguments.workdir)
            step = arguments.step or newest.latest_step()
            if step is not None:
                changes["data"] = newest.meta(step)["config"]["data"] | {"data_dir": arguments.data_dir}
        config, encoder, step = load_encoder(arguments.workdir, arguments.step, changes)
        if arguments.list:
            print("\n".join(evaluator_names(config)))
            return
        results = evaluate_all(config, encoder, only=arguments.only)
    except (ConfigError, CheckpointMismatch, FileNotFoundError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if jax.process_index() == 0:
        folder = epath.Path(arguments.output or arguments.workdir)
        folder.mkdir(parents=True, exist_ok=True)
        saved = Checkpoints(arguments.workdir).meta(step)
        write_results(folder / "results.json", step, saved["samples_seen"], results)
        print(results_table(results))
        print(f"\nwritten to {folder / 'results.json'}")


if __name__ == "__main__":
    main()
