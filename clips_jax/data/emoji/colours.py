"""Named colours measured in CIE Lab.

Lab distances follow what people call similar better than RGB distances do; the nearest of a small table of named
colours is the name of a pixel. Conversion: sRGB, D65 white (IEC 61966-2-1; CIE 15).
"""

from __future__ import annotations

import functools

import numpy as np

# sRGB examples of everyday English colour names; several per name where a name covers much. Assumption: chosen by
# eye on the training sets, after the eleven basic terms of Berlin and Kay (1969) and their common shades.
_EXAMPLES: tuple[tuple[str, str], ...] = (
    ("black", "000000 1c1c1e 2b2b2b"),
    ("dark grey", "454545 55595c"),
    ("grey", "808080 8e9499 707478"),
    ("light grey", "b4b4b4 c8ccd0"),
    ("white", "ffffff f0f0f0 e6e9ec"),
    ("red", "dd2e44 e00000 f04030 c81e28"),
    ("dark red", "8b1020 6e0f1a"),
    ("orange", "f4900c ff8000 f06818"),
    ("brown", "8a4b2a 6b3e20 a0623c c1694f"),
    ("dark brown", "45281a 3a2317 662113"),
    ("tan", "d2a679 c8a070 e0b890"),
    ("beige", "f0e0c0 fae7cf"),
    ("yellow", "ffdc3c ffcc4d fcea2b ffe87a"),
    ("gold", "d9a520 e8b020 c08a18"),
    ("olive", "808020 6b7028"),
    ("green", "3fa045 5c9e31 77b255 20b060"),
    ("light green", "a6d388 b1d860 b8e8b0"),
    ("dark green", "1f5a2c 284a20"),
    ("teal", "1f8a8a 2a7f88"),
    ("turquoise", "40d0c8 70dccc"),
    ("light blue", "92d3f5 bbddf5 a0c8f0"),
    ("blue", "3b88c3 2070e0 55acee 4080d0"),
    ("dark blue", "1e3c80 002a70 203050"),
    ("purple", "9060c0 744eaa aa8dd8 8030a0"),
    ("violet", "c8b0e8 b49ae0"),
    ("magenta", "d030a0 e040c0"),
    ("pink", "f4a0b8 ea94b0 ffa7c0 f070a0"),
    ("pale pink", "fad4dc f8c8d4"),
)

COLOUR_NAMES = tuple(name for name, _ in _EXAMPLES)


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) in 0-255 to Lab (..., 3): L in 0-100, a and b about -100 to 100. float64."""
    c = np.asarray(rgb, np.float64) / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    white = np.array([0.95047, 1.0, 1.08883])
    t = linear @ to_xyz.T / white
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Lab of every example (n, 3), and the index of its name (n,)."""
    rgb, index = [], []
    for i, (_, examples) in enumerate(_EXAMPLES):
        for example in examples.split():
            rgb.append([int(example[j : j + 2], 16) for j in (0, 2, 4)])
            index.append(i)
    return lab(np.array(rgb)), np.array(index)


def _nearest(points_lab: np.ndarray) -> np.ndarray:
    """Index into `COLOUR_NAMES` (n,) of the nearest example to each Lab point (n, 3)."""
    examples, index = _table()
    squared = (examples**2).sum(1) - 2 * points_lab @ examples.T  # less a term that is the same for all examples
    return index[squared.argmin(1)]


def name_of(rgb: tuple[float, float, float]) -> str:
    """The name of one sRGB colour in 0-255."""
    return COLOUR_NAMES[int(_nearest(lab(np.array(rgb))[None])[0])]


def shares(rgba: np.ndarray) -> list[tuple[str, float]]:
    """Named colours of a drawing with their shares, largest first.

    Args:
      rgba: uint8 (height, width, 4); pixels at least half opaque count.

    Returns:
      (name, share) with shares in 0-1 that sum to 1; shares below 0.01 are left out. Empty for an empty drawing.
    """
    pixels = rgba[rgba[..., 3] >= 128][:, :3]
    if not len(pixels):
        return []
    # Drawings have few different colours: each is named once.
    packed, times = np.unique(pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32), return_counts=True)
    different = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1)
    counts = np.bincount(_nearest(lab(different)), weights=times, minlength=len(COLOUR_NAMES))
    order = np.argsort(-counts, kind="stable")
    return [(COLOUR_NAMES[i], float(counts[i]) / len(pixels)) for i in order if counts[i] >= 0.01 * len(pixels)]
