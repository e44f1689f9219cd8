"""What a sweep is: named runs, each a config and overrides, from a file like `configs/sweeps/ladder.py`."""

import ast
import dataclasses
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

from etils import epath
from ml_collections import ConfigDict

from clips_jax.config import Config, ConfigError, to_dict
from clips_jax.config.parse import from_config_dict

State = Literal["to do", "started", "finished", "changed"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      name: of its folder within the sweep's; letters, digits and "._-".
      config: as after `--config`: "configs/clips.py:captioner=none".
      overrides: ml-collections overrides by dotted key: {"seed": 1, "objective.views.recap.mask": "block"}.
    """

    name: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def arguments(self, workdir: str) -> list[str]:
        """Of `python -m clips_jax.main`."""
        changes = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return [f"--config={self.config}", f"--workdir={os.path.join(workdir, self.name)}", *changes]

    def resolve(self) -> Config:
        """The checked config; raises `ConfigError`, `FileNotFoundError`."""
        path, _, arguments = self.config.partition(":")
        config = load_module(path).get_config(arguments or None)
        for key, value in self.overrides.items():
            group: Any = config
            for part in key.split(".")[:-1]:
                group = group[part] if part in group and isinstance(group[part], ConfigDict) else ConfigDict()
            name = key.split(".")[-1]
            if name not in group:
                raise ConfigError(f"{key}: {self.config} has no such key.")
            try:  # from the command line every value is a string
                literal = isinstance(value, str) and not isinstance(group[name], str)
                group[name] = ast.literal_eval(value) if literal else value
            except (TypeError, ValueError, SyntaxError):
                raise ConfigError(f"{key}={value!r}: expected {type(group[name]).__name__}.") from None
        return from_config_dict(config)

    def scaled(self, share: float) -> "Run":
        """The same run on this share of its images, in whole batches; the warm-up shrinks with it."""
        config = self.resolve()
        samples = max(1, round(config.total_steps * share)) * config.batch_size
        warmup = round(config.optimizer.warmup_samples * share)
        overrides = {"total_samples": samples, "optimizer.warmup_samples": warmup}
        return dataclasses.replace(self, overrides={**self.overrides, **overrides})


def load_module(path: str) -> ModuleType:
    """A Python file as a module; raises `FileNotFoundError`."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path}.")
    spec = importlib.util.spec_from_file_location(re.sub(r"\W", "_", os.path.splitext(path)[0]), path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def load_sweep(path: str, smoke: bool, extra: Mapping[str, str], scale: float = 1.0) -> list[tuple[Run, Config]]:
    """The runs of a sweep file with their configs, all checked before the first one starts.

    Args:
      path: a file whose `runs(smoke)` yields `Run`s.
      smoke: tiny runs, to see the sweep work.
      extra: overrides for every run, by dotted key.
      scale: share of each run's images that is used; `extra` may still say otherwise.

    Raises:
      ConfigError: naming the run, for what is wrong in it; FileNotFoundError.
    """
    module = load_module(path)
    if not hasattr(module, "runs"):
        raise ConfigError(f"{path}: not a sweep; it has no function runs(smoke).")
    found: Iterator[Run] = module.runs(smoke)
    names: set[str] = set()
    checked = []
    for run in found:
        if not re.fullmatch(r"[\w.-]+", run.name) or run.name in names:
            raise ConfigError(f"{path}: run {run.name!r}: names are unique and made of letters, digits and '._-'.")
        names.add(run.name)
        try:
            run = run if scale == 1 else run.scaled(scale)
            run = dataclasses.replace(run, overrides={**run.overrides, **extra})
            checked.append((run, run.resolve()))
        except (ConfigError, FileNotFoundError) as error:
            raise ConfigError(f"{path}: run {run.name}: {error}") from None
    return checked


def state_of(folder: epath.Path, config: Config) -> State:
    """How far a run has come: finished means results of its last step; changed, that another config's run is there."""
    try:
        saved = json.loads((folder / "config.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # main writes it before the first step
        return "to do"
    if saved != to_dict(config):
        return "changed"
    try:
        results = json.loads((folder / "results.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return "started"
    return "finished" if results.get("checkpoint_step") == config.total_steps else "started"


def difference(folder: epath.Path, config: Config) -> str:
    """The first key in which the folder's config differs, for an error."""
    return next(iter(_differences(json.loads((folder / "config.json").read_text()), to_dict(config))), "")


def _differences(old: Any, new: Any, path: Sequence[str] = ()) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), (*path, key))
    elif old != new:
        yield f"{'.'.join(path)} was {old!r}, is {new!r}"
