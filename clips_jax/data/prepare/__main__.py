"""Prepares web data for training: `python -m clips_jax.data.prepare --help`, docs/data.md."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import create_runner

from clips_jax.data.prepare import dataset, run
from clips_jax.data.prepare.coco_source import Coco
from clips_jax.data.prepare.pictures import PictureOptions
from clips_jax.data.prepare.plan import Plan
from clips_jax.data.prepare.prepared_source import Prepared
from clips_jax.data.prepare.record import TextOptions
from clips_jax.data.prepare.summary import summary
from clips_jax.data.prepare.table_source import Table
from clips_jax.data.prepare.tar_source import Recaptions, Tars
from clips_jax.data.triples import BUILT_IN

_EPILOG = """\
examples:
  python -m clips_jax.data.prepare tars '/data/{00000..00099}.tar' --name my_shards
  python -m clips_jax.data.prepare tars '/data/*.tar' --recaptions '/recap/*.parquet' --join_on sha256 --name recap
  python -m clips_jax.data.prepare table photos.csv --images photos/ --name photos
  python -m clips_jax.data.prepare coco captions_val2017.json --images val2017/ --name my_coco --split val
  python -m clips_jax.data.prepare prepared recap --shorter_side 160 --name recap_160
  python -m clips_jax.data.prepare tars 'gs://b/{00000..99999}.tar' --name big --data_dir gs://b/tfds \\
      --runner DataflowRunner --project P --region R --temp_location gs://b/tmp

Options that this program does not know go to Beam. The same command again does what is missing. Files are written to
DATA_DIR/NAME/VERSION only: the records, manifest-SPLIT.json, rejected-SPLIT.jsonl, and work/, which restarts need."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.data.prepare",
        description="Turns pictures with texts into a TFDS data set of triples (features id, image, alt_text, "
        "recaption) in ArrayRecord. Bad rows are rejected or repaired, counted and listed; nothing stops the run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sources = parser.add_subparsers(dest="source", required=True, metavar="{tars,table,coco,prepared}")
    tars = _source(sources, "tars", "tar shards as img2dataset and webdataset write them: KEY.jpg, KEY.txt, KEY.json")
    tars.add_argument(
        "input", nargs="+", help="tars: a path with {000..012}, {a,b}, *, ?, or a folder; .tar.gz works, too"
    )
    tars.add_argument(
        "--recaptions", metavar="PARQUET", help="a table to join, such as Recap-DataComp-1B; paths as above"
    )
    tars.add_argument("--join_on", default="sha256", help="sha256, uid, url … in a sample's JSON, or key (its own)")
    tars.add_argument("--join_column", default="", help="the table's column (default: as --join_on)")
    table = _source(sources, "table", "CSV, TSV, JSON lines or parquet, and a folder of pictures")
    table.add_argument("input", nargs="+", help="tables: a path with {000..012}, {a,b}, *, ?, or a folder")
    table.add_argument("--images", default="", help="folder that picture paths start from (default: the table's)")
    table.add_argument(
        "--image_column", default="", help="path, or bytes (default: image, image_path, path, file_name …)"
    )
    table.add_argument("--key_column", default="", help="(default: key, id or uid; else rows are numbered)")
    coco = _source(sources, "coco", "COCO captions; all captions of a picture are in the feature `captions`")
    coco.add_argument("input", help="the annotations, such as captions_val2017.json")
    coco.add_argument("--images", required=True, help="folder of the pictures")
    for part in (table, coco):
        part.add_argument("--rows_per_shard", type=_positive, default=10_000, help="rows of a file (default 10000)")
    prepared = _source(sources, "prepared", "a data set prepared before, to store its pictures smaller")
    prepared.add_argument("input", help="its name, 'name' or 'name/config'")
    prepared.add_argument("--from_dir", default="", help="its TFDS folder (default: --data_dir)")
    prepared.add_argument("--from_split", default="", help="(default: --split)")
    return parser


