"""Answers a replica remembers: the same pixels and the same question need no second forward. Off unless
replica.cache_items is above 0.

Left out on purpose: sharing between replicas, and expiry; a replica's judge never changes, an update starts new
replicas.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import numpy as np


class AnswerCache:
    """The last `size` different items with their answers. Verb: answer."""

    def __init__(self, size: int, lasting: Callable[[object], bool] = lambda answer: True) -> None:
        """lasting: whether an answer would come out the same again; others, such as a failure of the machine, are not
        kept."""
        self._size, self._lasting = size, lasting
        self._answers: OrderedDict[str, object] = OrderedDict()

    async def answer(self, items: Sequence, compute: Callable[[list], Awaitable[list]]) -> list:
        """Answers in order; `compute` gets the items that are not remembered, each of them once."""
        keys = [_key(item) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._answers}
        found = {key: self._answers[key] for key in keys if key in self._answers}
        if new:
            found |= dict(zip(new, await compute(list(new.values())), strict=True))
        for key in keys:
            if self._lasting(found[key]):
                self._answers[key] = found[key]
                self._answers.move_to_end(key)
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)
        return [found[key] for key in keys]


def _key(item) -> str:
    """What an answer depends on: pixels, prompt, dimensions, and for gradients weights and risk."""
    image = item.image
    pixels = (
        f"{hashlib.sha256(image.tobytes()).hexdigest()}{image.dtype}{image.shape}"
        if isinstance(image, np.ndarray)
        else repr(image)
    )
    return f"{pixels}\0{item.prompt!r}\0{item.dimensions}\0{item.weights}\0{item.risk}"
