"""A plan as a dict for programs and as a table for people."""

import dataclasses
from typing import Any

from clips_jax.config import Config
from clips_jax.plan.chips import GIB
from clips_jax.plan.collectives import summarize
from clips_jax.plan.compiled import Compiled
from clips_jax.plan.estimate import ASSUMPTIONS, Estimate, estimate
from clips_jax.plan.gpu import REACHED
from clips_jax.plan.minimum import Minimum, minimum

# The executed program may hold this much more than was written down before it is worth a line.
WORTH_A_NOTE = 1.02


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a config on a topology.

    Attributes:
      estimate: None if the step did not fit.
      chip_hours_by_stage: by name of the stage; empty for a config without stages.
    """

    name: str
    config: Config
    step: Compiled
    minimum: Minimum
    estimate: Estimate | None
    chip_hours_by_stage: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.step.work is not None and self.step.memory.peak <= self.step.topology.chip.hbm_bytes


def make_plan(name: str, config: Config, step: Compiled) -> Plan:
    """Adds the minimum and the estimates to a compiled step."""
    least = minimum(config)
    estimated = None
    if step.work is not None and step.collectives is not None:
        estimated = estimate(step.topology, step.work, step.collectives, least.layout)
    return Plan(name, config, step, least, estimated)


def to_json(plan: Plan) -> dict[str, Any]:
    """One flat line of numbers; those under "estimated" are estimates, on GPUs all but FLOPs and state."""
    step, memory, chips, chip = plan.step, plan.step.memory, plan.step.topology.chips, plan.step.topology.chip
    result: dict[str, Any] = {
        "config": plan.name,
        "topology": step.topology.name,
        "chips": chips,
        "mesh": step.mesh,
        "batch_size": plan.config.batch_size,
        "parameters": step.parameter_count,
        "fits": plan.fits,
        "peak_bytes_per_chip": memory.peak,
        "argument_bytes_per_chip": memory.arguments,
        "temporary_bytes_per_chip": memory.temporaries,
        "parameter_bytes_per_chip": memory.parameters,
        "optimizer_bytes_per_chip": memory.optimizer_state,
        "batch_bytes_per_chip": memory.batch,
        "hbm_bytes_per_chip": chip.hbm_bytes,
        "flops_per_chip": step.traced_flops / chips,
        "minimum_flops_per_chip": plan.minimum.layout / chips,
        "flops_over_minimum": step.traced_flops / plan.minimum.layout,
        "unpadded_minimum_flops_per_chip": plan.minimum.unpadded / chips,
        "compile_seconds": round(step.compile_seconds, 1),
        "lowered_operations": step.lowered_operations,
        "collectives": summarize(step.collectives) if step.collectives is not None else None,
    }
    if step.work:
        result |= {"executed_flops_per_chip": step.work.flops, "bytes_per_chip": step.work.bytes}
    if plan.estimate:
        result["estimated"] = {
            "step_seconds": plan.estimate.roofline,
            "step_seconds_by_cycles": plan.estimate.by_cycles,
            "mfu": plan.estimate.mfu,
            "chip_hours": plan.estimate.chip_hours(plan.config.total_steps, chips),
            "chip_hours_by_stage": plan.chip_hours_by_stage,
        }
    if step.topology.is_gpu:
        result["all_estimated_but"] = ["parameters", "parameter_bytes_per_chip", "optimizer_bytes_per_chip", "flops"]
    return result


def table(plan: Plan) -> str:
    """The plan per chip, for people."""
    step, memory, topology = plan.step, plan.step.memory, plan.step.topology
    chip, chips, gpu = topology.chip, topology.chips, topology.is_gpu
    mesh = " x ".join(f"{name} {size}" for name, size in step.mesh.items() if size > 1) or "one device"
    lines = [
        f"{plan.name} on {topology.name}: {chips} chips, mesh {mesh}, batch {plan.config.batch_size:,} "
        f"({plan.config.batch_size / chips:g} per chip), {step.parameter_count:,} parameters",
        "~ marks an estimate; all else is what " + ("is counted" if gpu else "the compiler states"),
        "",
        "per chip",
    ]
    rows: list[tuple[str, str]] = [
        ("parameters", _gib(memory.parameters)),
        ("optimizer state", _gib(memory.optimizer_state)),
        ("batch", _gib(memory.batch)),
        ("temporaries", _gib(memory.temporaries, gpu) + "  activations, gradients, buffers"),
        ("peak", f"{_gib(memory.peak, gpu)}  of {_gib(chip.hbm_bytes).strip()} HBM: {_verdict(plan)}"),
        ("matrix FLOPs", f"{_tera(step.traced_flops / chips)} TFLOP"),
        (
            "  the layout's minimum",
            f"{_tera(plan.minimum.layout / chips)} TFLOP  x {step.traced_flops / plan.minimum.layout:.3f} is done",
        ),
        ("  ~ without padding", f"{_tera(plan.minimum.unpadded / chips)} TFLOP  texts of expected length"),
    ]
    if step.work and not gpu:
        more = step.work.flops / (step.traced_flops / chips)
        note = f"  x {more:.3f} of what the step says: repeated or recomputed" if more > WORTH_A_NOTE else ""
        rows += [
            ("  executed", f"{_tera(step.work.flops)} TFLOP{note}"),
            ("HBM traffic", f"{step.work.bytes / 1e9:8.1f} GB  without the padding of layouts"),
        ]
    if not gpu:
        rows += [
            ("compile time", f"{step.compile_seconds:8.0f} s  here, {step.lowered_operations:,} operations lowered"),
        ]
    lines += [f"  {name:24}{value}" for name, value in rows]
    if step.collectives is not None:
        lines += ["", f"collectives per chip and step{' (~)' if gpu else ''}          runs        GB   GB sent"]
        for kind, row in summarize(step.collectives).items():
            counts = f"{row['count']:8,.0f}{row['bytes'] / 1e9:10.3f}{row['wire_bytes'] / 1e9:10.3f}"
            lines.append(f"  {kind:33}{counts}")
    if plan.estimate:
        lines += ["", *_estimates(plan, plan.estimate)]
    return "\n".join(lines)


def _estimates(plan: Plan, times: Estimate) -> list[str]:
    topology, steps = plan.step.topology, plan.config.total_steps
    chip, gpu = topology.chip, topology.is_gpu
    lines = [
        f"~ step time {_seconds(times.roofline)}, MFU {100 * times.mfu:.0f} %, "
        f"{plan.config.batch_size / times.roofline:,.0f} images/s",
        f"    matrix units {_seconds(times.compute)}, links {_seconds(times.links)}"
        + ("" if gpu else f", HBM {_seconds(times.memory)}")
        + f"; {_seconds(times.exposed_links)} of the links nothing hides",
    ]
    if times.by_cycles:
        lines.append(f"    by the compiler's own cycle counts {_seconds(times.by_cycles)}")
    hours = times.chip_hours(steps, topology.chips)
    lines.append(f"~ chip-hours {hours:,.0f} for {steps:,} steps ({plan.config.total_samples:,} samples)")
    for stage, stage_hours in plan.chip_hours_by_stage.items():
        lines.append(f"    {stage}: {stage_hours:,.0f}")
    if len(plan.chip_hours_by_stage) > 1:
        lines.append(
            f"    all stages: {sum(plan.chip_hours_by_stage.values()):,.0f}; stages not compiled here go by FLOPs"
        )
    peak = f"{chip.peak_flops / 1e12:g} TFLOP/s bfloat16, HBM {chip.hbm_bandwidth / 1e12:g} TB/s, "
    peak += f"{chip.axis_bandwidth / 1e9:g} GB/s per mesh axis"
    reached = f"the counted FLOPs at {100 * REACHED:g} % of the peak (assumption); " if gpu else ""
    lines += [
        f"  assumed: {reached}{peak} ({chip.source});",
        *(f"    {text};" for text in ASSUMPTIONS[gpu:]),
    ]
    return lines


def _verdict(plan: Plan) -> str:
    free = plan.step.topology.chip.hbm_bytes - plan.step.memory.peak
    if plan.fits:
        return f"fits, {free / GIB:.2f} GiB left"
    over = "at least " if plan.step.work is None else ""
    return f"DOES NOT FIT, {over}{-free / GIB:.2f} GiB too much" if free < 0 else "DOES NOT FIT"


def _gib(count: float, estimated: bool = False) -> str:
    return f"{'~' if estimated else ''}{count / GIB:.3f} GiB".rjust(12)


def _tera(count: float) -> str:
    return f"{count / 1e12:8.3f}" if count >= 1e9 else f"{count / 1e12:8.2g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
