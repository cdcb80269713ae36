"""The reward service: batching, wire formats, drift and retries as plain classes; `application.py`, `gateway.py` and
`launch.py` put them into Ray Serve deployments."""
