"""Results as results.json, as flat metrics and as a table for the terminal."""

import json
import math
from collections.abc import Mapping, Sequence

import jax
from etils import epath

DIRECTIONS = ("image_to_text", "text_to_image")
_RETRIEVAL = "Retrieval"


def flatten(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{"retrieval/NAME/image_to_text/R@1": …}: the names under which the metric writers log them."""
    return {f"{name}/{key}": value for name, metrics in results.items() for key, value in metrics.items()}


def write_results(
    path: epath.PathLike,
    checkpoint_step: int,
    samples_seen: int,
    results: Mapping[str, Mapping[str, float]],
) -> None:
    """Writes results.json whole or not at all; only the first of several processes writes.

    The file is {"checkpoint_step", "samples_seen", "results": {"retrieval/NAME": {"image_to_text/R@1": …}}}, with
    percentages 0-100. JSON has no NaN: what is not finite becomes null.
    """
    if jax.process_index() != 0:
        return
    finite = {
        name: {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        for name, metrics in results.items()
    }
    content = {"checkpoint_step": checkpoint_step, "samples_seen": samples_seen, "results": finite}
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Replaces the file in one step, so that a killed run never leaves half of it; UTF-8, one writer at a time."""
    target = epath.Path(path)
    temporary = target.parent / f".{target.name}.tmp"
    temporary.write_bytes(text.encode("utf-8", errors="replace"))
    temporary.replace(target)


def results_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Aligned plain text, one block per kind of evaluator; "" if there are no results."""
    blocks = []
    for title, header, rows in table_blocks(results):
        lines = _aligned([[title, *header], *rows])
        if title == _RETRIEVAL:
            lines.append("I>T: image to text, T>I: text to image; R@k in percent; median: median rank, 1 is best.")
        blocks.append("\n".join(lines))
    bad = [f"{name} {count:,}" for name, count in bad_images(results)]
    if bad:
        blocks.append(f"Unreadable pictures, which count against the model: {', '.join(bad)}")
    return "\n\n".join(blocks)


def bad_images(results: Mapping[str, Mapping[str, float]]) -> list[tuple[str, int]]:
    """Evaluators that met unreadable pictures, and how many."""
    counts = [(name, int(metrics.get("bad_images", 0))) for name, metrics in results.items()]
    return [(name, count) for name, count in counts if count]


def table_blocks(results: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Per kind of evaluator that has results: title, column names, and rows that start with the evaluator's name."""
    recalls = [(f"{d}/{m}", d) for d in DIRECTIONS for m in ("R@1", "R@5", "R@10", "median_rank")]
    layouts = (
        (
            "retrieval",
            _RETRIEVAL,
            ["images", "texts", *(_recall_title(key) for key, _ in recalls), "chance R@1"],
            lambda m: [_count(m, "n_images"), _count(m, "n_texts"), *(_percent(m, k) for k, _ in recalls), _chance(m)],
        ),
        (
            "classification",
            "Zero-shot classification",
            ["images", "classes", "top-1", "top-5", "per class", "chance top-1"],
            lambda m: [
                *(_count(m, key) for key in ("n_images", "n_classes")),
                *(_percent(m, key) for key in ("top1", "top5", "per_class")),
                _chance(m, "n_classes"),
            ],
        ),
        (
            "caption_loss",
            "Caption loss",
            ["images", "tokens", "nats/token", "perplexity"],
            lambda m: [
                *(_count(m, key) for key in ("n_images", "n_tokens")),
                f"{m.get('loss', math.nan):.3f}",
                f"{m.get('perplexity', math.nan):.1f}",
            ],
        ),
        (
            "pixel_baseline",
            "Nearest training picture by pixels",
            ["images", "same name"],
            lambda m: [_count(m, "n_images"), _percent(m, "same_name")],
        ),
    )
    blocks = []
    for kind, title, header, cells in layouts:
        chosen = {name.split("/", 1)[1]: metrics for name, metrics in results.items() if name.split("/", 1)[0] == kind}
        if chosen:
            blocks.append((title, header, [[name, *cells(metrics)] for name, metrics in chosen.items()]))
    return blocks


def _recall_title(key: str) -> str:
    direction, metric = key.split("/")
    return f"{'I>T' if direction == 'image_to_text' else 'T>I'} {metric.replace('median_rank', 'median')}"


def _count(metrics: Mapping[str, float], key: str) -> str:
    return f"{int(metrics[key]):,}" if key in metrics else "-"


def _percent(metrics: Mapping[str, float], key: str) -> str:
    return f"{metrics[key]:.1f}" if key in metrics else "-"


def _chance(metrics: Mapping[str, float], key: str = "n_images") -> str:
    return f"{100 / metrics[key]:.2f}" if metrics.get(key) else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column flush left, the others flush right, a rule below the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
