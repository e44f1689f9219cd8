"""What a data set of 10^9 rows costs a host: memory, time to the first batch, and images per second.

    python -m benchmarks.many_rows

One real shard of 10,000 records stands for many: 100,000 links to it make a prepared data set of 10^9 rows, which is
read as any other. Each size runs in a process of its own, with batches of 256 loaded in one thread.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

RECORDS_PER_SHARD = 10_000
SHARDS = (1, 100, 10_000, 100_000)
BATCH, BATCHES = 256, 12


class ManyRows(tfds.core.GeneratorBasedBuilder):
    """10,000 small pictures with texts, in one shard."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "alt_text": text, "recaption": text}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        buffer = io.BytesIO()
        Image.effect_noise((96, 96), 60).convert("RGB").save(buffer, "JPEG")
        for number in range(RECORDS_PER_SHARD):
            texts = {"alt_text": f"picture {number}", "recaption": f"A grey picture. It is number {number}."}
            yield number, {"image": io.BytesIO(buffer.getvalue())} | texts


def link_shards(folder: Path, shards: int) -> Path:
    """A data set whose `shards` shards are all the one of `folder`/many_rows."""
    [source] = (folder / "many_rows/1.0.0").glob("*array_record*")
    target = folder / f"linked{shards}" / "many_rows" / "1.0.0"
    target.mkdir(parents=True)
    info = json.loads((source.parent / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = [str(RECORDS_PER_SHARD)] * shards
    (target / "dataset_info.json").write_text(json.dumps(info))
    (target / "features.json").write_bytes((source.parent / "features.json").read_bytes())
    digits = max(5, len(str(shards)))  # as TFDS names them
    for shard in range(shards):
        os.symlink(source, target / f"many_rows-train.array_record-{shard:0{digits}}-of-{shards:0{digits}}")
    return target.parents[1]


def megabytes() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(folder: str, tokenizer: str) -> dict[str, float]:
    """Opens the data set and loads `BATCHES` batches, in this process."""
    from clips_jax import config as c
    from clips_jax.data.order import record_index
    from clips_jax.data.pipeline import train_batches
    from clips_jax.data.triples import open_builder

    tower = c.TransformerConfig(width=8, depth=1, heads=1, mlp_dim=8)
    texts = {"alt_text": c.TextConfig(16), "recaption": c.TextConfig(64)}
    config = c.Config(
        data=c.DataConfig("many_rows", texts, data_dir=folder, workers=0),
        model=c.ModelConfig(c.ImageTowerConfig(tower, 84, 84), c.TextTowerConfig(tower, 16_000), 8),
        objective=c.ObjectiveConfig({}),
        optimizer=c.OptimizerConfig(0.0, 0),
        checkpoint=c.CheckpointConfig(1),
        batch_size=BATCH,
        total_samples=BATCH,
        tokenizer=c.TokenizerConfig(tokenizer),
    )
    import jax

    del jax
    before, start = megabytes(), time.perf_counter()
    batches = train_batches(config, np.arange(BATCH), 10**6, 10**7)
    opened = time.perf_counter() - start
    next(batches)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    rate = BATCHES * BATCH / (time.perf_counter() - start)
    rows = int(open_builder("many_rows", folder).info.splits["train"].num_examples)
    start = time.perf_counter()
    for position in range(10_000):
        record_index(position, rows, 0)
    return {
        "rows": rows,
        "open_seconds": opened,
        "first_batch_seconds": first,
        "images_per_second": rate,
        "megabytes": megabytes() - before,
        "order_microseconds": (time.perf_counter() - start) * 100,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_rows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument(
        "--shards", type=int, nargs="*", default=SHARDS, help="numbers of shards (default: %(default)s)"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child)))
        return
    from clips_jax.data.tokenizer import train_sentencepiece

    tfds.disable_progress_bar()
    results = []
    with tempfile.TemporaryDirectory(prefix="clips_jax_many_rows_") as name:
        folder = Path(name)
        ManyRows(data_dir=name, file_format="array_record").download_and_prepare()
        tokenizer = f"{name}/tokenizer.model"
        train_sentencepiece((f"A grey picture. It is number {i}." for i in range(1000)), tokenizer, 100)
        print(f"{'rows':>14}{'shards':>9}{'open s':>9}{'first batch s':>15}{'images/s':>10}{'MB':>7}{'order µs':>10}")
        for shards in options.shards:
            command = [sys.executable, "-m", "benchmarks.many_rows", "--child"]
            done = subprocess.run(
                [*command, str(link_shards(folder, shards)), tokenizer], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            results.append(found | {"shards": shards})
            print(
                f"{found['rows']:>14,}{shards:>9,}{found['open_seconds']:>9.2f}{found['first_batch_seconds']:>15.2f}"
                f"{found['images_per_second']:>10,.0f}{found['megabytes']:>7.0f}{found['order_microseconds']:>10.1f}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"many_rows": results}))


if __name__ == "__main__":
    main()
