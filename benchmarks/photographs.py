"""JPEG files that cost a decoder what web photographs do, and texts as long as theirs.

Made pictures: noise with the 1/f spectrum of natural images, cut by edges of large and small shapes, coloured slowly
(chroma spectra fall faster), at sizes around 500 x 400 and about 63 kB. Real ones are better: `--jpegs`.
"""

import glob
import io
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

Photograph = tuple[bytes, str, str]  # JPEG file, AltText, recaption

_BITS_PER_PIXEL = 2.5  # 63 kB at 500 x 400, the mean of the web pictures in the table
_QUALITIES = (60, 70, 75, 80, 85, 90, 95)


def made_photographs(count: int, seed: int = 0) -> Iterator[Photograph]:
    """`count` made pictures with texts."""
    rng = np.random.default_rng(seed)
    words = _words()
    for _ in range(count):
        width, height = np.clip(rng.normal((500, 400), (60, 50)), 260, 700).astype(int).tolist()
        yield _encode(_picture(rng, width, height), rng), _alt_text(rng, words), _recaption(rng, words)


def read_photographs(path: str, count: int, seed: int = 0) -> Iterator[Photograph]:
    """JPEGs of a folder (with all folders in it), at most `count`; texts are the `.txt` beside them, or made."""
    rng, words = np.random.default_rng(seed), _words()
    names = sorted(glob.glob(os.path.join(path, "**", "*.jp*g"), recursive=True))
    if not names:
        raise FileNotFoundError(f"--jpegs {path}: no .jpg or .jpeg in it.")
    for name in names[:count]:
        text = os.path.splitext(name)[0] + ".txt"
        alt = open(text, encoding="utf-8", errors="replace").read() if os.path.exists(text) else _alt_text(rng, words)
        with open(name, "rb") as file:
            data = file.read()
        if data[:2] == b"\xff\xd8":
            yield data, alt, _recaption(rng, words)


def smaller(jpeg: bytes, shorter_side: int, quality: int = 90) -> bytes:
    """The picture re-encoded with this shorter side, as low-resolution shards hold it; never enlarged."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    scale = min(1.0, shorter_side / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def zone_plate(size: int = 512) -> bytes:
    """Rings whose frequency grows from 0 in the middle to the picture's Nyquist frequency at its border; JPEG."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    rings = 127.5 + 127.5 * np.cos(np.pi * (rows**2 + columns**2) / size)
    buffer = io.BytesIO()
    Image.fromarray(rings.round().astype(np.uint8)).convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _noise(rng: np.random.Generator, width: int, height: int, slope: float) -> np.ndarray:
    """float (height, width) of unit variance whose amplitude spectrum falls as 1 / f^slope."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    spectrum = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) / frequency**slope
    noise = np.fft.irfft2(spectrum, (height, width))
    return noise / noise.std()


def _picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    large, small = _noise(rng, width, height, 2.0) > 0, _noise(rng, width, height, 1.6) > 1
    light = 120 + 30 * _noise(rng, width, height, 1.2) + 45 * (large - 0.5) + 35 * small
    red, blue = _noise(rng, width, height, 1.6), _noise(rng, width, height, 1.6)
    rgb = np.stack([light + 25 * red, light - 8 * (red + blue), light + 25 * blue], axis=-1)
    return rgb.clip(0, 255).astype(np.uint8)


def _encode(rgb: np.ndarray, rng: np.random.Generator) -> bytes:
    """The quality that comes closest to a size drawn around `_BITS_PER_PIXEL`."""
    wanted = rgb.shape[0] * rgb.shape[1] * _BITS_PER_PIXEL / 8 * rng.lognormal(0, 0.15)
    files = []
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    return min(files, key=lambda data: abs(len(data) - wanted))


def _words() -> list[str]:
    """About 3,000 words: those of the names of emoji."""
    import emoji

    names = " ".join(data["en"].strip(":").replace("_", " ") for data in emoji.EMOJI_DATA.values())
    return sorted({word for word in names.lower().split() if word.isalpha()})


def _alt_text(rng: np.random.Generator, words: list[str]) -> str:
    return " ".join(rng.choice(words, int(rng.integers(4, 16))))


def _recaption(rng: np.random.Generator, words: list[str]) -> str:
    """Four to eight sentences, 60 to 130 words or so."""
    pattern = "The {} image shows a {} and a {} with {} {} in the {}, next to the {} of a {}."
    return " ".join(pattern.format(*rng.choice(words, 8)) for _ in range(rng.integers(4, 9)))
