"""A path of the package means the package where it arrives; other paths stay what they are."""

import pickle
import subprocess
import sys
from pathlib import Path

import zr_ray
from zr_ray.run.travel import PACKAGE, portable

SHOW = (
    "import pickle, sys; path = pickle.loads(bytes.fromhex(sys.argv[1])); print(path, (path / 'config.json').is_file())"
)


def test_a_shipped_judge_is_found_in_another_copy_of_the_package(tmp_path):
    copy = tmp_path / "elsewhere" / "zr_ray"
    copy.mkdir(parents=True)
    for entry in Path(zr_ray.__file__).parent.iterdir():
        if entry.name != "assets":
            (copy / entry.name).symlink_to(entry)
    (copy / "run").unlink()  # resolves links: these files must be the copy's own
    (copy / "run").mkdir()
    for file in (PACKAGE / "run").glob("*.py"):
        (copy / "run" / file.name).write_text(file.read_text())
    (copy / "assets").symlink_to(PACKAGE / "assets")
    sent = pickle.dumps({"judge": portable(PACKAGE / "assets" / "judge")}["judge"]).hex()
    command, environment = [sys.executable, "-c", SHOW, sent], {"PYTHONPATH": str(copy.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout == f"{copy / 'assets' / 'judge'} True\n", done.stderr


def test_other_paths_stay(tmp_path):
    path = pickle.loads(pickle.dumps(portable(tmp_path / "judge")))
    assert path == tmp_path / "judge" and type(path) is type(Path())
    here = pickle.loads(pickle.dumps(portable(str(PACKAGE / "assets" / "judge"))))
    assert here == PACKAGE / "assets" / "judge" and pickle.loads(pickle.dumps(here)) == here
