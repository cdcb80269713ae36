"""The three packages import in a bare Python child that gets only the shim's environment, and cost nothing before (vLLM
in such a child: tests/report/test_student_card.py)."""

import os
import subprocess
import sys

from zr_ray.startup.torchvision_shim import child_environment

IMPORTS = (
    "import torchvision, torchaudio, torchcodec; from torchvision.transforms.v2 import functional; print('imported')"
)


def test_child_process_imports_all_three():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env=os.environ | child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip().endswith("imported"), done.stderr[-2000:]


def test_a_hidden_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('theirs ran')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    environment |= {"PYTHONPATH": os.pathsep.join([child_environment()["PYTHONPATH"], str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", "pass"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "theirs ran" in done.stdout, done.stderr


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, zr_ray; print('torch' in sys.modules, 'torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
