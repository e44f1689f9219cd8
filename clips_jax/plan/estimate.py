"""What a step would take, from a chip's data sheet: every number here is an estimate."""

import dataclasses

from clips_jax.plan.chips import Topology
from clips_jax.plan.collectives import Collective
from clips_jax.plan.executed import Work


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds per step.

    Attributes:
      roofline: at best: every instruction at the peak of matrix unit or HBM, whichever is slower, one after another, or
        the links if they take longer than all of that; collectives that nothing hides come on top.
      by_cycles: the same with the compiler's own cycle counts, which know of vector work and layouts; None without.
      compute, memory, links: what each alone would take.
      exposed_links: the part of `links` that the compiler hides behind nothing.
      mfu: the minimum FLOPs of the layout over what the chips could do in `roofline`.
    """

    roofline: float
    by_cycles: float | None
    compute: float
    memory: float
    links: float
    exposed_links: float
    mfu: float

    def chip_hours(self, steps: int, chips: int) -> float:
        """At `roofline` seconds per step."""
        return steps * self.roofline * chips / 3600


ASSUMPTIONS = (
    "matrix units, HBM and links at their data-sheet peak",
    "each mesh axis lies on one closed ring of the torus (small slices have open ones: up to twice the time)",
    "nothing waits for data, checkpoints or evaluation",
)


def estimate(topology: Topology, work: Work, collectives: list[Collective], minimum_flops: float) -> Estimate:
    """Seconds per step of a compiled program; `minimum_flops` is of the whole step over all chips."""
    chip = topology.chip
    links = sum(_seconds(topology, one) for one in collectives)
    exposed = sum(_seconds(topology, one) for one in collectives if not one.overlapped)
    roofline = max(work.roofline_seconds, links - exposed) + exposed
    by_cycles = None
    if chip.clock_hz and work.cycles:
        by_cycles = max(work.cycles / chip.clock_hz, links - exposed) + exposed
    return Estimate(
        roofline=roofline,
        by_cycles=by_cycles,
        compute=work.flops / chip.peak_flops,
        memory=work.bytes / chip.hbm_bandwidth,
        links=links,
        exposed_links=exposed,
        mfu=minimum_flops / topology.chips / (chip.peak_flops * roofline),
    )


def _seconds(topology: Topology, collective: Collective) -> float:
    """GPUs: what a node cannot do among its own goes at the network's rate."""
    chip, leaves_node = topology.chip, False
    if topology.is_gpu and topology.shape[1] > 1:
        leaves_node = collective.group > topology.shape[0] or "over data" in collective.name
    return collective.times * collective.wire_bytes / (chip.network_bandwidth if leaves_node else chip.axis_bandwidth)
