"""Which records a step uses, and loading them: the batch of step t is a function of (config, data, t) alone.

Row i of step t is the global position p = t * batch_size + i; `order` says which record that is. Crops and the choice
among rewrites are keyed by (seed, p), and so is the record that stands in for a damaged one. Nothing depends on the
number of processes, workers or threads, or on where the run was resumed; resuming at step t starts at t.

A process' rows are loaded in parts of at most `ROWS_PER_PART`, spread over worker processes: memory per worker does not
grow with the batch, and the first batch is the work of all of them.
"""

import itertools
import math
import os
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from clips_jax.config import Config, ConfigError, DataConfig, SourceConfig, TextConfig
from clips_jax.data.bad_records import Replaced
from clips_jax.data.images import BadImage, decode_resized_crop
from clips_jax.data.open_tokenizer import Tokenizer, open_tokenizer
from clips_jax.data.order import CropRandomness, Mixture, record_index, replacement_index, rewrite_choice
from clips_jax.data.shared_slots import Layout, SharedSlots
from clips_jax.data.triples import IMAGE, BadRecord, Records, texts_of, tokenizer_path
from clips_jax.data.worker import serve

if TYPE_CHECKING:
    from clips_jax.batch import Batch

ROWS_PER_PART = 128
# Records read before the first of them is decoded. More cost more: the memory of 64 photographs goes back to the system
# and comes anew.
ROWS_PER_READ = 8
# Finished parts of a worker that wait in Grain's queue, in bytes at most (one part if it is larger). As many wait
# behind it.
_WAITING_BYTES = 32 * 2**20
# How often another record is drawn for a bad one. Assumption: with 10 % bad records 20 misses in a row do not happen.
_REPLACEMENT_ATTEMPTS = 20
# What a worker needs: 250 MB and the parts that wait, at 336 px. Automatic workers leave half of the machine's memory
# alone.
_WORKER_BYTES = 500 * 10**6


class Source:
    """One data set of the mixture, opened. Attributes: features: feature by text name, "" if it has no such text."""

    def __init__(self, name: str, config: SourceConfig, data: DataConfig):
        """Raises `ConfigError` or `FileNotFoundError` if the data set does not fit the config."""
        self.name, self.weight = name, config.weight
        self.dataset, self.split = config.dataset or data.dataset, config.split or data.split
        self.records = Records(self.dataset, self.split, config.data_dir or data.data_dir)
        self.features = {text: config.texts.get(text, text) for text in data.texts}
        key = f"data.mixture.{name}" if data.mixture else "data"
        records = self.records
        if len(records) == 0:
            raise ConfigError(f"{key}.split: {self.split!r} of {self.dataset} has no records.")
        if IMAGE not in records.features:
            raise ConfigError(f"{key}.dataset: {self.dataset} has no feature {IMAGE!r}, only {list(records.features)}.")
        for text, feature in self.features.items():
            if feature and feature not in records.text_features:
                known = ", ".join(records.text_features)
                hint = f" Map it with {key}.texts.{text}." if data.mixture else ""
                raise ConfigError(f"{key}.texts.{text}: {self.dataset} has no text {feature!r}; it has {known}.{hint}")
        self.needed = (IMAGE, *dict.fromkeys(filter(None, self.features.values())))


def open_sources(data: DataConfig) -> list[Source]:
    """The data sets of a config in the order of their names: the one of `data`, or those of `data.mixture`."""
    configs = data.mixture or {"": SourceConfig()}
    return [Source(name, configs[name], data) for name in sorted(configs)]


def draw_texts(
    found: Mapping[str, str | list[str]], texts: Mapping[str, TextConfig], position: int, seed: int
) -> dict[str, str]:
    """One text per name: where a record has several, each is as likely; a function of (seed, position, name's number).

    Args:
      found: what the record holds by text name, a text or a list of texts.
      texts: their settings; `among` adds other names' texts to the draw.
    """
    drawn = {}
    for number, name in enumerate(found):
        values = [found[other] for other in (name, *texts[name].among)]
        if len(values) == 1 and isinstance(values[0], str):
            drawn[name] = values[0]
            continue
        choices = [text for value in values for text in ([value] if isinstance(value, str) else value) if text.strip()]
        drawn[name] = choices[rewrite_choice(position, seed, number, len(choices))] if choices else ""
    return drawn


