"""Public data sets of human judgements, converted into our on-disk format. README.md has the table; each module names
its sources.

Every adapter is a module with `convert(source, images, root, **options) -> Summary`.
"""

from __future__ import annotations

ADAPTERS = {
    "imagereward": "ImageRewardDB: ratings 1..7 of alignment and fidelity, ranks as overall preferences",
    "hpdv2": "HPD v2: pairs (train) and rankings with votes (test), overall preferences without gaps",
    "hpdv3": "HPD v3: pairs with vote counts, overall preferences without gaps",
    "pickapic": "Pick-a-Pic v1 and v2: pairs chosen by users, overall preferences without gaps",
    "richhf": "RichHF-18K: alignment, aesthetics and artifact scores of Pick-a-Pic images, read from TFRecord",
    "evalmuse": "EvalMuse-40K: three annotators' alignment scores 1..5",
    "agiqa3k": "AGIQA-3K: mean opinion scores 0..5 of perceptual quality and alignment",
    "genai_bench": "GenAI-Bench (VQAScore authors): three annotators' alignment scores 1..5 of six generators",
}
"""Name -> one line for --help; the module of that name has `convert`."""

IMAGES_IN_SOURCE = ("pickapic", "richhf")
"""Adapters that can do without an image folder: the annotation files may hold the images."""
