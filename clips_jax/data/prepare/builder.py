"""A TFDS builder that prepares triples, for sets that are to be built with `tfds build` and have a card.

A folder as TFDS lays it out, `my_set/my_set_dataset_builder.py` with README.md and CITATIONS.bib beside it:

    class Builder(TripleBuilder):
        VERSION = "1.0.0"

        def sources(self, download_dir):
            return {"train": Tars("/data/{00000..00099}.tar"), "val": Coco("captions.json", "val2017")}

`tfds build my_set` runs what `python -m clips_jax.data.prepare` runs; --beam_pipeline_options go to Beam.
"""

import os
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions

from clips_jax.data.prepare import dataset, run
from clips_jax.data.prepare.pictures import PictureOptions
from clips_jax.data.prepare.plan import FILE_SUFFIX, Plan
from clips_jax.data.prepare.record import TextOptions
from clips_jax.data.prepare.rows import Source


class TripleBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Prepares each split from its source; a build that was stopped goes on where it was.

    Attributes:
      VERSION: of the data set.
      TEXTS, PICTURE: what becomes of rows; the same for all splits.
      HOMEPAGE, LICENCE: for the card.
    """

    VERSION: Any = "1.0.0"
    TEXTS: ClassVar[TextOptions] = TextOptions()
    PICTURE: ClassVar[PictureOptions] = PictureOptions()
    HOMEPAGE: ClassVar[str] = ""
    LICENCE: ClassVar[str] = ""

    def __init__(self, **kwargs: Any):
        """As TFDS' builders; the file format is ArrayRecord."""
        super().__init__(**{**kwargs, "file_format": FILE_SUFFIX})

    def sources(self, download_dir: str) -> dict[str, Source]:
        """Split -> where its rows come from. `download_dir`: folder for what must be fetched first."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = Plan(self.name, str(self.VERSION), "", "", _NoSource(), self.TEXTS, self.PICTURE).features()
        return self.dataset_info_from_configs(features=features, homepage=self.HOMEPAGE or None, license=self.LICENCE)

    def download_and_prepare(self, *, download_dir: Any = None, download_config: Any = None, **kwargs: Any) -> None:
        """Prepares all splits in place: TFDS' own way, a folder renamed at the end, would start from nothing."""
        del kwargs
        folder = os.fspath(download_dir or os.path.join(self._data_dir_root, "downloads"))
        metadata = self.get_metadata()
        card = dataset.Card(metadata.description or "", metadata.citation or "", self.HOMEPAGE, self.LICENCE)
        options = getattr(download_config, "beam_options", None) or run.direct_options(os.cpu_count() or 1)
        if getattr(download_config, "beam_runner", None):
            options = PipelineOptions.from_dictionary(
                options.get_all_options() | {"runner": download_config.beam_runner}
            )
        for split, source in self.sources(folder).items():
            plan = Plan(self.name, str(self.version), split, str(self.data_dir), source, self.TEXTS, self.PICTURE)
            run.prepare(plan, card, options)
        self.info.read_from_directory(self.data_dir)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        raise NotImplementedError("download_and_prepare prepares the splits")

    def _generate_examples(self, **kwargs: Any) -> Any:
        raise NotImplementedError("download_and_prepare prepares the splits")


class _NoSource:
    """Stands in where features are asked for and no row is."""

    def tasks(self, work: str) -> Any:
        raise NotImplementedError

    def rows(self, task: Any, work: str) -> Any:
        raise NotImplementedError
