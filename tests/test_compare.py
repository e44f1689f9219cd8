"""The table over runs: what is one row, its mean and spread, what is left out, and the files."""

import csv
import json
import math
import xml.etree.ElementTree

import numpy as np
import pytest

from clips_jax.config import to_dict
from clips_jax.config.parse import from_config_dict
from clips_jax.report import __main__ as command
from clips_jax.report.runs import flops_per_image, group, read_run
from configs import clip, clips

SCORES = {"clip": [10.0, 12.0, 17.0], "clips-short": [20.0, 24.0], "clips-long": [30.0]}
RETRIEVAL = "retrieval/names"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_count_flops", lambda config: 1e6 if config["model"]["captioner"] else 5e5)
    for name, scores in SCORES.items():
        config = clip.get_config("smoke=True") if name == "clip" else clips.get_config("smoke=True")
        if name == "clips-long":
            config.objective.views.recap.budget = 12
        for seed, score in enumerate(scores):
            config.seed = seed
            write(tmp_path / f"{name}-seed{seed}", config, score)
    return tmp_path


def write(folder, config, score, step=20):
    folder.mkdir()
    typed = from_config_dict(config)
    (folder / "config.json").write_text(json.dumps(to_dict(typed)))
    results = {RETRIEVAL: {"image_to_text/R@1": score, "text_to_image/R@1": score + 1, "n_images": 7}}
    content = {"checkpoint_step": step, "samples_seen": step * typed.batch_size, "results": results}
    (folder / "results.json").write_text(json.dumps(content))
    rows = [{"step": at, f"{RETRIEVAL}/image_to_text/R@1": score * at / 20} for at in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_csv(path):
    return list(csv.DictReader(path.open()))


def test_seeds_are_one_row_with_mean_and_spread(folders):
    command.main([str(path) for path in sorted(folders.iterdir())])
    rows = {row["row"]: row for row in read_csv(folders / "compare.csv")}
    assert set(rows) == set(SCORES)
    for name, scores in SCORES.items():
        row = rows[name]
        assert row["seeds"] == " ".join(map(str, range(len(scores)))) and row["images_seen"] == "640"
        np.testing.assert_allclose(float(row[f"{RETRIEVAL}/image_to_text/R@1 mean"]), np.mean(scores))
        spread = row[f"{RETRIEVAL}/image_to_text/R@1 sd"]
        assert (spread == "") if len(scores) == 1 else np.isclose(float(spread), np.std(scores, ddof=1))
        assert float(row["flops"]) == 640 * (5e5 if name == "clip" else 1e6)
    runs = read_csv(folders / "runs.csv")
    assert [(run["run"], run["row"]) for run in runs if run["row"] == "clip"] == [
        (f"clip-seed{seed}", "clip") for seed in range(3)
    ]


def test_the_page_holds_every_row_and_what_is_left_out(folders, capsys):
    write(folders / "stopped", clip.get_config("smoke=True"), 1.0, step=10)
    (folders / "<script>empty").mkdir()
    command.main([str(path) for path in sorted(folders.iterdir())] + ["--out", str(folders / "out")])
    page = (folders / "out" / "compare.html").read_text()
    assert "13.0 ± 3.6" in page and "22.0 ± 2.8" in page and "<td>30.0</td>" in page
    assert "objective.views.recap.budget" in page  # differs
    assert "objective.scale_init" not in page  # does not
    assert "<script>" not in page and "&lt;script&gt;empty: no config.json" in page
    output = capsys.readouterr().out
    assert "stopped: stopped at 320 of 640 images" in output and "://" not in page


def test_a_chart_against_a_setting(folders):
    arguments = [str(path) for path in sorted(folders.glob("clips*"))]
    command.main([*arguments, "--x", "objective.views.recap.budget"])
    assert "by objective.views.recap.budget" in (folders / "compare.html").read_text()
    with pytest.raises(SystemExit, match="no run has such a setting"):
        command.main([*arguments, "--x", "objective.views.recap.budgets"])
    with pytest.raises(SystemExit, match="no finished run among 1 folders"):
        command.main([str(folders)])


def test_gains_are_paired_by_seed(folders, capsys):
    """Seeds 0 and 1 of both: 20 - 10 and 24 - 12; seed 2, which only one row has, does not count."""
    rows = [*sorted(folders.glob("clip-*")), *sorted(folders.glob("clips-short*"))]
    command.main([str(path) for path in rows] + ["--gains"])
    assert "unseen" not in (output := capsys.readouterr().out)
    assert "clip -> clips-short" in output and "image → text R@1 (%): +11.0 ± 1.4" in output
    page = (folders / "compare.html").read_text()
    assert "<td>+11.0 ± 1.4</td>" in page and page.count("<h3>Gains</h3>") == 1


def test_a_level_is_drawn_across_and_figures_stand_alone(folders):
    config = clips.get_config("smoke=True")
    for budget in (2, 16):
        config.objective.views.recap.budget = budget
        write(folders / f"clips-{budget}", config, 40.0 + budget)
    arguments = [str(path) for path in sorted(folders.glob("clips-*"))] + ["--x", "objective.views.recap.budget"]
    with pytest.raises(SystemExit, match="no such row; there are clips-2, clips-16"):
        command.main([*arguments, "--level", "clip"])
    command.main([*arguments, "--level", "clips-short"])
    path = folders / "figures" / "names_image_text_r_1_by_objective_views_recap_budget.svg"
    assert [row["row"] for row in read_csv(folders / "compare.csv")][:2] == ["clips-2", "clips-16"]
    drawing = xml.etree.ElementTree.parse(path).getroot()  # well-formed
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "clips-short, for comparison: 22" in texts and "objective.views.recap.budget: 56" in texts
    assert {"2", "12", "16"} <= set(texts)  # the points themselves: the axis is logarithmic
    assert ".line1 {" in path.read_text() and ".facts" not in path.read_text()
    assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", "")


def test_other_images_seen_are_another_row(folders):
    write(folders / "clip-seed9", clip.get_config("smoke=True"), 1.0, step=10)
    runs = [read_run(str(path)) for path in sorted(folders.glob("clip-*"))]
    assert [len(row.runs) for row in group(runs, lambda _: math.nan)] == [3, 1]


def test_flops_per_image():
    def count(config):
        return flops_per_image(to_dict(from_config_dict(config)))

    small, large = clip.get_config("smoke=True"), clip.get_config("smoke=True")
    large.batch_size, large.total_samples = 64, 64 * 20
    # What grows with the square of the batch is its matrix of similarities alone: B x 32 products, three times, twice.
    np.testing.assert_allclose(count(large) - count(small), 3 * 2 * 32 * 32, rtol=0.4)
    assert count(small) > 0
