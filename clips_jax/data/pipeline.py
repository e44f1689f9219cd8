"""Which records a step uses, and loading them: the batch of step t is a function of (config, data, t) alone.

Row i of step t is the global position p = t * batch_size + i. An epoch is one seeded permutation of the records and
p walks through them, so a batch may end one epoch and begin the next. Crops are keyed by (seed, p). Nothing depends on
the number of processes, workers or threads, or on where the run was resumed; resuming at step t starts at t.
"""

import functools
import math
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags
from grain.experimental import index_shuffle

from clips_jax.config import Config, ConfigError, DataConfig
from clips_jax.data.images import BadImage, decode_resized_crop
from clips_jax.data.open_tokenizer import Tokenizer, open_tokenizer
from clips_jax.data.triples import IMAGE, BadRecord, Records, texts_of, tokenizer_path

if TYPE_CHECKING:
    from clips_jax.batch import Batch

# The first entry of a SeedSequence, so that the streams drawn for different purposes are unrelated.
_EPOCH_ORDER, _CROP, _REPLACEMENT = range(3)
# Rounds of index_shuffle's block cipher; Grain uses 4.
_SHUFFLE_ROUNDS = 4
# How often another record is drawn for a bad one. Assumption: with 10 % bad records 20 misses in a row do not happen.
_REPLACEMENT_ATTEMPTS = 20


def epoch_of(position: int, num_records: int) -> int:
    """How many times all records were used before the global `position`."""
    return position // num_records


def record_index(position: int, num_records: int, seed: int) -> int:
    """The record used at the global `position`: each once per epoch, in another order each epoch."""
    order = _epoch_seed(seed, epoch_of(position, num_records))
    return index_shuffle(position % num_records, max_index=num_records - 1, seed=order, rounds=_SHUFFLE_ROUNDS)


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((_EPOCH_ORDER, seed, epoch)).generate_state(1)[0])


def _replacement_index(position: int, num_records: int, seed: int, attempt: int) -> int:
    """The record that stands in at `position` when the record there and `attempt` others were bad."""
    state = np.random.SeedSequence((_REPLACEMENT, seed, position, attempt)).generate_state(1, np.uint64)
    return int(state[0] % np.uint64(num_records))


class LoadBatch:
    """Loads the rows of a step that one process needs. Picklable.

    Called with a step, returns a dict of the leaves of a `Batch` and the statistics: nested dicts and arrays, because
    a worker process then needs neither JAX nor Flax.
    """

    def __init__(
        self,
        config: DataConfig,
        records: Records,
        tokenizer: Tokenizer,
        rows: np.ndarray,
        batch_size: int,
        image_size: int,
        seed: int,
    ):
        self._config = config
        self._records = records
        self._tokenizer = tokenizer
        self._rows = np.asarray(rows)
        self._batch_size = batch_size
        self._image_size = image_size
        self._seed = seed

    def __call__(self, step: int) -> dict[str, Any]:
        """Raises `RuntimeError` if too many of the records are bad."""
        positions = [step * self._batch_size + int(row) for row in self._rows]
        indices = [record_index(position, len(self._records), self._seed) for position in positions]
        images = np.empty((len(positions), self._image_size, self._image_size, 3), np.uint8)
        texts: list[dict[str, str]] = []
        bad: list[tuple[int, Exception]] = []
        for row, (position, record) in enumerate(zip(positions, self._read(indices), strict=True)):
            try:
                texts.append(self._load(position, record, images[row]))
            except (BadImage, BadRecord) as error:
                bad.append((indices[row], error))
                texts.append(self._replace(position, images[row], error))
        self._check(step, bad)
        return {
            "images": images,
            "texts": {
                name: self._tokenizer.tokenize([found[name] for found in texts], text.length)
                for name, text in self._config.texts.items()
            },
            "bad_records": len(bad),
        }

    def _read(self, indices: list[int]) -> list[dict[str, Any] | BadRecord]:
        try:
            return list(self._records.read(indices))
        except BadRecord:
            return [self._read_one(index) for index in indices]

    def _read_one(self, index: int) -> dict[str, Any] | BadRecord:
        try:
            return self._records[index]
        except BadRecord as error:
            return error

    def _load(self, position: int, record: Mapping[str, Any] | BadRecord, pixels: np.ndarray) -> dict[str, str]:
        """Fills `pixels`, uint8 (H, W, 3), with the example's crop and returns its texts."""
        if isinstance(record, BadRecord):
            raise record
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((_CROP, self._seed, position))))
        config = self._config
        pixels[:] = decode_resized_crop(record[IMAGE], self._image_size, rng, config.crop_area, config.crop_ratio)
        return texts_of(record, config.texts)

    def _replace(self, position: int, pixels: np.ndarray, error: Exception) -> dict[str, str]:
        for attempt in range(_REPLACEMENT_ATTEMPTS):
            index = _replacement_index(position, len(self._records), self._seed, attempt)
            try:
                return self._load(position, self._read_one(index), pixels)
            except (BadImage, BadRecord) as next_error:
                error = next_error
        raise RuntimeError(f"{_REPLACEMENT_ATTEMPTS} records in a row are bad; the last: {error}") from error

    def _check(self, step: int, bad: list[tuple[int, Exception]]) -> None:
        # Rounded up: one bad record among a process' few rows is not yet a bad data set.
        allowed = math.ceil(self._config.max_bad_fraction * len(self._rows))
        if len(bad) > allowed:
            index, error = bad[0]
            raise RuntimeError(
                f"Step {step}: {len(bad)} of {len(self._rows)} records cannot be read, more than "
                f"data.max_bad_fraction = {self._config.max_bad_fraction} allows. For example record {index} of "
                f"{self._config.dataset}, split {self._config.split}: {error}"
            ) from error


