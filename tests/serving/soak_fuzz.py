"""Thousands of damaged requests against one server, and its memory before and after. Run by hand:

python -m tests.serving.soak_fuzz --cases 2500
"""

from __future__ import annotations

import argparse
import collections
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from tests.serving import fuzz
from tests.serving.samples import network_file, still
from tests.serving.served import served


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2500)
    cases = parser.parse_args().cases
    seen: collections.Counter[int] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        network_file(home / "model" / "tiny.safetensors")
        with served(
            home, "--model", "bicubic", "--model", "nearest", "--model-dir", str(home / "model"),
            "--max-payload-mb", "1", "--max-megapixels-out", "1", "--batch", "4",
        ) as server:  # fmt: skip

            @settings(
                max_examples=cases,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            @given(sent=fuzz.requests)
            def storm(sent: fuzz.Request) -> None:
                seen[fuzz.check(server, *sent)] += 1

            server.invoke(still(), "image/png")
            before = server.metric("process_resident_memory_bytes")
            storm()
            after = server.metric("process_resident_memory_bytes")
            assert server.request("GET", "/ping").status == 200
            assert server.invoke(still(), "image/png").status == 200
    print(f"{sum(seen.values())} cases: {dict(sorted(seen.items()))}")
    print(f"resident memory {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after")


if __name__ == "__main__":
    main()
