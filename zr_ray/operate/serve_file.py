"""A file for `serve deploy`: Ray's ServeDeploySchema, which ignores unknown keys, and the application's own
arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator

from zr_ray.operate.findings import PLACEHOLDER, Finding, unknown_keys


def check_serve(tree: dict) -> Iterator[Finding]:
    """Everything that is wrong with the tree of a Serve config file."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    yield from unknown_keys(tree, ServeDeploySchema.model_fields, "", "a Serve file")
    for i, app in enumerate(tree.get("applications") or []):
        if isinstance(app, dict):
            yield from unknown_keys(app, ServeApplicationSchema.model_fields, f"applications.{i}", "an application")
    try:
        ServeDeploySchema.model_validate(tree)
    except ValidationError as error:
        for problem in error.errors():
            yield Finding(
                ".".join(map(str, problem["loc"])), f"Serve's schema: {problem['msg']}, got {problem['input']!r}"[:300]
            )
        return
    for i, app in enumerate(tree["applications"]):
        if app.get("import_path") == "zr_ray.serve:app":
            yield from _reward(app.get("args") or {}, f"applications.{i}.args", tree.get("http_options") or {})


def _reward(arguments: dict, prefix: str, http_options: dict) -> Iterator[Finding]:
    """The arguments of zr_ray's application, and whether its port asks for a token."""
    from pydantic import ValidationError

    from zr_ray.config.serve import ServeConfig
    from zr_ray.serving.admission import LOOPBACK

    http = dict(arguments.get("http") or {})
    if PLACEHOLDER in str(http.get("token_sha256")):
        http["token_sha256"] = "0" * 64  # still to be filled in: the note about it is the caller's
    try:
        ServeConfig.model_validate(arguments | {"http": http})
    except ValidationError as error:
        for problem in error.errors():
            yield Finding(
                f"{prefix}.{'.'.join(map(str, problem['loc']))}", f"{problem['msg']}, got {problem['input']!r}"[:300]
            )
        return
    host = http_options.get("host", http.get("host", "127.0.0.1"))
    if host not in LOOPBACK and http.get("enabled", True) and not (http.get("token_sha256") or http.get("token_file")):
        yield Finding(
            f"{prefix}.http.token_sha256",
            f'http_options.host {host} is beyond loopback and there is no token; printf %s "$token" | sha256sum',
        )
    if http.get("token_sha256") and not re.fullmatch(r"[0-9a-f]{64}", str(http["token_sha256"])):
        yield Finding(f"{prefix}.http.token_sha256", "must be 64 hexadecimal digits")