def train_batches(
    config: Config, rows: np.ndarray, start_step: int, stop_step: int
) -> Generator[tuple["Batch", dict[str, int]], None, None]:
    """The batches of steps `start_step` to `stop_step - 1`, loaded ahead; `close()` ends threads and workers.

    With `config.data.workers` above 0 the caller needs the usual `if __name__ == "__main__":`, as workers are spawned.

    Args:
      config: dataset, batch size, seed and so on.
      rows: int (R,), the rows of the global batch wanted here, increasing, within 0 to batch_size - 1.
      start_step, stop_step: steps.

    Returns:
      an iterator over (batch of NumPy arrays with R rows, {"bad_records": number replaced among them}).

    Raises:
      FileNotFoundError, ConfigError: at once, if the data set or tokenizer is missing or does not fit the config.
      RuntimeError: from the iterator, if more than `config.data.max_bad_fraction` of a batch's records are bad.
    """
    rows = np.asarray(rows)
    if rows.size == 0 or rows[0] < 0 or rows[-1] >= config.batch_size or np.any(np.diff(rows) <= 0):
        raise ValueError(f"rows: {rows} are not increasing row numbers below batch_size {config.batch_size}.")
    data = config.data
    records = Records(data.dataset, data.split, data.data_dir)
    _check_features(data, records)
    tokenizer = open_tokenizer(tokenizer_path(data, config.tokenizer))
    load = LoadBatch(data, records, tokenizer, rows, config.batch_size, config.model.image.image_size, config.seed)
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=max(data.prefetch, data.threads))
    batches = grain.MapDataset.range(start_step, stop_step).map(load).to_iter_dataset(options)
    if data.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own flags, also in a program that has none
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
    return _iterate(batches)


def _iterate(batches: grain.IterDataset) -> Generator[tuple["Batch", dict[str, int]], None, None]:
    from clips_jax.batch import Batch, TokenizedText  # imports JAX, which workers do without

    iterator = iter(batches)
    try:
        for loaded in iterator:
            # `asarray` hides that the arrays of a worker process are of Grain's own class, over shared memory.
            texts = {
                name: TokenizedText(np.asarray(tokens), np.asarray(sentence_ids))
                for name, (tokens, sentence_ids) in loaded["texts"].items()
            }
            yield Batch(np.asarray(loaded["images"]), texts), {"bad_records": int(loaded["bad_records"])}
    finally:
        iterator.close()


def _check_features(data: DataConfig, records: Records) -> None:
    if len(records) == 0:
        raise ConfigError(f"data.split: {data.split!r} of {data.dataset} has no records.")
    if IMAGE not in records.features:
        raise ConfigError(f"data.dataset: {data.dataset} has no feature {IMAGE!r}, only {list(records.features)}.")
    for name in data.texts:
        if name not in records.text_features:
            known = ", ".join(records.text_features)
            raise ConfigError(f"data.texts.{name}: {data.dataset} has no such text; it has {known}.")
