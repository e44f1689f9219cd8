"""Settings and data that all tests share."""

import os

import jax
import pytest

from clips_jax.data import emoji

ENVIRONMENT = dict(os.environ)

jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes that broadcast by accident are errors


def pytest_collection_finish():
    """Processes that tests start inherit the environment: importing a test's module must not change it for others."""
    names = {name for name, _ in os.environ.items() ^ ENVIRONMENT.items() if name.startswith(("JAX_", "XLA_"))}
    if names:
        raise pytest.UsageError(f"importing the tests changed the environment: {', '.join(sorted(names))}")


@pytest.fixture(scope="session")
def emoji_data_dir() -> str:
    """TFDS folder with the built-in data."""
    folder = os.environ["CLIPS_JAX_TEST_DATA_DIR"]
    emoji.build(folder)  # the first process builds, others wait
    return folder
