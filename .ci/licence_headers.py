# SPDX-License-Identifier: Apache-2.0
"""Adds the SPDX licence line to Python files that lack it; exits with 1 if any did.

Usage: python .ci/licence_headers.py [FILE...]    (default: all tracked Python files)
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = "# SPDX-License-Identifier: Apache-2.0\n"


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in names.stdout.splitlines()]


def main(names: list[str]) -> int:
    changed = 0
    for path in map(Path, names) if names else tracked():
        text = path.read_text(encoding="utf-8")
        if text.startswith(HEADER):
            continue
        path.write_text(HEADER + text, encoding="utf-8")
        print(f"added the licence line to {path}")
        changed += 1
    return int(changed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
