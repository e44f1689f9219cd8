"""One page and one table over many runs."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from markupsafe import Markup

from clips_jax.evaluators.results import DIRECTIONS, write_atomically
from clips_jax.report import runs as collected
from clips_jax.report.dots import dot_chart
from clips_jax.report.plots import Chart, Series, line_chart, number
from clips_jax.report.report import column, make_environment
from clips_jax.report.runs import Metric, Row

MOST_LINES = 6  # that a chart can tell apart
_ARROWS = {"image_to_text": "image → text", "text_to_image": "text → image"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing with its heading, the sentence below it, and its legend (sample, name, last value)."""

    heading: str
    caption: str
    svg: Markup
    legend: Sequence[tuple[Markup, str, str]] = ()


def write_comparison(
    out: epath.PathLike, rows: Sequence[Row], left_out: Mapping[str, str], x: str = "", series: str = ""
) -> list[epath.Path]:
    """Writes compare.html, compare.csv (a line per row) and runs.csv (a line per run) into `out`; returns their paths.

    Args:
      rows: at least one.
      left_out: why, by folder, for runs that are not in the table.
      x: a setting to draw the headline metric against, such as "objective.views.mix.budget"; "" draws no such chart.
      series: a setting that tells its lines apart; "" is one line.
    """
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = collected.metrics(rows)
    page = (
        make_environment()
        .get_template("compare.html")
        .render(
            rows=rows,
            metrics=wanted,
            label=label,
            cell=_cell,
            number=number,
            finite=math.isfinite,
            figures=_figures(rows, wanted, x, series),
            settings=collected.differing_settings(rows),
            plain=_plain,
            left_out=left_out,
        )
    )
    files = {"compare.html": page, "compare.csv": _row_table(rows, wanted), "runs.csv": _run_table(rows, wanted)}
    for name, text in files.items():
        write_atomically(folder / name, text)
    return [folder / name for name in files]


def label(metric: Metric) -> str:
    """ "unseen drawings, image → text R@1" """
    evaluator, key = metric
    direction = key.rpartition("/")[0]
    arrow = f"{_ARROWS[direction]} " if direction in _ARROWS else ""
    return f"{evaluator.split('/', 1)[1].replace('_', ' ')}, {arrow}{measure(metric)}"


def measure(metric: Metric) -> str:
    """ "R@1 (%)" """
    name = metric[1].rpartition("/")[2]
    return {"top1": "zero-shot top-1 (%)", "loss": "caption loss (nats)"}.get(name, f"{name} (%)")


def _cell(row: Row, metric: Metric) -> str:
    mean, spread = row.mean(metric), row.spread(metric)
    digits = 3 if metric[1] == "loss" else 1
    if not math.isfinite(mean):
        return "–"
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if math.isfinite(spread) else "")


