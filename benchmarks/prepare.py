"""How fast `clips_jax.data.prepare` turns tars into records, and what a worker holds in memory.

    python -m benchmarks.prepare [--rows 4000] [--json]

Tars of made photographs (about 63 kB), as img2dataset writes them, joined to a table of recaptions on sha256. Rows per
second are those of the whole command, start of Beam and join included; memory is the largest resident size of a process
that makes one shard, for a small and a large shard: it must not grow with the shard.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from benchmarks.photographs import made_photographs
from clips_jax.data.images import Picture, sample_crop
from clips_jax.data.prepare import pictures

_PICTURES = 200  # different ones; keys and hashes differ for all rows
_SHARDS = 4
_CROPS = 60  # pictures whose low-resolution copies are compared
_ONE_SHARD = """
import sys
from clips_jax.data.prepare import shard
from clips_jax.data.prepare.plan import Plan
from clips_jax.data.prepare.tar_source import Tars
plan = Plan("memory", "1.0.0", "train", sys.argv[2], Tars(sys.argv[1]))
tasks, _ = plan.source.tasks(plan.work)
shard.make_shard(plan, tasks[0], 1)
"""


def write_tars(folder: str, rows: int, shards: int) -> None:
    """Writes tars, and recaptions for all rows."""
    photographs = list(made_photographs(_PICTURES))
    hashes, texts = [], []
    for shard in range(shards):
        with tarfile.open(os.path.join(folder, f"{shard:05d}.tar"), "w") as tar:
            for row in range(rows // shards):
                number = shard * (rows // shards) + row
                jpeg, alt_text, recaption = photographs[number % _PICTURES]
                note = {"sha256": f"{number:064x}", "caption": alt_text, "url": f"https://host/{number}"}
                parts = {"jpg": jpeg, "txt": alt_text.encode(), "json": json.dumps(note).encode()}
                for ending, data in parts.items():
                    member = tarfile.TarInfo(f"{number:09d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
                hashes.append(note["sha256"])
                texts.append(recaption)
    table = pyarrow.table({"sha256": hashes, "re_caption": texts})
    pyarrow.parquet.write_table(table, os.path.join(folder, "recaptions.parquet"))


def rows_per_second(folder: str, rows: int, workers: int, *flags: str) -> tuple[float, float]:
    """Rows per second, and per second of CPU time of all its processes, of the whole command."""
    with tempfile.TemporaryDirectory() as output:
        command = [
            sys.executable,
            "-m",
            "clips_jax.data.prepare",
            "tars",
            os.path.join(folder, "*.tar"),
            "--name",
            "web",
        ]
        command += ["--recaptions", os.path.join(folder, "recaptions.parquet"), "--data_dir", output]
        start = time.monotonic()
        process = subprocess.Popen([*command, "--workers", str(workers), *flags], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"{' '.join(command)} failed")
        return rows / (time.monotonic() - start), rows / (usage.ru_utime + usage.ru_stime)


def megabytes_of_a_shard(rows: int) -> float:
    """The largest resident size of a process that makes one shard of so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_tars(folder, rows, 1)
        command = [sys.executable, "-c", _ONE_SHARD, os.path.join(folder, "00000.tar"), os.path.join(folder, "out")]
        process = subprocess.Popen(command)
        usage = os.wait4(process.pid, 0)[2]
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss / 1024


def low_resolution(side: int, size: int) -> tuple[float, float]:
    """Of copies with this shorter side: PSNR in dB of their crops at `size` px against the originals', and kB each."""
    options = pictures.PictureOptions(shorter_side=side)
    rng = np.random.default_rng(0)
    psnr, kilobytes = [], []
    for original, _, _ in made_photographs(_CROPS):
        copy, _ = pictures.plain(original, "jpg", options)
        large, small = Picture(original), Picture(copy)
        box = np.array(sample_crop(large.width, large.height, rng, (0.4, 1.0), (0.75, 1.3333)), float)
        shares = box / (large.width, large.height, large.width, large.height)
        difference = _crop(large, shares, size) - _crop(small, shares, size)
        psnr.append(10 * np.log10(255**2 / np.mean(difference**2)))
        kilobytes.append(len(copy) / 1000)
    return float(np.mean(psnr)), float(np.mean(kilobytes))


def _crop(picture: Picture, shares: np.ndarray, size: int) -> np.ndarray:
    left, top, width, height = shares * (picture.width, picture.height, picture.width, picture.height)
    box = (left, top, min(left + width, picture.width), min(top + height, picture.height))
    return np.asarray(picture.decode().resize((size, size), Image.Resampling.BILINEAR, box=box), float)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4000, help="rows of the speed measurements (default 4000)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    result: dict[str, dict[str, Any]] = {"rows_per_second": {}, "rows_per_cpu_second": {}, "megabytes": {}}
    result["low_resolution"] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tars(folder, options.rows, _SHARDS)
        for workers in (1, 2):
            for name, flags in (("as they are", ()), ("shorter side 160", ("--shorter_side", "160"))):
                wall, cpu = rows_per_second(folder, options.rows, workers, *flags)
                result["rows_per_second"][f"{workers} worker(s), {name}"] = round(wall)
                result["rows_per_cpu_second"][f"{workers} worker(s), {name}"] = round(cpu)
                print(f"{workers} worker(s), pictures {name}: {wall:.0f} rows/s, {cpu:.0f} per CPU second", flush=True)
    for rows in (options.rows // 16, options.rows):
        result["megabytes"][str(rows)] = round(megabytes_of_a_shard(rows))
        print(f"one shard of {rows} rows: {result['megabytes'][str(rows)]} MB", flush=True)
    for side, size in ((160, 84), (208, 112)):
        psnr, kilobytes = low_resolution(side, size)
        result["low_resolution"][f"{side} for {size} px"] = {
            "psnr_db": round(psnr, 1),
            "kilobytes": round(kilobytes, 1),
        }
        print(
            f"copies of shorter side {side}: {kilobytes:.1f} kB, crops at {size} px {psnr:.1f} dB from the originals'"
        )
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
