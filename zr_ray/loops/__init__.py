"""One loop per algorithm, readable top to bottom."""
