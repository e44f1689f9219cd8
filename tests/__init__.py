"""Environment of all tests, set before JAX is imported."""

import atexit
import os
import shutil
import tempfile


def temporary_folder(variable: str) -> None:
    """A folder for this session, named by an environment variable unless that is set."""
    if variable not in os.environ:
        os.environ[variable] = tempfile.mkdtemp(prefix="clips_jax_")
        atexit.register(shutil.rmtree, os.environ[variable], ignore_errors=True)


# Set in the first process; worker processes and those that tests start inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The same tiny programs are compiled in many processes, and computing with them takes no time.
temporary_folder("JAX_COMPILATION_CACHE_DIR")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# libtpu compiles here: there is no TPU whose metadata could be asked for, and several processes may load it.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# The built-in data is built once (half a minute), or once for all in a folder of yours.
temporary_folder("CLIPS_JAX_TEST_DATA_DIR")
