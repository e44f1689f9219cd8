"""Writes report.html: one file that shows how a run went and what its model does."""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
from etils import epath

from clips_jax.checkpoint import versions
from clips_jax.config import Config, to_dict
from clips_jax.evaluators import Encoder
from clips_jax.evaluators.results import DIRECTIONS, bad_images, tables, write_atomically
from clips_jax.evaluators.run import headline_evaluators
from clips_jax.evaluators.split import Splits
from clips_jax.metrics import read_metrics
from clips_jax.report.examples import TOP, Examples, collect_examples
from clips_jax.report.plots import Chart, Series, line_chart, number

_ARROWS = {"image_to_text": "image → text", "text_to_image": "text → image"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart with its heading and the sentence below it."""

    heading: str
    caption: str
    chart: Chart


@dataclasses.dataclass(frozen=True)
class Fact:
    """A number at the top of the page. Attributes: value, label: what is shown; detail: what to compare it with."""

    value: str
    label: str
    detail: str = ""


def write_report(
    workdir: epath.PathLike,
    config: Config,
    encoder: Encoder | None,
    results: Mapping[str, Mapping[str, float]],
    checkpoint_step: int,
    samples_seen: int,
    splits: Splits | None = None,
) -> epath.Path:
    """Writes `workdir`/report.html from `workdir`/metrics.jsonl, the results and the model; returns its path.

    The page loads nothing from elsewhere and is a function of its inputs: it holds no date and no path. All processes
    call it together; the first one writes.

    Args:
      workdir: the run's folder; metrics.jsonl may be short or missing.
      config: the run's.
      encoder: the model, for examples; None leaves them out.
      results: as `evaluators.run.evaluate_all` returns them.
      checkpoint_step: step of the parameters.
      samples_seen: pictures the model was trained on by then.
      splits: splits that the evaluation has opened and embedded with this encoder, to save doing so again.
    """
    examples = Examples()
    if encoder is not None:
        examples = collect_examples(config, encoder, splits or Splits(config, encoder))
    path = epath.Path(workdir) / "report.html"
    if jax.process_index() != 0:
        return path
    rows = read_metrics(os.fspath(workdir))
    environment = make_environment()
    environment.filters["score"] = lambda score: f"{score:.3f}" if math.isfinite(score) else "–"
    environment.filters["rank"] = lambda rank: f"{rank:,.0f}" if math.isfinite(rank) else "∞ (unreadable)"
    html = environment.get_template("template.html").render(
        dataset=config.data.dataset,
        checkpoint_step=checkpoint_step,
        samples_seen=samples_seen,
        facts=_facts(config, results, rows),
        tables=tables(results),
        bad_images=bad_images(results),
        figures=_figures(config, rows),
        examples=examples,
        caption_tokens=config.model.captioner.target_length if config.model.captioner else 0,
        top=TOP,
        config=json.dumps(to_dict(config), indent=2),
        versions=[("python", platform.python_version()), *versions().items()],
    )
    write_atomically(path, html)
    return path


def make_environment() -> jinja2.Environment:
    """The templates of this folder; what is filled in is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _facts(config: Config, results: Mapping[str, Mapping[str, float]], rows: list[dict[str, Any]]) -> list[Fact]:
    """The numbers a reader looks for first."""
    facts = []
    for name in headline_evaluators(config):
        metrics = results.get(name, {})
        chance = f"chance {100 / metrics['n_images']:.2f} %" if metrics.get("n_images") else ""
        for direction in DIRECTIONS:
            if f"{direction}/R@1" in metrics:
                label = f"R@1 {_ARROWS[direction]}, {_words(name)}"
                facts.append(Fact(f"{metrics[f'{direction}/R@1']:.1f} %", label, chance))
    for name, metrics in results.items():
        if name.startswith("classification/") and not facts:
            chance = f"chance {100 / metrics['n_classes']:.2f} %"
            facts.append(Fact(f"{metrics['top1']:.1f} %", f"zero-shot top-1, {_words(name)}", chance))
        if name.startswith("caption_loss/"):
            facts.append(Fact(f"{metrics['loss']:.2f}", f"caption loss, {_words(name)}", "nats per token"))
    for key, label, detail in (
        ("loss", "training loss", "last logged"),
        ("time/images_per_second", "images per second", "median over the run"),
    ):
        finite = [y for y in column(rows, key).ys if math.isfinite(y)]
        if finite:
            facts.append(Fact(number(finite[-1] if key == "loss" else float(np.median(finite))), label, detail))
    return facts


def _words(name: str) -> str:
    return name.split("/", 1)[1].replace("_", " ")


def _figures(config: Config, rows: list[dict[str, Any]]) -> list[Figure]:
    """Charts of what was logged; those without a finite value are left out."""
    retrieval = [
        column(rows, f"{name}/{direction}/R@1", f"{_words(name)}, {_ARROWS[direction]}")
        for name in headline_evaluators(config)
        for direction in DIRECTIONS
    ]
    losses = [column(rows, "loss", "total")] + [
        column(rows, key, key.removeprefix("loss/").replace("/", " ")) for key in _loss_parts(rows)
    ]
    planned: list[tuple[str, str, list[Series], str, bool]] = [
        (
            "Retrieval over time",
            "Share of queries whose first answer is right (R@1), at every evaluation.",
            retrieval,
            "R@1 (%)",
            False,
        ),
        (
            "Training loss",
            "The total and its parts before weighting: one contrastive loss per text view, and the captioner's.",
            losses,
            "loss (nats)",
            False,
        ),
        (
            "Learning rate",
            "Linear warm-up, then cosine decay.",
            [column(rows, "learning_rate", "learning rate")],
            "learning rate",
            False,
        ),
        (
            "Logit scale",
            "The learned inverse temperature that multiplies cosines in the contrastive loss.",
            [column(rows, "logit_scale", "logit scale")],
            "logit scale (1 / temperature)",
            False,
        ),
        (
            "Gradient norm",
            "Global L2 norm of the gradient before the update, logarithmic.",
            [column(rows, "gradient_norm", "gradient norm")],
            "gradient norm (L2)",
            True,
        ),
        (
            "Throughput",
            "Training pictures per second over all devices, loading included.",
            [column(rows, "time/images_per_second", "images per second")],
            "images / s",
            False,
        ),
        (
            "Waiting for data",
            "Share of the time in which the devices had finished a step and the next batch was not there yet.",
            [_percent(column(rows, "time/data_wait", "waiting"))],
            "waiting for data (%)",
            False,
        ),
    ]
    charts = [(heading, text, line_chart(lines, label, log=log)) for heading, text, lines, label, log in planned]
    return [Figure(heading, text, chart) for heading, text, chart in charts if chart is not None]


def _percent(series: Series) -> Series:
    return Series(series.name, series.xs, [100 * y for y in series.ys])


def _loss_parts(rows: list[dict[str, Any]]) -> list[str]:
    """The keys of the loss's parts in the order of their appearance; a sum over views only if it has no parts."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key.startswith("loss/")))
    return [key for key in keys if not any(other.startswith(f"{key}/") for other in keys)]


def column(rows: list[dict[str, Any]], key: str, name: str = "") -> Series:
    """The steps that logged `key`, as a line called `name`; null, "nan" and other non-numbers become NaN."""
    chosen = [row for row in rows if key in row]
    return Series(name or key, [float(row["step"]) for row in chosen], [_number(row[key]) for row in chosen])


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
