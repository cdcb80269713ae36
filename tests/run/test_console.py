"""The job log holds our lines; what libraries print, from any layer, is in the file beside."""

import subprocess
import sys

PROGRAM = """
import logging, os, sys
from zr_ray.run import console, driver
from zr_ray.run.observe import say
from zr_ray.errors import ConfigError

def main():
    print("before")
    console.part()
    logging.warning("a library warns")
    os.system("echo a child speaks")
    print("a library prints")
    say("our line")
    say(f"file {console.library_file()}")
    raise ConfigError("our error")

sys.exit(driver.run_job(main))
"""


def test_libraries_speak_beside(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:2] == ["before", "our line"] and done.stderr == "error: our error\n"
    with open(lines[2].removeprefix("file ")) as file:
        said = file.read()
    assert "a library warns" in said and "a child speaks" in said and "a library prints" in said
