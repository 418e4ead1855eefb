"""Whether a wheel and a source archive hold what the checkout has.

    python benchmarks/dist_check.py WHEEL SOURCE WHEEL-OF-SOURCE

Every file of danlu/ has to be in both, byte for byte: C sources, recipes, rubrics, texts and styles as well. The source
holds besides what it is built, read and tested with. What git does not know is in neither.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Of the source archive beside danlu/: it is built from these, read, tested and deployed with them.
BESIDE = ("README.md", "README.zh-CN.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "docs", "tests", "deploy",
          "constraints.txt", "Makefile", "benchmarks")  # fmt: skip


def tracked(*folders: str) -> dict[str, bytes]:
    """Path -> bytes of the files in git."""
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: (ROOT / name).read_bytes() for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def of_wheel(path: Path) -> dict[str, bytes]:
    """Path -> bytes, without what an installer writes."""
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}


def of_source(path: Path) -> dict[str, bytes]:
    """Path below the archive's folder -> bytes."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.isfile() and (file := archive.extractfile(member)) is not None:
                found[member.name.partition("/")[2]] = file.read()
    return found


def faults(wheel: dict[str, bytes], source: dict[str, bytes], again: dict[str, bytes]) -> list[str]:
    """What is wrong, a line each."""
    package, beside = tracked("danlu"), tracked(*BESIDE)
    found = [f"wheel: {name} is missing or another" for name, text in package.items() if wheel.get(name) != text]
    found += [f"wheel: {name} is no file of git" for name in wheel.keys() - package.keys()]
    whole = {**package, **beside}
    found += [f"source: {name} is missing or another" for name, text in whole.items() if source.get(name) != text]
    made = {"PKG-INFO", ".gitignore"}
    found += [f"source: {name} is no file of git" for name in source.keys() - whole.keys() - made]
    if wheel != again:
        found.append(
            f"the wheel made of the source differs in {sorted(wheel.keys() ^ again.keys()) or 'what files hold'}"
        )
    return found


def main() -> int:
    """The exit code."""
    wheel, source, again = map(Path, sys.argv[1:4])
    found = faults(of_wheel(wheel), of_source(source), of_wheel(again))
    for one in found:
        print(one)
    if not found:
        print(f"{wheel.name}: {len(of_wheel(wheel))} files; {source.name}: {len(of_source(source))} files")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
