"""How fast the input pipeline is beside others, on the same JPEGs, on two cores, in one run.

    python -m benchmarks.input_pipeline [--json] [--jpegs FOLDER]

Every stack reads, decodes, crops at random, tokenizes AltText and recaption and batches. Stacks take turns, so that
whatever else the machine does hits all alike; the figures are medians. Packages of the stacks compared with:
benchmarks/requirements.txt. What is missing is named, and the rest is measured: without tensorflow-text a cheaper
tokenizer stands in, without torch the same work in plain processes. Both favour the other side.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image, ImageOps
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from benchmarks.photographs import Photograph, made_photographs, read_photographs, zone_plate
from benchmarks.stack_work import AREA, RATIO
from benchmarks.stacks import STACKS
from clips_jax.data.images import Picture, crop_on_grid, decode_resized_crop, sample_crop
from clips_jax.data.prepare.pictures import PictureOptions, plain
from clips_jax.data.tokenizer import train_sentencepiece
from clips_jax.data.wordpiece import WordPieceTokenizer

SIZES = (84, 112, 224)
# BERT's vocabulary, and how many pieces are learned from the texts when it is made here.
BERT_PIECES, _LEARNED_PIECES = 30_522, 2_600
_LOW_RESOLUTION = {"ours, shorter side 160": (84,), "ours, shorter side 208": (84, 112)}
_MEASURED_AT = {"floor": (84,), "tf.data, colour jitter": (84,), **_LOW_RESOLUTION}
_TARGETS = {"tf.data": 2.0, "tf.data, batched text": 1.3, "open_clip": 2.3}


class Photographs(tfds.core.GeneratorBasedBuilder):
    """The pictures as triples: as they are, and with a shorter side, as `clips_jax.data.prepare` makes them."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("original", "side160", "side208")]
    photographs: Sequence[Photograph] = ()

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "alt_text": text, "recaption": text}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        side = self.builder_config.name.removeprefix("side")
        for number, (jpeg, alt, recaption) in enumerate(self.photographs):
            image = jpeg if side == "original" else plain(jpeg, "jpg", PictureOptions(shorter_side=int(side)))[0]
            yield number, {"image": io.BytesIO(image), "alt_text": alt, "recaption": recaption}


def write_data(folder: str, photographs: Sequence[Photograph], vocabulary: str = "") -> None:
    """The same pictures and texts in the format of each stack, and the tokenizers' vocabularies.

    Args:
      folder: where.
      photographs: what.
      vocabulary: a BERT vocabulary file, one piece a line, that has [bos] and [eos]; "" makes one.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tfds.disable_progress_bar()
    Photographs.photographs = photographs
    for config in Photographs.BUILDER_CONFIGS:
        Photographs(data_dir=folder, config=config.name, file_format="array_record").download_and_prepare()
    with tf.io.TFRecordWriter(f"{folder}/photographs.tfrecord") as writer:
        for image, alt, recaption in photographs:
            values = {"image": image, "alt_text": alt.encode(), "recaption": recaption.encode()}
            feature = {k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])) for k, v in values.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    with tarfile.open(f"{folder}/photographs.tar", "w") as tar:
        for number, (image, alt, recaption) in enumerate(photographs):
            extra = json.dumps({"key": f"{number:09}", "caption": alt, "re_caption": recaption}).encode()
            for ending, data in (("jpg", image), ("txt", alt.encode()), ("json", extra)):
                member = tarfile.TarInfo(f"{number:09}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    texts = [text for _, *both in photographs for text in both]
    train_sentencepiece(texts, f"{folder}/tokenizer.model", 16_000)
    if vocabulary:
        shutil.copy(vocabulary, f"{folder}/vocab.txt")
    else:
        write_vocabulary(texts, f"{folder}/vocab.txt")


def write_vocabulary(texts: Sequence[str], path: str) -> None:
    """A WordPiece vocabulary as large as BERT's, learned from the texts; what they do not fill are unused entries.

    Learned to be small, so that every tenth word or so is cut into pieces, as BERT's cuts real captions.
    """
    trainer = trainers.WordPieceTrainer(
        vocab_size=_LEARNED_PIECES, special_tokens=["[PAD]", "[bos]", "[eos]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainer)
    learned = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    unused = [f"[unused{number}]" for number in range(BERT_PIECES - len(learned))]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join([*learned, *unused]))


def token_counts(texts: Sequence[str], path: str) -> tuple[float, float]:
    """Mean numbers of tokens and of words (and punctuation marks) of the texts by a WordPiece vocabulary."""
    tokenizer = WordPieceTokenizer(path)
    tokens = float(np.mean(np.sum(tokenizer.tokenize(texts, 512)[1] >= 0, axis=1)))
    words = pre_tokenizers.BertPreTokenizer()
    return tokens, float(np.mean([len(words.pre_tokenize_str(text)) for text in texts]))


class Stack:
    """A pipeline in a process of its own, which waits while others are measured."""

    def __init__(self, name: str, folder: str, cores: int):
        command = [sys.executable, "-m", "benchmarks.stacks", name, folder, str(cores)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.rates: dict[int, list[float]] = {}
        self.cpu: dict[int, list[float]] = {}  # milliseconds per image
        self.megabytes = 0.0
        first = self._answer()
        self.missing, self.uses = first.get("missing", ""), first.get("uses", "")

    def measure(self, size: int, seconds: float) -> None:
        """Adds a rate to `rates`; sets `missing` if the stack fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size} {seconds}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.missing = answer.get("missing", "")
        if not self.missing:
            self.rates.setdefault(size, []).append(answer["rate"])
            self.cpu.setdefault(size, []).append(answer["cpu"])
            self.megabytes = max(self.megabytes, answer["mb"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            return {"missing": (self._process.stderr.read().strip().splitlines() or ["it died"])[-1]}
        return json.loads(line)

    def close(self) -> None:
        """Ends the process and its workers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def quality(photographs: Sequence[Photograph], size: int) -> float:
    """Mean PSNR in dB of our crops against a full decode and Pillow's antialiased resize of the same crops."""
    values = []
    for number, (jpeg, _, _) in enumerate(photographs):
        ours = decode_resized_crop(jpeg, size, np.random.default_rng(number), AREA, RATIO)
        full = ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg))).convert("RGB")
        wanted = sample_crop(*full.size, np.random.default_rng(number), AREA, RATIO)
        scale, (left, top, width, height) = crop_on_grid(wanted, size, Picture(jpeg).scales)
        box = (scale * left, scale * top, scale * (left + width), scale * (top + height))
        exact = np.asarray(full.resize((size, size), Image.Resampling.BILINEAR, box=box), float)
        values.append(10 * np.log10(255**2 / max(np.mean((ours - exact) ** 2), 1e-3)))
    return float(np.mean(values))


