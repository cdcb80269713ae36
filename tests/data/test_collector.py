"""What is left alone by the garbage collector is still freed when the process ends."""

import gc
import subprocess
import sys

from zr_ray.data.collector import collector_off

CYCLE = """
from zr_ray.data.collector import leave_alone

class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("freed", flush=True)

Cycle()
leave_alone()
import gc
gc.collect()
print("end", flush=True)
"""


def test_what_is_left_alone_is_freed_at_the_end_and_not_before():
    run = subprocess.run([sys.executable, "-c", CYCLE], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["end", "freed"]


def test_the_collector_is_on_again_after_a_block():
    with collector_off():
        assert not gc.isenabled()
    assert gc.isenabled()
