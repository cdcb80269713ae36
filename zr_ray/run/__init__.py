"""What surrounds every run: driver, run folder, checkpoints, metrics, environment, result, placement. Knows no judge
and no algorithm."""
