"""The report in a real browser: what moves, what keys do, what it never does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Browser
from tests.browser.pages import large_history, made_run
from vsr_hpc.report.page import page
from vsr_hpc.report.report import gather

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.pwned=1'>\"</title><svg onload=window.pwned=1>"


def stage(chromium: Browser) -> dict[str, Any]:
    return {
        key: float(value)
        for key, value in chromium.run("return {...document.querySelector('.stage').dataset}").items()
    }


def test_the_divider_follows_the_mouse_and_the_keys(chromium: Browser, report: str) -> None:
    chromium.open(report)
    box = chromium.box(".stage")
    middle = box["y"] + box["height"] / 2
    chromium.drag((box["x"] + box["width"] / 2, middle), (box["x"] + box["width"] / 4, middle))
    assert stage(chromium)["split"] == pytest.approx(0.25, abs=0.01)
    assert "75%" in chromium.run("return document.querySelector('.layer.before').style.clipPath")
    chromium.key("ArrowRight", code=39)
    assert stage(chromium)["split"] == pytest.approx(0.27, abs=0.011)
    chromium.key("Home", code=36)
    assert chromium.one("[role=slider]").get_attribute("aria-valuenow") == "0"
    chromium.key("End", code=35)
    assert "before 100 %" in chromium.one("[role=slider]").get_attribute("aria-valuetext")


def test_zoom_is_one_for_both_sides_and_stays_from_frame_to_frame(chromium: Browser, report: str) -> None:
    chromium.open(report)
    chromium.run("document.querySelector('[role=slider]').focus()")
    chromium.key("+", text="+")
    chromium.key("+", text="+")
    chromium.key("ArrowLeft", code=37, shift=True)
    moved = chromium.run(
        "return [...document.querySelectorAll('.layer img')].map((each) => each.style.transform)"
    )
    assert moved[0] == moved[1]
    assert "scale(2.25)" in moved[0]
    chromium.one(".thumb:nth-child(3)").click()
    assert stage(chromium) == {**stage(chromium), "zoom": 2.25, "index": 2}
    box = chromium.box(".stage")
    before = chromium.run("return document.querySelector('.after img').style.transform")
    chromium.drag((box["x"] + 40, box["y"] + 40), (box["x"] + 90, box["y"] + 60))
    assert chromium.run("return document.querySelector('.after img').style.transform") != before
    chromium.key("0", text="0")
    assert stage(chromium)["zoom"] == 1


def test_a_large_picture_opens_at_one_to_one_on_its_detail_and_its_crops_are_saved(
    chromium: Browser, report: str, tmp_path: Path
) -> None:
    chromium.open(report)
    document = json.loads(chromium.run("return document.getElementById('data').textContent"))
    for each in document["scenes"]:
        each.update(has_most_detail=False)
    document["scenes"][1].update(has_most_detail=True, width=4000, height=3000, focus=[0.8, 0.3])
    path = tmp_path / "large.html"
    path.write_bytes(page("large", ("report.js",), document, ""))
    chromium.open(path.as_uri())
    chromium.wait(lambda: stage(chromium)["zoom"] > 1, "the zoom")
    wide = chromium.run("return document.querySelector('.stage').clientWidth")
    assert stage(chromium)["zoom"] == pytest.approx(4000 / wide, abs=0.01)
    assert stage(chromium)["index"] == 1
    style = chromium.run("return document.querySelector('.after img').style.transform")
    x, y = (float(each) / 100 for each in re.findall(r"(-?[\d.]+)%", style))
    assert (x, y) == (
        pytest.approx(max(1 - 4000 / wide, 0.5 - 0.8 * 4000 / wide), abs=0.01),
        pytest.approx(0.5 - 0.3 * 4000 / wide, abs=0.01),
    )
    chromium.run(
        "const draw = HTMLCanvasElement.prototype.toBlob;"
        "HTMLCanvasElement.prototype.toBlob = function (...all) {"
        "  window.drawn = [this.width, this.height]; draw.apply(this, all); };"
        "HTMLAnchorElement.prototype.click = function () { window.saved = [this.download, this.href]; };"
        "document.querySelector('[role=slider]').focus()"
    )
    chromium.key("s", text="s")
    name, href = chromium.wait(lambda: chromium.run("return window.saved"), "the file")
    assert (name.split("-frame-")[0], href[:5]) == (document["name"], "blob:")
    assert chromium.run("return window.drawn")[0] == pytest.approx(2 * wide + 8, abs=3)
    assert chromium.console() == []


def test_ctrl_and_the_wheel_zoom_and_the_wheel_alone_scrolls(chromium: Browser, report: str) -> None:
    chromium.open(report)
    box = chromium.box(".stage")
    place = (box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    chromium.mouse("mouseWheel", *place, deltaX=0, deltaY=-200, modifiers=2)
    chromium.wait(lambda: stage(chromium)["zoom"] > 2, "the zoom")


def test_the_timeline_says_what_is_under_the_mouse_and_under_the_keys(chromium: Browser, report: str) -> None:
    chromium.open(report)
    box = chromium.box(".timeline canvas")
    chromium.run("document.querySelector('.timeline canvas').focus()")
    seen = set()
    for _ in range(4):
        chromium.key("ArrowDown", code=40)
        chromium.key("ArrowRight", code=39)
        seen.add(chromium.text(".tip"))
    assert any("Shard" in each and "frames" in each for each in seen)
    chromium.run("document.querySelector('.timeline canvas').blur()")
    assert chromium.run("return document.querySelector('.tip').hidden") is True
    found = ""
    for row in range(12):
        for step in range(40):
            chromium.mouse(
                "mouseMoved", box["x"] + 140 + step * (box["width"] - 150) / 40, box["y"] + 104 + row * 12
            )
            found = chromium.text(".tip:not([hidden])")
            if "Shard" in found:
                break
        if "Shard" in found:
            break
    assert "Shard" in found
    assert "fps" in found or "died" in found or "stopped" in found


def test_interruptions_are_drawn_and_named(chromium: Browser, report: str) -> None:
    chromium.open(report)
    words = chromium.text("main")
    assert "node-7-4711-dead" in words
    assert "1 died" in words
    shown = chromium.run("return JSON.parse(document.getElementById('data').textContent).history.breaks")
    assert {each[4] for each in shown} == {"died", "stopped"}


def test_loops_stand_still_for_those_who_asked_for_it(chromium: Browser, report: str) -> None:
    chromium.open(report)
    assert chromium.one(".loop").get_attribute("data-playing") == "true"
    chromium.one(".loop button").click()
    assert chromium.one(".loop").get_attribute("data-playing") == "false"
    chromium.open(report, is_still=True)
    assert {each.get_attribute("data-playing") for each in chromium.all(".loop")} == {"false"}


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_nothing_is_asked_of_the_network_and_the_console_is_empty(
    chromium: Browser, report: str, is_dark: bool
) -> None:
    chromium.open(report, is_dark=is_dark)
    for each in chromium.all("summary"):
        each.click()
    chromium.run("window.scrollTo(0, document.body.scrollHeight)")
    assert [each for each in chromium.requests() if not each.startswith(("data:", "about:"))] == [report]
    assert chromium.console() == []


def test_a_request_out_of_the_page_is_refused_by_its_own_policy(chromium: Browser, report: str) -> None:
    chromium.open(report)
    said = chromium.driver.execute_async_script(
        "const done = arguments[0];"
        "fetch('http://127.0.0.1:9/').then(() => done('sent'), (error) => done(String(error)));"
    )
    assert said != "sent"
    assert any("Content Security Policy" in each for each in chromium.console())


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(chromium: Browser, report: str, is_dark: bool) -> None:
    """WCAG 2 AA: 4.5 to 1. Text on pictures is on a dark pill of its own, and is left out."""
    chromium.open(report, is_dark=is_dark)
    assert chromium.weak_texts() == []


def test_a_phone_scrolls_in_one_direction_only(chromium: Browser, report: str) -> None:
    chromium.open(report, size=(390, 844), is_phone=True, dots=2)
    assert chromium.run("return document.documentElement.scrollWidth") <= 390


def test_everything_that_can_be_used_has_a_name(chromium: Browser, report: str) -> None:
    chromium.open(report)
    unnamed = chromium.run(
        "return [...document.querySelectorAll('button, canvas, img, select, input, [tabindex]')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.hasAttribute('alt')))"
        ".map((e) => e.outerHTML.slice(0, 120))"
    )
    assert unnamed == []


def test_names_that_are_scripts_stay_names(chromium: Browser, tmp_path: Path) -> None:
    run = made_run(tmp_path, output=str(tmp_path / "a<svg onload=pwned=1>'\"&.mkv"))
    document = gather(run)
    hostile = f"{HOSTILE}</script><script>window.pwned=1</script>"
    document.update(model=hostile, source_name=hostile, uri=hostile)
    for lane in document["history"]["lanes"]:
        lane.update(worker=hostile, node=hostile, device=hostile)
    document["ran"]["model"] = [[hostile, hostile]]
    document["checks"].append({"state": "note", "title": hostile, "text": hostile})
    path = tmp_path / "hostile.html"
    path.write_bytes(page(hostile, ("report.js",), document, hostile))
    chromium.open(path.as_uri())
    assert chromium.run("return window.pwned") is None
    assert chromium.run("return document.querySelectorAll('main svg, main img[src=x]').length") == 0
    assert hostile in chromium.text("main")
    assert chromium.driver.title == hostile
    assert chromium.console() == []


def test_ten_thousand_shards_are_drawn_and_found(chromium: Browser, report: str, tmp_path: Path) -> None:
    chromium.open(report)
    document = json.loads(chromium.run("return document.getElementById('data').textContent"))
    document["history"] = large_history()
    content = page("large", ("report.js",), document, "large")
    assert len(content) < 3_000_000
    path = tmp_path / "large.html"
    path.write_bytes(content)
    chromium.open(path.as_uri())
    box = chromium.box(".timeline canvas")
    chromium.mouse("mouseMoved", box["x"] + box["width"] / 2, box["y"] + 98 + 6 * 10)
    chromium.wait(lambda: "Shard" in chromium.text(".tip"), "the shard under the mouse")
    chromium.run("document.querySelector('.timeline canvas').focus()")
    for _ in range(5):
        chromium.key("+", text="+")
    assert float(chromium.one(".timeline").get_attribute("data-zoom")) == 32
    assert chromium.run("return document.querySelectorAll('*').length") < 3000, "shards are no elements"
    assert chromium.console() == []
