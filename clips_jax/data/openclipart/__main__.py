"""Fetches Open Clip Art and writes it as web data comes: tar shards, and a parquet table of longer texts.

    python -m clips_jax.data.openclipart --output DIR

    DIR/00000.tar …        KEY.png, KEY.txt (the title), KEY.json (sha256, url, …), as img2dataset writes them
    DIR/recaptions.parquet url, re_caption, org_caption, sha256, key, as Recap-DataComp-1B has them

Needs Debian's apt-get and dpkg-deb (no root); 156 MB are downloaded.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from clips_jax.data.prepare import storage

PACKAGES = ("openclipart-png", "openclipart-svg")
SAMPLES_PER_TAR = 1000
TABLE = "recaptions.parquet"
_NAMESPACES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "cc": "http://web.resource.org/cc/",
}
_SPACE = re.compile(r"\s+")


def download(folder: str) -> None:
    """Unpacks the packages below `folder`."""
    for package in PACKAGES:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            subprocess.run(["apt-get", "download", package], cwd=scratch, check=True)
            (deb,) = os.listdir(scratch)
            subprocess.run(["dpkg-deb", "-x", os.path.join(scratch, deb), folder], check=True)


def metadata(svg: str) -> dict[str, Any]:
    """Title, description, keywords and creator that a drawing's author wrote into it; {} if it cannot be parsed."""
    try:
        root = ElementTree.parse(svg).getroot()
    except (ElementTree.ParseError, OSError):
        return {}
    work = root.find(".//cc:Work", _NAMESPACES)
    if work is None:
        return {}

    def text(path: str) -> str:
        return _SPACE.sub(" ", work.findtext(path, "", _NAMESPACES) or "").strip()

    keywords = [_SPACE.sub(" ", item.text or "").strip() for item in work.findall("dc:subject//rdf:li", _NAMESPACES)]
    return {
        "title": text("dc:title"),
        "description": text("dc:description"),
        "keywords": [word for word in keywords if word],
        "creator": text("dc:creator/cc:Agent/dc:title"),
    }


def recaption(about: dict[str, Any]) -> str:
    """A few sentences from what the author wrote; "" if that is no more than the title."""
    sentences = []
    description = about["description"]
    if description and description.lower() != about["title"].lower():
        sentences.append(description if description[-1] in ".!?" else f"{description}.")
    if about["keywords"]:
        sentences.append(f"It shows {', '.join(about['keywords'])}.")
    if not sentences:
        return ""
    return " ".join([f"A drawing called {about['title']}.", *sentences, f"It belongs to {about['category']}."])


def samples(folder: str) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Path without ending, PNG file and metadata of every drawing, by path; links to other drawings are left out."""
    pictures = os.path.join(folder, "usr/share/openclipart/png")
    drawings = os.path.join(folder, "usr/share/openclipart/svg")
    found = []
    for place, folders, names in os.walk(pictures):
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(place, name))]
        found += [os.path.relpath(os.path.join(place, name), pictures) for name in names if name.endswith(".png")]
    for path in sorted(found):
        if not os.path.islink(os.path.join(pictures, path)):
            stem = path.removesuffix(".png")
            about = {"title": "", "description": "", "keywords": [], "creator": ""}
            about |= metadata(os.path.join(drawings, f"{stem}.svg"))
            with open(os.path.join(pictures, path), "rb") as file:
                yield stem, file.read(), about | {"category": os.path.dirname(stem).replace("_", " ")}


def write(folder: str, output: str) -> tuple[int, int]:
    """Writes tars and table; returns the numbers of samples and of longer texts."""
    import pyarrow
    import pyarrow.parquet

    rows: dict[str, list[str]] = {name: [] for name in ("url", "re_caption", "org_caption", "sha256", "key")}
    count = 0
    tar: tarfile.TarFile | None = None
    for stem, picture, about in samples(folder):
        if count % SAMPLES_PER_TAR == 0:
            if tar:
                tar.close()
            tar = tarfile.open(os.path.join(output, f"{count // SAMPLES_PER_TAR:05d}.tar"), "w")
        assert tar is not None
        key = f"{count // SAMPLES_PER_TAR:05d}{count % SAMPLES_PER_TAR:04d}"
        sha256, url = hashlib.sha256(picture).hexdigest(), f"openclipart:{stem}"
        note = {"key": key, "caption": about["title"], "url": url, "sha256": sha256, "status": "success", **about}
        for ending, data in (("png", picture), ("txt", about["title"].encode()), ("json", json.dumps(note).encode())):
            member = tarfile.TarInfo(f"{key}.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        longer = recaption(about)
        if longer:
            for name, value in zip(rows, (url, longer, about["title"], sha256, key), strict=True):
                rows[name].append(value)
        count += 1
    if tar:
        tar.close()
    with storage.whole_file(os.path.join(output, TABLE)) as path:  # last: it says that the tars are whole
        pyarrow.parquet.write_table(pyarrow.table(rows), path)
    return count, len(rows["key"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; `arguments` are those of the command line if None."""
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.data.openclipart",
        description="Fetches Open Clip Art (public domain) from Debian's packages and writes tar shards with titles, "
        "and a parquet table of longer texts.",
    )
    parser.add_argument("--output", required=True, help="folder for the tars and the table")
    parser.add_argument("--unpacked", default="", help="folder with the unpacked packages (default: download them)")
    options = parser.parse_args(arguments)
    os.makedirs(options.output, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output) as scratch:
        folder = options.unpacked or scratch
        if not options.unpacked:
            try:
                download(folder)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"error: {error}; this needs Debian or Ubuntu, and 'apt-get update' once", file=sys.stderr)
                return 2
        count, longer = write(folder, options.output)
    print(f"{options.output}: {count} drawings in {-(-count // SAMPLES_PER_TAR)} tars, {longer} longer texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
