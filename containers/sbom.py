"""What is in this image, as a CycloneDX list on stdout: this interpreter's packages and Debian's."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

_DEBIAN = "${db:Status-Abbrev}\t${source:Package}\t${Package}\t${Version}\t${Architecture}\n"


def python_packages(found: Iterable[importlib.metadata.Distribution]) -> Iterator[dict[str, Any]]:
    for each in found:
        name, version = each.metadata["Name"], each.version
        plain = re.sub(r"[-_.]+", "-", name).lower()
        component = {
            "type": "library", "name": name, "version": version,
            "purl": f"pkg:pypi/{plain}@{quote(version)}",
        }  # fmt: skip
        licence = each.metadata.get("License-Expression") or each.metadata.get("License") or ""
        if licence and len(licence) < 100:
            component["licenses"] = [{"license": {"name": licence}}]
        yield component


def debian_packages(listing: str) -> Iterator[dict[str, Any]]:
    """From dpkg-query's lines, of what is installed."""
    for line in listing.splitlines():
        state, _, name, version, architecture = line.split("\t")
        if state.startswith("ii"):
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}"
            yield {"type": "library", "name": name, "version": version, "purl": purl}


def document(components: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": sorted(components, key=lambda each: each["purl"]),
    }


def main() -> None:
    listing = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={_DEBIAN}"], check=True, capture_output=True, text=True
    )
    everything = [*python_packages(importlib.metadata.distributions()), *debian_packages(listing.stdout)]
    json.dump(document(everything), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
