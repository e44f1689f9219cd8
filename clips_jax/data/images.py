"""From the bytes of a picture file to uint8 pixels: decoding, random-resized crops, refusing bad files.

JPEG goes through libjpeg-turbo (simplejpeg), which decodes straight to 1/2, 1/4 or 1/8 of the size, and then OpenCV:
a Gaussian blur as wide as the reduction wants it, and bilinear samples. That comes within 48 dB of Pillow's antialiased
bilinear filter, aliases no more, and takes a third of its time. What Pillow has to decode, Pillow resizes.
"""

import functools
import io
import math
import struct
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# Pillow refuses larger pictures by default (2 x Image.MAX_IMAGE_PIXELS); libjpeg-turbo does not by itself.
MAX_PIXELS = 178_956_970
# A JPEG is decoded at the smallest scale whose crop is still this many times the target: 47 to 52 dB against a full
# decode, less than two interpolation filters differ from each other.
OVERSAMPLING = 1.5
# The blur before bilinear samples at every `ratio`-th pixel has the variance (ratio^2 - _SAMPLED) / _SPREAD, in pixels:
# 1/6 of the squared ratio is a triangle's, of which sampling does a part by itself. Both fitted to Pillow's filter, at
# ratios of 1 to 3 and 84, 112 and 224 px, so that no more than its own share of a zone plate aliases.
_SAMPLED, _SPREAD = 0.4, 5.5
_MOST_BLURRED = 4.0  # ratio; beyond (pictures of many megapixels, thin strips) Pillow is no slower
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

        Raises:
          BadImage: the data are damaged or cut short.
        """
        return Image.fromarray(self.pixels(scale, fast)) if self._decoded is None else self._decoded

    def pixels(self, scale: int = 1, fast: bool = False) -> np.ndarray:
        """As `decode`; uint8 (height, width, 3)."""
        if self._decoded is not None:
            return np.asarray(self._decoded)
        width, height = _turn(self.width, self.height, self._orientation)
        try:
            # The smallest of libjpeg-turbo's sizes that has this many pixels is exactly the wanted one.
            pixels = simplejpeg.decode_jpeg(
                self._data,
                fastupsample=fast,
                min_width=math.ceil(width / scale),
                min_height=math.ceil(height / scale),
            )
        except ValueError as error:
            raise BadImage(f"damaged JPEG ({len(self._data)} bytes): {error}") from error
        if self._orientation not in _UPRIGHT:
            return pixels
        return np.asarray(_upright(Image.fromarray(pixels), self._orientation))

    def _read_jpeg_header(self) -> bool:
        """Whether libjpeg-turbo can decode this to RGB."""
        if self._data[:2] != b"\xff\xd8":
            return False
        rows, columns, colours, _ = simplejpeg.decode_jpeg_header(self._data)
        width, height = int(columns), int(rows)
        if colours in ("CMYK", "YCCK"):
            return False
        _check_size(width, height)
        self._orientation = _orientation(self._data)
        self.width, self.height = _turn(width, height, self._orientation)
        self.scales = (1, 2, 4, 8)
        return True

    def _decode_with_pillow(self) -> Image.Image:
        with Image.open(io.BytesIO(self._data), formats=_FORMATS) as image:
            _check_size(*image.size)
            image.load()
            return _upright(_to_rgb(image), image.getexif().get(_EXIF_ORIENTATION, 1))


def _orientation(jpeg: bytes) -> int:
    """What EXIF says of it, 1 if nothing; usually without Pillow, which takes 0.1 ms for it."""
    place = 2
    while jpeg[place : place + 1] == b"\xff" and jpeg[place + 1 : place + 2] != b"\xda":  # up to the start of scan
        if jpeg[place + 4 : place + 10] == b"Exif\0\0":
            found = _plain_orientation(jpeg, place + 10)
            if found:
                return found
            with Image.open(io.BytesIO(jpeg), formats=_FORMATS) as image:
                return image.getexif().get(_EXIF_ORIENTATION, 1)
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return 1


def _plain_orientation(data: bytes, start: int) -> int:
    """The orientation in the TIFF header at `start` if it is there as it should be, else 0."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[start : start + 4])
    if order is None:
        return 0
    try:
        first = start + struct.unpack_from(f"{order}I", data, start + 4)[0]
        for entry in range(struct.unpack_from(f"{order}H", data, first)[0]):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", data, first + 2 + 12 * entry)
            if tag == _EXIF_ORIENTATION:
                return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 0
    except struct.error:
        pass
    return 0


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
    crop = sample_crop(picture.width, picture.height, rng, area, ratio)
    if len(picture.scales) == 1:
        left, top, width, height = crop
        box = (left, top, left + width, top + height)
        return np.asarray(picture.decode().resize((size, size), Image.Resampling.BILINEAR, box=box))
    scale, (left, top, width, height) = crop_on_grid(crop, size, picture.scales)
    return _resized(picture.pixels(scale, fast=True)[top : top + height, left : left + width], size)


def crop_on_grid(
    crop: tuple[int, int, int, int], size: int, scales: tuple[int, ...]
) -> tuple[int, tuple[int, int, int, int]]:
    """The scale at which to decode for a crop, and the crop as (left, top, width, height) in pixels of that scale.

    Args:
      crop: (left, top, width, height) in pixels of the picture; up to `scale` - 1 of each are cut.
      size: pixels per side of the result.
      scales: those that there are.
    """
    enough = (scale for scale in scales if min(crop[2:]) / scale >= OVERSAMPLING * size)
    scale = max(enough, default=1)
    left, top, width, height = (length // scale for length in crop)
    return scale, (left, top, width, height)


@functools.cache
def _open_cv() -> Any:
    import cv2  # here, so that what reads no JPEGs does without

    cv2.setNumThreads(1)  # a crop is too small to be shared among threads
    cv2.ipp.setUseIPP(False)  # without Intel's library all processors give the same pixels
    return cv2


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 (height, width, 3), antialiased to (size, size, 3)."""
    ratios = (pixels.shape[1] / size, pixels.shape[0] / size)
    if max(ratios) > _MOST_BLURRED:
        return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    cv2 = _open_cv()
    if max(ratios) > 1:
        sigmas = [math.sqrt((ratio**2 - _SAMPLED) / _SPREAD) if ratio > 1 else 0.0 for ratio in ratios]
        kernel = [_kernel_size(sigma) for sigma in sigmas]
        pixels = cv2.GaussianBlur(
            pixels, kernel, sigmas[0], sigmaY=sigmas[1], borderType=cv2.BORDER_REPLICATE | cv2.BORDER_ISOLATED
        )
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)


def _kernel_size(sigma: float) -> int:
    """Places of a Gaussian kernel: what is cut off would weigh under 6 %."""
    if sigma == 0:
        return 1
    return 3 if sigma < 0.8 else 5 if sigma < 1.4 else 2 * math.ceil(2.5 * sigma) + 1


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
