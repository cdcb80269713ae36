"""Submit a job of this checkout to the cluster at RAY_ADDRESS and follow its log: `make gdso`, `make serve`.

    python cluster/submit.py [--detach] [--name gdso] -- python jobs/gdso.py --config jobs/configs/gdso_tiny.yaml

The first Ctrl-C stops the job: a training run saves a checkpoint at the end of its step and says how it is resumed, a
service deletes its application. The second one leaves without waiting. With --detach the job goes on unwatched.
What travels with a job is what .rayignore leaves. Ray's own messages go to .cache/submit.log.
Left out on purpose: everything else that `ray job submit` can; it takes the same entry points.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
LOG = CHECKOUT / ".cache" / "submit.log"
PROBE_DEADLINE_S = 5
LOST_AFTER, LOST_PAUSE_S = 5, 2.0
"""So many failures in a row, so many seconds apart, are a cluster that is gone: `make stop`, a head that died."""
STOP_WAIT_S = "600"
"""So long a job may take to end after it was told to; a step of a large judge takes minutes. Then Ray kills it."""


def main(argv: list[str] | None = None) -> int:
    """Exit code of the job: 0, or 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detach", action="store_true", help="submit and return; the job goes on")
    parser.add_argument("--name", default="job", help="start of the submission id")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- python jobs/...")
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("a command is needed, for example -- python jobs/gdso.py")
    address = os.environ.get("RAY_ADDRESS", "")
    refuse_silent_address(address)
    _quieten()
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(address)
    job = f"{args.name}-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}"
    environment = {"working_dir": str(CHECKOUT), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT_S}}
    try:
        client.submit_job(entrypoint=shlex.join(command), submission_id=job, runtime_env=environment)
    except Exception as error:
        raise SystemExit(submission_problem(error)) from None
    _say(f"job {job} at {address}; Ray's messages: {LOG}")
    if args.detach:
        _say(f"it goes on by itself; ray job logs -f {job} shows its log, ray job stop {job} stops it")
        return 0
    return follow(client, job)


def refuse_silent_address(address: str) -> None:
    """SystemExit with one line unless a dashboard answers at the address."""
    if not address.startswith(("http://", "https://")):
        raise SystemExit(f"error: RAY_ADDRESS must be the dashboard of a cluster, http://head:8265, got {address!r}")
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(f"{address.rstrip('/')}/api/version", timeout=PROBE_DEADLINE_S).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # it wants a token, which the submission sends
            raise SystemExit(
                f"error: {address} answers {error.code}, which no Ray dashboard does; correct RAY_ADDRESS"
            ) from None
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise SystemExit(
            f"error: no Ray cluster answers at RAY_ADDRESS {address} ({cause}); start it, correct the address, or unset"
            " RAY_ADDRESS for a local one"
        ) from None


def submission_problem(error: Exception) -> str:
    """One line for a job that was not taken; names the largest folders if there is too much to send."""
    text = " ".join(str(error).split())
    if "maximum size" in text or "413" in text or "too large" in text.lower():
        largest = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in largest_folders(CHECKOUT)[:5])
        return (
            f"error: the job's files are more than the 100 MiB that Ray takes; largest: {largest}; move them elsewhere,"
            " or name them in .rayignore"
        )
    return f"error: the cluster did not take the job: {text[:400]}"


def largest_folders(checkout: Path) -> list[tuple[str, int]]:
    """(folder, bytes) of what would travel with a job, two levels deep, largest first."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    excluded = get_excludes_from_ignore_files(checkout, include_gitignore=True)
    sizes: dict[str, int] = {}
    for folder, folders, files in os.walk(checkout):
        here = Path(folder)
        folders[:] = [f for f in folders if not any(skip(here / f) for skip in excluded)]
        for file in files:
            path = here / file
            if not path.is_symlink() and not any(skip(path) for skip in excluded):
                name = "/".join(path.relative_to(checkout).parts[:-1][:2]) or "."
                sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return sorted(sizes.items(), key=lambda entry: -entry[1])


def follow(client, job: str) -> int:
    """Print the job's log until it ends. The first interrupt stops the job and goes on printing, the second leaves."""
    from aiohttp import ClientError

    shown, stopping, failed = 0, False, 0

    async def tail() -> None:
        nonlocal shown, failed
        position = 0
        async for text in client.tail_job_logs(job):
            position += len(text)
            if position > shown:  # a tail starts from the beginning
                sys.stdout.write(text[-(position - shown) :])
                sys.stdout.flush()
                shown, failed = position, 0

    while True:
        try:
            time.sleep(LOST_PAUSE_S if failed else 0)
            asyncio.run(tail())
            status = client.get_job_status(job)
            while not status.is_terminal():
                time.sleep(0.5)
                status = client.get_job_status(job)
            if status == "FAILED" or stopping:
                _say(f"job {job}: {status.value}")
            return 0 if status == "SUCCEEDED" else 1
        except (OSError, RuntimeError, ClientError) as error:  # the head is gone, or too busy for an answer
            failed += 1
            if failed == LOST_AFTER:
                _say(
                    f"error: the cluster of job {job} does not answer any more ({type(error).__name__}); if it is still"
                    f" there: ray job logs -f {job}; if it ended, --resume continues a run from its newest checkpoint"
                )
                return 1
        except KeyboardInterrupt:
            if stopping:
                _say(f"left; job {job} may still be ending: ray job logs -f {job}")
                return 1
            stopping = True
            _say(f"stopping job {job}; Ctrl-C again leaves without waiting for it")
            client.stop_job(job)


def _quieten() -> None:
    """Ray's messages about what it uploads, and warnings, to a file."""
    LOG.parent.mkdir(exist_ok=True)
    handler = logging.FileHandler(LOG, mode="w")
    import ray  # noqa: F401  sets up its loggers

    for name in ("ray", None):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.captureWarnings(True)
    warnings.simplefilter("default")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
