#!/usr/bin/env python3
"""`aws s3 cp` and `aws s3 sync` on folders: s3://bucket/key is /s3/bucket/key of the chroot."""

import shutil
import sys
from pathlib import Path


def place(address: str) -> Path:
    return Path("/s3") / address.removeprefix("s3://") if address.startswith("s3://") else Path(address)


def main() -> None:
    words = [each for each in sys.argv[1:] if not each.startswith("--")]
    if words[:2] not in (["s3", "cp"], ["s3", "sync"]):
        sys.exit(f"aws stub: {words}")
    source, target = place(words[2]), place(words[3])
    if words[1] == "cp":
        if not source.is_file():
            sys.exit(f"fatal error: {words[2]} does not exist")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    for each in source.rglob("*") if source.is_dir() else ():
        copy = target / each.relative_to(source)
        if each.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(each, copy)


main()
