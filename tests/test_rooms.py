"""The rooms of the package: who may import whom, what stays pure, and how many modules stand at the top."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "zr_ray"
ORDER = (
    "startup",
    "errors",
    "rubric",
    "records",
    "functional",
    "config",
    "data",
    "world",
    "models",
    "run",
    "workers",
    "builtin",
    "judging",
    "serving",
    "report",
    "loops",
    "operate",
)  # fmt: skip  one line a floor would hide the order
"""A room imports only what stands to its left."""
DOORS = {"__init__", "__main__", "serve"}
"""Modules that open onto rooms: the public names, the command line, the Serve import path."""
EDGES = {"ray", "vllm", "deepspeed", "diffusers", "transformers", "fastapi", "aiohttp"}
"""Engines; pure maths must be testable without them."""


def modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "assets" not in p.parts]


def imports(source: str) -> list[str]:
    """Dotted names of everything a source imports, at any depth; `from a import b` gives a.b and a."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def breaches(room: str, source: str) -> list[str]:
    """What a module of `room` must not import, as sentences."""
    found = []
    for name in imports(source):
        first, _, rest = name.partition(".")
        to = rest.split(".")[0]
        if first == "zr_ray" and to in ORDER and room in ORDER and ORDER.index(to) > ORDER.index(room):
            found.append(f"{room} imports {name}, which stands to its right")
        if room == "functional" and (first in EDGES or (first == "zr_ray" and to not in ("functional", ""))):
            found.append(f"functional imports {name}; it may use torch, the standard library and itself")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_to_its_left(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room not in DOORS:
        assert room in ORDER, f"{room} is no room; house it, or give it a place in ORDER"
        assert breaches(room, path.read_text()) == []


def test_a_breach_is_seen():
    assert breaches("functional", "def f():\n    import ray\n")
    assert breaches("functional", "from zr_ray.config.loader import load_config\n")
    assert breaches("data", "from zr_ray.world.build import write_world\n")
    assert breaches("data", "from zr_ray import world\n")
    assert breaches("world", "from zr_ray.data.annotations import write_annotations\n") == []


def test_no_import_circle():
    """Modules that need one another at import time (imports inside functions do not count) form no circle."""
    names = {
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in modules()
    }
    graph = {}
    for name, path in names.items():
        top = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        wanted = imports("\n".join(ast.unparse(n) for n in top))
        graph[name] = {w for w in wanted if w in names and w != name and not name.startswith(w + ".") and w != "zr_ray"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_few_modules_stand_at_the_top():
    top = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"}
    assert top <= {"errors", "records", "rubric", "serve", "__main__"}


def test_public_names_load():
    import zr_ray

    assert set(zr_ray.PUBLIC) >= {"RewardClient", "Student", "app"}
    for name in zr_ray.__all__:
        assert getattr(zr_ray, name).__name__ == name
    with pytest.raises(AttributeError, match="it offers"):
        zr_ray.NoSuchName  # noqa: B018
