"""`attar plugin new`: what it writes works, is found, passes its own tests, and nothing is overwritten."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import onnx_ir as ir
import pytest

from attar.errors import InputError
from attar.registry import Registry
from attar.testing import ZOO, check_pass, new_plugin


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_files_are_complete_and_small(tmp_path: Path) -> None:
    folder = new_plugin("my-plugin", tmp_path)
    assert folder == tmp_path / "attar-my-plugin"
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == ["README.md", "attar_my_plugin.py", "pyproject.toml", "tests/test_my_plugin.py"]
    assert names(tmp_path) == ["attar-my-plugin"], "nothing else is left behind"
    texts = {f: (folder / f).read_text(encoding="utf-8") for f in files}
    assert not any("$" in text for text in texts.values())
    assert len(texts["attar_my_plugin.py"].splitlines()) < 40
    project = tomllib.loads(texts["pyproject.toml"])
    assert project["project"]["name"] == "attar-my-plugin"
    assert project["project"]["entry-points"]["attar"] == {"my_plugin": "attar_my_plugin"}
    assert "my_plugin.round" in texts["README.md"]


def test_the_module_is_a_plugin_whose_pass_works(tmp_path: Path) -> None:
    folder = new_plugin("rounding", tmp_path)
    spec = importlib.util.spec_from_file_location("attar_rounding_loaded", folder / "attar_rounding.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    registry = Registry()
    registry.register(module, name="rounding", distribution="attar-rounding")
    assert registry.get_pass("rounding.round") is module.Round
    model: ir.Model = ZOO["mlp"].build()
    assert module.Round(bits=4).to_dict() == {"name": "rounding.round", "bits": 4}
    assert model.graph.name == "mlp"


def test_its_own_tests_pass_and_its_own_tests_can_fail(tmp_path: Path) -> None:
    """In a process of its own, as a stranger would run them; then with the pass broken."""
    folder = new_plugin("rounding", tmp_path)
    arguments = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        str(folder / "tests"),
    )
    done = run(*arguments, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    module = folder / "attar_rounding.py"
    source = module.read_text(encoding="utf-8")
    broken = source.replace("np.round(np.ldexp(mantissa, self.bits))", "np.ldexp(mantissa, self.bits) * 1.1")
    assert broken != source
    module.write_text(broken, encoding="utf-8")
    done = run(*arguments, PYTHONPATH=str(folder))
    assert done.returncode == 1
    assert "declares idempotent, but a second application changes weight" in done.stdout
    assert "FAILED" in done.stdout
    assert "test_weights_have_few_bits" in done.stdout


@pytest.mark.parametrize("how", ["pip", "by hand"])
def test_the_installed_plugin_is_discovered(tmp_path: Path, how: str) -> None:
    folder, site = new_plugin("rounding", tmp_path), tmp_path / "site"
    site.mkdir()
    if how == "pip":
        if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None:
            pytest.skip("needs pip and hatchling to install without the network")
        done = run("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
                   "--target", str(site), str(folder))  # fmt: skip
        assert done.returncode == 0, done.stderr
    else:
        (site / "attar_rounding.py").write_bytes((folder / "attar_rounding.py").read_bytes())
        info = site / "attar_rounding-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: attar-rounding\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[attar]\nrounding = attar_rounding\n")
    script = (
        "from attar import default_registry\n"
        "r = default_registry()\n"
        "found = [(p.distribution, p.version) for p in r.plugins if p.name == 'rounding']\n"
        "print(found, r.broken.get('rounding'))\n"
        "print(r.get_pass('rounding.round').usage())\n"
    )
    done = run("-c", script, PYTHONPATH=str(site))
    assert done.stdout.splitlines() == ["[('attar-rounding', '0.1.0')] None", "rounding.round(bits=8)"], (
        done.stderr
    )


def test_what_it_writes_is_formatted_and_typed(tmp_path: Path) -> None:
    folder = new_plugin("rounding", tmp_path)
    tool = Path(sys.executable).parent / "ruff"
    if not tool.exists():
        pytest.skip("needs ruff")
    for command in (["check", "--isolated"], ["format", "--check", "--isolated", "--line-length", "110"]):
        done = subprocess.run([tool, *command, folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "",
        "My",
        "1st",
        "a b",
        "a.b",
        "../x",
        "a/b",
        "-a",
        "a-",
        "a--b",
        "ä",
        "a\n",
        "class",
        "attar",
        "attar-x",
        None,
    ],
)
def test_names_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        new_plugin(name, tmp_path)
    assert names(tmp_path) == []


def test_names_of_installed_plugins_are_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'quantize' is taken by attar"):
        new_plugin("quantize", tmp_path)
    assert names(tmp_path) == []


def test_existing_folders_and_missing_parents(tmp_path: Path) -> None:
    (tmp_path / "attar-mine").mkdir()
    (tmp_path / "attar-mine" / "precious.py").write_text("x = 1")
    with pytest.raises(InputError, match="exists already"):
        new_plugin("mine", tmp_path)
    assert names(tmp_path / "attar-mine") == ["precious.py"]
    with pytest.raises(InputError, match="no such folder"):
        new_plugin("other", tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no such folder"):
        new_plugin("other", tmp_path / "file")


def test_the_scaffold_conforms_on_the_whole_zoo(tmp_path: Path) -> None:
    folder = new_plugin("rounding", tmp_path)
    spec = importlib.util.spec_from_file_location("attar_rounding_zoo", folder / "attar_rounding.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(module.Round, "__module__", "attar_rounding")
        assert check_pass(module.Round(bits=8)) > 300
