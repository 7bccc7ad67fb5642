"""Pictures for the documents, made by one command from a real run: `python -m tests.browser.screenshots`.

Add a folder to write somewhere else than docs/pictures. Takes a minute or two.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tests.browser.chromium import PATIENCE_S, Browser, browser, why_not
from tests.browser.pages import large_history
from vsr_hpc.bench.made_clip import make_demo_clip
from vsr_hpc.errors import VsrError
from vsr_hpc.report.page import page
from vsr_hpc.report.preview import png, preview
from vsr_hpc.report.report import gather
from vsr_hpc.run.run import Run

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
MOST_BYTES = 300_000
_WIDE, _PHONE = (1180, 820), (390, 844)


def main() -> None:
    reason = why_not()
    if reason is not None:
        sys.exit(reason)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    target.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="films-") as folder,
        browser(Path(folder) / "profile") as chromium,
    ):
        work = Path(folder) / "films"
        work.mkdir()
        clip = make_demo_clip(work / "clip.mkv", seconds=6, size=(256, 144))
        with _dashboard(work) as address:
            _live(chromium, address, work, target)
        _report(chromium, Run.open(str(work / "bigger.mkv")), Path(folder), target)
        shown = preview(str(clip), _MODELS, at="5", scale=4, crop="160x90")
        _keep(_png(png(shown)), target / "preview.png")
    for path in sorted(target.glob("*.png")):
        print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")


_MODEL = "vsr-video-x4"
_MODELS = ("bicubic", "lanczos", _MODEL)


def _live(chromium: Browser, address: str, work: Path, target: Path) -> None:
    chromium.open(f"{address}#new", size=_WIDE)
    chromium.one("input[type=file]").send_keys(str(work / "clip.mkv"))
    chromium.wait(lambda: chromium.run("return document.querySelector('.shown[data-done]')"), "the upload")
    chromium.run("document.querySelector('select').value = arguments[0]", _MODEL)
    chromium.run("document.querySelector('select').dispatchEvent(new Event('change'))")
    chromium.run(
        "[...document.querySelectorAll('button')].find((e) => e.textContent.startsWith('Prev')).click()"
    )
    chromium.wait(lambda: chromium.all(".comparison .stage"), "the preview")
    time.sleep(0.5)
    _keep(chromium.picture(is_whole=True), target / "new-run.png", height=1500)
    command = [
        sys.executable, "-m", "vsr_hpc", "upscale", "clip.mkv", "bigger.mkv", "-m", _MODEL, "-s", "4",
        "--preset", "medium", "--workers", "3", "--chunk-s", "0.5", "-q",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=work)
    try:
        chromium.open(address, size=_WIDE, is_dark=True)
        chromium.wait(lambda: chromium.all(".run"), "the run")
        chromium.one(".run").click()
        run = _once_planned(work / "bigger.mkv")
        chromium.wait(lambda: len(run.finished()) >= 3, "some shards")
        victim = next(beat for beat in run.heartbeats() if beat.state == "working")
        os.kill(victim.pid, signal.SIGKILL)
        chromium.wait(lambda: len(run.finished()) >= 7, "more shards")
        time.sleep(1.5)
        _keep(chromium.picture(is_whole=True), target / "dashboard-run.png", height=1300)
        process.wait(PATIENCE_S * 4)
    finally:
        process.kill()
        process.wait()
    chromium.open(address, size=(1180, 420))
    chromium.wait(lambda: "complete" in chromium.text(".runs"), "the end")
    _keep(chromium.picture(), target / "dashboard.png")


def _report(chromium: Browser, run: Run, folder: Path, target: Path) -> None:
    document = gather(run)
    path = folder / "report.html"
    path.write_bytes(page("bigger.mkv", ("report.js",), document, ""))
    for name, is_dark in (("report-light", False), ("report-dark", True)):
        chromium.open(path.as_uri(), size=_WIDE, is_dark=is_dark)
        chromium.run("document.querySelector('.thumb:nth-child(4)').click()")
        time.sleep(0.3)
        _keep(chromium.picture(is_whole=True), target / f"{name}.png", height=2500)
    chromium.open(path.as_uri(), size=_PHONE, is_phone=True, is_dark=True, dots=2)
    _keep(chromium.picture(), target / "report-phone.png")
    document["history"] = large_history()
    path.write_bytes(page("film.mkv", ("report.js",), json.loads(json.dumps(document)), ""))
    chromium.open(path.as_uri(), size=_WIDE)
    box = chromium.box(".timeline canvas")
    chromium.mouse("mouseMoved", box["x"] + box["width"] * 0.6, box["y"] + 98 + 6 * 20)
    chromium.wait(lambda: "Shard" in chromium.text(".tip"), "what is under the mouse")
    _keep(chromium.picture(), target / "timeline.png")


def _once_planned(path: Path) -> Run:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with contextlib.suppress(VsrError):
            run = Run.open(str(path))
            if run.has_plan():
                return run
        time.sleep(0.1)
    raise AssertionError(f"{path}: no plan came")


@contextlib.contextmanager
def _dashboard(work: Path) -> Iterator[str]:
    environment = {**os.environ, "XDG_STATE_HOME": str(work / ".state")}
    os.environ["XDG_STATE_HOME"] = environment["XDG_STATE_HOME"]
    command = [sys.executable, "-m", "vsr_hpc", "dashboard", "--port", "0"]
    server = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        server.stdout.close()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _keep(content: bytes, path: Path, height: int | None = None) -> None:
    """At most MOST_BYTES: fewer colours, then fewer dots."""
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    if height is not None:
        image = image.crop((0, 0, image.width, min(height, image.height)))
    for factor in (1.0, 0.85, 0.7, 0.6, 0.5, 0.4):
        size = (round(image.width * factor), round(image.height * factor))
        small = image.resize(size, Image.Resampling.LANCZOS) if factor < 1 else image
        file = io.BytesIO()
        small.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(
            file, "PNG", optimize=True
        )
        if file.tell() <= MOST_BYTES:
            break
    path.write_bytes(file.getvalue())


if __name__ == "__main__":
    main()
