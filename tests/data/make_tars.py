"""Pictures and tars for tests, written as img2dataset writes them, or as nobody should."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def pixels(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """A smooth colourful picture, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image_format: str = "JPEG", seed: int = 0, image: Image.Image | None = None, **options) -> bytes:
    """A picture file."""
    file = io.BytesIO()
    (image or Image.fromarray(pixels(seed=seed))).save(file, image_format, **options)
    return file.getvalue()


def member(name: str, size: int = 0, **fields) -> tarfile.TarInfo:
    """A tar header; `fields` such as type=tarfile.SYMTYPE, linkname="/etc/passwd"."""
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def write_tar(path, members, mode: str = "w") -> str:
    """Writes (name, bytes) pairs and bare `TarInfo`s as they are."""
    with tarfile.open(path, mode) as tar:
        for entry in members:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                tar.addfile(member(entry[0], len(entry[1])), io.BytesIO(entry[1]))
    return str(path)


def sample(key: str, number: int, **fields) -> list[tuple[str, bytes]]:
    """The jpg, txt and json of one img2dataset sample."""
    about = {"key": key, "caption": f"picture {number}", "url": f"http://host/{number}", "sha256": f"{number:064x}"}
    about |= {"uid": f"{number:032x}", "width": 60, "height": 40, **fields}
    return [
        (f"{key}.jpg", encoded(seed=number)),
        (f"{key}.txt", about["caption"].encode()),
        (f"{key}.json", json.dumps(about).encode()),
    ]
