"""From the bytes of a picture file to uint8 pixels: decoding, random-resized crops, refusing bad files.

JPEG goes through libjpeg-turbo (simplejpeg), which decodes straight to 1/2, 1/4 or 1/8 of the size; everything else,
and all resizing, through Pillow, whose bilinear filter is antialiased and takes crops at fractions of a pixel.
OpenCV would be about 8 % faster at 84 px for 60 MB more to install and a filter that aliases.
"""

import io
import math

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# Pillow refuses larger pictures by default (2 x Image.MAX_IMAGE_PIXELS); libjpeg-turbo does not by itself.
MAX_PIXELS = 178_956_970
# A JPEG is decoded at the smallest scale whose crop is still this many times the target: 47 to 52 dB against a full
# decode, less than two interpolation filters differ from each other.
OVERSAMPLING = 1.5
# Draws of a crop before the central one is taken (Inception preprocessing; torchvision's RandomResizedCrop).
CROP_ATTEMPTS = 10

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # the orientations that swap width and height


class BadImage(ValueError):
    """Bytes that are not a whole, readable picture of acceptable size."""


class Picture:
    """A picture to be decoded. Its size is known, and checked, before any pixel is decoded.

    Attributes:
      width, height: pixels, upright: the EXIF orientation is applied.
      scales: the scales at which it can be decoded.
    """

    def __init__(self, data: bytes):
        """Raises `BadImage` if the data are no picture or announce more than `MAX_PIXELS`."""
        self._data = data
        self._decoded: Image.Image | None = None
        self._orientation = 1
        self.scales: tuple[int, ...] = (1,)
        try:
            if not self._read_jpeg_header():
                self._decoded = self._decode_with_pillow()
                self.width, self.height = self._decoded.size
        except BadImage:
            raise
        except UnidentifiedImageError as error:  # its message holds an address, and so would differ each time
            raise BadImage(f"not a readable picture ({len(data)} bytes): of no known format") from error
        except Exception as error:  # decoders raise nearly anything on hostile bytes
            raise BadImage(f"not a readable picture ({len(data)} bytes): {error}") from error

    def decode(self, scale: int = 1, fast: bool = False) -> Image.Image:
        """The picture as RGB, upright; alpha over white, the first frame of an animation.

        Args:
          scale: one of `scales`; the picture comes out at 1 / scale of its size, rounded up.
          fast: colour is upsampled without smoothing: 8 % faster at full size, 52 dB from the exact result at 224 px.
            A JPEG comes as RGBX, four bytes a pixel, which Pillow takes as it is instead of copying it (0.03 ms).

        Raises:
          BadImage: the data are damaged or cut short.
        """
        if self._decoded is not None:
            return self._decoded
        width, height = _turn(self.width, self.height, self._orientation)
        try:
            # The smallest of libjpeg-turbo's sizes that has this many pixels is exactly the wanted one.
            pixels = simplejpeg.decode_jpeg(
                self._data,
                "RGBX" if fast else "RGB",
                fastupsample=fast,
                min_width=math.ceil(width / scale),
                min_height=math.ceil(height / scale),
            )
        except ValueError as error:
            raise BadImage(f"damaged JPEG ({len(self._data)} bytes): {error}") from error
        if fast:
            rows, columns, _ = pixels.shape
            image = Image.frombuffer("RGBX", (columns, rows), pixels, "raw", "RGBX", 0, 1)
        else:
            image = Image.fromarray(pixels)
        return _upright(image, self._orientation)

    def _read_jpeg_header(self) -> bool:
        """Whether libjpeg-turbo can decode this to RGB."""
        if self._data[:2] != b"\xff\xd8":
            return False
        rows, columns, colours, _ = simplejpeg.decode_jpeg_header(self._data)
        width, height = int(columns), int(rows)
        if colours in ("CMYK", "YCCK"):
            return False
        _check_size(width, height)
        if _has_exif(self._data):
            with Image.open(io.BytesIO(self._data), formats=_FORMATS) as image:
                self._orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        self.width, self.height = _turn(width, height, self._orientation)
        self.scales = (1, 2, 4, 8)
        return True

    def _decode_with_pillow(self) -> Image.Image:
        with Image.open(io.BytesIO(self._data), formats=_FORMATS) as image:
            _check_size(*image.size)
            image.load()
            return _upright(_to_rgb(image), image.getexif().get(_EXIF_ORIENTATION, 1))


def _has_exif(jpeg: bytes) -> bool:
    """Whether one of the segments before the pixels is EXIF (searching the whole file takes 50 µs)."""
    place = 2
    while jpeg[place : place + 1] == b"\xff" and jpeg[place + 1 : place + 2] != b"\xda":  # up to the start of scan
        if jpeg[place + 4 : place + 10] == b"Exif\0\0":
            return True
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return False


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels; at most {MAX_PIXELS} are read.")


def _turn(width: int, height: int, orientation: int) -> tuple[int, int]:
    return (height, width) if orientation in _TURNED else (width, height)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:  # convert() would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_resized_crop(
    data: bytes, size: int, rng: np.random.Generator, area: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """A random part of the picture, antialiased to `size` x `size`.

    Args:
      data: a picture file.
      size: pixels per side of the result.
      rng: where the randomness of the crop comes from.
      area: smallest and largest share of the picture's area that is kept; drawn uniformly.
      ratio: smallest and largest width / height of the part; drawn log-uniformly.

    Returns:
      uint8 (size, size, 3), RGB.

    Raises:
      BadImage: the file cannot be read.
    """
    picture = Picture(data)
    left, top, width, height = sample_crop(picture.width, picture.height, rng, area, ratio)
    enough = (scale for scale in picture.scales if min(width, height) / scale >= OVERSAMPLING * size)
    scale = max(enough, default=1)
    box = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    resized = picture.decode(scale, fast=True).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.frombuffer(resized.tobytes("raw", "RGB"), np.uint8).reshape(size, size, 3)


def decode_squashed(data: bytes, size: int) -> np.ndarray:
    """The whole picture straight to `size` x `size`, as the released CLIPS weights are evaluated.

    Args:
      data: a picture file.
      size: pixels per side of the result.

    Returns:
      uint8 (size, size, 3), RGB.

    Raises:
      BadImage: the file cannot be read.
    """
    image = Picture(data).decode()
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def sample_crop(
    width: int, height: int, rng: np.random.Generator, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws (left, top, width, height) in pixels of a random-resized crop of a width x height picture.

    A draw that does not fit is drawn again; after `CROP_ATTEMPTS` the largest central part within `ratio` is taken.
    """
    for _ in range(CROP_ATTEMPTS):
        draw_area, draw_aspect, draw_left, draw_top = rng.random(4).tolist()  # one call: 2 µs instead of 13
        target = width * height * (area[0] + (area[1] - area[0]) * draw_area)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** draw_aspect
        crop_width, crop_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int((width - crop_width + 1) * draw_left), int((height - crop_height + 1) * draw_top)
            return left, top, crop_width, crop_height
    crop_width = max(1, min(width, round(height * ratio[1])))
    crop_height = max(1, min(height, round(width / ratio[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
