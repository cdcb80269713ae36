"""The dashboard and the alerts ask only for what a run and a service export, and what they ask is PromQL."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cluster.dashboard import (
    ALERTS,
    CLUSTER,
    DASHBOARD,
    alert_queries,
    dashboard_queries,
    labels_of,
    metrics_of,
    missing_in_scrape,
    panels,
)  # fmt: skip

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt: prometheus)"
)


def test_the_dashboard_is_whole():
    tree = json.loads(DASHBOARD.read_text())
    ids = [p["id"] for p in tree["panels"]]
    assert len(ids) == len(set(ids)) and len(panels()) >= 15
    for panel in panels():
        assert panel["targets"] and panel["title"] and panel["datasource"]["uid"] == "${datasource}", panel["title"]
    cells = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in tree["panels"]]
    assert len(cells) == len(set(cells)), "no panel lies on another"


def test_reading_queries():
    query = 'sum by (le, phase) (rate(ray_zr_x_bucket{run_id=~".*", a="b"}[2m])) / ray_y'
    assert metrics_of(query) == {"ray_zr_x_bucket", "ray_y"}
    assert labels_of(query) == {"le", "phase", "run_id", "a"}
    scrape = '# HELP x\nray_zr_x_bucket{le="1",phase="queue",run_id="r"} 3.0\n'
    assert missing_in_scrape([query], scrape) == ["ray_y", "ray_zr_x_bucket{a}"]


@needs_prometheus
def test_every_query_and_alert_is_promql(tmp_path):
    rules = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(dashboard_queries())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for arguments in (
        ("check", "rules", tmp_path / "queries.yml"),
        ("check", "rules", ALERTS),
        ("check", "config", CLUSTER / "prometheus" / "prometheus.yml"),
        ("test", "rules", Path(__file__).with_name("alerts_test.yml")),
    ):
        done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_prometheus
def test_prometheus_scrapes_a_head_and_answers_every_training_query(ray_cluster, tmp_path):
    """What a run says, through Ray's agent and Prometheus, to the panels: each training query has a value."""
    import socket
    import time

    import ray

    from zr_ray.config.gdso import GdsoConfig
    from zr_ray.run.folder import RunFolder
    from zr_ray.run.observe import Metrics, gauge_name

    queries = [q for q in dashboard_queries() if labels_of(q) == {"run_id"} or "ray_node_" in q]
    given = {"ray_zr_progress_step", "ray_zr_progress_since_step_s"}
    names = {m for q in queries for m in metrics_of(q) if m.startswith("ray_zr_")} - given
    plain = {f"ray_{gauge_name(name)}": name for name in RECORDED}
    sink = Metrics(RunFolder.create(tmp_path, "seen", GdsoConfig()))
    sink.log(1, {plain[name]: 0.5 for name in names})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    target = f"127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}"
    config = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yml").read_text())
    config["scrape_configs"] = [{"job_name": "ray", "static_configs": [{"targets": [target]}], "scrape_interval": "2s"}]
    config["rule_files"] = [str(ALERTS)]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    try:
        deadline, unanswered = time.monotonic() + 90, queries
        while unanswered and time.monotonic() < deadline:
            time.sleep(2)
            unanswered = [q for q in unanswered if not _answer(port, q)]
        assert unanswered == []
        assert all(_answer(port, q) is not None for q in alert_queries())
    finally:
        server.terminate()
        server.wait(20)
        sink.close()


RECORDED = (
    "reward/total", "reward/pointwise", "reward/pairwise", "eval/hpa", "policy/kl", "rollout/malformed_frac",
    "sync/max_abs_diff",
    "rollout/staleness", "time/tokens_per_s", "time/step_s", "time/rollout_s", "time/train_s", "time/push_s",
    "learner/grad_norm",
    "learner/lr", "score/entropy",
)  # fmt: skip
"""What GDSO records; tests/jobs/test_gdso_job.py compares the dashboard with a run's own metrics.jsonl."""


def _answer(port: int, query: str) -> list | None:
    """Values of a query, or None while Prometheus does not answer."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        return json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5))["data"][
            "result"
        ]
    except OSError:
        return None
