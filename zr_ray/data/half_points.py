"""From rubric scores to half points: items of one prompt with the same score are compared, and those that differ move
by half a point (the paper's annotation workflow, method section 2).

Departs from the paper, which does not say which of two moves: here the better ones move up, so that two items end half
a point apart; with three levels or more the middle stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def between(anchors: Sequence[float], bins: Sequence[float], anchor: float, up: bool) -> float | None:
    """The bin halfway from an anchor to the next one, or the next lower one; the nearest to the middle if there are
    several, None if there is none.

    Args: anchors: the scores that the rubric describes, bins all scores, both ascending, rubric points."""
    place = anchors.index(anchor) + (1 if up else -1)
    if not 0 <= place < len(anchors):
        return None
    low, high = sorted((anchor, anchors[place]))
    inside = [s for s in bins if low < s < high]
    return min(inside, key=lambda s: abs(s - (low + high) / 2), default=None)


def half_points(
    scores: Mapping[str, float],
    outcomes: Iterable[tuple[str, str, int]],
    anchors: Sequence[float],
    bins: Sequence[float],
) -> dict[str, float]:
    """Scores after comparison, rubric points: item -> a bin.

    Items of one score are ordered by wins minus losses against one another. One level: all stay. Two: the upper one
    moves up by half a point, or where there is nothing above, the lower one down. More: items that won more often than
    they lost move up, those that lost more often move down, the others stay; at an end of the scale only the other
    direction is left. Items that were compared with none of their score stay.
    Args: scores: item -> anchor, items of one prompt in one dimension. outcomes: (item, other, 1 if the first is
    better, 0 if they are the same, -1). Comparisons of items whose scores differ are ignored: the scores order them.
    Raises: ValueError if a score is no anchor."""
    moved = dict(scores)
    balance: dict[str, int] = {}
    for one, other, outcome in outcomes:
        if scores[one] == scores[other]:
            balance[one] = balance.get(one, 0) + outcome
            balance[other] = balance.get(other, 0) - outcome
    for anchor in set(scores.values()):
        members = [item for item in balance if scores[item] == anchor]
        levels = sorted({balance[item] for item in members})
        up, down = between(anchors, bins, anchor, True), between(anchors, bins, anchor, False)
        if len(levels) == 2:
            rising, falling = levels[1:], levels[:1] if up is None else []
        else:  # balances sum to 0: with one level nobody moves
            rising, falling = [b for b in levels if b > 0], [b for b in levels if b < 0]
        for item in members:
            if up is not None and balance[item] in rising:
                moved[item] = up
            elif down is not None and balance[item] in falling:
                moved[item] = down
    return moved
