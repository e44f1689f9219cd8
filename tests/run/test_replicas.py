"""One flipped bit on one of eight devices is found, and named."""

import os
import subprocess
import sys


def test_a_flipped_bit_is_found_wherever_arrays_are_copied():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "tests.run.replicas_process"]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "all noticed" in done.stdout, done.stderr