def aliasing(size: int) -> dict[str, float]:
    """Contrast (standard deviation of grey values) left of a zone plate where its rings are finer than the result.

    0 is perfect; what is there looks like rings that the picture does not have.
    """
    plate = zone_plate()
    full = Image.fromarray(simplejpeg.decode_jpeg(plate))
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    fine = np.hypot(rows, columns) > 0.75 * size * size / full.width  # 1.5 x the result's Nyquist frequency and above
    whole: dict[str, Any] = {"area": (1.0, 1.0), "ratio": (1.0, 1.0)}
    results = {
        "ours": decode_resized_crop(plate, size, np.random.default_rng(0), **whole),
        "full decode, antialiased": np.asarray(full.resize((size, size), Image.Resampling.BILINEAR)),
        "full decode, nearest": np.asarray(full.resize((size, size), Image.Resampling.NEAREST)),
    }
    return {name: float(pixels[fine].std()) for name, pixels in results.items()}


def run(
    folder: str, names: Sequence[str], sizes: Sequence[int], cores: int, repeats: int, seconds: float
) -> dict[str, Stack]:
    """Starts the stacks, lets them take turns, ends them."""
    stacks = {}
    for name in names:
        stacks[name] = Stack(name, folder, cores)
        print(f"  {name}: {stacks[name].missing or stacks[name].uses or 'ready'}", flush=True)
    try:
        for repeat in range(repeats):
            for size in sizes:
                turn = names[repeat % len(names) :] + names[: repeat % len(names)]
                for name in turn:
                    measured_at = _MEASURED_AT.get(name, SIZES)
                    if size in measured_at and not stacks[name].missing:
                        stacks[name].measure(size, seconds)
                        stack = stacks[name]
                        rate = (
                            f"{stack.rates.get(size, [0])[-1]:,.0f} images/s, {stack.cpu.get(size, [0])[-1]:.2f} ms CPU"
                        )
                        print(
                            f"  round {repeat + 1} of {repeats}, {size} px, {name}: {stack.missing or rate}", flush=True
                        )
    finally:
        for stack in stacks.values():
            stack.close()
    return stacks


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--jpegs", help="folder of photographs to use instead of made ones; .txt beside them are texts")
    parser.add_argument("--vocab", default="", help="BERT vocabulary with [bos] and [eos] (default: made of that size)")
    parser.add_argument("--images", type=int, default=768, help="pictures at most (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="cores each stack may use (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; figures are medians (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.5, help="counted per turn (default: %(default)s)")
    parser.add_argument("--sizes", default="84,112,224", help="pixels (default: %(default)s)")
    parser.add_argument(
        "--stacks", nargs="*", default=list(STACKS), choices=STACKS, help="default: all", metavar="STACK"
    )
    options = parser.parse_args()
    cores = min(options.cores, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="clips_jax_benchmark_") as folder:
        made = "made pictures (1/f noise and edges)"
        print(f"photographs: {options.jpegs or made}", flush=True)
        read = read_photographs(options.jpegs, options.images) if options.jpegs else made_photographs(options.images)
        photographs = list(read)
        kilobytes = np.mean([len(jpeg) for jpeg, _, _ in photographs]) / 1000
        shapes = [simplejpeg.decode_jpeg_header(jpeg)[:2] for jpeg, _, _ in photographs]
        height, width = np.mean(shapes, axis=0)
        print(
            f"{len(photographs)} JPEGs, mean {width:.0f} x {height:.0f}, {kilobytes:.1f} kB; {cores} cores", flush=True
        )
        write_data(folder, photographs, options.vocab)
        for number, name in ((1, "AltText"), (2, "recaption")):
            counts = token_counts([photograph[number] for photograph in photographs], f"{folder}/vocab.txt")
            print("{}: {:.0f} BERT tokens, {:.0f} words and marks".format(name, *counts), flush=True)
        sizes = [int(size) for size in options.sizes.split(",")]
        stacks = run(folder, options.stacks, sizes, cores, options.repeats, options.seconds)
        report(stacks, photographs[:200], options.json)


def report(stacks: dict[str, Stack], photographs: Sequence[Photograph], as_json: bool) -> None:
    """The tables, and the line of JSON."""
    rates = {
        name: {str(size): statistics.median(found) for size, found in stack.rates.items()}
        for name, stack in stacks.items()
        if not stack.missing
    }
    print(f"\n{'images/s':<26}" + "".join(f"{size:>8}" for size in SIZES) + "   MB per worker")
    for name, stack in stacks.items():
        row = "".join(f"{rates[name][str(s)]:8,.0f}" if str(s) in rates.get(name, {}) else f"{'–':>8}" for s in SIZES)
        memory = f"{stack.megabytes:10,.0f}" if stack.megabytes else ""
        print(f"{name:<26}{row}{memory}   {stack.missing or stack.uses}".rstrip())
    cpu = {
        name: {str(size): statistics.median(found) for size, found in stack.cpu.items()}
        for name, stack in stacks.items()
        if not stack.missing
    }
    print("\nCPU milliseconds per image, which other load on the machine distorts less:")
    for name, found in cpu.items():
        print(f"{name:<26}" + "".join(f"{found[str(s)]:8.2f}" if str(s) in found else f"{'–':>8}" for s in SIZES))
    for name in _TARGETS:
        both = [size for size in cpu.get("ours", {}) if size in cpu.get(name, {})]
        if both:
            listed = ", ".join(f"{cpu[name][size] / cpu['ours'][size]:.2f} at {size} px" for size in both)
            print(f"{name} / ours, CPU time: {listed}")
    print()
    ratios = {}
    for name, target in _TARGETS.items():
        ratios[name] = {
            size: round(rates["ours"][size] / rate, 3)
            for size, rate in rates.get(name, {}).items()
            if size in rates.get("ours", {})
        }
        if ratios[name]:
            print(
                f"ours / {name}: "
                + ", ".join(f"{r:.2f} at {s} px" for s, r in ratios[name].items())
                + f" (target {target} at 84)"
            )
    low_resolution: dict[str, dict[str, dict[str, float]]] = {}
    for name in _LOW_RESOLUTION:
        for other, target in (("tf.data", 5.0), ("open_clip", 8.0)):
            found = {
                s: round(rate / rates[other][s], 3)
                for s, rate in rates.get(name, {}).items()
                if s in rates.get(other, {})
            }
            low_resolution.setdefault(name, {})[other] = found
            if found:
                listed = ", ".join(f"{ratio:.2f} at {s} px" for s, ratio in found.items())
                print(f"{name} / {other} from the originals: {listed} (target {target} at 84)")
    psnr = {str(size): round(quality(photographs, size), 1) for size in SIZES}
    print("crops against a full decode, PSNR: " + ", ".join(f"{value} dB at {size} px" for size, value in psnr.items()))
    for size in SIZES[:2]:
        left = ", ".join(f"{name} {value:.1f}" for name, value in aliasing(size).items())
        print(f"zone plate at {size} px, contrast left where rings are too fine: {left}")
    if as_json:
        print(
            json.dumps(
                {
                    "images_per_second": {n: {s: round(r, 1) for s, r in found.items()} for n, found in rates.items()},
                    "ratio_tf_data": ratios["tf.data"],
                    "ratio_open_clip": ratios["open_clip"],
                    "ratio_tf_data_batched_text": ratios["tf.data, batched text"],
                    "ratio_low_resolution": low_resolution,
                    "cpu_ms_per_image": {n: {s: round(c, 3) for s, c in found.items()} for n, found in cpu.items()},
                    "psnr": psnr,
                    "megabytes_per_worker": {n: round(s.megabytes) for n, s in stacks.items() if s.megabytes},
                }
            )
        )


if __name__ == "__main__":
    main()
