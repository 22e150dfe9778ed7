# SPDX-License-Identifier: Apache-2.0
"""Makes a virtual environment with torch and groups of packages from pyproject.toml.

    python3 tools/venv.py .venv build test
    python3 tools/venv.py .venv-oldest test examples --torch 2.10.0

A torch >= 2.10 that this Python already has is used, unless --torch asks for a version; else the newest is installed.
Running it again installs what is missing and takes seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
# What older systems bring cannot do all that is asked of it here.
PIP = "pip>=23.1"
# Groups of programs: they belong into the bin folder of the environment, even where a shared folder has their packages.
PROGRAMS = {"build", "format"}

# Printed by the interpreter under question: the version of torch, then the folders of packages that it sees. It is the
# version that pip knows: torch.__version__ may add a suffix (+cu132), which would fit no constraint.
TORCH_PROBE = """
import importlib.metadata, sys, torch
print(importlib.metadata.version("torch"))
print(*(p for p in sys.path if p.endswith(("site-packages", "dist-packages"))), sep="\\n")
"""
# Printed by the interpreter of the environment: the packages of a group. Python 3.10 has no TOML reader, but pip has.
GROUP_PROBE = """
import sys
try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"][sys.argv[2]], sep="\\n")
"""


class SetupError(RuntimeError):
    """The environment could not be made; the message says what to do."""


def probe_torch(python: str | Path) -> tuple[str, list[str]] | None:
    """Version of the torch that an interpreter imports, and its folders of packages; None without a usable torch."""
    done = subprocess.run([python, "-c", TORCH_PROBE], capture_output=True, text=True)
    if done.returncode:
        return None
    version, *folders = done.stdout.splitlines()
    release = tuple(int(part) for part in version.split(".")[:2])
    return (version, folders) if release >= OLDEST_TORCH else None


def create(environment: Path, shared: list[str]) -> None:
    """Creates the environment with pip in it. `shared`: folders of packages that it sees after its own.

    A .pth file does what --system-site-packages does, and serves a torch in an active virtual environment as well.
    """
    print(f"creating {environment} with Python {sys.version.split()[0]}", flush=True)
    command = [sys.executable, "-m", "venv", "--clear"]
    if subprocess.run([*command, environment], capture_output=True).returncode:
        create_without_ensurepip(command, environment)
    packages = next(environment.glob("lib/python3*/site-packages"))
    (packages / "_shared.pth").write_text("".join(f"import site; site.addsitedir({folder!r})\n" for folder in shared))
    install(environment / "bin" / "python", [PIP])


def create_without_ensurepip(command: list[str], environment: Path) -> None:
    """Debian and Ubuntu keep ensurepip in a package of its own; then pip is installed from its wheel."""
    made = subprocess.run([*command, "--without-pip", environment], capture_output=True, text=True)
    if made.returncode:
        raise SetupError(
            f"{sys.executable} -m venv failed: {made.stderr.strip()}. "
            "Install it (Debian, Ubuntu: apt-get install python3-venv), or choose another Python: make PYTHON=..."
        )
    found = subprocess.run([sys.executable, ROOT / "tools" / "fetch.py", "pip"], stdout=subprocess.PIPE, text=True)
    if found.returncode:
        raise SetupError("No pip for the new environment, see above. Installing python3-venv helps too.")
    wheels = Path(found.stdout.strip())
    wheel = next(wheels.glob("pip-*.whl"))
    command = [environment / "bin" / "python", wheel / "pip", "install", "-q", "--no-index"]
    if subprocess.run([*command, "--find-links", wheels, "pip"]).returncode:
        raise SetupError(f"pip could not be installed from {wheel}.")


def install(python: Path, packages: list[str], *options: str | Path) -> None:
    """Installs packages with pip; one message when that fails."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "1", "install", "-q"]
    done = subprocess.run([*command, *options, *packages], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise SetupError(
            f"pip could not install {' '.join(packages)}: {errors[-1] if errors else 'no message'}. "
            "Check the network, or tell pip where to look (PIP_INDEX_URL, PIP_FIND_LINKS), and run make again."
        )


def packages_of(python: Path, group: str) -> list[str]:
    """The packages of an optional dependency group of pyproject.toml."""
    command = [python, "-c", GROUP_PROBE, ROOT / "pyproject.toml", group]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def set_up(environment: Path, groups: list[str], torch_version: str | None) -> None:
    """Brings an environment to the wished state."""
    python = environment / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        found = None if torch_version else probe_torch(sys.executable)
        create(environment, found[1] if found else [])
    torch = probe_torch(python)
    if not torch:
        wish = f"torch=={torch_version}" if torch_version else f"torch>={'.'.join(map(str, OLDEST_TORCH))}"
        print(f"installing {wish} (a large download)", flush=True)
        install(python, [wish, "numpy"])
        torch = probe_torch(python)
        if not torch:
            raise SetupError(f"torch was installed but does not import: try {python} -c 'import torch'.")
    constraint = environment / "constraint.txt"
    # No package may replace it: of those that are built for one torch (torchvision), pip takes the version that fits.
    constraint.write_text(f"torch=={torch[0]}\n")
    for group in groups:
        packages = packages_of(python, group)
        print(f"torch {torch[0]}; installing {' '.join(packages)}", flush=True)
        own = ["--ignore-installed"] if group in PROGRAMS else []
        install(python, packages, "-c", constraint, *own)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("environment", type=Path)
    parser.add_argument("groups", nargs="*", help="optional dependency groups of pyproject.toml")
    parser.add_argument("--torch", metavar="VERSION", help="install exactly this version")
    arguments = parser.parse_intermixed_args()
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise SetupError(
                f"{sys.executable} is Python {sys.version.split()[0]}; lath needs 3.10 or newer: make PYTHON=python3.12"
            )
        set_up(arguments.environment.absolute(), arguments.groups, arguments.torch)
    except SetupError as error:
        print(f"lath: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
