"""Check files of a cluster before anyone pays for it.

    python -m zr_ray validate cluster/*.yaml cluster/kuberay/*.yaml [--crds FOLDER]

A file is told by its content: a Kubernetes manifest has apiVersion and kind, a `ray up` file provider, a Serve file
applications. Exit code 1 if a file may not be used; notes alone leave it at 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from zr_ray.errors import ConfigError
from zr_ray.operate.findings import Finding, placeholders
from zr_ray.operate.kuberay import KINDS, check_kuberay
from zr_ray.operate.ray_up import check_ray_up
from zr_ray.operate.serve_file import check_serve


def read_documents(path: Path) -> list[dict]:
    """The YAML documents of a file. Raises ConfigError for an unreadable one, or a key written twice."""
    from zr_ray.config.loader import StrictLoader

    try:
        documents = [d for d in yaml.load_all(Path(path).read_text(), Loader=StrictLoader) if d is not None]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not documents or not all(isinstance(d, dict) for d in documents):
        raise ConfigError(f"{path} must hold `key: value` at top level")
    return documents


def check_file(path: Path, crds: Path | None = None) -> list[Finding]:
    """All findings about one file. Raises ConfigError if it cannot be read or is none of the kinds."""
    findings: list[Finding] = []
    for document in read_documents(path):
        if document.get("kind") in KINDS:
            findings += check_kuberay(document, crds)
        elif "apiVersion" in document and "kind" in document:
            findings += placeholders(document)  # other Kubernetes objects: the API server's business
        elif "provider" in document:
            findings += check_ray_up(document)
        elif "applications" in document:
            findings += [*check_serve(document), *placeholders(document)]
        else:
            raise ConfigError(
                f"{path} is no cluster file: it has neither `provider` (ray up), nor `kind: {'|'.join(KINDS)}`, nor "
                f"`applications` (serve deploy); "
                f"its keys are {', '.join(map(str, document))}"
            )
    return findings


def validate(paths: list[Path], crds: Path | None = None) -> bool:
    """Print what was found, one line each; whether every file may be used."""
    usable = True
    for path in paths:
        findings = check_file(path, crds)
        for finding in findings:
            print(f"{'error' if finding.fatal else 'note'}: {path}: {finding}")
        fatal = sum(f.fatal for f in findings)
        usable = usable and not fatal
        print(f"{path}: {f'{fatal} error(s)' if fatal else 'valid'}")
    return usable


def main(argv: list[str]) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m zr_ray validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument(
        "--crds", type=Path, help="folder with KubeRay's ray.io_*.yaml definitions, to check against all of them"
    )
    args = parser.parse_args(argv)
    return 0 if validate(args.files, args.crds) else 1
