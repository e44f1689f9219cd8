"""Settings and data that all tests share."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
# Processes that tests start compile the same programs again and again.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="clips_jax_compiled_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest

from clips_jax.data import emoji

jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes that broadcast by accident are errors


@pytest.fixture(scope="session")
def emoji_data_dir(tmp_path_factory) -> str:
    """The built-in data, built once per session (half a minute), or once for all in $CLIPS_JAX_TEST_DATA_DIR."""
    folder = os.environ.get("CLIPS_JAX_TEST_DATA_DIR") or str(tmp_path_factory.mktemp("emoji"))
    emoji.build(folder)
    return folder
