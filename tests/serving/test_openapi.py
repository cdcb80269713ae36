"""The OpenAPI document tells the truth: schemathesis sends what it allows and what it forbids, with all its checks on.

What a schema cannot say (that base64 holds an image, that there are as many weights as dimensions) is answered by a
documented 422, so that status is allowed for well-formed requests; how many of them were scored is asserted instead.
"""

import base64
import importlib
import io
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import requests
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.openapi import format as string_format
from schemathesis.openapi import media_type

from zr_ray.rubric import DIMENSIONS
from zr_ray.serving import wire

HEADERS = {"Authorization": "Bearer a-token-for-tests"}
PIXELS = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def files(kind):
    found = []
    for pixels in PIXELS:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        found.append(file.getvalue())
    return found


ACCEPTED = ["2xx", "401", "403", "404", "422", "429", "503"]


@pytest.fixture(scope="module")
def document(reward_url):
    pictures = {kind: files(name) for kind, name in wire.IMAGE_TYPES.items()}
    string_format("image-base64", st.sampled_from([base64.b64encode(f).decode() for p in pictures.values() for f in p]))
    string_format("dimension", st.sampled_from(DIMENSIONS))
    for kind, some in pictures.items():
        media_type(kind, st.sampled_from(some))
    tensors = PIXELS.transpose(0, 3, 1, 2)
    bodies = [wire.pack({"images": tensors[:n]}, request={"prompts": ["a small red circle"] * n}) for n in (1, 2)]
    media_type(wire.SAFETENSORS, st.sampled_from(bodies))
    config = schemathesis.Config.from_dict({"checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTED}}})
    return schemathesis.openapi.from_url(f"{reward_url}/openapi.json", config=config)


def asked(document, url, examples):
    """Counter of (mode, status) over at most `examples` cases of every route and mode."""
    counts = Counter()
    for operation in (found.ok() for found in document.get_all_operations()):
        if operation.method == "post":
            for mode in GenerationMode:
                ask(operation, mode, url, examples, counts)
        else:
            ask(operation, GenerationMode.POSITIVE, url, 3, counts)
    return counts


def ask(operation, mode, url, examples, counts):
    """Send cases of one route; schemathesis raises for a reply that the document does not allow."""

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        if mode == GenerationMode.POSITIVE and case.media_type not in wire.IMAGE_TYPES and case.query:
            case.query = {k: v for k, v in case.query.items() if k not in wire.IMAGE_QUERY}
        answer = case.call_and_validate(base_url=url, headers=HEADERS, timeout=60)
        counts[mode.value, answer.status_code] += 1

    one()


def test_the_document_is_true(document, reward_url):
    counts = asked(document, reward_url, examples=8)
    assert counts["positive", 200] >= 8, counts
    assert sum(counts.values()) >= 30


@pytest.mark.slow
def test_the_document_is_true_in_500_cases(document, reward_url):
    counts = asked(document, reward_url, examples=150)
    print(counts)
    assert sum(counts.values()) >= 500 and counts["positive", 200] >= 60, counts


def test_examples_work_as_they_stand(document, reward_url):
    posts = {path: item["post"] for path, item in document.raw_schema["paths"].items() if "post" in item}
    assert set(posts) == {"/v1/score", "/v1/score_and_grad"}
    for path, post in posts.items():
        example = post["requestBody"]["content"]["application/json"]["example"]
        answer = requests.post(f"{reward_url}{path}", json=example, headers=HEADERS, timeout=60)
        assert answer.status_code == 200 and answer.json()["items"][0]["status"] == "ok"
        wanted = {"200", "400", "401", "403", "404", "408", "411", "413", "415", "422", "429", "503", "504"}
        assert set(post["responses"]) == wanted


@pytest.fixture()
def generated(reward_url, tmp_path, monkeypatch):
    """Package of a client that openapi-python-client makes from the service's own document."""
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tool = shutil.which("openapi-python-client", path=folders)
    assert tool, "openapi-python-client is not installed; it is part of the extra [dev]"
    command = [tool, "generate", "--meta", "none"]
    command += ["--url", f"{reward_url}/openapi.json", "--output-path", str(tmp_path / "generated_client")]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stdout + made.stderr
    # it knows no image files as bodies, and says so; the JSON side must be whole
    warnings = [line for line in made.stdout.splitlines() if line.startswith(("ERROR", "Unsupported", "Cannot"))]
    assert all(line.startswith("Unsupported content type") for line in warnings), warnings
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("generated_client")


@pytest.mark.slow
def test_a_client_generated_from_the_document_scores_an_image(generated, reward_url, reward_clients):
    from generated_client import models
    from generated_client.api.default import describe, health, score, score_and_grad

    items = [models.Item(base64.b64encode(file).decode(), "a small red circle") for file in files("PNG")]
    items.append(models.Item("bm8gaW1hZ2U=", "a small red circle"))  # base64, but of no image
    pixels = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
    right = reward_clients["http"].score_and_grad(pixels, ["a small red circle"] * 2, risk=0.5)
    with generated.AuthenticatedClient(reward_url, HEADERS["Authorization"].removeprefix("Bearer ")) as client:
        assert health.sync(client=client).status == "ok"
        described = describe.sync(client=client)
        reply = score.sync(client=client, body=models.ScoreRequest(items, dimensions=["realism"]))
        graded = score_and_grad.sync(client=client, body=models.GradientRequest(items[:2], risk=0.5))
        refused = score.sync(client=client, body=models.ScoreRequest(items, dimensions=["beauty"]))
    assert isinstance(reply, models.ScoreReply) and reply.model_hash == described.model_hash
    assert [item.status for item in reply.items] == ["ok", "ok", "undecodable"] and reply.items[2].scores is None
    column = DIMENSIONS.index("realism")
    for n, item in enumerate(reply.items[:2]):
        assert item.scores["realism"].mu == pytest.approx(float(right.mu[n, column]), abs=1e-5)
    for n, item in enumerate(graded.items):
        numbers = np.frombuffer(base64.b64decode(item.gradient.base64), item.gradient.dtype.value)
        slope = numbers.reshape(item.gradient.shape) * item.gradient_scale
        np.testing.assert_allclose(slope, right.gradients[n].numpy(), atol=1e-7, rtol=1e-4)
        assert item.reward == pytest.approx(float(right.reward[n]), abs=1e-5)
    assert isinstance(refused, models.ErrorReply) and "beauty" in refused.error.message
