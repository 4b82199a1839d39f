"""Imports point downward, and every heavy dependency has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "distbranch"

FLOORS = {
    "errors": 0, "extras": 0, "locks": 0, "permissions": 0, "plugins": 0, "registry": 0, "signals": 0, "streams": 0,
    "tensor_files": 0, "losses": 0, "label_weights": 0,
    "kinds": 0, "maps": 0, "tasks": 0, "metrics": 0, "config": 0, "branching": 0, "adashare": 0,
    "models": 1, "data": 1,
    "engine": 2,
    "launch": 3, "report": 3, "track": 3, "export": 3, "bench": 3,
    "answers": 4, "sweep": 4, "experiments": 5, "listing": 5,
    "api": 6, "cli": 6, "__main__": 6, "__init__": 6,
}  # fmt: skip

HOMES = {
    "ray": ("launch", "sweep"),
    "submitit": ("launch",),
    "optuna": ("sweep",),
    "pandas": ("data", "sweep", "experiments", "report", "answers", "api"),
    "wandb": ("track",),
    "mlflow": ("track",),
    "torch.distributed": ("engine",),
    "filelock": ("locks",),
    "safetensors": ("tensor_files",),
    "webdataset": ("data",),
    "matplotlib": ("report",),
    "openpyxl": ("data",),
    "h5py": ("data",),
    "timm": ("models",),
    "torchjd": ("engine",),
    "onnx": ("export", "bench"),
    "onnxruntime": ("export", "bench"),
}

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def top(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imports(module: Path) -> Iterator[str]:
    """Every name imported anywhere in a module, in full: `from a import b` is a.b."""
    package = ("distbranch", *module.parts[:-1])
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_downward(module: Path) -> None:
    assert top(module) in FLOORS, f"{module} stands on no floor; give it one in this test"
    for name in imports(module):
        if within(name, "distbranch") and name.count("."):
            other = name.split(".")[1]
            if other in FLOORS and other != top(module):
                assert FLOORS[other] <= FLOORS[top(module)], (
                    f"{module} imports {name}, which stands above it"
                )


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_heavy_dependency_has_one_home(module: Path) -> None:
    for name in imports(module):
        for package, homes in HOMES.items():
            if within(name, package):
                assert top(module) in homes, (
                    f"{module} imports {name}, whose home is {' or '.join(homes)}"
                )


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_data_and_models_do_not_know_each_other_and_branching_stays_pure(module: Path) -> None:
    forbidden = {
        "data": ("distbranch.models",),
        "models": ("distbranch.data",),
        "branching": (
            "torch.nn.Module",
            "torch.distributed",
            "torch.optim",
            "pathlib",
            "distbranch.tasks",
            "distbranch.config",
        ),
        "adashare": ("torch.distributed", "torch.optim", "pathlib"),
    }
    for name in imports(module):
        for package in forbidden.get(top(module), ()):
            assert not within(name, package), f"{module} imports {name}"


def test_importing_the_package_starts_nothing_heavy() -> None:
    heavy = ("ray", "submitit", "matplotlib", "webdataset", "onnx", "sklearn")
    program = f"import sys, distbranch; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert found.stdout.strip() == "[]"