def _plain(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def _figures(rows: Sequence[Row], metrics: Sequence[Metric], x: str, series: str) -> list[Figure]:
    figures = []
    if x:
        figures += [_against(rows, metric, x, series) for metric in metrics[:2]]
    for metric in metrics[:2] or metrics[:1]:
        svg = dot_chart([(row.name, row.mean(metric), row.spread(metric)) for row in rows], label(metric))
        if svg:
            text = "Mean over seeds; the bar is one standard deviation to each side, for two seeds or more."
            figures.append(Figure(label(metric), text, svg))
    if metrics and len(rows) <= MOST_LINES:
        metric = metrics[0]
        lines = [_curve(row, metric) for row in rows]
        chart = line_chart(lines, measure(metric), x_label="images seen (thousands)")
        if chart:
            text = (
                f"{label(metric)}, mean over seeds at every evaluation. The learning rate falls to 0 at each run's end."
            )
            figures.append(Figure("By images seen", text, chart.svg, chart.legend))
        lines = [
            Series(row.name, [row.flops / 1e12], [row.mean(metric)], [row.spread(metric)])
            for row in rows
            if math.isfinite(row.flops)
        ]
        chart = line_chart(lines, measure(metric), x_label="TFLOP spent by a run")
        if chart:
            text = f"{label(metric)}. Matrix FLOPs of the training steps, forward and backward, recomputation included."
            figures.append(Figure("By FLOPs spent", text, chart.svg, chart.legend))
    return [figure for figure in figures if figure is not None]


def _against(rows: Sequence[Row], metric: Metric, x: str, series: str) -> Figure | None:
    """The metric by a setting, a line per value of another."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        settings = row.runs[0].settings
        place = settings.get(x)
        if isinstance(place, (int, float)) and math.isfinite(row.mean(metric)):
            name = _plain(settings.get(series)) if series else x
            lines.setdefault(name, []).append((float(place), row.mean(metric), row.spread(metric)))
    drawn = [
        Series(name, *(list(part) for part in zip(*sorted(points), strict=True))) for name, points in lines.items()
    ]
    chart: Chart | None = line_chart(drawn, measure(metric), x_label=x)
    if chart is None:
        return None
    text = "Mean over seeds, with one standard deviation to each side." + (f" Lines: {series}." if series else "")
    return Figure(f"{label(metric)} by {x}", text, chart.svg, chart.legend)


def _curve(row: Row, metric: Metric) -> Series:
    """Mean over seeds of the metric at every evaluation that all seeds have."""
    key = "/".join(metric)
    columns = [column(run.rows, key) for run in row.runs]
    at: dict[float, list[float]] = {}
    for one in columns:
        for step, value in zip(one.xs, one.ys, strict=True):
            at.setdefault(step, []).append(value)
    steps = sorted(step for step, values in at.items() if len(values) == len(columns))
    batch = row.runs[0].config["batch_size"] / 1000
    return Series(row.name, [step * batch for step in steps], [sum(at[step]) / len(columns) for step in steps])


def _row_table(rows: Sequence[Row], metrics: Sequence[Metric]) -> str:
    names = ["/".join(metric) for metric in metrics]
    head = ["row", "runs", "seeds", "images_seen", "flops_per_image", "flops", *_pairs(names)]
    lines = []
    for row in rows:
        numbers = [value for metric in metrics for value in (row.mean(metric), row.spread(metric))]
        seeds = " ".join(str(run.seed) for run in row.runs)
        lines.append([row.name, len(row.runs), seeds, row.images_seen, row.flops_per_image, row.flops, *numbers])
    return _csv(head, lines)


def _pairs(names: Sequence[str]) -> list[str]:
    return [f"{name} {what}" for name in names for what in ("mean", "sd")]


def _run_table(rows: Sequence[Row], metrics: Sequence[Metric]) -> str:
    lines = []
    for row in rows:
        for run in row.runs:
            found = [run.results.get(evaluator, {}).get(key) for evaluator, key in metrics]
            values = [math.nan if value is None else value for value in found]
            lines.append([run.name, row.name, run.seed, run.images_seen, row.flops, *values])
    return _csv(["run", "row", "seed", "images_seen", "flops", *("/".join(metric) for metric in metrics)], lines)


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Comma-separated; what is not a number is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow(["" if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in line])
    return file.getvalue()


def terminal_table(rows: Sequence[Row], metrics: Sequence[Metric]) -> str:
    """Aligned plain text: row, seeds, images, FLOPs, and the first retrieval's R@1 both ways (else what there is)."""
    shown = list(metrics[: len(DIRECTIONS)])
    cells = [["row", "seeds", "images", "FLOP", *map(label, shown)]]
    for row in rows:
        flops = f"{row.flops:.3g}" if math.isfinite(row.flops) else "–"
        scores = [_cell(row, metric) for metric in shown]
        cells.append([row.name, str(len(row.runs)), f"{row.images_seen:,}", flops, *scores])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )
