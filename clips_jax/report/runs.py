"""Finished runs read from their folders, and grouped: runs that differ by nothing but the seed are one row."""

import dataclasses
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from clips_jax.config.parse import from_config_dict
from clips_jax.evaluators.results import DIRECTIONS
from clips_jax.metrics import read_metrics
from clips_jax.plan.flops import jaxpr_flops
from clips_jax.plan.gpu import abstract_program, trace

Metric = tuple[str, str]  # name of the evaluator, key of its number


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run. Attributes: settings: its config as flat keys, without the seed; rows: of metrics.jsonl."""

    name: str
    seed: int
    config: dict[str, Any]
    settings: dict[str, Any]
    images_seen: int
    results: dict[str, dict[str, float | None]]
    rows: list[dict[str, Any]]

    @property
    def finished(self) -> bool:
        """Whether the results are those of the last step."""
        return self.images_seen >= self.config["total_samples"] // self.config["batch_size"] * self.config["batch_size"]


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ by their seeds. Attributes: flops_per_image: NaN if the step cannot be traced."""

    name: str
    runs: list[Run]
    flops_per_image: float

    @property
    def images_seen(self) -> int:
        """By each of the runs."""
        return self.runs[0].images_seen

    @property
    def flops(self) -> float:
        """Spent by each of the runs on its training steps."""
        return self.flops_per_image * self.images_seen

    def values(self, metric: Metric) -> list[float]:
        """The metric of every run that has it."""
        found = [run.results.get(metric[0], {}).get(metric[1]) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, metric: Metric) -> float:
        """Over seeds; NaN if no run has it."""
        values = self.values(metric)
        return statistics.fmean(values) if values else math.nan

    def spread(self, metric: Metric) -> float:
        """Standard deviation over seeds (n - 1); NaN for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else math.nan


def gain(before: Row, after: Row, metric: Metric) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the metric's difference, over the seeds that both rows have.

    Seeds are paired: a seed's two runs draw the same records, so what it adds to both does not count as spread. NaN
    without a pair, and for the deviation of a single one.
    """
    found = [{run.seed: run.results.get(metric[0], {}).get(metric[1]) for run in row.runs} for row in (before, after)]
    pairs = [(found[0].get(seed), value) for seed, value in found[1].items()]
    differences = [new - old for old, new in pairs if old is not None and new is not None]
    mean = statistics.fmean(differences) if differences else math.nan
    return mean, statistics.stdev(differences) if len(differences) > 1 else math.nan


def read_run(folder: str) -> Run:
    """Reads a workdir; raises `FileNotFoundError` saying what is missing, `ValueError` for files that are not whole."""
    path = epath.Path(folder)
    for name in ("config.json", "results.json"):
        if not (path / name).exists():
            raise FileNotFoundError(f"no {name}")
    config = json.loads((path / "config.json").read_text())
    results = json.loads((path / "results.json").read_text())
    return Run(
        name=os.path.basename(os.path.normpath(folder)),
        seed=config["seed"],
        config=config,
        settings={key: value for key, value in _flat(config).items() if key != "seed"},
        images_seen=results["samples_seen"],
        results=results["results"],
        rows=read_metrics(folder),
    )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    parts = (_flat(item, f"{path}.{key}" if path else key) for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}


def group(runs: Sequence[Run], count_flops: Callable[[dict[str, Any]], float] | None = None) -> list[Row]:
    """One row per config, seeds aside, in the order of the first run of each."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.settings, run.images_seen], sort_keys=True)
        found.setdefault(key, []).append(run)
    count = count_flops or flops_per_image
    return [Row(_name(members), members, count(members[0].config)) for members in found.values()]


def _name(runs: Sequence[Run]) -> str:
    """The folder's name without the seed, if that is the same for all; else the first folder's."""
    names = {re.sub(r"[-_.](?:seed|s)?[-_.]?\d+$", "", run.name) for run in runs}
    alone = len(runs) == 1 and not re.search(r"seed[-_.]?\d+$", runs[0].name)
    return runs[0].name if alone or len(names) > 1 else names.pop() or runs[0].name


def flops_per_image(config: dict[str, Any]) -> float:
    """Matrix FLOPs of one training step per picture, counted on the traced step (`clips_jax.plan`)."""
    parsed = from_config_dict(config)
    parsed = dataclasses.replace(parsed, mesh=dataclasses.replace(parsed.mesh, data=1, fsdp=1, tensor=1))
    return jaxpr_flops(trace(abstract_program(parsed, 1))) / parsed.batch_size


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """Keys whose values are not the same in all rows."""
    keys = dict.fromkeys(key for row in rows for key in row.runs[0].settings)
    return [key for key in keys if len({json.dumps(row.runs[0].settings.get(key)) for row in rows}) > 1]


def metrics(rows: Sequence[Row]) -> list[Metric]:
    """What the table shows: R@1 both ways, top-1, caption loss, of every evaluator that a run has."""
    wanted = {
        "retrieval": [f"{direction}/R@1" for direction in DIRECTIONS],
        "classification": ["top1"],
        "caption_loss": ["loss"],
    }
    names = dict.fromkeys(name for row in rows for run in row.runs for name in run.results)
    return [(name, key) for kind in wanted for name in names if name.startswith(f"{kind}/") for key in wanted[kind]]
