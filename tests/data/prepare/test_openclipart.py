"""Fetching Open Clip Art, on a stand-in for the unpacked packages: no network."""

import tarfile

import pyarrow.parquet
import pytest

from clips_jax.data.openclipart import __main__ as command
from clips_jax.data.triples import Records
from tests.data.make_tars import encoded

_SVG = """<svg xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><rdf:RDF><cc:Work>
<dc:title>{title}</dc:title><dc:description>{description}</dc:description>
<dc:subject><rdf:Bag><rdf:li>frog</rdf:li><rdf:li> </rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>someone</dc:title></cc:Agent></dc:creator>
</cc:Work></rdf:RDF></metadata></svg>"""


@pytest.fixture
def unpacked(tmp_path):
    pictures, drawings = (tmp_path / "usr/share/openclipart" / kind / "animals" for kind in ("png", "svg"))
    for folder in (pictures, drawings):
        folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (pictures / f"{name}.png").write_bytes(encoded("PNG", seed=ord(name)))
    (pictures / "link.png").symlink_to("a.png")
    (drawings / "a.svg").write_text(_SVG.format(title="Two\n  frogs", description="They sit"))
    (drawings / "b.svg").write_text("<svg")
    return tmp_path


def test_tars_and_table(unpacked, capsys):
    output = unpacked / "out"
    assert command.main(["--output", str(output), "--unpacked", str(unpacked)]) == 0
    assert "3 drawings in 1 tars, 1 longer texts" in capsys.readouterr().out
    with tarfile.open(output / "00000.tar") as tar:
        assert [member.name for member in tar][:4] == [
            "000000000.png",
            "000000000.txt",
            "000000000.json",
            "000000001.png",
        ]
    (row,) = pyarrow.parquet.read_table(output / "recaptions.parquet").to_pylist()
    assert row["re_caption"] == "A drawing called Two frogs. They sit. It shows frog. It belongs to animals."
    records = Records(str(output / "*.tar"), "train")
    first = records[0]
    assert (first["alt_text"], first["sha256"], first["creator"]) == ("Two frogs", row["sha256"], "someone")
    assert first["image"] == encoded("PNG", seed=ord("a")) and records[1]["alt_text"] == "" and len(records) == 3