class LoadPart:
    """Loads a part of the rows of a step that one process needs. Picklable.

    Called with step * parts + part, returns a dict: "rows", how many; "slot", the number of the slot that holds them,
    or "arrays" in the order of `layout`; "replaced", the number of bad records by reason, and "examples" of them.
    Nothing in it needs Flax, which takes a worker's time to import.

    Attributes:
      parts: of a step.
      layout: shape and dtype of the arrays of a part of full size: pictures, then tokens and sentences of each text.
      slots: where workers leave parts, if there are workers; for one iteration at a time.
    """

    def __init__(self, config: Config, sources: list[Source], tokenizer: Tokenizer, rows: np.ndarray):
        self._data = config.data
        self._sources = sources
        self._mixture = Mixture([source.weight for source in sources], config.seed)
        self._tokenizer = tokenizer
        self._rows = np.asarray(rows, np.int64)
        self._batch_size = config.batch_size
        self._image_size = config.model.image.image_size
        self._seed = config.seed
        self._rows_per_part = most = min(len(rows), ROWS_PER_PART)
        self.parts = math.ceil(len(rows) / most)
        pictures = ((most, self._image_size, self._image_size, 3), np.uint8)
        tokenized = [((most, text.length), np.int32) for text in config.data.texts.values() for _ in range(2)]
        self.layout: Layout = [pictures, *tokenized]
        self.slots: SharedSlots | None = None

    def __call__(self, number: int) -> dict[str, Any]:
        """Raises `RuntimeError` if no whole record is found for one that is bad."""
        step, part = divmod(number, self.parts)
        positions = step * self._batch_size + self._rows[part * self._rows_per_part : (part + 1) * self._rows_per_part]
        slot = self.slots.take() if self.slots else None
        if self.slots is None or slot is None:
            arrays = [np.empty((len(positions), *shape[1:]), dtype) for shape, dtype in self.layout]
        else:
            arrays = [array[: len(positions)] for array in self.slots.arrays(slot)]
        images = arrays[0]
        texts: list[dict[str, str]] = []
        counts: dict[str, int] = {}
        examples: list[str] = []
        crops = CropRandomness(self._seed)  # of this call: parts may be loaded by several threads
        reads = (positions[first : first + ROWS_PER_READ] for first in range(0, len(positions), ROWS_PER_READ))
        for row, (source, record) in enumerate(itertools.chain.from_iterable(map(self._read, reads))):
            position = int(positions[row])
            try:
                texts.append(self._load(position, source, record, images[row], crops))
            except (BadImage, BadRecord) as error:
                reason = "image" if isinstance(error, BadImage) else "record"
                counts[reason] = counts.get(reason, 0) + 1
                examples.append(f"at position {position}, {source.dataset}, split {source.split}: {error}")
                texts.append(self._replace(position, source, images[row], crops, error))
        for place, (name, text) in enumerate(self._data.texts.items()):
            tokenized = self._tokenizer.tokenize([found[name] for found in texts], text.length)
            arrays[1 + 2 * place][:], arrays[2 + 2 * place][:] = tokenized
        left = {"arrays": arrays} if slot is None else {"slot": slot}
        return left | {"rows": len(positions), "replaced": counts, "examples": examples}

    def _read(self, positions: np.ndarray) -> list[tuple[Source, dict[str, Any] | BadRecord]]:
        found: list[Any] = [None] * len(positions)
        numbers, own = self._mixture.locate(positions)
        for number, source in enumerate(self._sources):
            rows = np.flatnonzero(numbers == number)
            size = len(source.records)
            indices = [record_index(position, size, self._seed, number) for position in own[rows].tolist()]
            for row, record in zip(rows, source.records.read_each(indices, source.needed), strict=True):
                found[row] = (source, record)
        return found

    def _load(
        self,
        position: int,
        source: Source,
        record: Mapping[str, Any] | BadRecord,
        pixels: np.ndarray,
        crops: CropRandomness,
    ) -> dict[str, str]:
        """Fills `pixels`, uint8 (H, W, 3), with the example's crop and returns its texts."""
        if isinstance(record, BadRecord):
            raise record
        data, rng = self._data, crops.at(position)
        pixels[:] = decode_resized_crop(record[IMAGE], self._image_size, rng, data.crop_area, data.crop_ratio)
        found = {name: record[feature] if feature else "" for name, feature in source.features.items()}
        return texts_of(draw_texts(found, data.texts, position, self._seed), data.texts)

    def _replace(
        self, position: int, source: Source, pixels: np.ndarray, crops: CropRandomness, error: Exception
    ) -> dict[str, str]:
        """Another record of the same data set, so that a mixture keeps its proportions."""
        for attempt in range(_REPLACEMENT_ATTEMPTS):
            index = replacement_index(position, len(source.records), self._seed, attempt)
            try:
                [record] = source.records.read_each([index], source.needed)
                return self._load(position, source, record, pixels, crops)
            except (BadImage, BadRecord) as next_error:
                error = next_error
        raise RuntimeError(
            f"{_REPLACEMENT_ATTEMPTS} records in a row of {source.dataset}, split {source.split}, are bad; "
            f"the last: {error}"
        ) from error


