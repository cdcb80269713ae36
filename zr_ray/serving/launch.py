"""From a checked configuration to a running reward service, and to nothing left behind when its run ends.

The application carries the run's name. It is deleted when the job ends or is told to (SIGTERM, Ctrl-C). If the job dies
without a word (SIGKILL, lost head node of the driver), the lease ends with it, and a keeper deletes the application.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zr_ray.config.serve import ServeConfig
from zr_ray.errors import ConfigError, DeadlineError, JudgeError
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import JudgeText, judge_folder
from zr_ray.run.launch import Plan, Started, launch
from zr_ray.run.observe import duration, say
from zr_ray.serving.instance import refuse_taken_port
from zr_ray.serving.lease import delete_application, keep, take_lease, taken_over

if TYPE_CHECKING:
    from zr_ray.run.room import Room

SAY_EVERY_S = 30.0
"""A wait says this often what it waits for."""


@dataclass(frozen=True)
class _Found:
    """What the check leaves for the body."""

    lines: tuple[str, ...]
    """What is served, a line each: name, folder or function, hash."""


def launch_service(config: ServeConfig, args: argparse.Namespace, until: threading.Event | None = None) -> None:
    """Serve until the job is stopped, or until `until` is set. Raises ZrRayError for everything a user can fix."""
    launch(
        "serve",
        config,
        args.dry_run,
        lambda _: _check(config),
        lambda found, started: _serve(config, until, found, started),
        keeps_folder=False,
    )


def _check(config: ServeConfig) -> Plan[_Found]:
    from zr_ray.serving.application import token_sha256
    from zr_ray.serving.deployments import bundles_of, check_sources, served_judge

    facts = {}
    if config.judge.path is not None:
        judge, what = served_judge(config.judge.path)
        JudgeText(judge)  # refuses labels that are not one token
        facts["judge"] = f"{what}: {judge}, sha256 {judge_hash(judge)}"
    for source, found in zip(config.sources, check_sources(config).values(), strict=True):
        facts[f"source {source.name}"] = f"{source.judge or source.clip or source.function}, sha256 {found}"
    served = tuple(f"{name}: {fact}" for name, fact in facts.items())
    token = token_sha256(config)
    refuse_open_port(config, token)
    if config.teacher.path is not None:
        JudgeText(judge_folder(config.teacher.path))
    facts |= {"http": _http_text(config, config.http.port), "token": "yes" if token else "none"}
    return Plan(_Found(served), facts, phases=(bundles_of(config),))


def _serve(config: ServeConfig, until: threading.Event | None, found: _Found, started: Started) -> None:
    from zr_ray.run.room import reserve

    name = config.run.name or f"reward-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    say(f"app {name}")
    for line in found.lines:
        say(line)
    say(f"dashboard {started.dashboard or 'none (started without ray[default])'}")
    with (
        reserve(name, started.phases[0], config.run.room_deadline_s) as room,
        running_service(config, name, room, room.roles) as port,
    ):
        replicas = ", ".join(f"{role} {len(bundles)} replica(s)" for role, bundles in started.phases[0].items())
        say(f"ready after {duration(time.time() - started.started_at)}: {replicas}")
        say(_http_text(config, port) if config.http.enabled else f'handles only: RewardClient("{name}")')
        if config.http.enabled:
            say(f"try: curl {_url(config, port)}/v1/health")
        _serve_until(until, name)


@contextmanager
def running_service(
    config: ServeConfig, name: str, room: Room | None = None, roles: Sequence[str] = ()
) -> Iterator[int]:
    """The application while the block runs; yields its HTTP port, or 0. It is deleted afterwards, also when this
    process dies.

    Args: room: what the job reserved; Serve, which places replicas itself, is handed `roles` of it.
    Raises: DeadlineError, JudgeError if it does not come up."""
    import ray
    from ray import serve

    from zr_ray.serving.application import application

    lease = take_lease(name)  # before Serve is looked at: a keeper that is about to end it must see us first
    kept = taken_over(name)
    port, ours = start_serve(config)
    ours = ours or kept
    keeper = keep(name, ours)
    try:
        for role in roles if room is not None else ():
            room.hand_over(role)
        route = config.http.route if config.http.enabled else None
        serve.run_many([serve.RunTarget(application(config), name, route)], wait_for_applications_running=False)
        wait_until_running(name, config.replica.start_deadline_s)
        if room is not None and not room.roles:  # otherwise somebody of this job still has to be placed
            room.settled()
        yield port
    finally:
        say(f"deleting app {name}")
        delete_application(name, shut_down=ours)
        for actor in (keeper, lease):
            ray.kill(actor)


def refuse_open_port(config: ServeConfig, token: str | None) -> None:
    """A token is required beyond loopback. Raises ConfigError."""
    from zr_ray.serving.admission import LOOPBACK

    if config.http.enabled and config.http.host not in LOOPBACK and token is None:
        raise ConfigError(
            f"http.host {config.http.host} is beyond loopback and there is no token; set http.token_file (openssl rand"
            " -hex 32 > token; chmod 600 token) or ZR_REWARD_TOKEN, or listen on 127.0.0.1"
        )


def start_serve(config: ServeConfig) -> tuple[int, bool]:
    """(HTTP port or 0, whether Serve was started here). A running Serve is used as it is. Raises ConfigError if its
    HTTP settings differ."""
    from ray import serve
    from ray.serve.context import _get_global_client

    http, running = config.http, _get_global_client(raise_if_no_controller_running=False)
    if running is None:
        port = http.port or free_port(http.host)
        if http.enabled:
            refuse_taken_port(http.host, port)
            serve.start(
                proxy_location="EveryNode" if http.host not in ("127.0.0.1", "localhost") else "HeadOnly",
                http_options={"host": http.host, "port": port},
            )
        else:
            serve.start(proxy_location="Disabled")
        return port if http.enabled else 0, True
    has = running.http_config
    if http.enabled and (has.host != http.host or (http.port and has.port != http.port)):
        raise ConfigError(
            f"this cluster's Serve listens on {has.host}:{has.port}, http asks for {http.host}:{http.port}; use the"
            " same, or serve.shutdown()"
        )
    return has.port if http.enabled else 0, False


def wait_until_running(name: str, deadline_s: float) -> None:
    """Wait until every deployment of an application is healthy. Raises DeadlineError, or JudgeError with what a replica
    said."""
    from ray import serve

    from zr_ray.run.shortage import held_text

    end, said = time.monotonic() + deadline_s, time.monotonic()
    while True:
        app = serve.status().applications.get(name)
        if app is not None and app.status == "RUNNING":
            return
        if app is not None and app.status == "DEPLOY_FAILED":
            said = "; ".join(d.message.strip().splitlines()[-1] for d in app.deployments.values() if d.message.strip())
            raise JudgeError(f"{name} could not start: {said or app.message}")
        if time.monotonic() > end:
            raise DeadlineError(
                f"{name} was not ready in {duration(deadline_s)}, it is {app.status if app else 'not there'}; "
                "look at its replicas in the dashboard, or raise replica.start_deadline_s"
            )
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"waiting for {name}, which is {app.status if app else 'not there'}; {held_text(name)}")
        time.sleep(0.3)


def _serve_until(until: threading.Event | None, name: str) -> None:
    from ray import serve

    said = time.monotonic()
    try:
        while until is None or not until.is_set():
            (until or threading.Event()).wait(1.0)
            if time.monotonic() - said > 60:
                said = time.monotonic()
                deployments = serve.status().applications[name].deployments
                say("serving: " + ", ".join(f"{n} {dict(d.replica_states)}" for n, d in deployments.items()))
    except KeyboardInterrupt:
        say("stopping: replicas finish what they have")


def _url(config: ServeConfig, port: int) -> str:
    host = "127.0.0.1" if config.http.host in ("0.0.0.0", "::") else config.http.host
    return f"http://{host}:{port}{config.http.route}"


def _http_text(config: ServeConfig, port: int) -> str:
    return (
        f"HTTP {_url(config, port)}/v1/score, documentation {_url(config, port)}/docs"
        if config.http.enabled
        else "no HTTP"
    )


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1" if host == "localhost" else host, 0))
        return probe.getsockname()[1]
