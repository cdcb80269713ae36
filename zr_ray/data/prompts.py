"""What a prompt may not contain, asked alike by the loader, the reward service and its client.

Left out on purpose: the tokenizer. Callers bring the control tokens of their judge
(`models.judge_text.control_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence


def control_token_fault(prompt: str, control_tokens: Sequence[str]) -> str | None:
    """Why a judge cannot be asked about this prompt, or None.

    A tokenizer reads the text of such a token as a command, wherever it stands: `<|image_pad|>` claims an image that is
    not there, `<|im_end|>` ends the question. Args: control_tokens: texts, with their case."""
    found = [token for token in control_tokens if token in prompt]
    return f"a prompt must not hold control tokens, got {found[0]!r}; remove it" if found else None
