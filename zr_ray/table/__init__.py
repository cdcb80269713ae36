"""Tables of several runs: which runs are needed (runs.py), what they say together (compare.py), how it is shown (page.py, figure.py)."""
