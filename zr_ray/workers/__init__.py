"""Effects: one engine each. Plain classes that become Ray actors in `placement.py` and can be built in a test without
Ray."""