def _source(sources: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A subcommand with the options that all have."""
    parser = sources.add_parser(name, help=text, description=text, allow_abbrev=False)
    output = parser.add_argument_group("output")
    output.add_argument("--name", required=True, help="of the data set: lower case letters, digits, _")
    output.add_argument("--version", default="1.0.0", help="of the data set (default 1.0.0)")
    output.add_argument("--split", default="train", help="(default train)")
    output.add_argument(
        "--data_dir", default="", help="TFDS folder (default $TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    )
    output.add_argument("--card", default="", help="folder with README.md and CITATIONS.bib for the data set's card")
    output.add_argument("--homepage", default="", help="for the card")
    output.add_argument("--licence", default="", help="for the card")
    if name != "prepared":
        texts = parser.add_argument_group("texts: fields of the JSON or columns of the table, separated by commas")
        texts.add_argument("--alt_text", default="", help="in order of preference (default: txt, caption, alt_text …)")
        texts.add_argument("--recaption", default="", help="in order of preference (default: re_caption, recaption)")
        texts.add_argument("--texts", default="", help="more fields to keep as texts")
        texts.add_argument("--text_lists", default="", help="more fields to keep as lists of texts, such as rewrites")
        texts.add_argument("--require_recaption", action="store_true", help="reject rows without a recaption")
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--shorter_side",
        type=_positive,
        default=0,
        help="reduce larger pictures to this: 160 for training at 84 px, 208 for 112 px (default: as they are)",
    )
    pictures.add_argument("--jpeg_quality", type=int, default=90, help="of reduced pictures (default 90)")
    pictures.add_argument("--min_side", type=int, default=16, help="reject smaller pictures, pixels (default 16)")
    pictures.add_argument(
        "--max_pixels", type=int, default=PictureOptions.max_pixels, help="reject larger pictures (default %(default)s)"
    )
    beam = parser.add_argument_group("where it runs")
    beam.add_argument(
        "--runner",
        default=run.DIRECT,
        help="of Beam: DirectRunner (this machine, default), "
        "DataflowRunner, FlinkRunner, SparkRunner, PrismRunner; its options follow as they are",
    )
    beam.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count() or 1,
        help="processes of the DirectRunner (default: all cores; one for small inputs)",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _text_options(options: argparse.Namespace) -> TextOptions:
    chosen: dict[str, Any] = {name: _names(getattr(options, name)) for name in ("texts", "text_lists")}
    chosen |= {name: _names(getattr(options, name)) for name in ("alt_text", "recaption") if getattr(options, name)}
    if options.source == "coco":
        chosen["text_lists"] = tuple(dict.fromkeys(("captions", *chosen["text_lists"])))
    reserved = {"id", "image", "alt_text", "recaption"}
    extra = (*chosen["texts"], *chosen["text_lists"])
    if reserved & set(extra) or len(set(extra)) < len(extra):
        raise ValueError(
            f"--texts, --text_lists: {', '.join(extra)}: each name once, and none of {', '.join(reserved)}."
        )
    return TextOptions(**chosen, require_recaption=options.require_recaption)


def _plan(options: argparse.Namespace) -> Plan:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
        raise ValueError(f"--name {options.name!r}: lower case letters, digits and _ only, a letter first.")
    if _is_taken(options.name):
        raise ValueError(f"--name {options.name}: there is a well-known set of that name; call yours otherwise.")
    if not re.fullmatch(r"\d+\.\d+\.\d+", options.version):
        raise ValueError(f"--version {options.version!r}: three numbers, such as 1.0.0.")
    if not re.fullmatch(r"[A-Za-z0-9_]+", options.split):
        raise ValueError(f"--split {options.split!r}: letters, digits and _ only.")
    if not 1 <= options.jpeg_quality <= 100:
        raise ValueError(f"--jpeg_quality {options.jpeg_quality}: 1 to 100.")
    data_dir = os.path.expanduser(options.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    texts = TextOptions() if options.source == "prepared" else _text_options(options)
    if options.source == "tars":
        join = None
        if options.recaptions:
            join = Recaptions(options.recaptions, options.join_on, options.join_column, texts.names())
        source: Any = Tars(tuple(options.input), join)
    elif options.source == "table":
        columns = (options.image_column, options.key_column, options.rows_per_shard)
        source = Table(tuple(options.input), options.images, *columns)
    elif options.source == "coco":
        source = Coco(options.input, options.images, options.rows_per_shard)
    else:
        source = Prepared(options.input, options.from_dir or data_dir, options.from_split or options.split)
    pictures = PictureOptions(
        min_side=options.min_side,
        max_pixels=options.max_pixels,
        shorter_side=options.shorter_side,
        jpeg_quality=options.jpeg_quality,
    )
    folder = os.path.join(data_dir, options.name, options.version)
    return Plan(options.name, options.version, options.split, folder, source, texts, pictures)


def _is_taken(name: str) -> bool:
    """Whether `tfds.data_source(name)` and training would look for another set than the one in the folder."""
    import tensorflow_datasets as tfds

    return name == BUILT_IN or name in tfds.list_builders(with_community_datasets=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; `arguments` are those of the command line if None. Returns the exit status."""
    options, beam_flags = _parser().parse_known_args(arguments)
    try:
        plan = _plan(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        card = dataset.Card(homepage=options.homepage, licence=options.licence)
        if options.card:
            card = dataset.read_card(options.card, options.homepage, options.licence)
        if options.runner == run.DIRECT:
            if beam_flags:
                raise ValueError(f"{' '.join(beam_flags)}: no such option (and the DirectRunner takes none).")
            beam_options = run.direct_options(options.workers)
        else:
            beam_options = PipelineOptions([f"--runner={options.runner}", *beam_flags])
            create_runner(options.runner)  # an unknown one is an error before anything is touched
        manifest = run.prepare(plan, card, beam_options)
    except run.NothingUsable as error:
        print(f"error: {error}; see {dataset.manifest_path(plan)}", file=sys.stderr)
        return 1
    except (FileNotFoundError, ValueError, BlockingIOError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:  # Beam wraps what happened in a worker in pages of text
        what = [line for line in str(error).splitlines() if line.strip()][-1:]
        print(f"error: {''.join(what) or error!r}", file=sys.stderr)
        if "No module named" in str(error) and options.runner != run.DIRECT:
            print(
                "Workers must have clips_jax and what requirements.txt installs: an image with both "
                "(--sdk_container_image), or worker pools started in this checkout.",
                file=sys.stderr,
            )
        print(f"The same command goes on from here; all of it: {plan.work}/beam.log", file=sys.stderr)
        return 3
    print(summary(manifest))
    print(f"manifest: {dataset.manifest_path(plan)}\nrejected rows: {dataset.rejected_path(plan)}")
    data_dir = os.path.dirname(os.path.dirname(plan.folder))
    print(f"train with: --config.data.dataset={plan.name} --config.data.data_dir={data_dir}")
    return 0


if __name__ == "__main__":
    _status = main()
    if _status:  # threads of Beam may wait for ever for workers that are gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status)
