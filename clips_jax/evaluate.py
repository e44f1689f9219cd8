"""Evaluates a checkpoint.

  python -m clips_jax.evaluate --workdir runs/demo
  python -m clips_jax.evaluate --workdir runs/demo --step 1000 --output runs/at_1000 --only retrieval/unseen_drawings

Restores the newest checkpoint (or `--step`) of a training workdir onto whatever devices are there, runs the evaluators
of its config, prints the table and writes `results.json` into `--output` (default: the workdir).
"""

import argparse
import sys
from collections.abc import Sequence

import jax
from absl import logging
from etils import epath

from clips_jax.checkpoint import CheckpointMismatch
from clips_jax.config import ConfigError, MeshConfig
from clips_jax.evaluators.results import results_table, write_results
from clips_jax.evaluators.run import evaluate_all, evaluator_names
from clips_jax.pretrained import load
from clips_jax.sharding import join_processes


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
        mesh = MeshConfig(fsdp=arguments.fsdp)
        model = load(arguments.workdir, step=arguments.step, data_dir=arguments.data_dir, mesh=mesh)
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
