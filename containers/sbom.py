"""Print what is in this image as a CycloneDX list.

It names Python packages, the libraries inside their wheels, and Debian's packages. A library inside a wheel
that `LIBRARIES` does not name ends the build: somebody has to look up its licence first.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

# The libraries inside the wheels of PyAV, Pillow and NumPy: project and SPDX licence. NOTICE tells people.
_FFMPEG = ("FFmpeg", "LGPL-3.0-or-later")
_X11 = ("X.Org", "MIT")
LIBRARIES = {
    "avcodec": _FFMPEG, "avdevice": _FFMPEG, "avfilter": _FFMPEG, "avformat": _FFMPEG, "avutil": _FFMPEG,
    "swresample": _FFMPEG, "swscale": _FFMPEG,
    "x264": ("x264", "GPL-2.0-or-later"),
    "x265": ("x265", "GPL-2.0-or-later"),
    "SvtAv1Enc": ("SVT-AV1", "BSD-3-Clause-Clear"),
    "dav1d": ("dav1d", "BSD-2-Clause"),
    "vpx": ("libvpx", "BSD-3-Clause"),
    "vpl": ("Intel VPL", "MIT"),
    "mp3lame": ("LAME", "LGPL-2.0-or-later"),
    "opus": ("Opus", "BSD-3-Clause"),
    "opencore-amrnb": ("OpenCORE AMR", "Apache-2.0"),
    "opencore-amrwb": ("OpenCORE AMR", "Apache-2.0"),
    "gnutls": ("GnuTLS", "LGPL-2.1-or-later"),
    "nettle": ("Nettle", "LGPL-3.0-or-later OR GPL-2.0-or-later"),
    "hogweed": ("Nettle", "LGPL-3.0-or-later OR GPL-2.0-or-later"),
    "gmp": ("GMP", "LGPL-3.0-or-later OR GPL-2.0-or-later"),
    "unistring": ("GNU libunistring", "LGPL-3.0-or-later OR GPL-2.0-or-later"),
    "asound": ("ALSA", "LGPL-2.1-or-later"),
    "drm": ("libdrm", "MIT"),
    "Xau": _X11, "xcb": _X11, "xcb-shape": _X11, "xcb-shm": _X11, "xcb-xfixes": _X11,
    "webp": ("libwebp", "BSD-3-Clause"), "webpmux": ("libwebp", "BSD-3-Clause"),
    "webpdemux": ("libwebp", "BSD-3-Clause"), "sharpyuv": ("libwebp", "BSD-3-Clause"),
    "avif": ("libavif, with AOM, dav1d and SVT-AV1", "BSD-2-Clause AND BSD-3-Clause-Clear"),
    "brotlicommon": ("Brotli", "MIT"), "brotlidec": ("Brotli", "MIT"),
    "freetype": ("FreeType", "FTL OR GPL-2.0-or-later"),
    "harfbuzz": ("HarfBuzz", "MIT-Modern-Variant"),
    "jpeg": ("libjpeg-turbo", "BSD-3-Clause AND IJG"),
    "lcms2": ("Little CMS", "MIT"),
    "lzma": ("XZ Utils", "0BSD"),
    "openjp2": ("OpenJPEG", "BSD-2-Clause"),
    "png16": ("libpng", "libpng-2.0"),
    "tiff": ("LibTIFF", "libtiff"),
    "zstd": ("Zstandard", "BSD-3-Clause"),
    "gfortran": ("GCC", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "quadmath": ("GCC", "LGPL-2.1-or-later"),
    "scipy_openblas64_": ("OpenBLAS", "BSD-3-Clause"),
}  # fmt: skip

_DEBIAN = "${db:Status-Abbrev}\t${source:Package}\t${Package}\t${Version}\t${Architecture}\n"


def python_packages(found: Iterable[importlib.metadata.Distribution]) -> Iterator[dict[str, Any]]:
    for each in found:
        name, version = each.metadata["Name"], each.version
        plain = re.sub(r"[-_.]+", "-", name).lower()
        component = {
            "type": "library", "name": name, "version": version,
            "purl": f"pkg:pypi/{plain}@{quote(version)}",
        }  # fmt: skip
        if expression := each.metadata.get("License-Expression"):
            component["licenses"] = [{"expression": expression}]
        elif licence := (each.metadata.get("License") or "").partition("\n")[0]:
            component["licenses"] = [{"license": {"name": licence}}]
        yield component


def bundled_libraries(packages: Path) -> Iterator[dict[str, Any]]:
    """The shared libraries that wheels carry in `<package>.libs` beside the packages."""
    for file in sorted(packages.glob("*.libs/*.so*")):
        named = re.fullmatch(r"lib(?P<name>.+?)-?(?:-[0-9a-f]{8})*\.so(?:\.(?P<version>.+))?", file.name)
        if named is None or named["name"] not in LIBRARIES:
            raise SystemExit(f"{file}: the licence of this library is not in containers/sbom.py")
        project, licence = LIBRARIES[named["name"]]
        version = named["version"] or "0"
        yield {
            "type": "library", "group": file.parent.name.removesuffix(".libs"), "name": named["name"],
            "description": f"{project}, inside the wheel", "version": version,
            "purl": f"pkg:generic/{quote(file.name)}@{quote(version)}?vendored-in={quote(file.parent.name)}",
            "licenses": [{"expression": licence}],
        }  # fmt: skip


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
    everything = [
        *python_packages(importlib.metadata.distributions()),
        *bundled_libraries(Path(sysconfig.get_path("platlib"))),
        *debian_packages(listing.stdout),
    ]
    json.dump(document(everything), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
