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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from zr_ray.config.loader import dump_yaml, load_config, schema_help
from zr_ray.errors import ZrRayError
from zr_ray.run import console
from zr_ray.run.folder import PROGRESS_FILE, RunFolder
from zr_ray.run.observe import say
from zr_ray.run.ray_address import check_ray_address


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
    args = parser.parse_intermixed_args(argv)  # overrides may stand on both sides of a switch
    console.part()  # from here on, the job log holds our lines
    return args


def resolve(args: argparse.Namespace, config_class: type):
    """The checked configuration of the arguments. Raises ConfigError."""
    overrides = args.overrides + ([f"run.resume={args.resume}"] if args.resume else [])
    return load_config(config_class, args.config, overrides)


def run_job(main: Callable[[], None]) -> int:
    """Exit code of a job: 0, or 1 with one line for a problem the user can fix and a traceback for one they cannot."""
    try:
        with console.may_part():
            main()
        return 0
    except ZrRayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("stopped; continue with --resume", file=sys.stderr, flush=True)
        return 1
    except Exception as error:  # the loop's own refusals arrive wrapped by Ray
        found = causes(error)
        ours = next((cause for cause in found if isinstance(cause, ZrRayError)), None)
        if ours is not None:
            print(f"error: {ours}", file=sys.stderr, flush=True)
            return 1
        traceback.print_exc()
        print(f"error: {_in_a_line(found[-1])}; continue with --resume once it is fixed", file=sys.stderr, flush=True)
        return 1


def causes(error: BaseException) -> list[BaseException]:
    """The error and what stands behind it, innermost last: Ray and Ray Train wrap what a worker raised, several times
    over."""
    found: list[BaseException] = []
    queue = [error]
    while queue:
        e = queue.pop(0)
        if any(e is known for known in found):
            continue
        found.append(e)
        named = [getattr(e, name, None) for name in ("cause", "_base_exc", "controller_failure")]  # Ray's, Ray Train's
        behind = [e.__cause__, *named, *getattr(e, "worker_failures", {}).values()]
        if not e.__suppress_context__:
            behind.append(e.__context__)
        queue += [c for c in behind if isinstance(c, BaseException)]
    return found


def _in_a_line(error: BaseException) -> str:
    """Type and first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def print_plan(config, phases: Sequence[Mapping[str, Sequence[dict[str, float]]]], facts: dict[str, str]) -> None:
    """What --dry-run shows: the resolved configuration, what was found, what Ray would be asked for, phase by phase."""
    say(dump_yaml(config).rstrip())
    for name, fact in facts.items():
        say(f"# {name}: {fact}")
    for role, wanted in (entry for bundles in phases for entry in bundles.items()):
        say(f"# {role}: {len(wanted)} x {wanted[0] if wanted else {}}")


def connect(namespace: str) -> str:
    """Join the job's cluster, or start a local one when there is none; returns the dashboard's URL ("" without one)."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    check_ray_address(os.environ.get("RAY_ADDRESS"))
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
    console.move_to(run.path)
    say(f"run {run.run_id}")
    say(f"folder {run.path}")
    say(f"dashboard {dashboard or 'none (started without ray[default])'}")
    if console.library_file():
        say(f"messages of libraries {console.library_file()}")
    say(f"started {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(started_at))}")
