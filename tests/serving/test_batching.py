"""Batches form while the judge is busy; order, refusals and failures reach the right caller. No Ray."""

import asyncio
import threading

import numpy as np
import pytest

from zr_ray.errors import OverloadError
from zr_ray.serving.batching import Batcher
from zr_ray.serving.cache import AnswerCache
from zr_ray.workers.reward_items import RewardItem


def test_items_join_while_the_judge_is_busy():
    gate, batches = threading.Event(), []

    def work(items, waited):
        batches.append(list(items))
        if len(batches) == 1:
            assert gate.wait(10)
        assert len(waited) == len(items) and min(waited) >= 0
        return [10 * item for item in items]

    async def main():
        batcher = Batcher(work, max_items=4, max_waiting=100)
        first = asyncio.create_task(batcher.submit([0]))
        while not batches:
            await asyncio.sleep(0.01)
        assert batcher.busy_s > 0
        rest = [asyncio.create_task(batcher.submit([k, k + 1, k + 2])) for k in (1, 4)]
        await asyncio.sleep(0.05)
        gate.set()
        return await first, await asyncio.gather(*rest), batcher.busy_s

    first, rest, busy = asyncio.run(main())
    assert first == [0] and rest == [[10, 20, 30], [40, 50, 60]] and busy == 0
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]  # a lone caller did not wait; a request may span batches


def test_refuses_what_does_not_fit_and_recovers():
    gate = threading.Event()

    async def main():
        batcher = Batcher(lambda items, _: gate.wait(10) and items, max_items=1, max_waiting=2)
        busy = asyncio.create_task(batcher.submit(["a"]))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(batcher.submit(["b", "c"]))
        await asyncio.sleep(0)
        with pytest.raises(OverloadError, match="takes 2 waiting items, has 2, got 1 more"):
            await batcher.submit(["d"])
        gate.set()
        assert await busy == ["a"] and await waiting == ["b", "c"]
        return await batcher.submit(["e", "f"])

    assert asyncio.run(main()) == ["e", "f"]


def test_a_failing_batch_fails_its_callers_only_and_canceled_items_are_skipped():
    seen, gate = [], threading.Event()

    def work(items, _):
        seen.extend(items)
        gate.wait(10)
        if "bad" in items:
            raise ValueError("bad batch")
        return items

    async def main():
        batcher = Batcher(work, max_items=1, max_waiting=10)
        bad, good = asyncio.create_task(batcher.submit(["bad"])), asyncio.create_task(batcher.submit(["good"]))
        gone = asyncio.create_task(batcher.submit(["gone"]))
        await asyncio.sleep(0.05)
        gone.cancel()
        gate.set()
        with pytest.raises(ValueError, match="bad batch"):
            await bad
        assert await good == ["good"]
        assert await batcher.submit(["later"]) == ["later"]

    asyncio.run(main())
    assert seen == ["bad", "good", "later"]


def test_a_cache_computes_what_is_new_once():
    computed = []

    async def compute(items):
        computed.extend(items)
        return [f"{item.prompt} {item.weights} {item.image[0, 0, 0]}" for item in items]

    gray, black = np.full((3, 2, 2), 7, np.uint8), np.zeros((3, 2, 2), np.uint8)
    a, b = RewardItem(gray, "a", ("realism",)), RewardItem(black, "a", ("realism",))
    graded = RewardItem(gray, "a", ("realism",), (1.0,))
    cache = AnswerCache(2)
    assert asyncio.run(cache.answer([a, b, a], compute)) == ["a None 7", "a None 0", "a None 7"]
    assert computed == [a, b]
    assert asyncio.run(cache.answer([RewardItem(gray.copy(), "a", ("realism",)), graded], compute)) == [
        "a None 7",
        "a (1.0,) 7",
    ]
    assert computed == [a, b, graded]  # a is remembered, b was the oldest of three
    asyncio.run(cache.answer([b], compute))
    assert computed == [a, b, graded, b]


def test_a_failure_is_not_remembered():
    gray = np.zeros((8, 8, 3), np.uint8)
    tries = []

    async def compute(items):
        tries.append(items)
        return ["failed" if len(tries) == 1 else "scored"] * len(items)

    cache, item = AnswerCache(2, lambda answer: answer != "failed"), RewardItem(gray, "a", ("realism",))
    assert [asyncio.run(cache.answer([item], compute))[0] for _ in range(3)] == ["failed", "scored", "scored"]
    assert len(tries) == 2
