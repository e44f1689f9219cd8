"""The pipelines that `input_pipeline.py` compares: each reads, decodes, crops, tokenizes both texts and batches.

Run as a process per pipeline, `python -m benchmarks.stacks NAME FOLDER CORES`: it takes lines "SIZE SECONDS" and
answers each with a line of JSON. All give batches of `BATCH`; AltText is padded to 80 tokens, the recaption to 128.
"""

import glob
import importlib.util
import io
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

BATCH = 64
LENGTHS = {"alt_text": 80, "recaption": 128}
AREA, RATIO = (0.4, 1.0), (0.75, 1.3333)
# Batches and seconds that are drawn and not counted: what a pipeline has loaded ahead while it waited.
_WARM_BATCHES, _WARM_SECONDS = 7, 0.7


class Missing(Exception):
    """A package that the stack needs is not installed."""


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


def tf_data(folder: str, cores: int, batched_text: bool) -> Callable[[int], Iterator[Any]]:
    """tf.data as big_vision and OpenVision write it: decode_and_crop_jpeg, antialiased resize, BERT WordPiece."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    tokenize, _ = _tf_tokenizer(folder)
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("image", *LENGTHS)}

    def batches(size: int) -> Iterator[Any]:
        def crop(image: Any) -> Any:
            begin, extent, _ = tf.image.sample_distorted_bounding_box(
                tf.image.extract_jpeg_shape(image),
                tf.zeros([0, 0, 4], tf.float32),
                area_range=AREA,
                aspect_ratio_range=RATIO,
                min_object_covered=0,
                use_image_if_no_bounding_boxes=True,
            )
            window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
            pixels = tf.image.decode_and_crop_jpeg(image, window, channels=3)
            pixels = tf.image.resize(pixels, (size, size), antialias=True)
            return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)

        def text(example: Any) -> Any:
            return {name: tokenize(example[name], length) for name, length in LENGTHS.items()}

        def load(record: Any) -> Any:
            example = tf.io.parse_single_example(record, features)
            rest = {name: example[name] for name in LENGTHS} if batched_text else text(example)
            return {"image": crop(example["image"])} | rest

        data = tf.data.TFRecordDataset(glob.glob(f"{folder}/photographs.tfrecord")).repeat()
        data = data.shuffle(256).map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True)
        if batched_text:
            data = data.map(lambda batch: {"image": batch["image"]} | text(batch), num_parallel_calls=tf.data.AUTOTUNE)
        options = tf.data.Options()
        options.threading.private_threadpool_size = cores
        return data.prefetch(2).with_options(options).as_numpy_iterator()

    return batches


def _tf_tokenizer(folder: str) -> tuple[Callable[[Any, int], Any], str]:
    """Texts, () or (B,), to padded ids; and what it is.

    Without tensorflow-text: lower-casing, splitting at white space and punctuation, and looking whole words up. That is
    the first half of BERT's work; it costs less, so that ratios against it are too low, never too high.
    """
    import tensorflow as tf

    words = open(f"{folder}/vocab.txt", encoding="utf-8").read().split()
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(words, tf.range(len(words), dtype=tf.int64)), 1
    )
    try:
        import tensorflow_text as tf_text
    except ImportError:

        def look_up(text: Any, length: int) -> Any:
            split = tf.strings.split(tf.strings.regex_replace(tf.strings.lower(text), r"([[:punct:]])", r" \1 "))
            ids = table.lookup(split)
            if isinstance(ids, tf.RaggedTensor):
                return tf.cast(ids.to_tensor(shape=[None, length]), tf.int32)
            return tf.cast(tf.pad(ids[:length], [[0, tf.maximum(0, length - tf.shape(ids)[0])]]), tf.int32)

        return look_up, "whole words looked up by TensorFlow (tensorflow-text is missing)"
    bert = tf_text.BertTokenizer(table, lower_case=True, token_out_type=tf.int64)

    def tokenize(text: Any, length: int) -> Any:
        ids = bert.tokenize(text).merge_dims(-2, -1)
        padded = tf.cast(ids.to_tensor(shape=[None, length]), tf.int32)
        return padded if text.shape.rank else padded[0]

    return tokenize, "tensorflow-text BertTokenizer"


def open_clip(folder: str, cores: int) -> Callable[[int], Iterator[Any]]:
    """webdataset, PIL, RandomResizedCrop with bicubic, ToTensor, Normalize, and a tokenizer call per text."""
    tokenize, _ = _open_clip_tokenizer(folder)
    tars = f"{folder}/photographs.tar"
    try:
        import torch
        import webdataset
    except ImportError:
        return lambda size: _without_torch(tars, size, tokenize, cores)

    def batches(size: int) -> Iterator[Any]:
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

        def transform(image: Any) -> Any:
            pixels = torch.from_numpy(np.array(_pil_crop(image.convert("RGB"), size)))
            return (pixels.permute(2, 0, 1).float().div(255) - mean) / std

        data = webdataset.WebDataset([tars], resampled=True, shardshuffle=False, nodesplitter=None)
        data = data.shuffle(256).decode("pilrgb").to_tuple("jpg", "txt", "json")
        data = data.map_tuple(
            transform,
            lambda text: torch.from_numpy(tokenize(text, LENGTHS["alt_text"])),
            lambda extra: torch.from_numpy(tokenize(extra["re_caption"], LENGTHS["recaption"])),
        )
        loader = webdataset.WebLoader(
            data.batched(BATCH, partial=False), batch_size=None, num_workers=cores, persistent_workers=True
        )
        return iter(loader)

    return batches


def _open_clip_tokenizer(folder: str) -> tuple[Callable[[str, int], np.ndarray], str]:
    """One text to padded ids; open_clip's, or SentencePiece, which costs less (ratios are then too low)."""
    try:
        place = importlib.util.find_spec("open_clip")
        if place is None or place.origin is None:
            raise ImportError("open_clip_torch")
        # tokenizer.py alone: the package imports torchvision.
        spec = importlib.util.spec_from_file_location(
            "open_clip_tokenizer", place.origin.replace("__init__", "tokenizer")
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        simple = module.SimpleTokenizer()
        return lambda text, length: np.asarray(simple([text], length)[0]), "open_clip SimpleTokenizer"
    except ImportError:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")

        def tokenize(text: str, length: int) -> np.ndarray:
            ids = np.zeros(length, np.int64)
            found = processor.encode(text)[:length]
            ids[: len(found)] = found
            return ids

        return tokenize, "SentencePiece per text (open_clip_torch is missing)"


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _pil_crop(image: Any, size: int) -> Any:
    """torchvision's RandomResizedCrop, bicubic."""
    from PIL import Image

    from clips_jax.data.images import sample_crop

    left, top, width, height = sample_crop(*image.size, _PIL_RNG, AREA, RATIO)
    return image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)


