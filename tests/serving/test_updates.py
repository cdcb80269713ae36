"""Models are replaced, weights are broken, runs end: no answer by a judge it does not name, nothing left behind."""

import shutil
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

PROMPTS = ["a small red circle", "a blue square", "purple", "a large star"]


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(9))


def test_an_update_never_mixes_judges(reward_clients, service_config, judge_path, tmp_path, images):
    from ray import serve

    from zr_ray.serving.application import application

    folder = tmp_path / "judge"
    shutil.copytree(judge_path, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v + 0.01 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)) for k, v in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    client = reward_clients["handle"]
    old = client.score(images, PROMPTS)
    seen, done = [], threading.Event()

    def ask():
        while not done.is_set():
            seen.append(client.score(images, PROMPTS))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        serve.run(application(service_config(str(folder))), name="test-reward", route_prefix="/reward")
        time.sleep(0.5)
    finally:
        done.set()
        thread.join()
    new = client.score(images, PROMPTS)
    assert set(old.model_hash) != set(new.model_hash) and (new.mu - old.mu).abs().max() > 1e-2
    for scores in seen:
        known = {old.model_hash[0]: old, new.model_hash[0]: new}[scores.model_hash[0]]
        torch.testing.assert_close(scores.mu, known.mu, atol=1e-5, rtol=0)
    assert seen[0].model_hash == old.model_hash


def test_a_judge_without_weights_is_never_ready(serve_url, service_config, judge_path, tmp_path):
    from zr_ray.errors import JudgeError
    from zr_ray.serving.application import application
    from zr_ray.serving.launch import wait_until_running

    folder = tmp_path / "judge"
    shutil.copytree(judge_path, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: torch.full_like(v, torch.nan) for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    from ray import serve

    broken = application(service_config(str(folder), http={"enabled": False}))
    serve.run_many([serve.RunTarget(broken, "no-weights", None)], wait_for_applications_running=False)
    try:
        with pytest.raises(JudgeError, match="no-weights could not start: .*not finite"):
            wait_until_running("no-weights", 600)
    finally:
        serve.delete("no-weights")


def test_a_run_leaves_nothing_behind(serve_url, service_config, images):
    import argparse

    from ray import serve

    from zr_ray.serving.client import RewardClient
    from zr_ray.serving.launch import launch_service

    config = service_config(http={"enabled": False}).model_copy(
        update={"run": type(service_config().run)(name="short-run")}
    )
    mu = []

    class AfterOneUse(threading.Event):
        """Asks once when the service starts to wait. No second thread: Serve's settings are not safe to build in two at
        a time."""

        def wait(self, timeout=None):
            with RewardClient("short-run") as client:
                mu.append(client.score(images, PROMPTS).mu)
            self.set()

    launch_service(config, argparse.Namespace(dry_run=False), AfterOneUse())
    assert mu[0].isfinite().all()
    assert "short-run" not in serve.status().applications
    assert not _lives("short-run/lease") and not _lives("short-run/keeper")


def test_the_keeper_ends_what_an_abandoned_run_leaves(serve_url):
    import ray
    from ray import serve

    from zr_ray.serving.lease import keep, take_lease, taken_over

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Nothing:
        pass

    serve.run(Nothing.bind(), name="abandoned", route_prefix=None)
    assert taken_over("abandoned") is False, "nobody has kept it"
    lease = take_lease("abandoned")
    keep("abandoned", shut_down=False, poll_s=0.1)
    time.sleep(1)
    assert serve.status().applications["abandoned"].status == "RUNNING"
    ray.kill(lease)  # Ray does so when the run's process dies
    end = time.monotonic() + 60
    while "abandoned" in serve.status().applications or _lives("abandoned/keeper"):
        assert time.monotonic() < end, serve.status().applications
        time.sleep(0.2)


def test_a_run_that_comes_back_in_time_takes_its_service_over(serve_url):
    """What a resumed driver does: its first life's keeper must neither delete the application nor stand in the way."""
    import ray
    from ray import serve

    from zr_ray.serving.lease import keep, take_lease, taken_over

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Nothing:
        pass

    serve.run(Nothing.bind(), name="resumed", route_prefix=None)
    lease = take_lease("resumed")
    first = keep("resumed", shut_down=False, poll_s=1.0)
    ray.kill(lease)
    time.sleep(1.5)
    lease = take_lease("resumed")
    assert taken_over("resumed") is False, "its Serve was somebody else's, and stays"
    assert keep("resumed", shut_down=False)._actor_id == first._actor_id
    time.sleep(6)
    assert serve.status().applications["resumed"].status == "RUNNING" and _lives("resumed/keeper")
    ray.kill(first)
    ray.kill(lease)
    serve.delete("resumed")


def _lives(actor: str) -> bool:
    import ray

    try:
        return ray.get_actor(actor) is not None
    except ValueError:
        return False
