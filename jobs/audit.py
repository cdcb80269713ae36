"""Keep a student honest: sample items it scores, ask its teacher, report how far they are apart. Exit code 1 beyond the
limits.

ray job submit --working-dir . -- python jobs/audit.py judge.path=/path/to/student teacher.path=/path/to/teacher
data.path=/path/to/images
"""

from __future__ import annotations

import sys

from zr_ray.config.audit import AuditConfig
from zr_ray.loops.audit import audit
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix, JudgeError if the student is beyond the limits."""
    args = driver.arguments(__doc__, AuditConfig, argv)
    audit(driver.resolve(args, AuditConfig), args)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
