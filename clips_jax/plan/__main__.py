"""What a config needs on chips that are not here: memory, FLOPs, collectives, time, before anything is rented.

  python -m clips_jax.plan --config configs/clips_l14.py --topology v5e:16x16
  python -m clips_jax.plan --config configs/clips_l14.py:stage=2 --topology v5p:4x4x8 --config.batch_size=8192
  python -m clips_jax.plan --config configs/clips_b16.py --topology gpu:h100:8x32 --config.mesh.fsdp=8
  python -m clips_jax.plan --config configs/clips_l14.py --sweep v5e:8x16,v5e:16x16,v6e:16x16 --plot plan.svg
  python -m clips_jax.plan --config configs/clips_l14.py --sweep v5p:8x8x4,v5p:16x16x16 --batch_per_chip 128
  python -m clips_jax.plan --config configs/clips_l14.py --topology v5e:16x16 --sweep 16384,32768

The step is compiled ahead of time by libtpu, on this CPU: no TPU, no data set and no tokenizer file is needed, and
nothing is written but the picture of a sweep. A full-size config takes minutes. GPUs go by analytic estimate. What is
estimated is marked ~. Exit codes: 0 planned and fits, 1 an error, 3 planned and does not fit.
"""

import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# All before JAX starts: plan on the CPU, keep no compiled programs, ask no metadata server for a TPU, let two planners
# run at once, and keep libtpu's remarks about the missing TPU off the terminal.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any: it decides nothing about what is compiled for
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

from absl import app, flags, logging
from ml_collections import config_flags

from clips_jax.config import Config, ConfigError
from clips_jax.config.command_line import config_file, define_config_flag, parse_flags, read_config
from clips_jax.config.parse import from_config_dict
from clips_jax.plan import gpu
from clips_jax.plan.chips import Topology, known, parse_topology
from clips_jax.plan.compiled import LIBTPU, Compiled, compile_step
from clips_jax.plan.flops import jaxpr_flops
from clips_jax.plan.report import Plan, make_plan, table, to_json
from clips_jax.plan.sweep import markdown, picture, variants, with_batch

CONFIG = define_config_flag()
TOPOLOGY = flags.DEFINE_string("topology", None, f"Chips to plan for. {known()}")
SWEEP = flags.DEFINE_list("sweep", [], "Topologies, or batch sizes for one --topology: a table and a picture.")
BATCH_PER_CHIP = flags.DEFINE_integer("batch_per_chip", 0, "In place of batch_size: so many examples on each chip.")
PLOT = flags.DEFINE_string("plot", "plan.svg", "The picture of a --sweep (SVG).")
JSON = flags.DEFINE_bool("json", False, "End with one line of JSON (a sweep: one line per plan).")

DOES_NOT_FIT = 3


def main(argv: list[str]) -> None:
    """Reads the flags, plans, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: flags start with --.")
    logging.set_verbosity(logging.WARNING)
    try:
        config = read_config(CONFIG)
        topology = parse_topology(TOPOLOGY.value) if TOPOLOGY.value else None
        if not SWEEP.value and topology is None:
            raise app.UsageError(f"--topology is missing. Known: {known()}")
        if SWEEP.value:
            plans = _sweep(config, topology)
        else:
            assert topology
            plans = [_with_stages(_plan(with_batch(config, topology, BATCH_PER_CHIP.value), topology))]
            print(table(plans[0]))
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    if JSON.value:
        for plan in plans:
            print(json.dumps(to_json(plan)))
    sys.exit(0 if all(plan.fits for plan in plans) else DOES_NOT_FIT)


def _sweep(config: Config, topology: Topology | None) -> list[Plan]:
    plans = []
    wanted = variants(config, topology, SWEEP.value, BATCH_PER_CHIP.value)
    for number, (one, place) in enumerate(wanted, 1):
        _say(f"{number} of {len(wanted)}: {place.name}, batch {one.batch_size:,}")
        plans.append(_plan(one, place))
    print(markdown(plans))
    path = Path(PLOT.value)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(picture(plans, f"Memory per chip: {plans[0].name}"))
    temporary.replace(path)
    _say(f"picture: {path}")
    return plans


def _plan(config: Config, topology: Topology) -> Plan:
    path, arguments = config_file(CONFIG)
    name = Path(path).stem + (f":{arguments}" if arguments else "")
    return make_plan(name, config, _compile(config, topology))


def _compile(config: Config, topology: Topology) -> Compiled:
    if topology.is_gpu:
        return gpu.estimate_step(config, topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology={topology.name}: compiling for a TPU needs its compiler: {LIBTPU}")
    _say(f"compiling for {topology.name}: minutes for a full-size config …")
    return compile_step(config, topology)


def _with_stages(plan: Plan) -> Plan:
    """Chip-hours of the recipe's other stages: their FLOPs are counted, at the rate estimated for this one."""
    stages = dict(_stages(plan.config))
    if len(stages) < 2 or not plan.estimate:
        return plan
    chips, hours = plan.step.topology.chips, {}
    for name, config in stages.items():
        seconds = plan.estimate.roofline
        if config is not plan.config:
            counted = jaxpr_flops(gpu.trace(gpu.abstract_program(config, chips)))
            seconds *= counted / plan.step.traced_flops
        hours[name] = config.total_steps * seconds * chips / 3600
    return dataclasses.replace(plan, chip_hours_by_stage=hours)


def _stages(planned: Config) -> Iterator[tuple[str, Config]]:
    """The stages of the config file's recipe (its STAGES), `planned` in its own place."""
    path, arguments = config_file(CONFIG)
    if "smoke" in arguments:
        return  # all stages are alike
    spec = importlib.util.spec_from_file_location("config_of_the_plan", path)
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    others = [part for part in arguments.split(",") if part and not part.startswith("stage=")]
    here = next((int(part[6:]) for part in arguments.split(",") if part.startswith("stage=")), 1)
    mesh = {k: v for k, v in config_flags.get_override_values(flags.FLAGS["config"]).items() if k.startswith("mesh.")}
    for number in range(1, len(getattr(module, "STAGES", ())) + 1):
        config = planned
        if number != here:
            settings = module.get_config(",".join([*others, f"stage={number}"]))
            for key, value in mesh.items():
                settings.mesh[key.removeprefix("mesh.")] = value
            config = from_config_dict(settings)
        size, batch, samples = config.model.image.image_size, config.batch_size, config.total_samples
        yield f"stage {number} ({size} px, batch {batch:,}, {samples:,} samples)", config


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
