"""A plan without code generation: memory, FLOPs and collectives of a step in an eighth of the time.

    python -m benchmarks.without_code --config clips_l14:stage=1 --topology v5p:16x16x16 [--batch_per_chip 128]

Libtpu partitions, fuses and schedules the program and places every buffer, then spends seven eighths of its time on
machine code, which changes none of that. It has no switch to stop before; it writes the program and its buffers to a
folder on the way, which are read here while it goes on, and the process ends. Prints the JSON line of
`python -m clips_jax.plan --json` without what is decided later: HBM traffic, all times. For L/14 arguments and
collectives came out the same, temporaries within 0.01 %. The peak is arguments and temporaries together, which is 3 %
above what the compiler states for L/14.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import time

from clips_jax.config.parse import from_config_dict
from clips_jax.plan import __main__ as planner  # sets what libtpu needs
from clips_jax.plan import flops, hlo
from clips_jax.plan.chips import Topology, parse_topology
from clips_jax.plan.collectives import find_collectives
from clips_jax.plan.compiled import SPECIAL, Compiled, Memory, parameter_count, state_bytes
from clips_jax.plan.executed import executed
from clips_jax.plan.kernels import find_kernels
from clips_jax.plan.report import make_plan, to_json
from clips_jax.plan.sweep import with_batch
from clips_jax.program import StepProgram, make_step_program
from clips_jax.sharding import make_mesh

ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)


def assigned_bytes(text: str) -> tuple[int, int]:
    """(arguments, all else) in HBM, in bytes, of a buffer assignment as XLA writes it."""
    arguments = others = 0
    for size, what in ALLOCATION.findall(text):
        if "color" not in what:  # the others are in the chip's own memories
            is_argument = re.search(r"\bparameter \d", what)
            arguments, others = arguments + int(size) * bool(is_argument), others + int(size) * (not is_argument)
    return arguments, others


def wait_for(folder: pathlib.Path, pattern: str, thread: threading.Thread) -> str:
    """The text of the one file in the folder that matches, once it is whole."""
    size = -1
    while True:
        found = list(folder.glob(f"*jit_train_step*.after_optimizations{pattern}.txt"))
        if found and found[0].stat().st_size == size > 0:
            return found[0].read_text()
        size = found[0].stat().st_size if found else -1
        if not thread.is_alive() and not found:
            sys.exit("The compiler stopped before it had placed the buffers: the step does not fit, or see above.")
        time.sleep(2)


def compile_without_code(program: StepProgram, topology: Topology, folder: pathlib.Path) -> Compiled:
    """The parts of `plan.compiled.compile_program` that need no code. The compiler goes on: end the process after.

    `folder`: where XLA_FLAGS told the compiler to write.
    """
    traced = program.step().trace(program.state_shapes, program.batch_shapes)
    lowered = traced.lower()
    thread = threading.Thread(target=lowered.compile, daemon=True)
    thread.start()
    arguments, others = assigned_bytes(wait_for(folder, "-buffer-assignment", thread))
    module = hlo.parse(wait_for(folder, "_after_buffer_assignment", thread))
    kernels = find_kernels(module, traced.jaxpr.jaxpr)
    return Compiled(
        topology=topology,
        mesh=dict(program.mesh.shape),
        parameter_count=parameter_count(program),
        memory=Memory(**state_bytes(program), arguments=arguments, temporaries=others, peak=arguments + others),
        traced_flops=flops.jaxpr_flops(traced.jaxpr.jaxpr),
        work=executed(module, topology.chip.peak_flops, topology.chip.hbm_bandwidth, kernels),
        collectives=find_collectives(module, topology.chips),
        lowered_operations=sum(" = " in line for line in lowered.as_text().splitlines()),
        compile_seconds=float("nan"),
    )


def main() -> None:
    """Reads the flags, compiles as far as needed, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="file in configs/ and its arguments, such as clips_l14:stage=2")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--batch_per_chip", type=int, default=0)
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="without_code_"))
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"  # read when the compiler is loaded
    assert planner
    name, _, settings = arguments.config.partition(":")
    topology = parse_topology(arguments.topology)
    config = from_config_dict(importlib.import_module(f"configs.{name}").get_config(settings))
    config = with_batch(config, topology, arguments.batch_per_chip)
    program = make_step_program(config, make_mesh(config, topology.devices()), SPECIAL)
    step = compile_without_code(program, topology, folder)
    shutil.rmtree(folder, ignore_errors=True)
    result = to_json(make_plan(arguments.config, config, step))
    result |= dict.fromkeys(("compile_seconds", "estimated", "bytes_per_chip"))
    print(json.dumps(result), flush=True)
    os._exit(0)  # the compiler's threads would go on


if __name__ == "__main__":
    main()
