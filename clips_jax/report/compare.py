"""One page and one table over many runs."""

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from markupsafe import Markup, escape

from clips_jax.evaluators.results import DIRECTIONS, write_atomically
from clips_jax.report import runs as collected
from clips_jax.report.dots import dot_chart
from clips_jax.report.plots import Chart, Series, line_chart, number
from clips_jax.report.report import column, make_environment
from clips_jax.report.runs import Metric, Row

MOST_LINES = 6  # that a chart can tell apart
# An axis of a setting whose largest value is so many times its smallest is logarithmic.
WIDE = 8
STYLE = Path(__file__).parent
_ARROWS = {"image_to_text": "image → text", "text_to_image": "text → image"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing with its heading, the sentence below it, and its legend (sample, name, last value)."""

    heading: str
    caption: str
    svg: Markup
    legend: Sequence[tuple[Markup, str, str]] = ()


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the page shows beyond the table.

    Attributes:
      x: a setting to draw the headline metric against, such as "objective.views.mix.budget"; "" draws no such chart.
      series: a setting that tells its lines apart; "" is one line.
      level: name of a row that is drawn across that chart, to compare with; "" is none.
      gains: whether each row's difference from the row before is shown, a ladder's steps.
    """

    x: str = ""
    series: str = ""
    level: str = ""
    gains: bool = False


def write_comparison(
    out: epath.PathLike, rows: Sequence[Row], left_out: Mapping[str, str], wishes: Wishes
) -> list[epath.Path]:
    """Writes into `out`: compare.html, compare.csv (a line per row), runs.csv (a line per run), figures/*.svg.

    Args:
      rows: at least one.
      left_out: why, by folder, for runs that are not in the table.
      wishes: what else to show.

    Returns:
      the paths of the page and the tables.
    """
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = collected.metrics(rows)
    figures = _figures(rows, wanted, wishes)
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
            figures=figures,
            steps=list(zip(rows, rows[1:], strict=False)) if wishes.gains else [],
            gain=gain_cell,
            settings=collected.differing_settings(rows),
            plain=_plain,
            left_out=left_out,
        )
    )
    files = {"compare.html": page, "compare.csv": _row_table(rows, wanted), "runs.csv": _run_table(rows, wanted)}
    for name, text in files.items():
        write_atomically(folder / name, text)
    (folder / "figures").mkdir(exist_ok=True)
    for figure in figures:
        write_atomically(folder / "figures" / f"{slug(figure.heading)}.svg", standalone(figure))
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
    return _with_spread(row.mean(metric), row.spread(metric), metric)


def gain_cell(before: Row, after: Row, metric: Metric) -> str:
    """ "+3.9 ± 0.6": the mean over the seeds that both have, and the standard deviation of the differences."""
    return _with_spread(*collected.gain(before, after, metric), metric, sign="+")


def _with_spread(mean: float, spread: float, metric: Metric, sign: str = "") -> str:
    digits = 3 if metric[1] == "loss" else 1
    if not math.isfinite(mean):
        return "–"
    return f"{mean:{sign}.{digits}f}" + (f" ± {spread:.{digits}f}" if math.isfinite(spread) else "")


def _plain(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def _figures(rows: Sequence[Row], metrics: Sequence[Metric], wishes: Wishes) -> list[Figure]:
    figures = []
    if wishes.x:
        figures += [_against(rows, metric, wishes) for metric in metrics[:2]]
    for metric in (*metrics[:2], *(one for one in metrics[2:] if not one[1].startswith("text_to_image"))):
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


def _against(rows: Sequence[Row], metric: Metric, wishes: Wishes) -> Figure | None:
    """The metric by a setting, a line per value of another, and one row's value across."""
    x, series = wishes.x, wishes.series
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        settings = row.runs[0].settings
        place = settings.get(x)
        if row.name != wishes.level and isinstance(place, (int, float)) and math.isfinite(row.mean(metric)):
            name = _plain(settings.get(series)) if series else x
            lines.setdefault(name, []).append((float(place), row.mean(metric), row.spread(metric)))
    drawn = [
        Series(name, *(list(part) for part in zip(*sorted(points), strict=True))) for name, points in lines.items()
    ]
    places = [place for one in drawn for place in one.xs]
    for row in rows:
        if row.name == wishes.level and places:
            mean, spread = [row.mean(metric)] * 2, [row.spread(metric)] * 2
            drawn.append(Series(f"{row.name}, for comparison", [min(places), max(places)], mean, spread))
    wide = bool(places) and max(places) >= WIDE * min(places) > 0
    chart: Chart | None = line_chart(drawn, measure(metric), x_label=x, log_x=wide)
    if chart is None:
        return None
    text = "Mean over seeds, with one standard deviation to each side." + (f" Lines: {series}." if series else "")
    return Figure(f"{label(metric)} by {x}", text, chart.svg, chart.legend)


def slug(heading: str) -> str:
    """ "unseen_drawings_image_text_r_1" """
    return re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_")


def standalone(figure: Figure) -> str:
    """The figure as an SVG file by itself: heading and legend inside, colours by the reader's scheme."""
    drawing = str(figure.svg)  # Markup would escape what is put into it
    found = re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing)
    assert found
    width, height = map(int, found.groups())
    parts = [f'<text class="title" x="8" y="22">{escape(figure.heading)}</text>']
    parts.append(drawing.replace("<svg ", f'<svg y="30" width="{width}" height="{height}" ', 1))
    at = height + 48
    for sample, name, last in figure.legend:
        parts.append(str(sample).replace("<svg ", f'<svg x="12" y="{at - 9}" width="34" height="10" ', 1))
        parts.append(f'<text x="56" y="{at}">{escape(name)}: {escape(last)}</text>')
        at += 19
    rules = (STYLE / "style.css").read_text(encoding="utf-8")
    style = rules[: rules.index("* {")] + "".join(
        f"{line}\n"
        for line in rules.splitlines()
        if re.match(r"\.(chart|grid|axis|line\d*|mean|spread|bar)\b|circle", line)
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {at}" width="{width}">'
    page = '<rect width="100%" height="100%" style="fill: var(--card)"/>'
    return f"{head}<style>{style}</style>{page}{''.join(parts)}</svg>\n"


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


def terminal_gains(rows: Sequence[Row], metrics: Sequence[Metric]) -> str:
    """Each row's difference from the row before, a line per metric and step."""
    lines = []
    for before, after in zip(rows, rows[1:], strict=False):
        lines.append(f"{before.name} -> {after.name}")
        lines += [f"    {label(metric)}: {gain_cell(before, after, metric)}" for metric in metrics]
    return "\n".join(lines)
