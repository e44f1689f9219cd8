"""Settings and data that all tests share."""

import os

import jax
import pytest

from clips_jax.data import emoji

jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes that broadcast by accident are errors


@pytest.fixture(scope="session")
def emoji_data_dir() -> str:
    """TFDS folder with the built-in data."""
    folder = os.environ["CLIPS_JAX_TEST_DATA_DIR"]
    emoji.build(folder)  # the first process builds, others wait
    return folder
