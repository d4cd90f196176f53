"""Resolves pyproject.toml for the running Python and writes locks/pyXY.txt and locks/pyXY-test.txt.

Run it with each Python that is supported, from the project's root: `python3.11 tools/lock.py`. pip resolves (nothing is
installed) and reports; the lock holds names and versions only, so that any index serves it. CUDA companions of torch
are left out: whether they are needed depends on the build of torch that the index offers.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLATFORM_COMPANIONS = ("nvidia-", "triton", "cuda-")


def resolve(requirements: list[str]) -> dict[str, str]:
    """Name -> version of everything that pip would install for `requirements` into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), *requirements], check=True)
        found = json.loads(report.read_text())["install"]
    # A local version (+cpu) names one build of one index; the lock names the release.
    pins = {item["metadata"]["name"].lower(): item["metadata"]["version"].split("+")[0] for item in found}
    return {name: version for name, version in sorted(pins.items()) if not name.startswith(PLATFORM_COMPANIONS)}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    # Together first: what is tested with Beam is what runs without it.
    test = resolve(project["dependencies"] + project["optional-dependencies"]["test"])
    run = {name: test[name] for name in resolve(project["dependencies"]) if name in test}
    build = resolve(["setuptools>=77"])
    header = f"# Tested versions for Python {sys.version_info.major}.{sys.version_info.minor}; made by tools/lock.py.\n"
    for suffix, pins in (("", {**run, **build}), ("-test", {n: v for n, v in test.items() if n not in run | build})):
        lines = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
        (ROOT / "locks" / f"{python}{suffix}.txt").write_text(header + lines)


if __name__ == "__main__":
    main()
