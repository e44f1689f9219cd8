"""A dot per row with its spread as a bar: many settings side by side, as inline SVG."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from clips_jax.report.plots import number, scale, ticks

WIDTH, ROW, TOP, BOTTOM, RIGHT = 620, 24, 8, 44, 64
CHARACTER = 7.4  # width of a letter at the chart's font size, for the room that labels need


def dot_chart(rows: Sequence[tuple[str, float, float]], x_label: str) -> Markup | None:
    """Draws (label, mean, spread) from top to bottom; rows without a finite mean are left out; None if none is left.

    A spread of NaN, of a single run, draws no bar.
    """
    rows = [row for row in rows if math.isfinite(row[1])]
    if not rows:
        return None
    left = 16 + CHARACTER * max(len(label) for label, _, _ in rows)
    bottom = TOP + ROW * len(rows)
    ends = [mean + sign * (spread if math.isfinite(spread) else 0) for _, mean, spread in rows for sign in (-1, 1)]
    lowest = 0.0 if 0 <= min(ends) < 0.6 * max(ends) else min(ends)
    marks = ticks(lowest, max(ends))
    to_x = scale(marks[0], marks[-1], left, WIDTH - RIGHT)
    parts = []
    for mark in marks:
        parts.append(f'<path class="grid" d="M{to_x(mark):.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{to_x(mark):.1f}" y="{bottom + 17}" text-anchor="middle">{number(mark)}</text>')
    for index, (label, mean, spread) in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        parts.append(f'<text x="{left - 10:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{escape(label)}</text>')
        if math.isfinite(spread):
            parts.append(f'<path class="spread" d="M{to_x(mean - spread):.1f} {y:.1f}H{to_x(mean + spread):.1f}"/>')
        parts.append(f'<circle class="mean" cx="{to_x(mean):.1f}" cy="{y:.1f}" r="4.5"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4.5:.1f}">{number(round(mean, 2))}</text>')
    middle = (left + WIDTH - RIGHT) / 2
    height = bottom + BOTTOM
    parts.append(f'<text class="title" x="{middle:.1f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(x_label)} by row">'
    return Markup(head + "".join(parts) + "</svg>")
