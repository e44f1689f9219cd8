import json

import pytest
from etils import epath

from clips_jax.evaluators.results import flatten, results_table, write_results

RESULTS = {
    "retrieval/unseen_drawings": {
        "image_to_text/R@1": 26.123,
        "image_to_text/R@5": 40.0,
        "image_to_text/R@10": 50.0,
        "image_to_text/median_rank": 9.5,
        "text_to_image/R@1": 27.7,
        "text_to_image/R@5": 41.0,
        "text_to_image/R@10": 51.0,
        "text_to_image/median_rank": 9.0,
        "n_images": 1400,
        "n_texts": 1402,
        "bad_images": 3,
        "images_without_text": 0,
    },
    "classification/group": {"top1": 30.0, "top5": 80.0, "per_class": 25.0, "n_images": 1400, "n_classes": 10},
    "caption_loss/a": {"loss": 2.0, "perplexity": 7.389, "n_tokens": 12345, "n_images": 1400},
    "pixel_baseline/unseen_drawings": {"same_name": 44.6, "n_images": 1400},
}


def test_results_json_is_exactly_the_promised_object(tmp_path):
    write_results(tmp_path / "results.json", 500, 64000, RESULTS)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == {"checkpoint_step": 500, "samples_seen": 64000, "results": RESULTS}
    assert list(content) == ["checkpoint_step", "samples_seen", "results"]
    assert isinstance(content["results"]["retrieval/unseen_drawings"]["n_images"], int)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_not_finite_becomes_null(tmp_path):
    write_results(
        str(tmp_path / "r.json"), 1, 1, {"caption_loss/a": {"loss": float("nan"), "perplexity": float("inf")}}
    )
    assert json.loads((tmp_path / "r.json").read_text())["results"] == {
        "caption_loss/a": {"loss": None, "perplexity": None}
    }


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, 1, 1, RESULTS)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("killed")

    monkeypatch.setattr(type(epath.Path(path)), "replace", fail)
    with pytest.raises(OSError, match="killed"):
        write_results(path, 2, 2, {})
    assert path.read_bytes() == before


def test_table_is_aligned_and_says_chance():
    table = results_table(RESULTS)
    blocks = [block.splitlines() for block in table.split("\n\n")]
    assert len(blocks) == 5
    for block in blocks[:4]:
        assert len({len(line) for line in block}) == 1
    assert "26.1" in blocks[0][3] and blocks[0][3].endswith("0.07")
    # Each number stands below its direction.
    assert blocks[0][0].index("image to text") < blocks[0][3].index("26.1") + 10 < blocks[0][0].index("text to image")

    assert blocks[1][2].endswith("10.00")
    assert "12,345" in blocks[2][2] and "44.6" in blocks[3][2]
    assert blocks[4] == ["Unreadable pictures, which count against the model: retrieval/unseen_drawings 3"]
    assert max(map(len, table.splitlines())) <= 100
    assert results_table({}) == ""


def test_flatten():
    assert flatten({"caption_loss/a": {"loss": 1.0}}) == {"caption_loss/a/loss": 1.0}
