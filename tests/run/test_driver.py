"""What a job takes on its command line, and what a failed one says last: the innermost cause, whatever wraps it."""

import pytest

from zr_ray.config.gdso import GdsoConfig
from zr_ray.errors import ConfigError, DataError
from zr_ray.run import driver


def last_line(capsys, error):
    def fail():
        raise error

    assert driver.run_job(fail) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def wrapped(inner):
    """As Ray Train does it: failures of workers inside a message that says nothing."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("", {0: UserExceptionWithTraceback(inner, "Traceback of rank 0")})


def test_a_full_disk_is_named(capsys):
    line = last_line(capsys, wrapped(OSError(28, "No space left on device")))
    assert line.startswith("error: OSError: [Errno 28] No space left on device"), line


def test_a_refusal_of_ours_is_said_alone(capsys):
    assert last_line(capsys, wrapped(DataError("line 2: no image"))) == "error: line 2: no image"


def test_what_an_error_hides_on_purpose_stays_hidden(capsys):
    def refuse():
        try:
            raise KeyError("detail")
        except KeyError:
            raise RuntimeError("no such thing") from None

    with pytest.raises(RuntimeError) as caught:
        refuse()
    assert last_line(capsys, caught.value).startswith("error: RuntimeError: no such thing")


def test_the_innermost_of_a_chain(capsys):
    try:
        try:
            raise ConfigError("learner.lr must be above 0")
        except ConfigError as inner:
            raise ValueError("while starting") from inner
    except ValueError as outer:
        assert last_line(capsys, outer) == "error: learner.lr must be above 0"


def test_overrides_may_stand_on_both_sides_of_a_switch():
    args = driver.arguments("A job.", GdsoConfig, ["gdso.steps=3", "--dry-run", "gdso.group_size=2", "--resume"])
    assert args.overrides == ["gdso.steps=3", "gdso.group_size=2"] and args.dry_run and args.resume == "latest"