def train_batches(
    config: Config, rows: np.ndarray, start_step: int, stop_step: int
) -> Generator[tuple["Batch", Replaced], None, None]:
    """The batches of steps `start_step` to `stop_step - 1`, loaded ahead; `close()` ends threads and workers.

    With worker processes the caller needs the usual `if __name__ == "__main__":`, as they are spawned.

    Args:
      config: data, batch size, seed and so on.
      rows: int (R,), the rows of the global batch wanted here, increasing, within 0 to batch_size - 1.
      start_step, stop_step: steps.

    Returns:
      an iterator over (batch of NumPy arrays with R rows, the records replaced among them).

    Raises:
      FileNotFoundError, ConfigError: at once, if a data set or the tokenizer is missing or does not fit the config.
      RuntimeError: from the iterator, if hardly a record is whole, or a worker dies.
    """
    rows = np.asarray(rows)
    if rows.size == 0 or rows[0] < 0 or rows[-1] >= config.batch_size or np.any(np.diff(rows) <= 0):
        raise ValueError(f"rows: {rows} are not increasing row numbers below batch_size {config.batch_size}.")
    data = config.data
    tokenizer = open_tokenizer(tokenizer_path(data, config.tokenizer))
    load = LoadPart(config, open_sources(data), tokenizer, rows)
    workers = worker_count(data)
    waiting = data.prefetch * load.parts
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=max(waiting, data.threads))
    if workers:
        # Inside a worker a thread per part would only wait for the next one's interpreter.
        options = grain.ReadOptions(num_threads=data.threads - 1, prefetch_buffer_size=data.threads - 1)
    parts = grain.MapDataset.range(start_step * load.parts, stop_step * load.parts).map(load).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own flags, also in a program that has none
            flags.FLAGS.mark_as_parsed()
        part_bytes = math.prod(load.layout[0][0])
        waiting = max(1, min(math.ceil(waiting / workers), _WAITING_BYTES // part_bytes))
        # Grain keeps `waiting` parts of a worker in its queue and as many behind it; `data.threads` more are being
        # loaded or ready, one is in each of two threads' hands, and one has been read and is not yet free.
        load.slots = SharedSlots(load.layout, workers, 2 * waiting + data.threads + 3)
        parts = parts.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=waiting), serve)
    return _batches(parts, load, config.data, len(rows))


def worker_count(data: DataConfig) -> int:
    """`data.workers`, or if that is -1 one worker per core that this process may use and that memory allows."""
    if data.workers >= 0:
        return data.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // 2 // _WORKER_BYTES))


def _batches(
    dataset: grain.IterDataset, load: LoadPart, data: DataConfig, rows: int
) -> Generator[tuple["Batch", Replaced], None, None]:
    """Puts the parts of each step together to a batch of `rows` rows."""
    from clips_jax.batch import Batch, TokenizedText  # imports JAX, which workers do without

    iterator = iter(dataset)
    slots, read = load.slots, None  # the slot that was read last
    try:
        while True:
            whole = [np.empty((rows, *shape[1:]), dtype) for shape, dtype in load.layout]
            counts: dict[str, int] = {}
            examples: list[str] = []
            start = 0
            for _ in range(load.parts):
                part = _next_part(iterator)
                if part is None:
                    return
                if slots and read is not None:
                    slots.free(read)
                read = part.get("slot")
                arrays = slots.arrays(read) if slots and read is not None else part["arrays"]
                stop = start + part["rows"]
                for array, loaded in zip(whole, arrays, strict=True):
                    array[start:stop] = loaded[: stop - start]
                for reason, count in part["replaced"].items():
                    counts[reason] = counts.get(reason, 0) + count
                examples += part["examples"]
                start = stop
            images, *texts = whole
            tokenized = map(TokenizedText, texts[::2], texts[1::2])
            batch = Batch(images, dict(zip(data.texts, tokenized, strict=True)))
            yield batch, Replaced(bad_records=sum(counts.values()), by_reason=counts, examples=examples)
    finally:
        iterator.close()


def _next_part(iterator: grain.DatasetIterator) -> dict[str, Any] | None:
    """What `LoadPart` made, None at the end."""
    try:
        return next(iterator, None)
    except RuntimeError as error:
        if "terminated unexpectedly" in str(error):
            raise RuntimeError(
                f"A data worker died ({error}) Exit code -9 means that it was killed, as a rule because the machine "
                "ran out of memory: use fewer data.workers."
            ) from error
        raise
