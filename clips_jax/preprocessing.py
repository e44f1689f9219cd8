"""How a model wants its pictures: what happens between a picture file and the image tower.

It belongs to the model and travels with it: models trained here read pictures as their training did, imported ones as
their `preprocess_cfg` says.

Legend: B batch, S image size.
"""

import dataclasses
import io
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from clips_jax.data.images import BadImage, Picture
from clips_jax.models.image_tower import IMAGE_MEAN, IMAGE_STD

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a picture file to what the image tower reads.

    Attributes:
      size: pixels per side after resizing.
      image_size: pixels per side that the tower reads, from the top left corner; less than `size` where the patches
        do not fill the picture (384 px in patches of 14).
      resize: "squash" straight to a square; "shortest" keeps the aspect ratio and crops the centre.
      interpolation: Pillow's filter, which is antialiased.
      upright: EXIF orientation applied, transparency over white. False is what open_clip does: neither of the two, and
        a palette is resized as it is, before it becomes RGB.
      mean, std: per channel, of values in 0 to 1.
    """

    size: int
    image_size: int
    resize: Literal["squash", "shortest"] = "squash"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    upright: bool = True
    mean: tuple[float, float, float] = IMAGE_MEAN
    std: tuple[float, float, float] = IMAGE_STD

    @classmethod
    def of_training(cls, image_size: int) -> "Preprocessing":
        """How models trained here read pictures when nothing is random."""
        return cls(image_size, image_size)

    def pixels(self, data: bytes) -> np.ndarray:
        """A picture file as uint8 (S, S, 3); raises `BadImage` if it cannot be read."""
        picture = Picture(data)  # refuses what is too large before anything is decoded
        image = picture.decode() if self.upright else _as_stored(data)
        if self.resize == "squash":
            image = image.resize((self.size, self.size), _FILTERS[self.interpolation])
        else:
            image = _shortest_and_crop(image, self.size, _FILTERS[self.interpolation])
        return np.asarray(image.convert("RGB"))[: self.image_size, : self.image_size]

    def normalize(self, images_BxSxSx3: jax.Array) -> jax.Array:
        """uint8 (B, S, S, 3) -> float32, zero mean and unit variance per channel; on the device."""
        mean_1x1x1x3, std_1x1x1x3 = (jnp.array(x, jnp.float32).reshape(1, 1, 1, 3) for x in (self.mean, self.std))
        return (images_BxSxSx3.astype(jnp.float32) / 255 - mean_1x1x1x3) / std_1x1x1x3


def _as_stored(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise BadImage(f"not a readable picture ({len(data)} bytes): {error}") from error


def _shortest_and_crop(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """torchvision's `Resize(size)` and `CenterCrop(size)`, rounding included."""
    width, height = image.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))
