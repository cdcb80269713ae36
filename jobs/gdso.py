"""Train a reasoning judge with GDSO on Ray: vLLM actors roll out, DeepSpeed learners update, a table says how much better it became.

    ray job submit --working-dir . -- python jobs/gdso.py --config jobs/configs/gdso_tiny.yaml
"""

from __future__ import annotations

import sys
import time

from zr_ray import driver
from zr_ray.config import GdsoConfig
from zr_ray.data.load import data_folder, load_split
from zr_ray.data.pairs import preference_pairs
from zr_ray.models.judge import JudgeText, judge_folder
from zr_ray.observe import duration, say
from zr_ray.run_folder import RunFolder


def main(argv: list[str] | None = None) -> None:
    """Check, place, train, report. Raises ZrRayError for everything a user can fix."""
    started_at = time.time()
    args = driver.arguments(__doc__, GdsoConfig, argv)
    config = driver.resolve(args, GdsoConfig)
    judge = judge_folder(config.judge.path)
    text = JudgeText(judge)  # refuses labels that are not one token

    from zr_ray.placement import RolloutFleet, check_feasible, living_nodes, run_learners, wanted_bundles

    bundles = wanted_bundles(config.rollout, config.learner)
    if args.dry_run:
        facts = {"judge": f"{judge}, labels {text.format.labels} -> tokens {text.label_ids}"}
        if config.data.path is not None:
            pairs = preference_pairs(load_split(config.data.path, "train"))
            facts["data"] = f"{len(pairs)} training pairs, {len(load_split(config.data.path, config.evaluation.split))} {config.evaluation.split} items"
        driver.print_plan(config, bundles, facts)
        return

    dashboard = driver.connect(namespace="zr_ray")
    check_feasible(bundles, living_nodes(), config.run.wait_for_nodes_s)
    run = RunFolder.start(config, "gdso")
    driver.first_lines(run, dashboard, started_at)
    data = data_folder(config.data, run.path)
    pairs, test = preference_pairs(load_split(data, "train")), load_split(data, config.evaluation.split)
    say(f"data {data}: {len(pairs)} training pairs, {len(test)} {config.evaluation.split} items")

    from zr_ray.loops.gdso import GdsoTask, train
    from zr_ray.report import format_table, write_report

    with driver.follow(run), RolloutFleet(run.run_id, judge, config.rollout, config.run.wait_for_nodes_s) as fleet:
        say(f"rollout engines ready after {duration(time.time() - started_at)}: {fleet.places}")
        task = GdsoTask(config, run.path, judge, tuple(fleet.workers), tuple(pairs), tuple(test), started_at)
        run_learners(train, task, config.learner, run.path, run.run_id)
    result = run.read_result()
    report = write_report(run)
    say(format_table(result))
    say(f"status {result['status']} in {duration(time.time() - started_at)}; report {report}")
    say(f"next: the trained judge is {run.judge}; use it with judge.path={run.judge}")


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
