"""What is refused before anything is started; the deploy file; drift by hand."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from zr_ray.config.serve import ServeConfig
from zr_ray.errors import ConfigError
from zr_ray.serving.launch import refuse_open_port
from zr_ray.serving.measures import DriftWatch


def http(**section):
    return ServeConfig.model_validate({"http": section})


def test_beyond_loopback_a_token_is_required(monkeypatch, tmp_path):
    from zr_ray.serving.application import token_sha256

    monkeypatch.delenv("ZR_REWARD_TOKEN", raising=False)
    opened = http(host="0.0.0.0")
    with pytest.raises(ConfigError, match="beyond loopback and there is no token"):
        refuse_open_port(opened, token_sha256(opened))
    refuse_open_port(http(), None)
    refuse_open_port(http(host="0.0.0.0", enabled=False), None)
    file = tmp_path / "token"
    file.write_text("secret\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="readable for others"):
        token_sha256(http(token_file=str(file)))
    file.chmod(0o600)
    assert token_sha256(http(token_file=str(file))) == hashlib.sha256(b"secret").hexdigest()
    monkeypatch.setenv("ZR_REWARD_TOKEN", "secret")
    assert token_sha256(opened) == hashlib.sha256(b"secret").hexdigest()


def test_the_deploy_file_builds():
    from ray.serve.schema import ServeDeploySchema

    from zr_ray.serving.application import app

    tree = yaml.safe_load((Path(__file__).parents[2] / "cluster" / "serve_reward.yaml").read_text())
    schema = ServeDeploySchema.model_validate(tree)
    assert schema.http_options.host == "127.0.0.1" and schema.applications[0].import_path == "zr_ray.serve:app"
    app(tree["applications"][0]["args"])
    with pytest.raises(ConfigError, match="replica.replica_count"):
        app({"replica": {"replica_count": 2}})
    with pytest.raises(ConfigError, match="teacher.path needs http.enabled=true"):
        app({"teacher": {"path": "builtin"}, "http": {"enabled": False}})


def test_drift_by_hand():
    watch = DriftWatch(window=4)
    watch.add([1.0, 3.0, 1.0, 3.0])  # mean 2, std 1
    watch.add([4.0, 4.0, 5.0])
    assert watch.drift == 0  # the recent window is not full
    watch.add([5.0])
    assert watch.drift == pytest.approx(2.5)
    watch.add(np.array([2.0] * 4))
    assert watch.drift == pytest.approx(0)


def test_gauges_of_scores_are_the_last_batchs_and_set_once_a_second(monkeypatch):
    from zr_ray.serving import measures

    clock = [100.0]
    monkeypatch.setattr(measures.time, "monotonic", lambda: clock[0])
    kept = measures.Measures("replica", window=2)
    shown = lambda: kept._gauges["zr_reward_score_mean{'dimension': 'realism'}"][1]
    kept.scored(("realism",), np.array([[1.0], [3.0]]), np.ones((2, 1)))
    assert shown() == 2.0, "the first batch is shown at once"
    clock[0] += 0.5
    kept.scored(("realism",), np.array([[4.0]]), np.ones((1, 1)))
    assert shown() == 2.0 and kept.totals["ok"] == 3
    kept.refresh()
    assert shown() == 4.0, "what is not shown yet is, when Ray is reminded"
    clock[0] += 1.0
    kept.scored(("realism",), np.array([[5.0]]), np.ones((1, 1)))
    assert shown() == 5.0
    assert kept._gauges["zr_reward_score_drift{'dimension': 'realism'}"][1] == pytest.approx(2.5), "(4.5 - 2) / 1"
