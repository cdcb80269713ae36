"""The peers of `jobs/bench/reward.py`: a reward server as text-to-image systems write it, and how to ask vLLM's
OpenAI-compatible server.

    python -m uvicorn --app-dir jobs/bench --factory peers:pickled_jpegs

Nothing else imports this file.
"""

from __future__ import annotations

import base64
import io
import os
import pickle
from collections.abc import Sequence

from zr_ray.rubric import ScoringFormat


def pickled_jpegs():
    """A FastAPI application, one process: POST /score takes pickled {"images": [JPEG], "prompts": [text]} and returns a
    pickled float per image, the mean over the dimensions. One request at a time, its images in one forward;
    nothing is batched across callers."""
    import numpy as np
    import torch
    from fastapi import FastAPI, Request
    from fastapi.responses import Response
    from PIL import Image

    from zr_ray.models.judge_text import judge_folder
    from zr_ray.models.student import Student

    torch.set_num_threads(1)
    student = Student(judge_folder(os.environ["ZR_BENCH_JUDGE"]))

    async def health(request: Request) -> Response:
        return Response()

    async def score(request: Request) -> Response:
        asked = _Plain(io.BytesIO(await request.body())).load()
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in asked["images"]])
        with torch.no_grad():
            mu = student(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, asked["prompts"]).mu
        return Response(pickle.dumps(mu.mean(1).tolist()))

    api = FastAPI()
    api.add_route("/health", health)
    api.add_route("/score", score, ["POST"])
    return api


def pickled_body(jpegs: Sequence[bytes], prompts: Sequence[str]) -> bytes:
    return pickle.dumps({"images": list(jpegs), "prompts": list(prompts)})


class _Plain(pickle.Unpickler):
    """Lists, texts, bytes and numbers only: as fast as pickle, and nothing in it runs."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"the body must hold plain values, got {module}.{name}")


def vllm_body(model: str, png: bytes, prompt: str, dimension: str, form: ScoringFormat) -> dict:
    """Body of /v1/chat/completions for one question: one output token and the log-probs of the nine most probable
    ones."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    text = form.questions[dimension].replace("{prompt}", prompt)
    system = [{"role": "system", "content": form.system}] if form.system else []
    user = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
    }
    return {
        "model": model,
        "messages": [*system, user, {"role": "assistant", "content": form.direct_prefix + form.marker}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 9,
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
