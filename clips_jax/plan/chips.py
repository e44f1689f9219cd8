"""Chips and the topologies they come in: the numbers every estimate rests on."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from clips_jax.config import ConfigError

GIB, GB = 2**30, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      peak_flops: of bfloat16 matrix products, per second, dense.
      hbm_bytes: memory that a program may use.
      hbm_bandwidth: bytes/s.
      axis_bandwidth: bytes/s that one chip sends along one mesh axis: both directions of a torus ring (TPU), NVLink
        one way (GPU).
      network_bandwidth: bytes/s that one chip sends to other nodes; 0 where all chips of a slice share the torus.
      clock_hz: of the matrix unit, to turn the compiler's cycles into seconds; 0 = no such estimate.
      dimensions: of the torus.
      largest: chips in the largest slice.
      source: of these numbers.
    """

    name: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    axis_bandwidth: float
    source: str
    network_bandwidth: float = 0.0
    clock_hz: float = 0.0
    dimensions: int = 0
    largest: int = 0


# Peak, HBM bandwidth and links: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and the table of jax-ml.github.io/
# scaling-book/tpus, which gives links as measured: 45 (v4, v5e) and 90 GB/s (v5p, v6e) one way, two per ring.
# Usable HBM: what the compiler itself states when a program does not fit (libtpu 0.0.52).
# Clock: peak / (2 x multiply-adds per cycle of all matrix units); v4 and v5p 8, v5e 4 units of 128 x 128 (scaling
# book). v6e: 4 of 256 x 256 (assumption).
_CLOUD = "cloud.google.com/tpu/docs, jax-ml.github.io/scaling-book; usable HBM as libtpu 0.0.52 states it"
TPUS = {
    "v4": Chip("v4", 275e12, 30.75 * GIB, 1.2e12, 90e9, _CLOUD, 0, 1.05e9, 3, 4096),
    "v5e": Chip("v5e", 197e12, 15.75 * GIB, 8.1e11, 90e9, _CLOUD, 0, 1.5e9, 2, 256),
    "v5p": Chip("v5p", 459e12, 95.73 * GIB, 2.765e12, 180e9, _CLOUD, 0, 1.75e9, 3, 8960),
    "v6e": Chip("v6e", 918e12, 31.24 * GIB, 1.64e12, 180e9, _CLOUD, 0, 1.75e9, 2, 256),
}
# Data sheets (SXM versions, dense bfloat16). 0.9 of the memory: XLA's share with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9, as
# launch/xla_flags.sh sets it. NVLink one way. Network: 400 Gbit/s per GPU (A100: 200), assumption.
_SHEET = "NVIDIA data sheets (SXM, dense bfloat16); network per GPU: assumption"
GPUS = {
    "a100": Chip("a100", 312e12, 0.9 * 80 * GB, 2.039e12, 300e9, _SHEET, 25e9),
    "h100": Chip("h100", 989e12, 0.9 * 80 * GB, 3.35e12, 450e9, _SHEET, 50e9),
    "h200": Chip("h200", 989e12, 0.9 * 141 * GB, 4.8e12, 450e9, _SHEET, 50e9),
    "b200": Chip("b200", 2250e12, 0.9 * 180 * GB, 7.7e12, 900e9, _SHEET, 50e9),
}
EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x8, v6e:16x16, gpu:h100:8x32 (GPUs per node x nodes)"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPUs, or nodes of GPUs.

    Attributes:
      name: as given.
      shape: chips along each axis of the torus; GPUs per node and nodes.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def is_gpu(self) -> bool:
        return self.chip.name in GPUS

    def devices(self) -> Sequence[Any]:
        """Stand-ins for the slice's chips, for compiling (TPU only).

        Raises:
          ConfigError: libtpu does not know this shape.
        """
        from jax.experimental import topologies

        # A v4 chip shows up as two devices unless its cores are taken together; a v5p is one either way.
        options = {"chip_config_name": "megacore"} if self.chip.name == "v4" else {}
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options).devices
        except Exception as error:  # jaxlib's own types
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"--topology={self.name}: libtpu refuses it: {reason}. Known: {known()}") from error


def parse_topology(text: str) -> Topology:
    """`v5e:16x16`, `v5p:4x4x8`, `gpu:h100:8x32`; raises `ConfigError` that lists what is known."""
    *kind, sizes = text.split(":")
    gpu = bool(kind) and kind[0] == "gpu"
    chip = (GPUS if gpu else TPUS).get(kind[-1] if kind else "")
    if len(kind) != 1 + gpu or chip is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise ConfigError(f"--topology={text}: not a topology. Known: {known()}")
    shape = tuple(int(size) for size in sizes.split("x"))
    if len(shape) != (2 if gpu else chip.dimensions):
        raise ConfigError(f"--topology={text}: {chip.name} has {2 if gpu else chip.dimensions} axes. Known: {known()}")
    if chip.largest and math.prod(shape) > chip.largest:
        raise ConfigError(
            f"--topology={text}: {math.prod(shape)} chips; the largest {chip.name} slice has {chip.largest}."
        )
    return Topology(text, chip, shape)


def known() -> str:
    """What `--topology` takes, on one line."""
    tpus = ", ".join(f"{c.name} ({c.dimensions} axes, up to {c.largest} chips)" for c in TPUS.values())
    return f"{tpus}, gpu:NAME ({', '.join(GPUS)}). Examples: {EXAMPLES}."
