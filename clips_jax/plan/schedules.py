"""How long one step of a Pallas kernel's grid is: the instruction words of the compiler's schedule, one per cycle.

Libtpu writes schedules down if it is told to when it is loaded, then those of everything that it compiles, which
takes half as long again. So kernels are compiled a second time, by themselves, in a process of their own.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax.sharding import SingleDeviceSharding

from clips_jax.plan.chips import parse_topology

TOTAL = re.compile(r"total scheduled bundles:\s*(\d+)")


def scheduled_words(kernels: Sequence[Any], topology: str) -> list[int]:
    """Of each kernel, an equation `pallas_call` of a jaxpr, on a chip of the topology.

    Stalls are not in it, nor that steps may skip a part of their words.
    """
    with tempfile.TemporaryDirectory(prefix="kernels_") as name:
        folder = Path(name)
        for number, kernel in enumerate(kernels):
            inputs = [jax.ShapeDtypeStruct(one.aval.shape, one.aval.dtype) for one in kernel.invars]
            call = jax.jit(lambda *arrays, kernel=kernel: kernel.primitive.bind(*arrays, **kernel.params))
            (folder / f"{number}.kernel").write_bytes(export.export(call, platforms=["tpu"])(*inputs).serialize())
        flags = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        command = [sys.executable, "-m", "clips_jax.plan.schedules", f"--topology={topology}", f"--folder={folder}"]
        done = subprocess.run(command, env=os.environ | {"LIBTPU_INIT_ARGS": flags}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compiles the kernels of a folder one by one, prints their words."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--topology", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    chip, words = parse_topology(arguments.topology).devices()[0], []
    for file in sorted(arguments.folder.glob("*.kernel"), key=lambda file: int(file.stem)):
        kernel = export.deserialize(bytearray(file.read_bytes()))
        inputs = [
            jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=SingleDeviceSharding(chip)) for one in kernel.in_avals
        ]
        jax.jit(kernel.call).lower(*inputs).compile()
        schedules = list(arguments.folder.glob("*-schedule-analysis_final_bundles.txt"))
        texts = [text for text in (schedule.read_text() for schedule in schedules) if "tpu_custom_call" in text]
        # The program around the kernel has a schedule too, a shorter one.
        words.append(max(int(number) for text in texts for number in TOTAL.findall(text)))
        for schedule in schedules:
            schedule.unlink()
    print(json.dumps(words))


if __name__ == "__main__":
    main()
