"""What the reward service is made of, none of it needs Ray: limits, batching, wire formats, drift. `serve.py` puts it
into deployments."""
