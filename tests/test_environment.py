"""pyproject.toml, requirements.lock and environment.yml say the same, and the lock names no index."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from companion import records

ROOT = records.checkout()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = {canonicalize_name(n): v for n, v in re.findall(r"^([A-Za-z0-9_.-]+)==([^ \\;]+)", LOCK, flags=re.M)}


def test_the_lock_satisfies_every_requirement():
    wanted = PROJECT["dependencies"] + [
        r for extra in PROJECT["optional-dependencies"].values() for r in extra
    ]
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in PINS, f"{text} is not in requirements.lock; run make lock"
        assert requirement.specifier.contains(PINS[name], prereleases=True), (
            f"{text} but the lock has {PINS[name]}"
        )


def test_the_lock_has_hashes_one_version_each_and_no_address():
    names = re.findall(r"^([A-Za-z0-9_.-]+)==", LOCK, flags=re.M)
    assert len(names) == len(set(names))
    blocks = re.split(r"^(?=[A-Za-z0-9_.-]+==)", LOCK, flags=re.M)[1:]
    assert all("--hash=sha256:" in b for b in blocks)
    assert "://" not in LOCK
    assert "--index" not in LOCK


def test_torch_torchaudio_and_torchvision_are_one_build():
    assert (PINS["torch"], PINS["torchaudio"], PINS["torchvision"]) == ("2.11.0", "2.11.0", "0.26.0")


def test_conda_users_get_the_same_lock():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in env["dependencies"] if isinstance(d, str) and d.startswith("python"))
    assert PROJECT["requires-python"] == ">=3.11"
    assert re.fullmatch(r"python=3\.1[1-3]", python)
    pip = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    assert pip == ["--require-hashes -r requirements.lock"]


def test_this_environment_is_the_locked_one():
    from importlib.metadata import version

    for name in (
        "torch",
        "torchaudio",
        "transformers",
        "jupyter-book",
        "papermill",
        "nbval",
        "rdkit",
        "sympy",
    ):
        assert version(name).split("+")[0] == PINS[name], name
