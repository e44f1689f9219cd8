import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax import masks
from clips_jax.config.parse import from_config_dict
from clips_jax.data.inspect.examples import kept_by_views, spelled, triples_of_step_0
from clips_jax.data.inspect.statistics import collect
from clips_jax.data.open_tokenizer import open_tokenizer
from clips_jax.data.triples import tokenizer_path
from clips_jax.report.plots import histogram
from clips_jax.train_step import VIEW_STREAM
from configs import demo
from tests import small


@pytest.fixture(scope="module")
def config(emoji_data_dir):
    config = demo.get_config("smoke=True")
    config.data.data_dir = emoji_data_dir
    return from_config_dict(config)


@pytest.fixture(scope="module")
def tokenizer(config):
    return open_tokenizer(tokenizer_path(config.data, config.tokenizer))


@pytest.mark.parametrize("mask", ["sub_caption", "block"])
def test_what_is_drawn_is_what_step_0_keeps(mask):
    """The tokens at the places said to be kept are those of the view that the step itself makes."""
    config = small.config()
    views = config.objective.views
    views["recap"] = type(views["recap"])({"recaption": 0.6, "alt_text": 0.4}, length=16, mask=mask, budget=6)
    batch, rows = small.batch(config), np.array([1, 2, 5])
    part = jax.tree.map(lambda x: x[rows], batch)
    kept = kept_by_views(config, part.texts, rows)
    keys_B = masks.example_keys(jax.random.key(config.seed), jnp.asarray(0), config.batch_size)
    for number, (name, view) in enumerate(views.items()):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, VIEW_STREAM + number)
        tokens_BxL, real_BxL = (np.asarray(x) for x in masks.make_view(batch.texts, view, keys, small.SPECIAL))
        for i, row in enumerate(rows):
            count = real_BxL[row].sum() - 3  # BOS, EOS, CLS
            drawn = np.concatenate([part.texts[text].tokens[i][kept[name][text][i]] for text in part.texts])
            np.testing.assert_array_equal(drawn, tokens_BxL[row, 1 : 1 + count])
            assert sum(kept[name][text][i].any() for text in part.texts) == 1  # one source each


def test_pieces_spell_the_text(config, tokenizer):
    for triple in triples_of_step_0(config, tokenizer, 4):
        for name, pieces in triple.texts.items():
            text = "".join(piece.text for piece in pieces)
            ids = tokenizer.tokenize([text], config.data.texts[name].length)[0][0]
            assert "".join(spelled(tokenizer, ids[ids != tokenizer.special.pad].tolist())) == text
            assert [piece.sentence for piece in pieces] == sorted(piece.sentence for piece in pieces)


def test_statistics(config, tokenizer):
    found = collect(config, tokenizer, 300)
    assert found.records == 300 == len(found.sizes) == len(found.texts["recaption"].lengths) and not found.bad
    shipped = np.array(found.texts["recaption"].lengths)
    assert found.texts["recaption"].truncated == np.mean(shipped > 128)
    assert min(found.texts["recaption"].sentences) >= 4 and set(found.sizes) == {(80, 80)}


def test_histograms_count_everything():
    chart = histogram([1, 1, 2, 5, 5, 5], "tokens", {"shipped": 4})
    heights = [float(h) for h in re.findall(r'class="bar"[^>]*height="([\d.]+)"', str(chart.svg))]
    unit = max(heights) / 3
    assert [round(height / unit) for height in heights] == [0, 2, 1, 0, 0, 3]
    assert chart.legend[0][1:] == ("shipped", "4")
    assert histogram([], "tokens") is None
    far = histogram([1.0] * 999 + [1e6], "tokens")
    assert "The last bar holds all above 1" in far.notes[0]


def test_command(emoji_data_dir, tmp_path):
    command = [sys.executable, "-m", "clips_jax.data.inspect", "--config=configs/demo.py:smoke=True"]
    command += [
        f"--config.data.data_dir={emoji_data_dir}",
        "--records=64",
        "--triples=3",
        f"--output={tmp_path}/x.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "recaption: cut at 128 tokens" in done.stdout
    page = (tmp_path / "x.html").read_text()
    assert page.count("<article>") == 3 and page.count("<svg") >= 7 and 'class="kept v1"' in page
    wrong = subprocess.run([*command, "--config.data.split=nothing"], capture_output=True, text=True)
    assert wrong.returncode and "nothing" in wrong.stderr and "Traceback" not in wrong.stderr
