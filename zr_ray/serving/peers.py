"""The peers of `jobs/bench_reward.py`: a FastAPI endpoint without batching, and how to ask vLLM's OpenAI-compatible server for a score.

    python -m uvicorn --factory zr_ray.serving.peers:unbatched_endpoint     one PNG in, four expected scores out, a forward per request

Nothing else imports this file.
"""

from __future__ import annotations

import base64
import os
import sys

from zr_ray.rubric import DIMENSIONS, ScoringFormat


def unbatched_endpoint():
    """The reward server of many text-to-image systems: one process, one request at a time, one forward each. Its four dimensions share
    one packed forward, which is kinder than a forward per dimension."""
    import io

    import numpy as np
    import torch
    from fastapi import FastAPI, Request
    from PIL import Image

    from zr_ray.models.judge import judge_folder
    from zr_ray.models.student import Student

    torch.set_num_threads(1)
    student = Student(judge_folder(os.environ.get("ZR_BENCH_JUDGE", "builtin")))
    api = FastAPI()

    @api.get("/health")
    def health() -> dict:
        return {}

    @api.post("/score")
    async def score(request: Request, prompt: str) -> dict:
        pixels = np.asarray(Image.open(io.BytesIO(await request.body())).convert("RGB"))
        with torch.no_grad():
            mu = student(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, [prompt]).mu[0]
        return dict(zip(DIMENSIONS, mu.tolist(), strict=True))

    sys.modules[__name__].Request = Request  # FastAPI resolves the annotation in this module
    return api


def vllm_body(model: str, png: bytes, prompt: str, dimension: str, form: ScoringFormat) -> dict:
    """Body of /v1/chat/completions for one question: one output token and the log-probs of the nine most probable ones."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    text = form.questions[dimension].replace("{prompt}", prompt)
    system = [{"role": "system", "content": form.system}] if form.system else []
    user = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]}
    return {
        "model": model, "messages": [*system, user, {"role": "assistant", "content": form.direct_prefix + form.marker}], "max_tokens": 1,
        "temperature": 0, "logprobs": True, "top_logprobs": 9, "add_generation_prompt": False, "continue_final_message": True,
    }  # fmt: skip
