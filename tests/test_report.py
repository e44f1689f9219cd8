import html.parser
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from clips_jax.config import RetrievalConfig
from clips_jax.evaluators.run import evaluate_all
from clips_jax.report.examples import AT_RANDOM, FAILURES, TOP, choose
from clips_jax.report.plots import Series, line_chart, number
from clips_jax.report.report import write_report
from tests.evaluators.fakes import FakeEncoder, install, make_config, record

HOSTILE = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{ 7 * 7 }} & \u202etxet \ud800 thing"


class Page(html.parser.HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def write_metrics(workdir: Path, rows: list[dict]) -> None:
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def metric_rows(steps: int) -> list[dict]:
    rows = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "samples_seen": step * 4,
            "loss": 9 / step,
            "loss/contrastive": 4 / step,
            "loss/contrastive/alt": 4 / step,
            "loss/caption": 5 / step,
            "learning_rate": 1e-3,
            "logit_scale": 14.0 + step,
            "gradient_norm": 1.0,
            "time/images_per_second": 100.0,
        }
        if step % 10 == 0:
            row |= {"retrieval/names/image_to_text/R@1": step / 2, "retrieval/names/text_to_image/R@1": step / 3}
        rows.append(row)
    return rows


def make_report(monkeypatch, workdir, records, config=None, encoder=None) -> str:
    install(monkeypatch, {"train": records, "test": records})
    config = config or make_config()
    encoder = encoder or FakeEncoder(len(records), mistaken=[1])
    path = write_report(workdir, config, encoder, evaluate_all(config, encoder), 30, 120)
    return path.read_text(encoding="utf-8")


def test_the_whole_page(monkeypatch, tmp_path):
    write_metrics(tmp_path, metric_rows(30))
    text = make_report(monkeypatch, tmp_path, [record(i) for i in range(24)])
    page = Page(text)
    for heading in ("Results", "Retrieval over time", "Training loss", "Learning rate", "Generated recaptions"):
        assert heading in page.text
    for label in ("loss (nats)", "R@1 (%)", "images / s", "step"):
        assert label in page.text
    assert "contrastive alt" in page.text and "A picture of thing" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 6 + 9  # charts, and a sample of each line
    assert len(text) < 5_000_000


def test_nothing_is_loaded_from_elsewhere(monkeypatch, tmp_path):
    write_metrics(tmp_path, metric_rows(30))
    text = make_report(monkeypatch, tmp_path, [record(i) for i in range(24)])
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert name not in ("href", "srcset", "action", "background"), (tag, name)
            assert name != "src" or (value or "").startswith("data:image/jpeg;base64,")
            assert not name.startswith("on")
    assert "url(" not in text and "@import" not in text
    assert "http" not in re.sub(r"http-equiv|base64,[A-Za-z0-9+/=]+", "", text)


def test_right_answers_are_marked_by_more_than_colour(monkeypatch, tmp_path):
    text = make_report(monkeypatch, tmp_path, [record(i) for i in range(24)], encoder=FakeEncoder(24))
    text_answers = re.findall(r'<li class="right"><span>(.)</span>\s*<span class="text"><bdi>([^<]*)', text)
    assert len(text_answers) == AT_RANDOM and {mark for mark, _ in text_answers} == {"✓"}
    cards = re.findall(r'<article class="example">.*?</article>', text, re.DOTALL)
    for card in cards[:AT_RANDOM]:
        wanted = re.findall(r'belongs to it</span>\s*<span class="text"><bdi>([^<]*)', card)
        assert re.findall(r'<li class="right"><span>✓</span>\s*<span class="text"><bdi>([^<]*)', card) == wanted
    for card in cards[AT_RANDOM:]:
        wanted = re.findall(r'<strong class="text"><bdi>([^<]*)', card)
        assert re.findall(r'<li class="right">\s*<img class="picture" src="[^"]*" alt="([^"]*)"', card) == wanted
        assert "✓ 1.000" in card
    assert len(cards) == 2 * AT_RANDOM and "Drawn from the failures" not in text


def test_failures_show_the_rank_and_the_right_picture(monkeypatch, tmp_path):
    class Blind(FakeEncoder):
        def images(self, load, count):
            return np.roll(super().images(load, count), 7, axis=0)

    text = make_report(monkeypatch, tmp_path, [record(i) for i in range(24)], encoder=Blind(24))
    assert text.count("Drawn from the failures") == 2
    assert re.search(r"found at rank \d+", text) and re.search(r"A right picture, at rank \d+\.", text)


