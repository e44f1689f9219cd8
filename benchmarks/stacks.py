"""The pipelines that `input_pipeline.py` compares: each reads, decodes, crops, tokenizes both texts and batches.

Run as a process per pipeline, `python -m benchmarks.stacks NAME FOLDER CORES`: it takes lines "SIZE SECONDS" and
answers each with a line of JSON. All give batches of `BATCH`; AltText is padded to 80 tokens, the recaption to 128.
"""

import glob
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.open_clip_stack import open_clip, tokenizer
from benchmarks.stack_work import AREA, BATCH, LENGTHS, RATIO
from benchmarks.tf_data_stack import text_maker, tf_data

# Batches and seconds that are drawn and not counted: what a pipeline has loaded ahead while it waited.
_WARM_BATCHES, _WARM_SECONDS = 7, 0.7


def ours(folder: str, cores: int, dataset: str = "original") -> Callable[[int], Iterator[Any]]:
    """clips_jax: `train_batches` with its default settings."""
    from clips_jax import config as c
    from clips_jax.data.pipeline import train_batches

    tower = c.TransformerConfig(width=8, depth=1, heads=1, mlp_dim=8)

    def batches(size: int) -> Iterator[Any]:
        config = c.Config(
            data=c.DataConfig(
                f"photographs/{dataset}",
                {name: c.TextConfig(length) for name, length in LENGTHS.items()},
                data_dir=folder,
                crop_area=AREA,
                crop_ratio=RATIO,
            ),
            model=c.ModelConfig(c.ImageTowerConfig(tower, size, size), c.TextTowerConfig(tower, 16_000), 8),
            objective=c.ObjectiveConfig({}),
            optimizer=c.OptimizerConfig(0.0, 0),
            checkpoint=c.CheckpointConfig(1),
            batch_size=BATCH,
            total_samples=BATCH,
            tokenizer=c.TokenizerConfig(f"{folder}/tokenizer.model"),
        )
        return train_batches(config, np.arange(BATCH), 0, 10**7)

    return batches


def floor(folder: str, cores: int) -> Callable[[int], Iterator[Any]]:
    """libjpeg-turbo alone, at 1/8 of the size: entropy decoding, which nobody can skip. No crop, no text."""

    def batches(size: int) -> Iterator[Any]:
        with tarfile.open(f"{folder}/photographs.tar") as tar:
            jpegs = [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]  # pyright: ignore
        context = multiprocessing.get_context("fork")
        queue = context.Queue(maxsize=4)
        for number in range(cores):
            context.Process(target=_decode_eighths, args=(jpegs[number::cores], queue), daemon=True).start()
        while True:
            yield queue.get()

    return batches


def _decode_eighths(jpegs: list[bytes], queue: Any) -> None:
    import simplejpeg

    for count, jpeg in enumerate(itertools.cycle(jpegs), start=1):
        simplejpeg.decode_jpeg(jpeg, min_width=1, min_height=1)
        if count % BATCH == 0:
            queue.put(count)


STACKS: dict[str, Callable[[str, int], Callable[[int], Iterator[Any]]]] = {
    "ours": ours,
    "ours, shorter side 160": lambda folder, cores: ours(folder, cores, "side160"),
    "ours, shorter side 208": lambda folder, cores: ours(folder, cores, "side208"),
    "tf.data": tf_data,
    "tf.data, batched text": lambda folder, cores: tf_data(folder, cores, batched_text=True),
    "tf.data, colour jitter": lambda folder, cores: tf_data(folder, cores, jitter=True),
    "open_clip": open_clip,
    "floor": floor,
}


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def describe(name: str, folder: str) -> str:
    """What stands in for what is missing, if anything."""
    if name.startswith("tf.data"):
        return text_maker(folder)[1]
    if name == "open_clip":
        missing = [package for package in ("torch", "webdataset") if not _has(package)]
        how = f"tarfile and PIL in processes ({', '.join(missing)} missing)" if missing else "webdataset, torch"
        return f"{how}; {tokenizer(folder)[1]}"
    return ""


def measure(batches: Iterator[Any], seconds: float) -> tuple[float, float]:
    """Images per second in the steady state, and milliseconds of CPU time per image over the stack's processes."""
    start = time.perf_counter()
    for count in itertools.count(1):
        next(batches)
        if count >= _WARM_BATCHES and time.perf_counter() - start > _WARM_SECONDS:
            break
    start, cpu, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    images = count * BATCH
    return images / (time.perf_counter() - start), 1000 * (cpu_seconds() - cpu) / images


def cpu_seconds() -> float:
    """CPU time used so far by this process and its children that are alive."""
    total = 0
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            fields = open(path).read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() or path == f"/proc/{os.getpid()}/stat":
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def worker_megabytes() -> float:
    """The largest resident memory of a child so far, in MB; 0 if there is none."""
    largest = 0.0
    for path in glob.glob("/proc/[0-9]*/status"):
        try:
            status = open(path).read()
        except OSError:
            continue
        parent = re.search(r"^PPid:\s+(\d+)", status, re.M)
        peak = re.search(r"^VmHWM:\s+(\d+)", status, re.M)
        if parent and peak and int(parent[1]) == os.getpid():
            largest = max(largest, int(peak[1]) / 1000)
    return largest


def main() -> None:
    """One stack: answers lines "SIZE SECONDS" until its input ends."""
    name, folder, cores = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    try:
        make = STACKS[name](folder, cores)
        answers.write(json.dumps({"uses": describe(name, folder)}) + "\n")
        answers.flush()
        running: dict[str, Iterator[Any]] = {}
        for line in sys.stdin:
            size, seconds = line.split()
            if size not in running:
                running[size] = make(int(size))
            rate, milliseconds = measure(running[size], float(seconds))
            answers.write(json.dumps({"rate": rate, "cpu": milliseconds, "mb": worker_megabytes()}) + "\n")
            answers.flush()
    except Exception as error:  # the other stacks are still measured
        answers.write(json.dumps({"missing": f"{type(error).__name__}: {error}"}) + "\n")
        answers.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(0)  # some libraries hang in their clean-up


if __name__ == "__main__":
    main()
