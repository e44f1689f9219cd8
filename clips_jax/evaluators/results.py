"""Results as results.json, as flat metrics and as a table for the terminal."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

DIRECTIONS = ("image_to_text", "text_to_image")
# A cell of a table, made from an evaluator's metrics.
Cell = Callable[[Mapping[str, float]], str]


def flatten(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{"retrieval/NAME/image_to_text/R@1": …}: the names under which the metric writers log them."""
    return {f"{name}/{key}": value for name, metrics in results.items() for key, value in metrics.items()}


def write_results(
    path: epath.PathLike,
    checkpoint_step: int,
    samples_seen: int,
    results: Mapping[str, Mapping[str, float]],
    **more: Any,
) -> None:
    """Writes results.json whole or not at all; only the first of several processes writes.

    The file is {"checkpoint_step", "samples_seen", "results": {"retrieval/NAME": {"image_to_text/R@1": …}}}, with
    percentages 0-100. JSON has no NaN: what is not finite becomes null. `more` is written beside these keys.
    """
    if jax.process_index() != 0:
        return
    finite = {
        name: {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        for name, metrics in results.items()
    }
    content = {"checkpoint_step": checkpoint_step, "samples_seen": samples_seen, "results": finite} | more
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Replaces the file in one step, so that a killed run never leaves half of it; UTF-8, one writer at a time."""
    target = epath.Path(path)
    temporary = target.parent / f".{target.name}.tmp"
    temporary.write_bytes(text.encode("utf-8", errors="replace"))
    temporary.replace(target)


@dataclasses.dataclass(frozen=True)
class Table:
    """The results of one kind of evaluator.

    Attributes:
      title: heading of the first column, which holds the evaluators' names.
      header: names of the other columns.
      groups: (name, number of columns) of the groups that the other columns form, [] for none.
      rows: cells, the evaluator's name first.
    """

    title: str
    header: list[str]
    groups: list[tuple[str, int]]
    rows: list[list[str]]


def results_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Aligned plain text, one block per kind of evaluator; "" if there are no results."""
    blocks = ["\n".join(_aligned(table)) for table in tables(results)]
    bad = [f"{name} {count:,}" for name, count in bad_images(results)]
    if bad:
        blocks.append(f"Unreadable pictures, which count against the model: {', '.join(bad)}")
    return "\n\n".join(blocks)


def bad_images(results: Mapping[str, Mapping[str, float]]) -> list[tuple[str, int]]:
    """Evaluators that met unreadable pictures, and how many."""
    counts = [(name, int(metrics.get("bad_images", 0))) for name, metrics in results.items()]
    return [(name, count) for name, count in counts if count]


def tables(results: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """A table per kind of evaluator that has results; shares in percent, medians are median ranks."""

    def table(kind: str, title: str, groups: list[tuple[str, int]], columns: Sequence[tuple[str, Cell]]) -> Table:
        chosen = {name.split("/", 1)[1]: metrics for name, metrics in results.items() if name.split("/", 1)[0] == kind}
        rows = [[name, *(cell(metrics) for _, cell in columns)] for name, metrics in chosen.items()]
        return Table(title, [name for name, _ in columns], groups, rows)

    intervals = any("/low" in key for metrics in results.values() for key in metrics)

    def score(name: str, key: str, digits: int = 1) -> list[tuple[str, Cell]]:
        """A column, and one for its interval if any result has one."""
        return [(name, _number(key, digits)), *([("95 %", _interval(key, digits))] if intervals else [])]

    recalls = [
        column
        for direction in DIRECTIONS
        for key in ("R@1", "R@5", "R@10", "median_rank")
        for column in (
            score("R@1", f"{direction}/R@1")
            if key == "R@1"
            else [(key.replace("median_rank", "median"), _number(f"{direction}/{key}"))]
        )
    ]
    wide = 5 if intervals else 4
    counts = [("images", _count("n_images")), ("classes", _count("n_classes"))]
    found = [
        table(
            "retrieval",
            "Retrieval",
            [("", 2), ("image to text", wide), ("text to image", wide), ("chance", 1)],
            [("images", _count("n_images")), ("texts", _count("n_texts")), *recalls, ("R@1", _chance("n_images"))],
        ),
        table(
            "classification",
            "Zero-shot classification",
            [],
            [
                *counts,
                *score("top-1", "top1"),
                ("top-5", _number("top5")),
                ("per class", _number("per_class")),
                ("chance top-1", _chance("n_classes")),
            ],
        ),
        table(
            "linear_probe",
            "Linear probe",
            [],
            [
                *counts,
                ("trained on", _count("n_train")),
                *score("top-1", "top1"),
                ("held out", _number("held_out_top1")),
                ("L2 weight", _power("regularisation")),
            ],
        ),
        table(
            "knn",
            "Nearest neighbours",
            [],
            [*counts, ("trained on", _count("n_train")), ("k", _count("k")), *score("top-1", "top1")],
        ),
        table(
            "captioning",
            "Captioning",
            [],
            [
                ("images", _count("n_images")),
                ("texts", _count("n_texts")),
                *score("nats/token", "loss", 3),
                *score("BLEU-4", "BLEU-4"),
                *score("CIDEr", "CIDEr"),
            ],
        ),
        table(
            "caption_loss",
            "Caption loss",
            [],
            [
                ("images", _count("n_images")),
                ("tokens", _count("n_tokens")),
                ("nats/token", _number("loss", 3)),
                ("perplexity", _number("perplexity")),
            ],
        ),
        table(
            "pixel_baseline",
            "Nearest training picture by pixels",
            [],
            [("images", _count("n_images")), ("same name", _number("same_name"))],
        ),
    ]
    return [table for table in found if table.rows]


def _count(key: str) -> Cell:
    return lambda metrics: f"{int(metrics[key]):,}" if key in metrics else "-"


def _number(key: str, digits: int = 1) -> Cell:
    return lambda metrics: f"{metrics[key]:.{digits}f}" if key in metrics else "-"


def _interval(key: str, digits: int) -> Cell:
    """The bounds of the confidence interval of `key`."""
    low, high = f"{key}/low", f"{key}/high"
    return lambda metrics: f"{metrics[low]:.{digits}f}-{metrics[high]:.{digits}f}" if low in metrics else "-"


def _power(key: str) -> Cell:
    return lambda metrics: f"{metrics[key]:.0e}" if key in metrics else "-"


def _chance(key: str) -> Cell:
    """What guessing one of so many gets, unless the result says it itself."""
    return lambda metrics: f"{metrics.get('chance', 100 / metrics[key]):.2f}" if metrics.get(key) else "-"


def _aligned(table: Table) -> list[str]:
    """The table as lines: names flush left, numbers flush right, groups above their columns, a rule below the head."""
    cells = [[table.title, *table.header], *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    column = 1
    for name, span in table.groups:
        widths[column] = max(widths[column], len(name) - sum(widths[column + 1 : column + span]))
        column += span
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    head = lines[:1]
    if table.groups:
        above, column = " " * widths[0], 1
        for name, span in table.groups:
            width = sum(widths[column : column + span]) + 2 * (span - 1)
            above += "  " + (f" {name} ".center(width, "-") if span > 1 and name else name.rjust(width))
            column += span
        head.insert(0, above)
    return [*head, "-" * len(lines[0]), *lines[1:]]
