"""Annotated text-image data: read, checked, grouped, paired; `zr_ray/world` makes simulated ones."""
