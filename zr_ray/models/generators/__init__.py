"""Generators by family: one small interface over diffusers' pipelines (`adapter.py`), one file a family."""
