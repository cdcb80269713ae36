"""Before and beside a run: doctor, plan, validate, status, gc (`python -m zr_ray --help`). Nothing here trains or
serves."""
