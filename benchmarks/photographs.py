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
    """JPEGs of a folder (with all folders in it), at most `count`; texts are the `.txt` beside them, or made.

    What a peer would stop at is left out: files that are no whole JPEG in RGB or grey.

    Raises:
      FileNotFoundError: there is none.
    """
    rng, words = np.random.default_rng(seed), _words()
    names = sorted(glob.glob(os.path.join(path, "**", "*"), recursive=True))
    found = 0
    for name in names:
        if found == count:
            break
        if not name.lower().endswith((".jpg", ".jpeg")) or not os.path.isfile(name):
            continue
        with open(name, "rb") as file:
            data = file.read()
        if not _is_plain(data):
            continue
        found += 1
        text = os.path.splitext(name)[0] + ".txt"
        alt = open(text, encoding="utf-8", errors="replace").read() if os.path.exists(text) else _alt_text(rng, words)
        yield data, alt, _recaption(rng, words)
    if not found:
        raise FileNotFoundError(f"--jpegs {path}: no .jpg or .jpeg in it that is a whole picture in RGB or grey.")


def _is_plain(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            image.load()
            return image.mode in ("RGB", "L")
    except Exception:  # Pillow raises many kinds on damaged files
        return False


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
    """4 to 16 words, some with what AltText on the web has besides: 17 BERT tokens in the mean."""
    text = " ".join(rng.choice(words, int(rng.integers(4, 16))))
    ending = ("", "", " - {}", " | {}, {}", " ({}x{})", ".jpg")[int(rng.integers(6))]
    return text.capitalize() + ending.format(*rng.integers(1, 2000, 2))


# A describing sentence each, 16 to 22 words with what fills the gaps.
_SENTENCES = (
    "The image shows a {} and a {} with a {} {} in the background, next to the {} of a {}.",
    "In the foreground there is a {} {}, which is partly covered by a {} and lit from the {}.",
    "On the left side of the picture, a {} is holding a {} while looking towards the {} {}.",
    "The overall mood is {} and {}, and the colors are mostly {}, {} and a light shade of {}.",
    "Behind it you can see several {} and what appears to be a {}-{} {}, slightly out of focus!",
    'There is also a sign that reads "{} {}" on the {} above the {}, and 3 or 4 smaller {} below it.',
)


def _recaption(rng: np.random.Generator, words: list[str]) -> str:
    """Three to six sentences: 60 to 130 BERT tokens."""
    chosen = rng.choice(len(_SENTENCES), int(rng.integers(3, 7)), replace=False)
    return " ".join(_SENTENCES[number].format(*rng.choice(words, 8)) for number in chosen)
