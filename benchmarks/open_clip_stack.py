"""The input pipeline of open_clip, for comparison: webdataset and PIL."""

import importlib.util
import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.stack_work import AREA, BATCH, LENGTHS, RATIO, SHUFFLED


def open_clip(folder: str, cores: int) -> Callable[[int], Iterator[Any]]:
    """webdataset, PIL, RandomResizedCrop with bicubic, ToTensor, Normalize, and a tokenizer call per text."""
    tokenize, _ = tokenizer(folder)
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
            pixels = torch.from_numpy(np.array(_crop(image, size)))  # webdataset has made it RGB
            pixels = pixels.permute(2, 0, 1).contiguous().float().div(255)
            return pixels.sub_(mean).div_(std)

        data = webdataset.WebDataset([tars], resampled=True, shardshuffle=False, nodesplitter=None)
        data = data.shuffle(SHUFFLED).decode("pilrgb").to_tuple("jpg", "txt", "json")
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


def tokenizer(folder: str) -> tuple[Callable[[str, int], np.ndarray], str]:
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


def _crop(image: Any, size: int) -> Any:
    """torchvision's RandomResizedCrop, bicubic."""
    from PIL import Image

    from clips_jax.data.images import sample_crop

    left, top, width, height = sample_crop(*image.size, _RNG, AREA, RATIO)
    return image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)


_RNG = np.random.default_rng(0)


def _worker(tars: str, size: int, tokenize: Any, queue: Any, number: int) -> None:
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
                image = _crop(Image.open(io.BytesIO(parts["jpg"])).convert("RGB"), size)
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
        context.Process(target=_worker, args=(tars, size, tokenize, queue, number), daemon=True).start()
    while True:
        yield queue.get()
