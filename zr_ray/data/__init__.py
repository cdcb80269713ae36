"""Annotated text-image data: read, checked, grouped, paired; `world/` makes simulated ones."""
