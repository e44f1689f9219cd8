"""Real training processes, and what happens to processes: killed, terminated, paused, starved, out of disk."""
