"""The Serve instance of a cluster: may it listen where it should, and its end without noise.

Left out on purpose: applications; see `launch.py`.
"""

from __future__ import annotations

import socket
import time

from zr_ray.errors import ConfigError


def refuse_taken_port(host: str, port: int) -> None:
    """Raise ConfigError if something else listens there, such as the service of another checkout."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1" if host == "localhost" else host, port))
    except OSError as error:
        raise ConfigError(
            f"http.port {port} of {host} cannot be used: {error.strerror}; http.port=0 picks a free one"
        ) from None


def end_serve(deadline_s: float = 60.0) -> None:
    """What `serve.shutdown()` does, without its red lines: that call waits inside the controller for the controller's
    own death, which Ray then reports as a call that failed "with infinite retries"."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve.context import _get_global_client, _set_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    client.shutdown_cached_handles()
    _withdraw_polls(deadline_s)
    ray.get(client._controller.graceful_shutdown.remote(False), timeout=deadline_s)
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            break
        time.sleep(0.1)
    client._shutdown = True
    _set_global_client(None)


def _withdraw_polls(deadline_s: float) -> None:
    """Cancel what this process's handles wait for in the controller; Ray would report each wait as a call that failed
    when the controller ends. Serve itself only stops asking after the next answer."""
    import gc

    import ray
    from ray.serve._private.long_poll import LongPollClient

    waits = []
    for poll in [found for found in gc.get_objects() if type(found) is LongPollClient]:
        poll.stop()
        poll._process_update = lambda updates: None  # a cancellation is no update
        if (wait := getattr(poll, "_current_ref", None)) is not None:
            ray.cancel(wait)
            waits.append(wait)
    if waits:
        ray.wait(waits, num_returns=len(waits), timeout=deadline_s)
