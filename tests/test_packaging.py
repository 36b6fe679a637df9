"""What is installed, and what importing it costs."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")

HEAVY = {
    "torch", "tensorflow", "keras", "mxnet", "tf2onnx",
    "onnxruntime", "onnxscript", "networkx", "PIL", "rich", "jinja2", "scipy", "sklearn",
}  # fmt: skip


REGISTRY = "from attar.registry import Registry; registry = Registry.discover()"


def loaded_after(code: str) -> set[str]:
    """Top-level modules that are imported after `code` ran in a fresh interpreter."""
    program = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import attar",
        "import attar.demo",
        f"{REGISTRY}; registry.adapters; registry.passes",
        f"{REGISTRY}; [adapter.recognises(object()) for adapter in registry.adapters.values()]",
    ],
)
def test_importing_and_asking_the_plugins_loads_nothing_heavy(code: str) -> None:
    assert loaded_after(code) & HEAVY == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("attar-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(ROOT / root).as_posix()
        for root in ("core", "plugins", "adapters")
        for path in (ROOT / root).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected
    assert {
        "attar/py.typed",
        "attar/demo/digits.npz",
        "attar/demo/digits.onnx",
        "attar/demo/README.md",
    } <= shipped


def test_the_wheel_declares_the_command_the_plugins_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    points = configparser.ConfigParser()
    points.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(points["console_scripts"]) == PROJECT["scripts"]
    assert dict(points["attar"]) == PROJECT["entry-points"]["attar"]
    packages = {name.split("/")[0] for name in wheel.namelist()}
    assert {target.split(":")[0].split(".")[0] for target in points["attar"].values()} <= packages
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_every_first_party_package_is_an_entry_point() -> None:
    packages = {
        p.parent.name for root in ("plugins", "adapters") for p in (ROOT / root).glob("*/__init__.py")
    }
    assert packages == set(PROJECT["entry-points"]["attar"].values())


def test_the_wheel_works_without_any_extra(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked elsewhere and used from there, with the frameworks and the extras made unimportable."""
    wheel.extractall(tmp_path / "site")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
for name in {sorted(HEAVY - {"onnxruntime", "onnxscript", "networkx", "PIL", "rich"})!r}:
    sys.modules[name] = None
import attar
from attar.demo.digits import digits
from attar.registry import Registry
assert attar.__file__.startswith({str(tmp_path)!r}), attar.__file__
registry = Registry.discover()
assert not registry.broken, registry.broken
assert {set(PROJECT["entry-points"]["attar"])!r} <= {{p.name for p in registry.plugins}}
registry.adapters, registry.passes, registry.metrics, registry.targets
assert digits("test")[0].shape == (597, 1, 32, 32)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_constraints_pin_every_direct_dependency_once() -> None:
    pins = [
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert len(pins) == len(set(pins))
    extras = PROJECT["optional-dependencies"]
    used = ("torch", "tensorflow", "mxnet", "report", "test")
    direct = PROJECT["dependencies"] + [requirement for extra in used for requirement in extras[extra]]
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in direct}
    assert names <= set(pins)
    assert not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in pins)


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    """`.ci/run` takes them out of the README, so what is tested is what is documented."""
    commands = [line for line in README.splitlines() if line.startswith("python3.11 -m venv ")]
    assert [line.split()[-2:] for line in commands] == [
        [".venv/bin/attar", "demo"],
        ["--dist", "loadfile"],
    ]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in script
