"""What keeps a run alive, and what ends it in time: docs/reliability.md has the whole picture."""
