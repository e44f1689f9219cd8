"""Settings and data that all tests share."""

import os
import tempfile

# Set in the first process; worker processes and those that tests start inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The same tiny programs are compiled in many processes, and computing with them takes no time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="clips_jax_compiled_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# The built-in data is built once (half a minute), or once for all in a folder of yours.
os.environ.setdefault("CLIPS_JAX_TEST_DATA_DIR", tempfile.mkdtemp(prefix="clips_jax_data_"))

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
