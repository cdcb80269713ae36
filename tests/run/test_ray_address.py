"""An address that nobody answers is one line within ten seconds; what answers is let through."""

import socket
import time

import pytest

from zr_ray.errors import PlacementError
from zr_ray.run.ray_address import check_ray_address


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:9", "http://127.0.0.1:9", "127.0.0.1", "x.invalid:1"]
)
def test_nobody_there(address):
    started = time.monotonic()
    with pytest.raises(PlacementError, match="RAY_ADDRESS") as raised:
        check_ray_address(address)
    assert time.monotonic() - started < 10 and "\n" not in str(raised.value)


def test_somebody_else_there():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(PlacementError, match="no Ray head"):
        check_ray_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_what_needs_no_question(ray_cluster):
    for address in (None, "", "auto", "local", ray_cluster):
        check_ray_address(address)
