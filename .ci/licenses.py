"""Writes src/THIRD_PARTY_LICENSES.txt: the licences of the crates that the wheels contain; `--check` only compares.

Those are all that the library links on any platform: not what runs at build time alone, as procedural macros do.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTICES = ROOT / "src" / "THIRD_PARTY_LICENSES.txt"
LICENSE_FILE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|UNLICENSE)", re.I)
HEAD = """The wheels of ferrostep contain compiled code of these Rust crates and of Rust's standard library, which is
"MIT OR Apache-2.0" (https://github.com/rust-lang/rust). Written by .ci/licenses.py.
"""


def linked_packages() -> list[dict[str, Any]]:
    """The crates that the library is linked with, by cargo's own account."""
    command = ["cargo", "metadata", "--locked", "--format-version=1"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    linked: set[str] = set()
    waiting = [metadata["resolve"]["root"]]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            package = packages[dependency["pkg"]]
            is_linked = any(each["kind"] is None for each in dependency["dep_kinds"])
            is_macro = any("proc-macro" in target["kind"] for target in package["targets"])
            if is_linked and not is_macro and package["id"] not in linked:
                linked.add(package["id"])
                waiting.append(package["id"])
    return sorted((packages[each] for each in linked), key=lambda package: (package["name"], package["version"]))


def is_license(path: Path) -> bool:
    """Whether a file at the root of a crate, or in a folder of licences, is the text of one."""
    return len(path.parts) <= 2 and bool(LICENSE_FILE.match(path.parts[0]))


def notices() -> str:
    """A line for each crate, then each text once with the crates that it is of."""
    lines, texts = [], {}
    for package in linked_packages():
        name = f"{package['name']} {package['version']}"
        lines.append(f"- {name}: {package['license']}, {package['repository']}")
        folder = Path(package["manifest_path"]).parent
        files = [each for each in sorted(folder.rglob("*")) if each.is_file() and is_license(each.relative_to(folder))]
        if not files:
            raise SystemExit(f"{name} has no text of its licence beside it")
        for file in files:
            text = "\n".join(line.rstrip() for line in file.read_text(encoding="utf-8").strip().splitlines())
            texts.setdefault(text, []).append(name)
    rule = "\n\n" + 100 * "-" + "\n"
    return "\n".join([HEAD, *lines]) + "".join(f"{rule}{', '.join(of)}\n\n{text}" for text, of in texts.items()) + "\n"


def main(arguments: list[str]) -> int:
    """The exit code."""
    expected = notices()
    if "--check" not in arguments:
        NOTICES.write_text(expected, encoding="utf-8")
    elif not NOTICES.exists() or NOTICES.read_text(encoding="utf-8") != expected:
        print(f"{NOTICES.relative_to(ROOT)} is not that of Cargo.lock: run `python .ci/licenses.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
