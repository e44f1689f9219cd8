"""Rewrites a COLRv1 font so that resvg draws it right: no SRC_IN composite is left in its colour glyphs.

resvg 0.5 ignores the Porter-Duff mode SRC_IN ("source where the backdrop is") and paints both operands. Noto Color
Emoji uses SRC_IN in two ways (314 places, 296 glyphs), which come out as grey or dark boxes behind the drawing:

    SOFT_LIGHT( SRC_IN(gradient, flag), flag )    shading of the 262 waved flags  ->  flag
    SRC_IN( layers, solid colour of alpha a )     group opacity, 34 glyphs        ->  layers, each alpha times a

The first loses a slight shading. The second is exact where the layers do not overlap. Paints are shared between
glyphs, so a group's layers are copied (to the end of the table) before their alphas change; everything else is an
edit in place: a PaintComposite record is as long as a PaintTranslate record, 8 bytes. So no font library is needed.
Format: https://learn.microsoft.com/typography/opentype/spec/colr
"""

from __future__ import annotations

from collections.abc import Iterator

# Paint formats and composite modes, from the specification.
_COLR_LAYERS, _SOLID, _COLR_GLYPH, _TRANSLATE, _COMPOSITE = 1, 2, 11, 14, 32
_GRADIENTS = (4, 6, 8)
_TRANSFORM = 12
_SRC_OVER, _SRC_IN = 3, 5
# Bytes of a paint record by format (those without variations, which are all that the font has).
_SIZES = {2: 5, 4: 16, 6: 16, 8: 12, 10: 6, 12: 7, 14: 8, 16: 8, 18: 12, 20: 6, 22: 10, 24: 6, 26: 10, 28: 8, 30: 12}
_AFFINE_SIZE = 24


class _Table:
    """A COLR table by itself; positions are counted from its start."""

    def __init__(self, data: bytes) -> None:
        self.bytes = bytearray(data)
        self.glyphs = self.u32(14)  # BaseGlyphList
        self.layers = self.u32(18)  # LayerList

    def u16(self, at: int) -> int:
        return int.from_bytes(self.bytes[at : at + 2], "big")

    def u24(self, at: int) -> int:
        return int.from_bytes(self.bytes[at : at + 3], "big")

    def u32(self, at: int) -> int:
        return int.from_bytes(self.bytes[at : at + 4], "big")

    def roots(self) -> Iterator[int]:
        """Positions of the glyphs' root paints: records of (uint16 glyph, Offset32 paint)."""
        for i in range(self.u32(self.glyphs)):
            yield self.glyphs + self.u32(self.glyphs + 4 + 6 * i + 2)

    def children(self, paint: int) -> list[int]:
        """Positions of the paints below a paint."""
        kind = self.bytes[paint]
        if kind == _COLR_LAYERS:
            count, first = self.bytes[paint + 1], self.u32(paint + 2)
            return [self.layers + self.u32(self.layers + 4 + 4 * (first + i)) for i in range(count)]
        if kind == _COMPOSITE:
            return [paint + self.u24(paint + 1), paint + self.u24(paint + 5)]
        if kind in (_SOLID, _COLR_GLYPH, *_GRADIENTS):
            return []
        if kind in _SIZES:
            return [paint + self.u24(paint + 1)]
        raise ValueError(f"unexpected paint format {kind} in the COLR table")

    def point(self, field: int, paint: int, target: int) -> None:
        """Writes the Offset24 at `field` of a paint."""
        self.bytes[field : field + 3] = (target - paint).to_bytes(3, "big")

    def replace(self, paint: int, operand: int) -> None:
        """Turns a PaintComposite into a PaintTranslate by (0, 0) of another paint."""
        self.bytes[paint : paint + 8] = bytes([_TRANSLATE]) + bytes(7)
        self.point(paint + 1, paint, operand)

    def _append(self, data: bytes | bytearray) -> int:
        at = len(self.bytes)
        self.bytes += data
        return at

    def faded(self, paint: int, alpha: int) -> int:
        """Copies a paint with all its alphas multiplied by `alpha` (F2DOT14); returns the copy's position."""
        kind = self.bytes[paint]
        if kind == _COLR_LAYERS:
            return self._faded_layers(self.children(paint), alpha)
        if kind not in _SIZES:
            raise ValueError(f"cannot copy paint format {kind}")
        copy = self._append(self.bytes[paint : paint + _SIZES[kind]])
        if kind == _SOLID:
            self._fade(copy + 3, alpha)
        elif kind in _GRADIENTS:
            stops = paint + self.u24(paint + 1)  # ColorLine: uint8 extend, uint16 count, stops of 6 bytes
            count = self.u16(stops + 1)
            line = self._append(self.bytes[stops : stops + 3 + 6 * count])
            self.point(copy + 1, copy, line)
            for i in range(count):
                self._fade(line + 3 + 6 * i + 4, alpha)
        else:
            if kind == _TRANSFORM:
                affine = paint + self.u24(paint + 4)
                self.point(copy + 4, copy, self._append(self.bytes[affine : affine + _AFFINE_SIZE]))
            self.point(copy + 1, copy, self.faded(self.children(paint)[0], alpha))
        return copy

    def _faded_layers(self, layers: list[int], alpha: int) -> int:
        """Copies layers as SRC_OVER composites, the last layer on top: layers proper would need new list entries.

        A balanced tree of them, because readers of fonts limit the depth.
        """
        if len(layers) == 1:
            return self.faded(layers[0], alpha)
        middle = len(layers) // 2
        over = self._append(bytes([_COMPOSITE, 0, 0, 0, _SRC_OVER, 0, 0, 0]))
        self.point(over + 1, over, self._faded_layers(layers[middle:], alpha))
        self.point(over + 5, over, self._faded_layers(layers[:middle], alpha))
        return over

    def _fade(self, at: int, alpha: int) -> None:
        self.bytes[at : at + 2] = (self.u16(at) * alpha >> 14).to_bytes(2, "big")


def without_composites(font: bytes) -> bytes:
    """The font with its PaintComposites replaced as the module's table says; checksums are not updated."""
    out = bytearray(font)
    directory = next(r for r in range(12, 12 + 16 * int.from_bytes(font[4:6], "big"), 16) if font[r : r + 4] == b"COLR")
    start = int.from_bytes(font[directory + 8 : directory + 12], "big")
    length = int.from_bytes(font[directory + 12 : directory + 16], "big")
    table = _Table(font[start : start + length])

    pending, visited = list(table.roots()), set()
    while pending:
        paint = pending.pop()
        if paint in visited:
            continue
        visited.add(paint)
        if table.bytes[paint] == _COMPOSITE:
            source, backdrop = table.children(paint)
            if table.bytes[paint + 4] == _SRC_IN and table.bytes[backdrop] == _SOLID:
                table.replace(paint, table.faded(source, table.u16(backdrop + 3)))
                continue
            table.replace(paint, backdrop)
        pending.extend(table.children(paint))

    # The table has grown: it moves to the end of the file, where the directory then finds it.
    out += bytes(-len(out) % 4)
    out[directory + 8 : directory + 16] = len(out).to_bytes(4, "big") + len(table.bytes).to_bytes(4, "big")
    return bytes(out + table.bytes)
