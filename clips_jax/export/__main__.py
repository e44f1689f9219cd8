"""Writes a trained or imported model as a folder that other libraries load.

  python -m clips_jax.export --workdir runs/b16 --format open_clip --out b16-open-clip --verify
  python -m clips_jax.export --model openvision-tiny/ --format timm --out openvision-tiny-timm

Formats:
  open_clip  both towers and the tokenizer, for open_clip_torch 3.3.0 (create_model_from_pretrained("local-dir:…")).
             A captioner is kept beside them in our own format: reading the folder back here gives the whole model.
  timm       the image tower with its projection, for timm.create_model("local-dir:…", pretrained=True)
  vit        the image tower without pooling and projection, for transformers' ViTModel
  clips_jax  any model of ours, whole

A model that a format cannot hold exactly is refused, with the reasons. --verify loads the export in the other library,
prints the largest differences, and fails (status 1) above the tolerance; it needs that library installed here.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from safetensors.numpy import save_file

from clips_jax.checkpoint import CheckpointMismatch
from clips_jax.config import ConfigError
from clips_jax.export import open_clip_folder, vision
from clips_jax.export.card import write_card
from clips_jax.export.error import CannotExport
from clips_jax.export.hf_tokenizer import write_tokenizer
from clips_jax.export.verify import verify
from clips_jax.interop.state_dict import WrongWeights
from clips_jax.pretrained import OWN_WEIGHTS, Pretrained, load


def write_own_format(model: Pretrained, folder: str) -> list[str]:
    """All parameters under our paths, our config and the tokenizer."""
    params = open_clip_folder.flat(jax.tree.map(np.asarray, model.params))
    save_file({k: np.array(v, order="C") for k, v in params.items()}, os.path.join(folder, OWN_WEIGHTS))
    open_clip_folder.write_own(model, folder)
    write_tokenizer(model.tokenizer, folder)
    return []


FORMATS: dict[str, Callable[[Pretrained, str], list[str]]] = {
    "open_clip": open_clip_folder.write,
    "timm": vision.write_timm,
    "vit": vision.write_vit,
    "clips_jax": write_own_format,
}


def export(model: Pretrained, kind: str, out: str) -> list[str]:
    """Writes the folder `out`, whole or not at all; returns notes for the user.

    Args:
      model: to be written.
      kind: of `FORMATS`.
      out: a folder that does not exist yet, or is empty.

    Raises:
      CannotExport: the format cannot hold the model, or `out` has something in it.
    """
    if os.path.exists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise CannotExport(f"--out {out} is there and not empty; choose another folder, or remove it.")
    temporary = f"{out.rstrip('/')}.tmp-{os.getpid()}"
    os.makedirs(temporary)
    try:
        notes = FORMATS[kind](model, temporary)
        write_card(model, kind, temporary)
        for name in os.listdir(temporary):
            os.chmod(os.path.join(temporary, name), 0o644)  # safetensors writes private files
        if os.path.isdir(out):
            os.rmdir(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return notes


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="workdir of a training run")
    source.add_argument("--model", metavar="WORKDIR|FOLDER", help="the same, or a model folder (an export, OpenCLIP's)")
    parser.add_argument("--format", required=True, choices=FORMATS, help="see above")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not have anything in it")
    parser.add_argument("--verify", action="store_true", help="compare with the other library; status 1 if it differs")
    parser.add_argument("--step", type=int, help="of a workdir: checkpoint to export (default: the newest)")
    parser.add_argument("--data_dir", default="", help="of a workdir: TFDS folder, if the data has moved since")
    parser.add_argument(
        "--positions",
        default="",
        choices=("learned", "sincos"),
        help="how an imported model's image position table is held (default: sin-cos, an error if it is not)",
    )
    arguments = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what was opened for reading is read-only
    try:
        model = load(
            arguments.workdir or arguments.model,
            step=arguments.step,
            data_dir=arguments.data_dir,
            positions=arguments.positions,
            exact=True,
        )
        notes = export(model, arguments.format, arguments.out)
        print("\n".join([f"{arguments.format} model in {arguments.out}", *(f"note: {note}" for note in notes)]))
        if arguments.verify:
            differences = verify(model, arguments.format, arguments.out)
            for difference in differences:
                state = "ok" if difference.fine else "DIFFERENT"
                print(f"{difference.what:36s} {difference.largest:.1e}  (at most {difference.allowed:.0e})  {state}")
            if not all(difference.fine for difference in differences):
                sys.exit(f"{arguments.out} differs from the model: do not use it, and report this.")
    except (CannotExport, ConfigError, CheckpointMismatch, WrongWeights, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")  # the message says what to do; a traceback would bury it


if __name__ == "__main__":
    main()
