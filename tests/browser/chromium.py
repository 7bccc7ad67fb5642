"""A real headless Chromium, and what tests ask of it: clicks, keys, the console, requests, pictures."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.tools import find_tool

PATIENCE_S = 90.0
_BINARIES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--disable-extensions", "--font-render-hinting=none",
    "--force-color-profile=srgb",
)  # fmt: skip


def why_not() -> str | None:
    """Why no browser can be driven here; None where one can."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: `make install` installs it"
    if find_tool(*_BINARIES) is None:
        return "no Chromium: sh tests/install-tools.sh installs it"
    if find_tool("chromedriver") is None:
        return "no chromedriver: sh tests/install-tools.sh installs it"
    return None


class Browser:
    """One session; `open` begins a page anew and forgets what the one before said."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self,
        address: str,
        *,
        size: tuple[int, int] = (1200, 900),
        is_dark: bool = False,
        is_still: bool = False,
        dots: float = 1,
        is_phone: bool = False,
    ) -> None:
        width, height = size
        self.driver.get("about:blank")
        self.requests()
        self.console()
        metrics = {"width": width, "height": height, "deviceScaleFactor": dots, "mobile": is_phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if is_still else "no-preference"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(address)
        self.wait(lambda: self.run("return document.documentElement.dataset.ready"), "the page to be drawn")

    def wait(self, until: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        """The first true answer; the page may take its time on a busy machine."""
        deadline = time.monotonic() + patience_s
        while True:
            found = until()
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {patience_s:.0f} s for {what}; console: {self.console()}")
            time.sleep(0.05)

    def run(self, script: str, *given: Any) -> Any:
        return self.driver.execute_script(script, *given)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A trusted event of the mouse at a place of the window."""
        event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1, **more}
        if kind == "mouseMoved":
            event |= {"button": "none", "buttons": more.get("buttons", 0)}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def drag(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start)
        self.mouse("mouseMoved", *stop, buttons=1)
        self.mouse("mouseReleased", *stop)

    def key(self, name: str, *, code: int = 0, text: str = "", shift: bool = False) -> None:
        event = {"key": name, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.driver.execute_cdp_cmd(
            "Input.dispatchKeyEvent", {"type": "keyDown", **event, **({"text": text} if text else {})}
        )
        self.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def box(self, selector: str) -> dict[str, float]:
        """Where an element is in the window, once it was scrolled into it."""
        found: dict[str, float] = self.run(
            "const it = document.querySelector(arguments[0]); it.scrollIntoView({block: 'center'});"
            "const {x, y, width, height} = it.getBoundingClientRect(); return {x, y, width, height}",
            selector,
        )
        return found

    def weak_texts(self) -> list[str]:
        """Texts below 4.5 to 1 (WCAG 2 AA). Those on pictures have a dark pill and are left out."""
        found: list[str] = self.run(_CONTRAST)
        return found

    def console(self) -> list[str]:
        """Errors and warnings since the last call."""
        return [each["message"] for each in self.driver.get_log("browser") if each["level"] != "INFO"]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        messages = [json.loads(each["message"])["message"] for each in self.driver.get_log("performance")]
        return [
            each["params"]["request"]["url"]
            for each in messages
            if each["method"] == "Network.requestWillBeSent"
        ]

    def wait_for_pictures(self) -> None:
        """Until every picture of the page can be drawn: decoding goes on beside the page."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "Promise.all([...document.images].map((each) => each.decode().catch(() => 0)))"
            ".then(() => done());"
        )

    def picture(self, *, selector: str | None = None, is_whole: bool = False) -> bytes:
        """A PNG of the window, of the whole page, or of one element."""
        self.wait_for_pictures()
        given: dict[str, Any] = {"format": "png"}
        if selector is not None:
            box = self.run(
                "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
                "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}",
                selector,
            )
            given |= {"clip": {**box, "scale": 1}}
        elif is_whole:
            width, height = self.run(
                "return [document.documentElement.clientWidth, document.documentElement.scrollHeight]"
            )
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            given |= {"captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", given)["data"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = find_tool(*_BINARIES)
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(find_tool("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_script_timeout(PATIENCE_S)
        yield Browser(driver)
    finally:
        driver.quit()


_CONTRAST = """
const channel = (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
function behind(element) {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
  }
  return [255, 255, 255];
}
const weak = new Set();
for (const summary of document.querySelectorAll('details')) summary.open = true;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const text = walker.currentNode.textContent.trim();
  if (!text || element.closest('script, style, noscript, .stage, .window, [hidden]')) continue;
  const style = getComputedStyle(element);
  if (style.visibility === 'hidden' || !element.getClientRects().length) continue;
  const [one, two] = [light(parse(style.color)), light(behind(element))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (two + 0.05);
  if (ratio < 4.5) weak.add(`${ratio.toFixed(2)} ${element.className}: ${text.slice(0, 30)}`);
}
return [...weak];
"""
