"""Infeasible wishes are refused before anything starts, naming the bundle that no node can hold."""

import pytest

from zr_ray.errors import PlacementError
from zr_ray.run.placement import check_feasible

NODES = [{"CPU": 2.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 1.0}]


def test_what_fits_passes():
    check_feasible({"rollout": [{"CPU": 4.0, "GPU": 1.0}], "learner": [{"CPU": 1.0}] * 6}, NODES, 0)


def test_bundle_that_no_node_holds_is_named():
    with pytest.raises(
        PlacementError,
        match=(
            r"no node can hold learner bundle 0 \{CPU: 1, GPU: 2\}; nodes have \{CPU: 2, GPU: 0\}, \{CPU: 8, GPU: 1\}"
        ),
    ):
        check_feasible({"rollout": [{"CPU": 1.0}], "learner": [{"CPU": 1.0, "GPU": 2.0}]}, NODES, 0)


def test_sum_beyond_the_cluster_is_named():
    with pytest.raises(PlacementError, match=r"wants 12 CPU in all \(2 x rollout \{CPU: 6\}\), the cluster has 10"):
        check_feasible({"rollout": [{"CPU": 6.0}] * 2}, NODES, 0)


def test_growing_cluster_only_says_so(capsys):
    check_feasible({"rollout": [{"GPU": 8.0}]}, NODES, 600)
    assert "waiting up to 10 min 00 s for new nodes" in capsys.readouterr().out


def test_empty_cluster():
    with pytest.raises(PlacementError, match="nodes have no node"):
        check_feasible({"rollout": [{"CPU": 1.0}]}, [], 0)
