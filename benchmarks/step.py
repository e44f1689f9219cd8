"""Seconds per training step on this machine, beside open_clip's CoCa of the same size in the same run.

    python -m benchmarks.step [--peer_python /path/to/venv/bin/python] [--json]

Ours is a full-size config's first stage (CLIPS: two text views, softmax loss, captioner over 128 targets) with the
batch and dtype given; text lengths are those the configs assume (AltText 17 tokens, recaption 95 in sentences of 20).
CoCa reads and writes one text of 128 tokens per picture. Random data, loading not included, AdamW, both float32.
Beside the clock, processor time of all threads: on a shared machine it depends least on what else runs.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import multiprocessing
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from clips_jax.batch import Batch, TokenizedText
from clips_jax.config import Config, MeshConfig
from clips_jax.config.parse import from_config_dict
from clips_jax.data.tokenizer import SpecialTokens
from clips_jax.program import make_step_program
from clips_jax.sharding import make_mesh, to_devices

SPECIAL = SpecialTokens(pad=0, bos=2, eos=3, cls=4)
ALT_TEXT, RECAPTION, SENTENCE = 17, 95, 20  # mean lengths in tokens: assumptions of the full-size configs
INSTALL = "python -m venv VENV && VENV/bin/pip install torch open_clip_torch, then --peer_python VENV/bin/python"


def peak_memory_gb() -> float:
    """The most memory this process has held; `getrusage` would count what its parent held before it began."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1e6


def settings_of(arguments: argparse.Namespace) -> Config:
    """The config to run: stage 1 of `configs/NAME.py` with another batch size, on one device."""
    module = importlib.import_module(f"configs.{arguments.config}")
    config = module.get_config("")
    config.batch_size = arguments.batch_size
    config.total_samples = 1000 * arguments.batch_size
    config.optimizer.warmup_samples = 100 * arguments.batch_size
    config.model.dtype = arguments.dtype
    for tower in ("image", "text", "captioner"):
        config.model[tower].transformer.remat = arguments.remat
    return dataclasses.replace(from_config_dict(config), mesh=MeshConfig(data=1, fsdp=1))


def random_batch(config: Config) -> Batch:
    """Pictures of noise; texts with lengths around the assumed means."""
    rng = np.random.default_rng(0)
    rows, size = config.batch_size, config.model.image.image_size
    texts = {}
    for name, text in config.data.texts.items():
        mean = ALT_TEXT if "alt" in name else RECAPTION
        lengths_Bx1 = np.clip(rng.normal(mean, mean / 3, (rows, 1)).round(), 1, text.length)
        places_S = np.arange(text.length)[None]
        tokens_BxS = rng.integers(5, config.model.text.vocab_size, (rows, text.length))
        real_BxS = places_S < lengths_Bx1
        texts[name] = TokenizedText(
            np.where(real_BxS, tokens_BxS, 0).astype(np.int32),
            np.where(real_BxS, places_S // SENTENCE, -1).astype(np.int32),
        )
    return Batch(rng.integers(0, 256, (rows, size, size, 3)).astype(np.uint8), texts)


def ours(config: Config, steps: int) -> dict[str, Any]:
    """Compiles the step that `main` would run and times it."""
    mesh = make_mesh(config, jax.devices()[:1])
    program = make_step_program(config, mesh, SPECIAL)
    state, batch = program.initial_state(), to_devices(random_batch(config), mesh, config.batch_size)
    start = time.perf_counter()
    step = program.step().lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    seconds, processor_seconds, metrics = [], [], {}
    for _ in range(1 + steps):
        start, processor_start = time.perf_counter(), time.process_time()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    return {
        "jax": jax.__version__,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "seconds_per_step": statistics.median(seconds[1:]),
        "processor_seconds_per_step": statistics.median(processor_seconds[1:]),
        "compile_seconds": compile_seconds,
        "peak_rss_gb": peak_memory_gb(),
        "loss": float(metrics["loss"]),
        "text_fill": float(metrics.get("text/fill", float("nan"))),
        "text_cut": float(metrics.get("text/cut", float("nan"))),
    }


def peer(config: Config, steps: int, python: str) -> dict[str, Any] | None:
    """open_clip's CoCa with the same widths and depths, in a process of its own; None, and a word why, if it cannot."""
    probe = subprocess.run([python, "-c", "import open_clip, torch"], capture_output=True, text=True)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"No comparison: {python} cannot import open_clip ({reason}). To get it: {INSTALL}", file=sys.stderr)
        return None
    model, captioner = config.model, config.model.captioner
    assert captioner
    settings = {
        "image": dataclasses.asdict(model.image.transformer),
        "text": dataclasses.asdict(model.text.transformer),
        "decoder": dataclasses.asdict(captioner.transformer),
        "image_size": model.image.image_size,
        "patch_size": model.image.patch_size,
        "vocab_size": model.text.vocab_size,
        "joint_dim": model.joint_dim,
        "target_length": captioner.target_length,
        "batch_size": config.batch_size,
        "steps": steps,
    }
    script = pathlib.Path(__file__).with_name("open_clip_step.py")
    done = subprocess.run([python, str(script), json.dumps(settings)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"open_clip's step failed in {python}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Ours, then theirs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="clips_s16", help="file in configs/ (default: clips_s16, 112 px)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of our activations")
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not; the median counts")
    parser.add_argument("--peer_python", default=sys.executable, help="a Python that has torch and open_clip_torch")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    config = settings_of(arguments)
    # In a process of its own, which gives its memory back before the peer needs as much.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        results: dict[str, Any] = {"ours": pool.submit(ours, config, arguments.steps).result()}
    results["open_clip"] = peer(config, arguments.steps, arguments.peer_python)
    for name, result in results.items():
        if result:
            print(
                f"{name:>10}  {result['seconds_per_step']:7.2f} s per step  "
                f"{result['processor_seconds_per_step']:7.2f} processor s  {result['peak_rss_gb']:5.1f} GB peak  "
                f"{result['parameters']:,} parameters  loss {result['loss']:.3f}"
            )
    if results["open_clip"]:
        for name, key in (("ratio", "seconds_per_step"), ("processor_ratio", "processor_seconds_per_step")):
            results[name] = results["ours"][key] / results["open_clip"][key]
        print(f"ours / open_clip: {results['ratio']:.2f}; of processor time {results['processor_ratio']:.2f}")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
