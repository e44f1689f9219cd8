"""Pictures made plain: whatever the file was, what is stored is read the same by every decoder.

Plain JPEGs (grey or colour, upright) and plain PNGs (8 bit, grey or RGB) keep their bytes. Everything else is decoded
as training decodes it (`data/images.py`) and written anew: PNG where the source was lossless, JPEG where it was not.
Huge pictures that are no JPEG are reduced: training could only decode them in full, for seconds, at each use.
"""

import dataclasses
import io

import simplejpeg
from PIL import Image, UnidentifiedImageError

from clips_jax.data.images import MAX_PIXELS, OVERSAMPLING, Picture

# Of a JPEG that must be written anew (CMYK, turned by EXIF): near lossless, colours at full resolution.
_REWRITE_QUALITY = 95
# More pixels than this are huge, and what their shorter side becomes: enough for any training size. Assumptions.
_HUGE = 16_000_000
_HUGE_REDUCED = 1024
_EXIF_ORIENTATION = 0x0112
_PNG_DEPTH_AT = 24  # bits per channel, in the header that comes first
_EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
}
_UNNAMED = ("", "img", "image", "bin")


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """Which pictures are taken and how they are stored.

    Attributes:
      min_side: pixels; a shorter side below this is refused. Assumption: 16 leaves out tracking pixels and lines.
      max_pixels: width x height above this is refused, by the header, before any pixel is decoded.
      max_bytes: larger files are refused.
      shorter_side: pixels; larger pictures are reduced to this shorter side, smaller ones never enlarged. 0 is off.
      jpeg_quality: of reduced pictures.
    """

    min_side: int = 16
    max_pixels: int = MAX_PIXELS
    max_bytes: int = 100_000_000
    shorter_side: int = 0
    jpeg_quality: int = 90


class Refused(ValueError):
    """A picture that is not taken. Attributes: reason: to count by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def image_format(data: bytes) -> str:
    """The format by the first bytes, whatever the name says; "" if it is none that is read."""
    if data[:2] == b"\xff\xd8":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM":
        return "BMP"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    return ""


def plain(data: bytes, extension: str, options: PictureOptions) -> tuple[bytes, list[str]]:
    """The picture as it is stored, and what had to be done: names such as "cmyk" or "exif_turned".

    Raises:
      Refused: "empty_picture", "picture_file_too_large", "not_a_picture", "too_many_pixels", "too_small",
        "damaged_picture".
    """
    if not data:
        raise Refused("empty_picture", "0 bytes")
    if len(data) > options.max_bytes:
        raise Refused("picture_file_too_large", f"{len(data)} bytes, more than {options.max_bytes}")
    found = image_format(data)
    if not found:
        raise Refused("not_a_picture", f"{len(data)} bytes that begin with {data[:12]!r}")
    notes = [] if extension in (*_EXTENSIONS[found], *_UNNAMED) else ["wrong_extension"]
    try:
        width, height = _size(data, found)
        if width * height > options.max_pixels:
            raise Refused("too_many_pixels", f"{width} x {height}")
        if min(width, height) < options.min_side:
            raise Refused("too_small", f"{width} x {height}")
        differences, lossless = _jpeg(data) if found == "JPEG" else _other(data, found)
        picture = Picture(data)
        if options.shorter_side and min(width, height) > options.shorter_side:
            return _reduced(picture, options.shorter_side, options.jpeg_quality), [*notes, *differences, "reduced"]
        if width * height > _HUGE and found != "JPEG":
            return _reduced(picture, _HUGE_REDUCED, _REWRITE_QUALITY), [*notes, *differences, "huge"]
        if not differences:
            picture.decode(picture.scales[-1])  # reads the file to its end
            return data, notes
        return _rewritten(picture.decode(), lossless), [*notes, *differences]
    except Refused:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit
        raise Refused("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:  # its message holds an address, and so would differ each time
        raise Refused("damaged_picture", f"{len(data)} bytes that begin as {found}, no header to be read") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise Refused("damaged_picture", str(error)) from error


def _size(data: bytes, found: str) -> tuple[int, int]:
    if found == "JPEG":
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        return int(width), int(height)
    with Image.open(io.BytesIO(data), formats=(found,)) as image:
        return image.size


def _jpeg(data: bytes) -> tuple[list[str], bool]:
    """What keeps a JPEG from being plain, and that it is lossy."""
    differences = []
    if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
        differences.append("cmyk")
    if b"Exif\0\0" in data:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9):
                differences.append("exif_turned")
    return differences, False


def _other(data: bytes, found: str) -> tuple[list[str], bool]:
    """What keeps a picture from being a plain PNG, and whether its file is lossless."""
    with Image.open(io.BytesIO(data), formats=(found,)) as image:
        differences = [] if found == "PNG" else [found.lower()]
        if image.mode == "P":
            differences.append("palette")
        elif image.mode.startswith("I") or (found == "PNG" and data[_PNG_DEPTH_AT] == 16):
            differences.append("sixteen_bit")
        elif image.mode == "CMYK":
            differences.append("cmyk")
        elif image.mode not in ("L", "RGB", "LA", "RGBA"):
            differences.append(f"mode_{image.mode.lower()}")
        elif found == "PNG" and data[_PNG_DEPTH_AT] < 8:
            differences.append(f"mode_{data[_PNG_DEPTH_AT]}")
        if image.has_transparency_data:
            differences.append("alpha")
        if getattr(image, "n_frames", 1) > 1:
            differences.append("animation")
        if image.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9):
            differences.append("exif_turned")
    return differences, found != "WEBP" or data[12:16] == b"VP8L"


def _reduced(picture: Picture, side: int, quality: int) -> bytes:
    """A JPEG with the wanted shorter side, antialiased; decoded at a scale that still has pixels to spare."""
    factor = min(1.0, side / min(picture.width, picture.height))
    scale = max((s for s in picture.scales if factor * s * OVERSAMPLING <= 1), default=1)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    image = picture.decode(scale).resize(size, Image.Resampling.LANCZOS)
    return _jpeg_bytes(image, quality)


def _rewritten(image: Image.Image, lossless: bool) -> bytes:
    if not lossless:
        return _jpeg_bytes(image, _REWRITE_QUALITY, subsampling="4:4:4")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _jpeg_bytes(image: Image.Image, quality: int, subsampling: str = "4:2:0") -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return file.getvalue()
