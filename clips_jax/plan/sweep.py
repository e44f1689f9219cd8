"""Several plans side by side: a table, and a picture of what fills the memory."""

import dataclasses

from markupsafe import Markup, escape

from clips_jax.config import Config, ConfigError
from clips_jax.config.check import check
from clips_jax.plan.chips import GIB, Topology, known, parse_topology
from clips_jax.plan.report import Plan

WIDTH, ROW, LEFT, RIGHT, TOP = 860, 34, 210, 270, 62
# Colour-blind safe (Okabe and Ito 2008), dark to light, so that they also differ in grey.
PARTS = (("parameters", "#0072B2"), ("optimizer state", "#D55E00"), ("batch", "#000000"), ("temporaries", "#56B4E9"))


def variants(
    config: Config, topology: Topology | None, values: list[str], per_chip: int
) -> list[tuple[Config, Topology]]:
    """What `--sweep` means: topologies, or batch sizes on one topology.

    Args:
      per_chip: batch per chip, if above 0, in place of the config's batch size.

    Raises:
      ConfigError: for a value that is neither.
    """
    found = []
    for value in values:
        if value.isdigit():
            if topology is None:
                raise ConfigError("--sweep over batch sizes needs --topology.")
            found.append((_resized(config, int(value)), topology))
            continue
        if ":" not in value:
            raise ConfigError(f"--sweep: {value!r} is neither a batch size nor a topology. Known: {known()}")
        place = parse_topology(value)
        found.append((with_batch(config, place, per_chip), place))
    return found


def with_batch(config: Config, topology: Topology, per_chip: int) -> Config:
    """The config with a fixed batch per chip; 0 leaves it alone."""
    return _resized(config, per_chip * topology.chips) if per_chip else config


def _resized(config: Config, batch_size: int) -> Config:
    config = dataclasses.replace(config, batch_size=batch_size)
    check(config)  # a batch may be more than all samples
    return config


def markdown(plans: list[Plan]) -> str:
    """One row per plan."""
    lines = [
        "| config | topology | batch | peak GiB | of HBM | fits | TFLOP per chip | over minimum | GB sent | compile s "
        "| ~ step s | ~ by cycles s | ~ MFU | ~ chip-hours |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        step, times = plan.step, plan.estimate
        gpu = "~" if step.topology.is_gpu else ""
        chips = step.topology.chips
        sent = sum(one.times * one.wire_bytes for one in step.collectives or []) / 1e9
        cells = [
            plan.name,
            step.topology.name,
            f"{plan.config.batch_size:,}",
            f"{gpu}{step.memory.peak / GIB:.2f}",
            f"{100 * step.memory.peak / step.topology.chip.hbm_bytes:.0f} %",
            "yes" if plan.fits else "**no**",
            f"{step.traced_flops / chips / 1e12:.2f}",
            f"{step.traced_flops / plan.minimum.layout:.3f}",
            f"{gpu}{sent:.2f}" if step.collectives is not None else "",
            "" if gpu else f"{step.compile_seconds:.0f}",
            f"{times.roofline:.3f}" if times else "",
            f"{times.by_cycles:.3f}" if times and times.by_cycles else "",
            f"{100 * times.mfu:.0f} %" if times else "",
            f"{times.chip_hours(plan.config.total_steps, chips):,.0f}" if times else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(plans: list[Plan], title: str) -> str:
    """Memory per chip of each plan as a bar of its parts, beside its chip's limit: an SVG of its own."""
    most = max(max(_parts(plan)[-1][1], plan.step.topology.chip.hbm_bytes) for plan in plans)
    scale = (WIDTH - LEFT - RIGHT) / most
    height = TOP + ROW * len(plans) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
    ]
    x = LEFT
    for name, colour in PARTS:
        parts.append(
            f'<rect x="{x}" y="34" width="12" height="12" fill="{colour}"/><text x="{x + 17}" y="44">{name}</text>'
        )
        x += 34 + 7 * len(name)
    parts.append(
        f'<path d="M{x + 6} 32v16" stroke="#c00" stroke-width="2"/><text x="{x + 13}" y="44">HBM of the chip</text>'
    )
    for index, plan in enumerate(plans):
        parts.append(_bar(plan, TOP + ROW * index, scale))
    bottom = TOP + ROW * len(plans)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if most / GIB / s <= 8)
    for tick in range(0, int(most / GIB) + 1, step):
        at = LEFT + tick * GIB * scale
        parts.append(f'<path d="M{at:.1f} {bottom}v5" stroke="#888"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{tick}</text>')
    parts.append(f'<path d="M{LEFT} {bottom}H{WIDTH - RIGHT}" stroke="#888"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{bottom + 36}" text-anchor="middle">GiB per chip</text></svg>'
    )
    return str(Markup("\n").join(Markup(part) for part in parts)) + "\n"


def _bar(plan: Plan, y: float, scale: float) -> str:
    label = f"{plan.step.topology.name}, batch {plan.config.batch_size:,}"
    parts = [f'<text x="{LEFT - 8}" y="{y + 17}" text-anchor="end">{escape(label)}</text>']
    start = 0.0
    for (_, colour), (_, end) in zip(PARTS, _parts(plan), strict=True):
        width = (end - start) * scale
        parts.append(
            f'<rect x="{LEFT + start * scale:.1f}" y="{y + 4}" width="{width:.1f}" height="18" fill="{colour}"/>'
        )
        start = end
    limit = LEFT + plan.step.topology.chip.hbm_bytes * scale
    parts.append(f'<path d="M{limit:.1f} {y}v26" stroke="#c00" stroke-width="2"/>')
    note = f"{start / GIB:.2f} GiB" + ("" if plan.fits else ", does not fit")
    if plan.estimate:
        hours = plan.estimate.chip_hours(plan.config.total_steps, plan.step.topology.chips)
        note += f"; ~ {plan.estimate.roofline:.3g} s/step, {hours:,.0f} chip-hours"
    parts.append(f'<text x="{max(limit, LEFT + start * scale) + 8:.1f}" y="{y + 17}">{escape(note)}</text>')
    return "".join(parts)


def _parts(plan: Plan) -> list[tuple[str, float]]:
    """Where each part of the bar ends; together they are the peak."""
    memory = plan.step.memory
    ends, end = [], 0.0
    for name, size in zip(PARTS, (memory.parameters, memory.optimizer_state, memory.batch), strict=False):
        end += size
        ends.append((name[0], end))
    return [*ends, ("temporaries", float(max(memory.peak, end)))]
