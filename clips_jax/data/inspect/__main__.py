"""Shows the data that a run would train on, before it does.

  python -m clips_jax.data.inspect --config configs/demo.py
  python -m clips_jax.data.inspect --config configs/my_shards.py --config.data.dataset=NAME --output mine.html

Prints how many records there are, how long their texts are and how many the config cuts, sentences per text, picture
sizes, and what cannot be read; writes a page with the histograms, and with random triples on which the masks of step 0
are drawn: what the model will see first, word by word. The sample is the run's own first positions, a random draw.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX starts: looking at data needs no accelerator

import jinja2
import numpy as np
from absl import app, flags, logging

from clips_jax.config import Config, ConfigError
from clips_jax.config.command_line import define_config_flag, parse_flags, read_config
from clips_jax.data.inspect.examples import triples_of_step_0
from clips_jax.data.inspect.statistics import Statistics, collect
from clips_jax.data.open_tokenizer import open_tokenizer
from clips_jax.data.pipeline import open_sources
from clips_jax.data.triples import tokenizer_path
from clips_jax.evaluators.results import write_atomically
from clips_jax.report.plots import Chart, histogram, number

CONFIG = define_config_flag()
OUTPUT = flags.DEFINE_string("output", "data.html", "The page to write.")
RECORDS = flags.DEFINE_integer("records", 2000, "Records that are looked at.", lower_bound=1)
TRIPLES = flags.DEFINE_integer("triples", 12, "Triples shown on the page.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Reads the flags, looks at the data, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: flags start with --.")
    logging.set_verbosity(logging.WARNING)
    if not os.path.isdir(os.path.dirname(os.path.abspath(OUTPUT.value))):
        sys.exit(f"--output {OUTPUT.value}: its folder does not exist.")
    try:
        config = read_config(CONFIG)
        tokenizer = open_tokenizer(tokenizer_path(config.data, config.tokenizer))
        total = sum(len(source.records) for source in open_sources(config.data))
        found = collect(config, tokenizer, min(RECORDS.value, total))
        rows = facts(config, found)
        print("\n".join(f"{name:<44} {value}" for name, value in rows))
        triples = triples_of_step_0(config, tokenizer, TRIPLES.value) if TRIPLES.value else []
    except (ConfigError, FileNotFoundError, ValueError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html").render(
        dataset=", ".join(source.dataset for source in open_sources(config.data)),
        facts=rows,
        figures=figures(config, found),
        triples=triples,
        views={name: _described(view) for name, view in config.objective.views.items()},
        bad=found.bad,
    )
    write_atomically(OUTPUT.value, page)
    print(f"\npage: {OUTPUT.value}")


def facts(config: Config, found: Statistics) -> list[tuple[str, str]]:
    """(what, value) for the table and the terminal."""
    sources = open_sources(config.data)
    rows = []
    weights = sum(source.weight for source in sources)
    for source in sources:
        share = config.total_samples * source.weight / weights
        epochs = f"{len(source.records):,} records, the run sees them {share / len(source.records):,.2f} times"
        rows.append((f"{source.name or source.dataset}, {source.split}", epochs))
    if len(sources) > 1:
        shares = ", ".join(f"{name} {count / found.records:.1%}" for name, count in sorted(found.per_source.items()))
        rows.append(("shares in the sample", shares))
    rows.append(("looked at", f"{found.records:,} records"))
    for reason in ("record", "image"):
        count, example = found.bad.get(reason, (0, ""))
        label = f"cannot be used ({reason})"
        rows.append((label, f"{count:,} ({count / found.records:.2%})" + (f", {example}" if count else "")))
    for name, text in found.texts.items():
        if not text.lengths:
            continue
        quantiles = " / ".join(number(float(q)) for q in np.quantile(text.lengths, (0.05, 0.5, 0.95)))
        rows.append((f"{name}: tokens, 5 / 50 / 95 %", f"{quantiles}, mean {number(float(np.mean(text.lengths)))}"))
        rows.append((f"{name}: cut at {text.length} tokens", f"{text.truncated:.2%}"))
        fallback = config.data.texts[name].fallback
        stand_in = f"; {fallback} stands in" if fallback and text.empty else ""
        rows.append((f"{name}: empty", f"{text.empty:,} ({text.empty / found.records:.2%}){stand_in}"))
        rows.append((f"{name}: sentences, mean / most", f"{np.mean(text.sentences):.2f} / {max(text.sentences)}"))
    for name, view in config.objective.views.items():
        for source in view.sources:
            longer = np.mean(np.array(found.texts[source].lengths or [0]) > view.tokens_kept)
            rows.append((f"view {name}: {source} over its budget", f"{longer:.2%} have more than {view.tokens_kept}"))
    if found.sizes:
        sides = np.array(found.sizes)
        rows.append(("picture size, median", f"{number(np.median(sides[:, 0]))} x {number(np.median(sides[:, 1]))} px"))
        short = np.mean(sides.min(axis=1) < config.model.image.image_size)
        rows.append((f"shorter side below {config.model.image.image_size} px", f"{short:.2%} (enlarged)"))
        rows.append(("picture file, mean", f"{np.mean(found.bytes_per_picture) / 1000:,.1f} kB"))
    return rows


def figures(config: Config, found: Statistics) -> list[tuple[str, Chart]]:
    """(heading, histogram)."""
    planned: list[tuple[str, Chart | None]] = []
    for name, text in found.texts.items():
        limits = {"shipped": float(text.length)}
        limits |= {f"view {v}": float(c.tokens_kept) for v, c in config.objective.views.items() if name in c.sources}
        planned.append((f"{name}: length", histogram(text.lengths, "tokens per text, uncut", limits)))
        planned.append((f"{name}: sentences", histogram(text.sentences, "sentences per text")))
    size = {"the model's": float(config.model.image.image_size)}
    planned.append(("Pictures: shorter side", histogram([min(s) for s in found.sizes], "pixels", size)))
    planned.append(("Pictures: shape", histogram([w / h for w, h in found.sizes], "width / height")))
    kilobytes = [count / 1000 for count in found.bytes_per_picture]
    planned.append(("Pictures: files", histogram(kilobytes, "kB per picture")))
    return [(heading, chart) for heading, chart in planned if chart is not None]


def _described(view: Any) -> str:
    sources = ", ".join(f"{name} {share:.0%}" if share < 1 else name for name, share in view.sources.items())
    return f"{view.mask.replace('_', '-')} of {sources}, at most {view.tokens_kept} tokens"


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
