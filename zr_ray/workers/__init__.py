"""Effects: one engine each. Plain classes that `run/placement.py` makes Ray actors of and that a test can build without
Ray."""
