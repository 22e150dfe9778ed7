# SPDX-License-Identifier: Apache-2.0
"""Finds what the build and the demo need beyond Python packages, and fetches it when the machine lacks it.

    python3 tools/fetch.py austen|fashion-mnist|googletest|pip

prints the folder that holds it. Looked up in this order: the environment variable, the place where the system package
installs it, the folder of this checkout that git ignores, and last the archive of Debian or Ubuntu: the package is
downloaded and unpacked into that folder, which needs no root and leaves the system as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Resource:
    """A folder that a system package brings.

    Attributes:
        package: name of the Debian package.
        variable: environment variable that may name the folder.
        installed: where the package puts the folder.
        local: where this checkout keeps its own copy.
        pattern: a file that proves the folder to be the right one.
        purpose: completes "... needs it" in messages.
    """

    package: str
    variable: str
    installed: Path
    local: Path
    pattern: str
    purpose: str

    def holds(self, folder: Path) -> bool:
        return any(folder.glob(self.pattern))


RESOURCES = {
    "austen": Resource(
        package="r-cran-janeaustenr",
        variable="LATH_AUSTEN",
        installed=Path("/usr/lib/R/site-library/janeaustenr/data"),
        local=ROOT / "data" / "austen",
        pattern="Rdata.rdb",
        purpose="the language models are trained on its six novels",
    ),
    "fashion-mnist": Resource(
        package="dataset-fashion-mnist",
        variable="LATH_FASHION_MNIST",
        installed=Path("/usr/share/datasets/fashion-mnist"),
        local=ROOT / "data" / "fashion-mnist",
        pattern="train-images-idx3-ubyte.gz",
        purpose="the demo trains on it",
    ),
    "googletest": Resource(
        package="googletest",
        variable="LATH_GOOGLETEST",
        installed=Path("/usr/src/googletest"),
        local=ROOT / ".deps" / "googletest",
        pattern="googletest/CMakeLists.txt",
        purpose="the C tests are built with it",
    ),
    "pip": Resource(
        package="python3-pip-whl",
        variable="LATH_PIP_WHEELS",
        installed=Path("/usr/share/python-wheels"),
        local=ROOT / ".deps" / "python-wheels",
        pattern="pip-*.whl",
        purpose="this Python comes without pip",
    ),
}


class FetchError(RuntimeError):
    """The resource is not there and could not be fetched; the message says what to do."""


def locate(resource: Resource) -> Path | None:
    """Returns the folder of a resource that is already on this machine, or None.

    Raises:
        FetchError: the environment variable names a folder that does not hold the resource.
    """
    named = os.environ.get(resource.variable)
    if named:
        if not resource.holds(Path(named)):
            raise FetchError(
                f"{resource.variable}={named}: no {resource.pattern} in this folder. "
                f"Name the folder that holds it, or unset {resource.variable} to have it looked up and fetched."
            )
        return Path(named)
    return next((folder for folder in (resource.installed, resource.local) if resource.holds(folder)), None)


def fetch(resource: Resource) -> Path:
    """Downloads the package of a resource, unpacks it and returns the local folder."""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]
    if missing:
        raise FetchError(advice(resource, f"{' and '.join(missing)} not found, so it cannot be fetched here"))
    with tempfile.TemporaryDirectory(prefix="lath-fetch-") as scratch:
        archive = download(resource, Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        done = subprocess.run(["dpkg-deb", "-x", archive, unpacked], capture_output=True, text=True)
        folder = unpacked / resource.installed.relative_to("/")
        if done.returncode or not resource.holds(folder):
            raise FetchError(advice(resource, f"{archive.name} could not be unpacked: {complaint(done.stderr)}"))
        shutil.rmtree(resource.local, ignore_errors=True)
        resource.local.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, resource.local, symlinks=True)
    return resource.local


def download(resource: Resource, scratch: Path) -> Path:
    """Downloads the package into `scratch`; with fresh package lists of our own when those of the system do not do."""
    own = [f"-oDir::State::Lists={scratch}/lists", f"-oDir::Cache={scratch}/cache", "-oAPT::Update::Error-Mode=any"]
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    # Without the sandbox user: it may not write into a folder of ours.
    apt = ["apt-get", "-q", "-oAPT::Sandbox::User=root", "-oAcquire::Retries=1", "-oAcquire::http::Timeout=20"]
    get = ["download", resource.package]
    attempts = [[[*apt, *get]], [[*apt, *own, "update"], [*apt, *own, *get]]]
    for commands in attempts:
        for command in commands:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
            if done.returncode:
                break
        archives = list(scratch.glob("*.deb"))
        if archives:
            return archives[0]
    raise FetchError(advice(resource, f"apt-get could not download it: {complaint(done.stderr)}"))


def advice(resource: Resource, problem: str) -> str:
    return (
        f"{resource.package} is missing ({resource.purpose}) and {problem}. "
        f"Check the network, or install it (apt-get install {resource.package}), "
        f"or set {resource.variable} to a folder with {resource.pattern}."
    )


def complaint(text: str) -> str:
    """The first error of a tool's output; what follows it is mostly its consequence."""
    lines = text.strip().splitlines()
    return next((line for line in lines if line.startswith("E: ")), lines[0] if lines else "it gave no reason")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("resource", choices=sorted(RESOURCES))
    resource = RESOURCES[parser.parse_args().resource]
    try:
        folder = locate(resource)
        if folder is None:
            print(f"fetching {resource.package} ...", file=sys.stderr, flush=True)
            folder = fetch(resource)
    except FetchError as error:
        print(f"lath: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