_PIL_RNG = np.random.default_rng(0)


def _pil_worker(tars: str, size: int, tokenize: Any, queue: Any, number: int) -> None:
    from PIL import Image

    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    images, texts = [], []
    while True:
        with tarfile.open(tars) as tar:
            parts: dict[str, bytes] = {}
            for place, member in enumerate(tar):
                parts[member.name.rpartition(".")[2]] = tar.extractfile(member).read()  # pyright: ignore
                if len(parts) < 3 or (place // 3) % 2 != number % 2:
                    parts = {} if len(parts) == 3 else parts
                    continue
                image = _pil_crop(Image.open(io.BytesIO(parts["jpg"])).convert("RGB"), size)
                images.append(((np.asarray(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1))
                recaption = json.loads(parts["json"])["re_caption"]
                texts.append((tokenize(parts["txt"].decode(), 80), tokenize(recaption, 128)))
                parts = {}
                if len(images) == BATCH:
                    queue.put((np.stack(images), [np.stack(column) for column in zip(*texts, strict=True)]))
                    images, texts = [], []


def _without_torch(tars: str, size: int, tokenize: Any, cores: int) -> Iterator[Any]:
    """The same work without torch and webdataset: tarfile, PIL and NumPy in forked processes."""

    context = multiprocessing.get_context("fork")
    queue = context.Queue(maxsize=4)
    for number in range(cores):
        context.Process(target=_pil_worker, args=(tars, size, tokenize, queue, number), daemon=True).start()
    while True:
        yield queue.get()


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
    "tf.data": lambda folder, cores: tf_data(folder, cores, batched_text=False),
    "tf.data, batched text": lambda folder, cores: tf_data(folder, cores, batched_text=True),
    "open_clip": open_clip,
    "floor": floor,
}


def describe(name: str, folder: str) -> str:
    """What stands in for what is missing, if anything."""
    if name.startswith("tf.data"):
        return _tf_tokenizer(folder)[1]
    if name == "open_clip":
        missing = [package for package in ("torch", "webdataset") if not _has(package)]
        how = f"tarfile and PIL in processes ({', '.join(missing)} missing)" if missing else "webdataset, torch"
        return f"{how}; {_open_clip_tokenizer(folder)[1]}"
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
