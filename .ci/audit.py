"""Known vulnerabilities of what constraints.txt pins, by pip-audit; exit code 1 if there are any.

pip-audit says that none are known also where the index knows none of the versions, as mirrors do.
Here they are counted, and without a database to ask the check is left out and says so.
"""

from __future__ import annotations

import json
import subprocess
import sys

COMMAND = ["pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip"]


def verdict(output: str) -> tuple[str, int]:
    """(what to say, exit code) of pip-audit's JSON, which is empty where it reached nothing."""
    try:
        packages = json.loads(output)["dependencies"]
    except ValueError:
        return "audit left out: no database of vulnerabilities is within reach", 0
    asked = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, "
        f"mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for package in asked
        for flaw in package["vulns"]
    ]
    if not asked:
        return f"audit left out: the index knows none of the {len(packages)} pinned versions", 0
    head = f"audit: {len(found)} known vulnerabilities in {len(asked)} of {len(packages)} packages"
    return "\n".join([head, *found]), int(bool(found))


def main() -> int:
    done = subprocess.run(
        [sys.executable, "-m", *COMMAND, "--format", "json", "--progress-spinner", "off"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    text, code = verdict(done.stdout)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
