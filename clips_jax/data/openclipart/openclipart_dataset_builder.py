"""The TFDS builder of Open Clip Art: `tfds build clips_jax/data/openclipart --data_dir DIR`."""

import os

from clips_jax.data.openclipart import __main__ as openclipart
from clips_jax.data.prepare.builder import TripleBuilder
from clips_jax.data.prepare.rows import Source
from clips_jax.data.prepare.tar_source import Recaptions, Tars


class Builder(TripleBuilder):
    """Open Clip Art; tars and table are fetched into the download folder once."""

    VERSION = "1.0.0"
    HOMEPAGE = "https://openclipart.org"
    LICENCE = "Public domain"

    def sources(self, download_dir: str) -> dict[str, Source]:
        """One split."""
        folder = os.path.join(download_dir, "openclipart")
        table = os.path.join(folder, openclipart.TABLE)
        if not os.path.exists(table) and openclipart.main(["--output", folder]):
            raise RuntimeError("Open Clip Art could not be fetched; the message above says why.")
        return {"train": Tars(os.path.join(folder, "*.tar"), Recaptions(table))}
