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
# Records that tf.data and webdataset shuffle among: undecoded, so more would only take memory.
_SHUFFLED = 256
# What big_vision and OpenVision set: parallel calls of `map`, and threads.
_TF_CALLS, _TF_THREADS = 100, 48
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


def tf_data(
    folder: str, cores: int, batched_text: bool = False, jitter: bool = False
) -> Callable[[int], Iterator[Any]]:
    """tf.data as big_vision and OpenVision write it, in every doubt the cheaper of the two.

    From both: TFRecords of `tf.train.Example`, shuffled, one parallel `map`, threads of its own, uint8 pictures to the
    device. From big_vision: `decode_and_crop_jpeg` (OpenVision has TFDS decode the whole picture, 7 % more) and the
    cast without rounding. From OpenVision: antialiasing and the text, see `_tf_text`. OpenVision also jitters colours
    here, on the CPU (`jitter`); clips_jax does that in the training step.

    Args:
      batched_text: the text is tokenized after batching, which neither does.
      jitter: with OpenVision's colour jitter and grey pictures.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    text, _ = _tf_text(folder)
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
            pixels = tf.image.resize(pixels, (size, size), method="bilinear", antialias=True)
            pixels = tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)
            return _tf_jitter(pixels) if jitter else pixels

        def load(record: Any) -> Any:
            example = tf.io.parse_single_example(record, features)
            texts = {name: example[name] for name in LENGTHS}
            return {"image": crop(example["image"])} | (texts if batched_text else text(**texts))

        data = tf.data.TFRecordDataset(f"{folder}/photographs.tfrecord").repeat().shuffle(_SHUFFLED)
        data = data.map(load, num_parallel_calls=_TF_CALLS).batch(BATCH, drop_remainder=True)
        if batched_text:
            data = data.map(
                lambda batch: {"image": batch["image"]} | text(**{name: batch[name] for name in LENGTHS}),
                num_parallel_calls=cores,  # not more: so many batches are made ahead while other stacks are measured
            )
        options = tf.data.Options()
        options.threading.private_threadpool_size = _TF_THREADS
        options.threading.max_intra_op_parallelism = 1
        return data.prefetch(2).with_options(options).as_numpy_iterator()

    return batches


def _tf_text(folder: str) -> tuple[Callable[[Any, Any], dict[str, Any]], str]:
    """What OpenVision makes of AltText and recaption, each () or (B,), and by which tokenizer.

    Three BERT sequences: the AltText and a random sentence of the recaption, `[bos] pieces [eos] pads [CLS]` of 80, and
    the whole recaption as target of the captioner, 128, with the tokens shifted by one and a mask of what counts.

    Without tensorflow-text: lower-casing, splitting at white space and punctuation, and looking whole words up. That is
    the first half of BERT's work; it costs less, so that ratios against it are too low, never too high.
    """
    import tensorflow as tf

    file = f"{folder}/vocab.txt"
    vocabulary = open(file, encoding="utf-8").read().split("\n")
    bos, eos, cls = (vocabulary.index(name) for name in ("[bos]", "[eos]", "[CLS]"))
    try:
        import tensorflow_text as tf_text
    except ImportError:
        entries = tf.lookup.KeyValueTensorInitializer(vocabulary, tf.range(len(vocabulary), dtype=tf.int64))
        table = tf.lookup.StaticVocabularyTable(entries, 1)

        def pieces(texts: Any) -> Any:
            spaced = tf.strings.regex_replace(tf.strings.lower(texts), r"([[:punct:]])", r" \1 ")
            return tf.cast(table.lookup(tf.strings.split(spaced)), tf.int32)

        how = "whole words looked up by TensorFlow (tensorflow-text is missing)"
    else:
        bert = tf_text.BertTokenizer(file, token_out_type=tf.int32, lower_case=True)
        how = "tensorflow-text BertTokenizer"

        def pieces(texts: Any) -> Any:
            return bert.tokenize(texts).merge_dims(1, -1)

    def one_of(texts: Any) -> Any:
        """(1,): OpenVision takes one of the texts that a record may have."""
        texts = tf.reshape(texts, (-1,))
        return texts[tf.random.uniform([], 0, tf.maximum(tf.shape(texts)[0], 1), tf.int32)][None]

    def sequence(texts: Any, length: int) -> tuple[Any, Any]:
        """(B, length) each: `[bos] pieces [eos]`, padded or cut with EOS in the last place; and 1 where filled."""
        found = pieces(texts)
        column = tf.ones([tf.shape(texts)[0], 1], tf.int32)
        found = tf.concat([bos * column, found, eos * column], axis=1)
        padded = found.to_tensor(shape=[None, length])
        filled = tf.ones_like(found).to_tensor(shape=[None, length])
        return tf.concat([padded[:, :-1], tf.where(filled[:, -1:] == 1, eos, padded[:, -1:])], axis=1), filled

    def sentence(recaptions: Any) -> Any:
        """A random sentence of each; they end at every full stop and exclamation mark."""
        sentences = tf.strings.split(tf.strings.regex_replace(recaptions, r"[.!]+", "|"), "|")
        sentences = tf.ragged.boolean_mask(sentences, tf.strings.length(sentences) > 0)
        counts = sentences.row_lengths()
        drawn = tf.cast(tf.random.uniform(tf.shape(counts)) * tf.cast(counts, tf.float32), tf.int64)
        return tf.gather(sentences.flat_values, sentences.row_starts() + drawn)

    def text(alt_text: Any, recaption: Any) -> dict[str, Any]:
        single = not alt_text.shape.rank
        if single:
            alt_text, recaption = one_of(alt_text), one_of(recaption)
        column = tf.fill([tf.shape(alt_text)[0], 1], cls)
        target, filled = sequence(recaption, LENGTHS["recaption"])
        found = {
            "alt_text": tf.concat([sequence(alt_text, LENGTHS["alt_text"] - 1)[0], column], axis=1),
            "sentence": tf.concat([sequence(sentence(recaption), LENGTHS["alt_text"] - 1)[0], column], axis=1),
            "target": tf.pad(target[:, 1:], [[0, 0], [0, 1]]),
            "target_mask": tf.pad(filled[:, 1:], [[0, 0], [0, 1]]),
        }
        return {name: value[0] for name, value in found.items()} if single else found

    return text, how


def _tf_jitter(pixels: Any) -> Any:
    """Brightness, contrast, saturation and hue in random order for 80 % of the pictures; 20 % grey. uint8."""
    import tensorflow as tf

    def colours(image: Any) -> Any:
        steps = [
            lambda: image * tf.random.uniform([], 0.68, 1.32),
            lambda: tf.image.random_contrast(image, 0.68, 1.32),
            lambda: tf.image.random_saturation(image, 0.68, 1.32),
            lambda: tf.image.random_hue(image, 0.08),
        ]
        order = tf.random.shuffle(tf.range(len(steps)))
        for place in range(len(steps)):
            image = tf.clip_by_value(tf.switch_case(order[place], steps), 0, 1)
        return image

    image = tf.cast(pixels, tf.float32) / 255
    image = tf.cond(tf.random.uniform([]) < 0.8, lambda: colours(image), lambda: image)
    image = tf.cond(
        tf.random.uniform([]) < 0.2, lambda: tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3]), lambda: image
    )
    return tf.cast(tf.clip_by_value(image * 255, 0, 255), tf.uint8)


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
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]

        def transform(image: Any) -> Any:
            pixels = torch.from_numpy(np.array(_pil_crop(image, size)))  # webdataset has made it RGB
            pixels = pixels.permute(2, 0, 1).contiguous().float().div(255)
            return pixels.sub_(mean).div_(std)

        data = webdataset.WebDataset([tars], resampled=True, shardshuffle=False, nodesplitter=None)
        data = data.shuffle(_SHUFFLED).decode("pilrgb").to_tuple("jpg", "txt", "json")
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
    "tf.data": tf_data,
    "tf.data, batched text": lambda folder, cores: tf_data(folder, cores, batched_text=True),
    "tf.data, colour jitter": lambda folder, cores: tf_data(folder, cores, jitter=True),
    "open_clip": open_clip,
    "floor": floor,
}


def describe(name: str, folder: str) -> str:
    """What stands in for what is missing, if anything."""
    if name.startswith("tf.data"):
        return _tf_text(folder)[1]
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
