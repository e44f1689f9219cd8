"""Line charts and histograms as inline SVG, written by hand: a few kB each, in the page's colours, light or dark."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup, escape

# The drawing area in SVG units, and the margins for tick labels and axis titles.
WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 14, 48
# More points than this are averaged in groups: a line cannot show more on this width.
MOST_POINTS = 300
MOST_BARS = 40
# Lines with at most this many points get a marker at each.
FEW_POINTS = 30
# A logarithmic x axis marks the points themselves if there are no more than this.
FEW_MARKS = 9


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: its name in the legend, and points in order of x. NaN and infinity make a gap.

    Attributes:
      spreads: half the length of the error bar at each point, one per point or none at all; NaN draws no bar.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    spreads: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """A finished chart.

    Attributes:
      svg: the drawing.
      legend: (a short sample of the line, its name, its last finite value).
      notes: sentences for the caption on what the drawing leaves out or averages.
    """

    svg: Markup
    legend: list[tuple[Markup, str, str]]
    notes: list[str]


def line_chart(
    series: Sequence[Series], y_label: str, x_label: str = "step", log: bool = False, log_x: bool = False
) -> Chart | None:
    """Draws the lines over a common x axis; None if there is no finite point.

    Args:
      series: the lines; they differ by dash pattern as well as by colour.
      y_label: title of the y axis, with its unit.
      x_label: title of the x axis.
      log: logarithmic y axis, if all values are positive.
      log_x: logarithmic x axis from the first point to the last, if all are positive; it marks them if they are few.
    """
    notes: list[str] = []
    lines = [(one, _finite(one)) for one in series]
    lines = [(one, points) for one, points in lines if points]
    missing = sum(len(one.ys) for one in series) - sum(len(points) for _, points in lines)
    if not lines:
        return None
    if missing:
        notes.append(f"{missing} value{'s are' if missing > 1 else ' is'} not finite and left out.")
    group = max(math.ceil(len(one.ys) / MOST_POINTS) for one, _ in lines)
    if group > 1:
        notes.append(f"Each point is the mean of {group} logged values.")
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    # Of values that are never negative, as percentages, no bar says that they could be.
    least = 0.0 if min(ys) >= 0 else -math.inf
    bars = [
        [(x, max(y - s, least), y + s) for x, y, s in zip(*_columns(one), strict=True) if math.isfinite(y + s)]
        for one, _ in lines
    ]
    ys += [end for line in bars for _, *ends in line for end in ends]
    log = log and min(ys) > 0
    log_x = log_x and min(xs) > 0
    if log_x:
        x_ticks = sorted(set(xs)) if len(set(xs)) <= FEW_MARKS else _log_ticks(min(xs), max(xs))
    else:
        x_ticks = ticks(0, max(xs))
    # A line that comes near zero gets an axis that shows it.
    lowest = 0.0 if 0 <= min(ys) < 0.6 * max(ys) else min(ys)
    y_ticks = _log_ticks(min(ys), max(ys)) if log else ticks(lowest, max(ys))
    height = math.log10 if log else float

    # The x axis ends with the data; the y axis at round values.
    along = scale(math.log(min(xs)) if log_x else 0, math.log(max(xs)) if log_x else max(xs), LEFT, WIDTH - RIGHT)
    on_axis = scale(height(y_ticks[0]), height(y_ticks[-1]), HEIGHT - BOTTOM, TOP)

    def to_x(value: float) -> float:
        return along(math.log(value) if log_x else value)

    def to_y(value: float) -> float:
        return on_axis(height(value))

    parts = [_axes(x_ticks, y_ticks, to_x, to_y, x_label, y_label)]
    for index, (one, _) in enumerate(lines):
        for segment in _segments(one, group):
            drawn = [(to_x(x), to_y(y)) for x, y in segment]
            parts.append(_line(drawn, index, markers=len(one.ys) <= FEW_POINTS))
        parts += [
            f'<path class="line line{index % 6} bar" d="M{to_x(x):.1f} {to_y(low):.1f}V{to_y(high):.1f}"/>'
            for x, low, high in bars[index]
        ]
    title = escape(f"{y_label} by {x_label}: " + ", ".join(one.name for one, _ in lines))
    svg = Markup(f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">') + Markup(
        "".join(parts) + "</svg>"
    )
    legend = [(_sample(i), one.name, number(points[-1][1])) for i, (one, points) in enumerate(lines)]
    return Chart(svg, legend, notes)


def histogram(values: Sequence[float], x_label: str, limits: Mapping[str, float] | None = None) -> Chart | None:
    """Draws how often values occur, in at most `MOST_BARS` bars of equal width; None if there is no value.

    Args:
      values: whole numbers or others; the largest per cent, if far from the rest, is counted in the last bar.
      x_label: what the values are, with their unit.
      limits: vertical lines by name, such as a length at which texts are cut.
    """
    if not len(values):
        return None
    ordered = sorted(values)
    low, high = min(0.0, ordered[0]), float(ordered[-1])
    notes = []
    usual = ordered[math.ceil(0.99 * len(ordered)) - 1]
    if high > 2 * max(usual, 1):
        notes.append(f"The last bar holds all above {number(usual)}; the largest is {number(high)}.")
        high = usual
    whole = all(value == round(value) for value in ordered)
    width = max((high - low + whole) / MOST_BARS, 1e-9)
    width = float(math.ceil(width)) if whole else width
    bars = max(1, math.ceil((high - low + whole) / width - 1e-9))
    counts = [0] * bars
    for value in ordered:
        counts[min(bars - 1, int((value - low) / width))] += 1
    end = low + bars * width
    shown = {name: limit for name, limit in (limits or {}).items() if low <= limit <= end}
    to_x, to_y = scale(low, end, LEFT, WIDTH - RIGHT), scale(0, ticks(0, max(counts))[-1], HEIGHT - BOTTOM, TOP)
    parts = [_axes(ticks(low, end), ticks(0, max(counts)), to_x, to_y, x_label, "records")]
    for bar, count in enumerate(counts):
        left, right = to_x(low + bar * width), to_x(low + (bar + 1) * width)
        top = to_y(count)
        parts.append(
            f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}"/>'
        )
    for index, limit in enumerate(shown.values()):
        parts.append(f'<path class="line line{index % 5 + 1}" d="M{to_x(limit):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    title = escape(f"{x_label}: {len(values)} values, median {number(ordered[len(ordered) // 2])}")
    svg = Markup(f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">') + Markup(
        "".join(parts) + "</svg>"
    )
    return Chart(
        svg, [(_sample(i % 5 + 1), name, number(limit)) for i, (name, limit) in enumerate(shown.items())], notes
    )


def number(value: float) -> str:
    """A number for people: at most four digits, no trailing zeros, exponents only where they are shorter."""
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _finite(series: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(series.xs, series.ys, strict=True) if math.isfinite(y)]


def _columns(series: Series) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    return series.xs, series.ys, series.spreads or [math.nan] * len(series.ys)


def _segments(series: Series, group: int) -> list[list[tuple[float, float]]]:
    """Runs of finite points, after averaging `group` neighbours; a group without a finite value ends a run."""
    segments: list[list[tuple[float, float]]] = [[]]
    for start in range(0, len(series.ys), group):
        finite = [
            (x, y)
            for x, y in zip(series.xs[start : start + group], series.ys[start : start + group], strict=True)
            if math.isfinite(y)
        ]
        if finite:
            segments[-1].append((sum(x for x, _ in finite) / len(finite), sum(y for _, y in finite) / len(finite)))
        elif segments[-1]:
            segments.append([])
    return [segment for segment in segments if segment]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map from [low, high] to [start, end]; a single value goes to the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low: float, high: float) -> list[float]:
    """Four to seven round values that enclose [low, high]."""
    if high - low < 1e-9 * max(abs(low), abs(high)) or high == low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose [low, high], with 2 and 5 between them where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    if last - first > 2:
        every = math.ceil((last - first) / 6)
        return [10.0**power for power in range(first, last + every, every)]
    values = [factor * 10.0**power for power in range(first, last) for factor in (1, 2, 5)] + [10.0**last]
    below = max(index for index, value in enumerate(values) if value <= low * (1 + 1e-9))
    above = min(index for index, value in enumerate(values) if value >= high * (1 - 1e-9))
    return values[below : max(above, below + 1) + 1]


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    x_label: str,
    y_label: str,
) -> str:
    """Grid lines, tick labels and axis titles."""
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in y_ticks:
        y = to_y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4.5:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x_ticks:
        x = to_x(value)
        if LEFT - 0.5 <= x <= WIDTH - RIGHT + 0.5:
            anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
            parts.append(f'<path class="tick" d="M{x:.1f} {bottom}v5"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="{anchor}">{number(value)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="title" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="rotate(-90 12 {(TOP + bottom) / 2})"'
    parts.append(
        f'<text class="title" x="12" y="{(TOP + bottom) / 2}" text-anchor="middle" {turned}>{escape(y_label)}</text>'
    )
    return "".join(parts)


def _line(points: Sequence[tuple[float, float]], index: int, markers: bool) -> str:
    """One run of points; a run of one point is a marker."""
    style = f"line{index % 6}"
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    drawn = f'<path class="line {style}" d="{path}"/>' if len(points) > 1 else ""
    if markers or len(points) == 1:
        drawn += "".join(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    return drawn


def _sample(index: int) -> Markup:
    return Markup(
        '<svg class="sample" viewBox="0 0 34 10" aria-hidden="true">'
        f'<path class="line line{index % 6}" d="M1 5H33"/></svg>'
    )
