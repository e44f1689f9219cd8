"""Tars with trouble and recaptions to join, and the command that makes a data set of them."""

import json

import pyarrow
import pyarrow.parquet

from clips_jax.data.prepare import __main__ as command
from tests.data.make_tars import encoded, member, sample, write_tar

SHARDS, SAMPLES = 3, 4


def write_input(folder) -> None:
    """Tars 0 to 2 with samples 00 … 23 and trouble, tar 3 unreadable, and recaptions for the even samples."""
    for number in range(SHARDS):
        parts = [part for i in range(SAMPLES) for part in sample(f"{number}{i}", 10 * number + i)]
        parts += [(f"{number}9.jpg", encoded()[:200]), (f"{number}9.txt", b"cut")]
        write_tar(
            folder / f"{number}.tar", parts + [member("link.jpg", type=b"2", linkname="/etc/passwd")] * (number == 1)
        )
    extra = [
        ("again.jpg", encoded(seed=1)),
        ("again.txt", b"b'\\xc2\\xae'"),
        ("00.jpg", encoded("PNG")),
        ("00.txt", b"x"),
    ]
    write_tar(folder / "2.tar", [part for i in range(SAMPLES) for part in sample(f"2{i}", 20 + i)] + extra)
    (folder / "3.tar").write_bytes(b"not a tar at all")
    numbers = [number for number in range(24) if number % 2 == 0] + [2, 99]
    texts = [f"Long text {number}. It goes on." for number in numbers[:-2]] + ["Second row for 2.", "For no picture."]
    columns = {"sha256": [f"{number:064X}" for number in numbers], "re_caption": texts, "org_caption": texts}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "recaptions.parquet", row_group_size=5)


def run(folder, output, *flags: str, workers: int = 1) -> dict:
    arguments = ["tars", f"{folder}/*.tar", "--recaptions", f"{folder}/*.parquet", "--name", "web"]
    status = command.main([*arguments, "--data_dir", str(output), "--workers", str(workers), *flags])
    assert status == 0
    return json.loads((output / "web/1.0.0/manifest-train.json").read_text())


def times(output) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((output / "web/1.0.0").glob("web-train*"))}


def without_time(manifest: dict) -> dict:
    return {name: value for name, value in manifest.items() if name != "worker_seconds"}
