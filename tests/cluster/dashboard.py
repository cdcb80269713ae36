"""Reads cluster/grafana/zr_ray.json and cluster/prometheus/alerts.yml: their queries, and the metrics and labels
those name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
DASHBOARD = CLUSTER / "grafana" / "zr_ray.json"
ALERTS = CLUSTER / "prometheus" / "alerts.yml"


def panels() -> list[dict]:
    """All panels that show something."""
    return [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]


def dashboard_queries() -> list[str]:
    """PromQL of every target, with the run variable filled in as Grafana does for "All"."""
    return [t["expr"].replace("$run_id", ".*") for p in panels() for t in p["targets"]]


def alert_queries() -> list[str]:
    """PromQL of every alert."""
    return [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def metrics_of(query: str) -> set[str]:
    """Names of metrics in a query."""
    return set(re.findall(r"\bray_\w+", query))


def labels_of(query: str) -> set[str]:
    """Labels that a query groups by or selects."""
    grouped = [name.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for name in group.split(",")]
    return set(grouped) | set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", query))


def missing_in_scrape(queries: list[str], scrape: str) -> list[str]:
    """Metrics, and labels on them, that queries name and a scrape lacks."""
    seen: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", scrape, re.M):
        seen.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    missing = []
    for query in queries:
        for metric in metrics_of(query):
            if metric not in seen:
                missing.append(metric)
            else:
                missing += [f"{metric}{{{label}}}" for label in labels_of(query) - seen[metric]]
    return sorted(set(missing))
