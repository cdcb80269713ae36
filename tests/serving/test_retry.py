"""What is sent again, how long is waited, when it stops."""

import asyncio
import time

import pytest

from zr_ray.errors import DeadlineError, OverloadError, RewardError
from zr_ray.serving.retry import Retry, TryAgain


def failing(*errors):
    """A call that raises these in turn and then answers with the number of attempts."""
    left, attempts = list(errors), []

    async def send(left_s):
        attempts.append(left_s)
        if left:
            raise left.pop(0)
        return len(attempts)

    return send


def test_repeats_what_may_be_repeated():
    retry = Retry(10, base_s=0.001)
    assert asyncio.run(retry.call(failing(OverloadError("full"), TryAgain("connection"), OverloadError("full")))) == 4
    assert dict(retry.repeated) == {"back-pressure": 2, "connection": 1}


def test_a_wrong_request_is_not_repeated():
    retry = Retry(10, base_s=0.001)
    with pytest.raises(RewardError, match="wrong"):
        asyncio.run(retry.call(failing(RewardError("wrong"))))
    with pytest.raises(KeyError):
        asyncio.run(retry.call(failing(KeyError("a bug"))))
    assert not retry.repeated


def test_waits_as_long_as_the_service_asks_and_not_beyond_the_deadline():
    start = time.monotonic()
    assert asyncio.run(Retry(10, base_s=0.001).call(failing(TryAgain("HTTP 429", 0.2)))) == 2
    assert time.monotonic() - start >= 0.2
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"did not answer within 0.3 s \(1 failed attempts\); last: HTTP 503"):
        asyncio.run(Retry(0.3).call(failing(TryAgain("HTTP 503", 30.0))))
    assert time.monotonic() - start < 0.25

    async def hangs(left_s):
        await asyncio.sleep(30)

    with pytest.raises(DeadlineError, match="did not answer within 0.1 s"):
        asyncio.run(Retry(0.1).call(hangs))


def test_gives_up_after_the_last_attempt():
    with pytest.raises(OverloadError, match="did not answer 3 attempts; last: back-pressure"):
        asyncio.run(Retry(10, attempts=3, base_s=0.001).call(failing(*[OverloadError("full")] * 5)))
