"""Evaluates a model: the newest checkpoint of a training workdir, or a folder with an exported or released model.

  python -m clips_jax.evaluate --workdir runs/demo
  python -m clips_jax.evaluate --workdir runs/demo --step 1000 --output runs/at_1000 --only retrieval/unseen_drawings
  python -m clips_jax.evaluate --model clips-l14/ --set coco_karpathy_test flickr30k_karpathy_test --data_root /data
  python -m clips_jax.evaluate --model clips-l14/ --set my_set.toml --output my_results.json
  python -m clips_jax.evaluate --list

Without `--set` it runs the evaluators of the workdir's config. `--set` names data sets: built-in ones, or TOML files of
yours (docs/evaluation.md). Pictures and texts are read as the model wants them, in float32. Results are printed as a
table and written as JSON, with 95 % bootstrap intervals over pictures for sets.
"""

import argparse
import sys
from collections.abc import Sequence

import jax
from absl import logging
from etils import epath

from clips_jax.config import MeshConfig
from clips_jax.evaluators.data_sets import built_in, read_data_set
from clips_jax.evaluators.results import results_table, write_results
from clips_jax.evaluators.run import Results, evaluate_all, evaluator_names
from clips_jax.evaluators.run_sets import SetEvaluation
from clips_jax.pretrained import Pretrained, load
from clips_jax.sharding import join_processes

_TASKS = ("retrieval", "classification", "linear_probe", "knn", "captioning")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser, arguments = _parse(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what was opened for reading is read-only
    if arguments.list and not arguments.workdir:
        _list_sets()
        return
    path = arguments.workdir or arguments.model
    if not path:
        parser.error("one of --workdir and --model is needed (or --list)")
    if arguments.model and not arguments.set:
        parser.error("--model needs --set: a model folder does not say what to evaluate on (--list names sets)")
    if arguments.distributed:
        join_processes()
    try:
        # What a file holds is checked before the model is read, which may take minutes.
        sets = [read_data_set(name) for name in arguments.set or ()]
        model = load(
            path,
            step=arguments.step,
            data_dir=arguments.data_dir,
            mesh=MeshConfig(fsdp=arguments.fsdp),
            positions=arguments.positions,
            exact=bool(arguments.set),
        )
        if arguments.list:
            print("\n".join(evaluator_names(model.config)))
            return
        results, notes, bad = Results(), [], {}
        if sets:
            for name, data_set in sets:
                root = arguments.data_root or (arguments.data_dir if data_set.records.format == "tfds" else "")
                evaluation = SetEvaluation(name, data_set, root, model.encoder)
                results |= evaluation.run(arguments.only)
                notes += evaluation.notes
                bad |= {name: evaluation.bad_pictures()}
        else:
            results = evaluate_all(model.config, model.encoder, only=arguments.only)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")  # the message says what to do; a traceback would bury it
    _write(arguments, model, results, notes, {name: names for name, names in bad.items() if names})


def _write(
    arguments: argparse.Namespace, model: Pretrained, results: Results, notes: list[str], bad: dict[str, list[str]]
) -> None:
    """Prints the table and writes the file; a model folder is not written into."""
    text = "\n\n".join(part for part in (results_table(results), "\n".join(f"Note: {note}" for note in notes)) if part)
    if arguments.output and arguments.output.endswith(".json"):
        file = epath.Path(arguments.output)
    elif arguments.output or arguments.workdir:
        file = epath.Path(arguments.output or arguments.workdir) / ("sets.json" if arguments.set else "results.json")
    else:
        file = None
    if jax.process_index() == 0:
        print(text)
        if file is None:
            print("\nnot written: name a file with --output")
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            print(f"\nwritten to {file}")
    if file is not None:
        more = {"model": model.path, "notes": notes, "bad_pictures": bad} if arguments.set else {}
        write_results(file, model.step, model.samples_seen, results, **more)


def _list_sets() -> None:
    for name in built_in("sets"):
        data_set = read_data_set(name)[1]
        print(f"{name}  ({', '.join(data_set.tasks)})")
        print("".join(f"    {line}\n" for line in data_set.description.splitlines()), end="")
    print(f"\nprompt templates: {', '.join(built_in('templates'))}\nclass names: {', '.join(built_in('class_names'))}")


def _parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--workdir", help="workdir of a training run")
    model.add_argument("--model", metavar="FOLDER", help="an export of ours, or a released CLIPS or OpenVision model")
    parser.add_argument("--step", type=int, help="of a workdir: checkpoint to evaluate (default: the newest)")
    parser.add_argument(
        "--positions", choices=("learned", "sincos"), default="", help="of a model folder: how positions are held"
    )
    parser.add_argument("--set", nargs="+", metavar="NAME|FILE.toml", help="data sets (default: the run's evaluators)")
    parser.add_argument("--data_root", default="", help="folder that the sets' paths are below (default: this one)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"evaluators of the run, or tasks of sets ({', '.join(_TASKS)})"
    )
    parser.add_argument(
        "--output",
        metavar="FILE.json|FOLDER",
        help="where the results go (default: results.json in the workdir; sets.json for sets)",
    )
    parser.add_argument(
        "--list", action="store_true", help="print the built-in sets, or with --workdir its evaluators, and stop"
    )
    parser.add_argument("--data_dir", default="", help="TFDS folder of the run's data, if it has moved since")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share one copy of the parameters (default 1)")
    parser.add_argument("--distributed", action="store_true", help="join other processes, as in clips_jax.main")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.only or ()) - set(_TASKS)) if arguments.set else []
    if unknown:
        parser.error(f"--only {unknown[0]}: with --set it names tasks: {', '.join(_TASKS)}")
    return parser, arguments


if __name__ == "__main__":
    main()
