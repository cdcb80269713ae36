"""What every job's driver does around its loop: arguments, refusals, the connection to Ray, the job log, the outcome.

A driver needs no GPU and imports neither vLLM nor DeepSpeed. Step lines are written by the learners to `progress.log`
in the run folder; `follow` copies them to the job log.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zr_ray.config.loader import dump_yaml, load_config, schema_help
from zr_ray.errors import ZrRayError
from zr_ray.loops.journal import PROGRESS_FILE
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import say


def arguments(doc: str, config_class: type, argv: list[str] | None = None) -> argparse.Namespace:
    """--config, --dry-run, --resume and dotted overrides; --help prints every configuration key."""
    parser = argparse.ArgumentParser(
        description=doc,
        epilog="configuration keys:\n\n" + schema_help(config_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file; keys that it leaves out keep their defaults")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything that can be checked without Ray, print the plan and stop",
    )
    parser.add_argument(
        "--resume", nargs="?", const="latest", metavar="RUN", help="continue the newest run, or this run id or folder"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example gdso.steps=20 learner.lr=1e-4")
    return parser.parse_args(argv)


def resolve(args: argparse.Namespace, config_class: type):
    """The checked configuration of the arguments. Raises ConfigError."""
    overrides = args.overrides + ([f"run.resume={args.resume}"] if args.resume else [])
    return load_config(config_class, args.config, overrides)


def run_job(main: Callable[[], None]) -> int:
    """Exit code of a job: 0, or 1 with one line for a problem the user can fix and a traceback for one they cannot."""
    try:
        main()
        return 0
    except ZrRayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("stopped; continue with --resume", file=sys.stderr, flush=True)
        return 1
    except Exception as error:  # the loop's own refusals arrive wrapped by Ray
        cause = _zr_ray_cause(error)
        if cause is not None:
            print(f"error: {cause}", file=sys.stderr, flush=True)
            return 1
        traceback.print_exc()
        print(
            f"error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; continue with --resume"
            " once it is fixed",
            file=sys.stderr,
            flush=True,
        )
        return 1


def _zr_ray_cause(error: BaseException) -> ZrRayError | None:
    """The ZrRayError inside what Ray or Ray Train raised, if there is one."""
    seen: list[BaseException] = []
    queue = [error]
    while queue:
        e = queue.pop()
        if e in seen:
            continue
        seen.append(e)
        if isinstance(e, ZrRayError):
            return e
        queue += [c for c in (e.__cause__, e.__context__, getattr(e, "cause", None)) if isinstance(c, BaseException)]
        queue += list(getattr(e, "worker_failures", {}).values())
    return None


def print_plan(config, bundles: dict[str, list[dict[str, float]]], facts: dict[str, str]) -> None:
    """What --dry-run shows: the resolved configuration, what was found, what Ray would be asked for."""
    say(dump_yaml(config).rstrip())
    for name, fact in facts.items():
        say(f"# {name}: {fact}")
    for role, wanted in bundles.items():
        say(f"# {role}: {len(wanted)} x {wanted[0] if wanted else {}}")


def connect(namespace: str) -> str:
    """Join the job's cluster, or start a local one when there is none; returns the dashboard's URL ("" without one)."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    context = ray.init(namespace=namespace, log_to_driver=False, ignore_reinit_error=True, configure_logging=False)
    signal.signal(signal.SIGTERM, _stop)  # after ray.init, which installs its own
    url = context.dashboard_url
    return f"http://{url}" if url else ""


def _stop(signum, frame) -> None:
    raise KeyboardInterrupt


@contextmanager
def follow(run: RunFolder) -> Iterator[None]:
    """Copy new lines of the run's progress.log to the job log while the block runs."""
    path = run.path / PROGRESS_FILE
    position = path.stat().st_size if path.is_file() else 0
    done = threading.Event()

    def copy() -> None:
        nonlocal position
        while True:
            last = done.is_set()
            if path.is_file():
                with open(path) as file:
                    file.seek(position)
                    for line in iter(file.readline, ""):
                        if not line.endswith("\n"):
                            break
                        say(line.rstrip("\n"))
                        position = file.tell()
            if last:
                return
            done.wait(0.5)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)


def first_lines(run: RunFolder, dashboard: str, started_at: float) -> None:
    """Run id, folder and dashboard, before anything is waited for."""
    say(f"run {run.run_id}")
    say(f"folder {run.path}")
    say(f"dashboard {dashboard or 'none (started without ray[default])'}")
    say(f"started {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(started_at))}")