def test_hostile_strings_are_escaped(monkeypatch, tmp_path):
    records = [
        record(i, name=f"{HOSTILE} {i}", alt_text=HOSTILE * 9, recaption=HOSTILE, aliases=[HOSTILE]) for i in range(6)
    ]
    write_metrics(tmp_path, [{"step": 1, "loss": 1.0, "loss/<b>bold</b>": 2.0}])
    text = make_report(monkeypatch, tmp_path, records)
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags and "b" not in tags
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "alert(1)" in page.text and "{{ 7 * 7 }}" in page.text


def test_two_writes_are_equal_byte_for_byte(monkeypatch, tmp_path):
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_metrics(tmp_path / name, metric_rows(12))
        pages.append(make_report(monkeypatch, tmp_path / name, [record(i) for i in range(24)]))
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["metrics.jsonl", "report.html"]
    assert pages[0] == pages[1] and str(tmp_path) not in pages[0]


@pytest.mark.parametrize("rows", [[], metric_rows(1), [{"step": 1, "loss": "nan", "gradient_norm": None}]])
def test_short_and_broken_metrics(monkeypatch, tmp_path, rows):
    write_metrics(tmp_path, rows)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "lo')
    text = make_report(monkeypatch, tmp_path, [record(i) for i in range(3)])
    assert ("No metrics were logged" in text) == (len(rows) == 0 or "samples_seen" not in rows[0])


def test_without_captioner_retrieval_or_encoder(monkeypatch, tmp_path):
    records = [record(i) for i in range(5)]
    plain = make_config(captioner=False, retrieval={}, classification={}, caption_loss={}, pixel_baseline="")
    text = make_report(monkeypatch, tmp_path, records, plain, FakeEncoder(5, has_captioner=False))
    assert "Generated recaptions" not in text and "Results" not in text
    captions_only = make_config(retrieval={}, classification={}, pixel_baseline="")
    text = make_report(monkeypatch, tmp_path, records, captions_only)
    assert "Generated recaptions" in text and "the texts they find" not in text
    path = write_report(tmp_path, make_config(), None, {}, 1, 4)
    assert "How it was made" in path.read_text()


def test_unreadable_pictures_and_several_captions(monkeypatch, tmp_path):
    records = [record(i) for i in range(8)]
    records[3]["image"] = b"\x89PNG broken"
    config = make_config(retrieval={"aliases": RetrievalConfig("test", "aliases")})
    text = make_report(monkeypatch, tmp_path, records, config)
    assert "cannot be read" in text and "Unreadable pictures" in text and "∞" in text
    assert "thing 2 / also thing 2" in text


def test_examples_are_seeded_and_include_failures():
    ranks = np.asarray([1.0] * 50 + [TOP + 1] * 10)
    chosen = choose(ranks, np.random.default_rng(3))
    assert chosen == choose(ranks, np.random.default_rng(3)) != choose(ranks, np.random.default_rng(4))
    assert [failure for _, failure in chosen] == [False] * AT_RANDOM + [True] * FAILURES
    assert all(ranks[i] > TOP for i, failure in chosen if failure) and len({i for i, _ in chosen}) == len(chosen)
    assert choose(np.ones(2), np.random.default_rng(0)) == [(0, False), (1, False)]


def test_line_chart_gaps_groups_and_empty():
    assert line_chart([Series("nothing", [1.0, 2.0], [math.nan, math.inf])], "y") is None
    chart = line_chart([Series("a", [1, 2, 3, 4], [1, math.nan, 3, 4])], "y")
    assert chart is not None and chart.notes == ["1 value is not finite and left out."]
    assert chart.svg.count("<circle") == 3 and chart.svg.count('class="line line0"') == 1
    long = line_chart([Series("a", range(1000), [float(i) for i in range(1000)])], "y")
    assert long is not None and long.notes == ["Each point is the mean of 4 logged values."]
    assert len(long.svg) < 10_000


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-3.0, 4e9], [1e-12, 2e-12], [1.0, 1.0 + 1e-15], [2.0, 3e7]])
@pytest.mark.parametrize("log", [False, True])
def test_line_chart_stays_inside_its_frame(values, log):
    chart = line_chart([Series("a", range(len(values)), values)], "y", log=log)
    assert chart is not None
    for x, y in re.findall(r'cx="([-.\d]+)" cy="([-.\d]+)"', chart.svg):
        assert 0 <= float(x) <= 480 and 0 <= float(y) <= 290
    assert "nan" not in chart.svg and "inf" not in chart.svg


def test_numbers_are_short():
    values = [0, 1234567.0, 1234.5, 0.25, 3e-4, 99.999, math.nan]
    assert [number(value) for value in values] == ["0", "1.23e6", "1,234", "0.25", "3e-4", "100", "not finite"]
