"""Fetches some 480 JPEGs of real photographs for `benchmarks.input_pipeline --jpegs DIR`, from Debian's packages.

    python -m benchmarks.real_photographs --output DIR

OpenCV's samples are taken as they are. The desktops' backgrounds (48 photographs of 2 to 20 megapixels) are taken whole
and in 8 random parts each, reduced to 512 px and quality 95 as img2dataset writes web pictures for DataComp. Needs
Debian's apt-get and dpkg-deb (no root); 286 MB are downloaded. The pictures' licences are in the packages.
"""

import argparse
import glob
import os
import subprocess
import tempfile

import numpy as np
from PIL import Image

_SAMPLES = ("opencv-doc", "usr/share/doc/opencv-doc/examples/**/*.jpg")
_BACKGROUNDS = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds", "ukui-wallpapers")
# Those of Plasma's wallpapers that are photographs.
_WALLPAPERS = ("Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey")
_PARTS = 8
_LONGEST_SIDE, _QUALITY = 512, 95
_SMALLEST = 200  # pixels; smaller samples are icons


def unpack(packages: tuple[str, ...], folder: str) -> None:
    """Debian's packages below `folder`; raises `CalledProcessError` if apt-get or dpkg-deb fails."""
    for package in packages:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            subprocess.run(["apt-get", "download", package], cwd=scratch, check=True)
            (deb,) = os.listdir(scratch)
            subprocess.run(["dpkg-deb", "-x", os.path.join(scratch, deb), folder], check=True)


def samples(folder: str) -> list[str]:
    """OpenCV's sample photographs."""
    found = []
    for path in sorted(glob.glob(os.path.join(folder, _SAMPLES[1]), recursive=True)):
        with Image.open(path) as image:
            if image.mode == "RGB" and min(image.size) >= _SMALLEST:
                found.append(path)
    return found


def backgrounds(folder: str) -> list[str]:
    """Files of the large photographs, each once and at its largest."""
    found = sorted(glob.glob(os.path.join(folder, "usr/share/backgrounds/**/*.jpg"), recursive=True))
    for name in _WALLPAPERS:
        sizes = glob.glob(os.path.join(folder, f"usr/share/wallpapers/{name}/contents/images/*.jpg"))
        found += sorted(sizes, key=os.path.getsize)[-1:]
    return found


def parts(image: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """The whole picture and `_PARTS` random parts of it, reduced."""
    boxes = [(0, 0, *image.size)]
    for _ in range(_PARTS):
        share = rng.uniform(0.35, 0.7)
        width, height = int(image.width * share), int(image.height * share)
        if rng.random() < 0.3:  # upright
            width = int(height * 0.75)
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        boxes.append((left, top, left + width, top + height))
    found = [image.crop(box) for box in boxes]
    for part in found:
        part.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_photographs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, help="folder for the JPEGs")
    output = parser.parse_args().output
    os.makedirs(output, exist_ok=True)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        unpack((_SAMPLES[0], "plasma-workspace-wallpapers", *_BACKGROUNDS), folder)
        for number, path in enumerate(samples(folder)):
            with open(path, "rb") as source, open(os.path.join(output, f"sample_{number:04}.jpg"), "wb") as target:
                target.write(source.read())
        number = 0
        for path in backgrounds(folder):
            for part in parts(Image.open(path).convert("RGB"), rng):
                part.save(os.path.join(output, f"photograph_{number:04}.jpg"), quality=_QUALITY)
                number += 1
    print(f"{len(os.listdir(output))} JPEGs in {output}")


if __name__ == "__main__":
    main()
