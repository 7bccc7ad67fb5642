"""The live page in a real browser, while real runs go on."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser.chromium import PATIENCE_S, Browser
from tests.browser.conftest import Live, dashboard
from tests.browser.pages import made_run
from tests.clips import numbered_clip
from tests.moto_server import moto_server
from tests.require import require
from tests.runs import finished, planned_run, tiny_job
from vsr_hpc.dashboard.snapshots import run_id
from vsr_hpc.report.report import NAME
from vsr_hpc.run import known_runs
from vsr_hpc.run.run import Run
from vsr_hpc.run.status import read_status

pytestmark = pytest.mark.browser

HOSTILE = "x<img src=x onerror=pwned=1><svg onload=pwned=1>'\"&.mkv"


def state(chromium: Browser) -> str:
    return str(chromium.run("return document.documentElement.dataset.state ?? ''"))


def press(chromium: Browser, text: str) -> None:
    """A button by its words, once it is there to be pressed."""

    def pressed() -> bool:
        return bool(
            chromium.run(
                "const it = [...document.querySelectorAll('button, a.button')]"
                ".find((each) => each.textContent === arguments[0] && !each.disabled);"
                "if (it) it.click(); return Boolean(it)",
                text,
            )
        )

    chromium.wait(pressed, f"the button {text!r}")


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def ask(
    live: Live, path: str, method: str = "GET", host: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request as anybody on this machine could send it; `path` below the token."""
    parts = urlsplit(live.address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE_S)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or parts.netloc)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def token(live: Live) -> str:
    return urlsplit(live.address).path.strip("/")


def test_a_dropped_clip_is_tried_begun_and_followed_to_its_report(chromium: Browser, live: Live) -> None:
    clip = numbered_clip(live.folder / HOSTILE, frames=24)
    chromium.open(f"{live.address}#new")
    chromium.one("input[type=file]").send_keys(str(clip))
    chromium.wait(lambda: chromium.run("return document.querySelector('.shown[data-done]')"), "the upload")
    place = Path(chromium.run("return document.getElementById('input').value"))
    assert place.read_bytes() == clip.read_bytes()
    chromium.wait(
        lambda: "→" in chromium.text(".plan") and "vsr-video-x2" in chromium.text(".plan"), "a plan"
    )
    choose = "const it = document.querySelector('select'); it.value = 'bicubic'; it.dispatchEvent("
    chromium.run(f"{choose}new Event('input', {{bubbles: true}}))")
    chromium.wait(lambda: "128×96, bicubic (CPU" in chromium.text(".plan"), "the plan of another model")
    press(chromium, "Preview one second")
    chromium.wait(lambda: chromium.all(".comparison .stage"), "the preview")
    assert len(chromium.all(".loop")) == 1
    press(chromium, "Begin the whole run")
    chromium.wait(lambda: state(chromium) == "complete", "the end of the run")
    chromium.wait(lambda: chromium.all("a[href*='/report/']"), "the report")
    run = Run.open(f"{place.with_name(place.stem)}-bicubic.mkv")
    assert read_status(run).state == "complete"
    assert "24" in chromium.text(".tiles")
    assert chromium.run("return window.pwned") is None
    chromium.wait(lambda: chromium.all(".viewer .stage"), "the latest finished frame")
    saved = chromium.run(
        "const link = document.querySelector('a[download]');"
        "return fetch(link.href).then((answer) => answer.arrayBuffer()).then((body) => body.byteLength)"
    )
    assert saved == Path(run.job().output).stat().st_size
    report = chromium.one("a[href*='/report/']").get_attribute("href")
    assert chromium.console() == []
    outside = [each for each in chromium.requests() if not each.startswith((live.address, "data:", "about:"))]
    assert outside == []
    chromium.open(report)
    assert chromium.run("return window.origin") == "null", "a report may not act as the page that shows it"
    assert token(live) not in report
    assert chromium.console() == []
    assert chromium.run("return window.pwned") is None


def test_runs_are_found_and_taken_off_the_list(
    chromium: Browser, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(live.folder / "state"))
    names = ("blue.mkv", "green.mkv")
    for name in names:
        (live.folder / name[:-4]).mkdir()
        run = planned_run(tiny_job(live.folder / name[:-4], frames=4, output=str(live.folder / name)))
        known_runs.remember(run)
    finished(run)

    def listed() -> set[str]:
        script = "return [...document.querySelectorAll('.run b')].map((each) => each.textContent)"
        return set(chromium.run(script)) & set(names)

    chromium.open(live.address)
    chromium.wait(lambda: listed() == set(names), "both runs")
    chromium.wait(
        lambda: chromium.run("return document.querySelector('img.shot')?.naturalWidth"), "a thumbnail"
    )
    chromium.one("input[type=search]").send_keys("GREEN nearest")
    chromium.wait(lambda: listed() == set(), "no run")
    chromium.one("input[type=search]").clear()
    chromium.one("input[type=search]").send_keys("green")
    chromium.wait(lambda: listed() == {"green.mkv"}, "one run")
    chromium.run(
        "const it = document.querySelector('.find select'); it.value = 'complete';"
        "it.dispatchEvent(new Event('change'));"
    )
    chromium.wait(lambda: listed() == {"green.mkv"}, "the complete run")
    chromium.run("document.querySelector('.remove').click()")
    chromium.wait(lambda: listed() == set(), "the run to go")
    assert Path(run.uri).is_dir()
    assert chromium.console() == []


def test_a_run_that_goes_on_is_shown_cancelled_and_resumed(chromium: Browser, live: Live) -> None:
    clip = numbered_clip(live.folder / "long.mkv", frames=400, size=(320, 240))
    command = [
        sys.executable, "-m", "vsr_hpc", "upscale", clip.name, "long.out.mkv", "-m", "lanczos", "-s", "4",
        "--preset", "veryslow", "--encoder-threads", "1", "--threads", "1", "--chunk-s", "0.5", "-q",
    ]  # fmt: skip
    environment = {**os.environ, "XDG_STATE_HOME": str(live.folder / "state")}
    process = subprocess.Popen(command, cwd=live.folder, env=environment, stderr=subprocess.DEVNULL)
    run = None
    try:
        chromium.open(live.address)
        chromium.wait(lambda: "long.out.mkv" in chromium.text(".runs"), "the run in the list")
        chromium.wait(
            lambda: chromium.run(
                "const all = [...document.querySelectorAll('.run')];"
                "const it = all.find((each) => each.textContent.includes('long.out'));"
                "if (it) it.click(); return Boolean(it)"
            ),
            "the way to the run",
        )
        chromium.wait(lambda: state(chromium) == "running", "the run to go on")
        chromium.wait(lambda: "working" in chromium.run("return document.body.innerHTML"), "its worker")
        first = chromium.wait(lambda: _frames(chromium), "the first frames")
        chromium.wait(lambda: _frames(chromium) > first, "more frames, without a reload")
        chromium.wait(lambda: "worker began" in chromium.text(".log"), "its log")
        assert chromium.weak_texts() == []
        press(chromium, "Cancel")
        chromium.wait(lambda: state(chromium) == "cancelled", "the cancelled run")
        assert process.wait(PATIENCE_S) == 130
        run = Run.open(str(live.folder / "long.out.mkv"))
        left = len(run.missing())
        assert left > 0
        press(chromium, "Resume")
        chromium.wait(lambda: state(chromium) == "running", "the resumed run")
        chromium.wait(lambda: len(run.rounds()) == 2, "the second round")
        press(chromium, "Cancel")
        chromium.wait(lambda: state(chromium) == "cancelled", "the run cancelled again")
        assert chromium.console() == []
    finally:
        process.kill()
        process.wait()
        if run is not None:
            run.cancel()
            until(lambda: not read_status(run).alive, "the workers to leave")


def _frames(chromium: Browser) -> int:
    return int(
        chromium.run(
            "return document.querySelector('.tile dd')?.firstChild.textContent.replace(/\\D/g, '') || '0'"
        )
    )


def test_what_cannot_be_run_is_said_where_the_person_looks(chromium: Browser, live: Live) -> None:
    (live.folder / "text.mkv").write_text("no film")
    chromium.open(f"{live.address}#new")
    chromium.run("document.getElementById('input').value = arguments[0]", str(live.folder / "text.mkv"))
    press(chromium, "Begin the whole run")
    chromium.wait(lambda: "text.mkv" in chromium.text(".trouble"), "the reason")
    press(chromium, "Preview one second")
    chromium.wait(lambda: "Making" not in chromium.text("main") and chromium.text(".trouble"), "the reason")


@pytest.mark.parametrize("size", [(1200, 900), (390, 844)], ids=["wide", "phone"])
def test_the_pages_fit_and_say_nothing_on_the_console(
    chromium: Browser, live: Live, size: tuple[int, int]
) -> None:
    for where in ("", "#new"):
        chromium.open(f"{live.address}{where}", size=size, is_phone=size[0] < 600, is_dark=True)
        assert chromium.run("return document.documentElement.scrollWidth") <= size[0]
        assert chromium.weak_texts() == []
        assert chromium.console() == []


def test_a_clip_for_s3_goes_there_in_parts_and_never_through_the_server(
    chromium: Browser, tmp_path: Path
) -> None:
    try:
        import moto.moto_server  # noqa: F401
    except ImportError as exc:
        require("moto", f"moto[server] is not installed ({exc})")
    clip = tmp_path / "a&b.mkv"
    clip.write_bytes(os.urandom(1 << 20) * 17)  # two parts
    with moto_server() as aws:
        aws.make_bucket("films")
        with dashboard(tmp_path, "s3://films/in", aws.environment) as served:
            chromium.open(f"{served.address}#new")
            assert "straight to s3://films/in" in chromium.text(".drop")
            chromium.one("input[type=file]").send_keys(str(clip))
            chromium.wait(lambda: chromium.all(".shown[data-done]"), "the upload")
            place = chromium.run("return document.getElementById('input').value")
            sent = chromium.requests()
            assert chromium.console() == []
        key = place.removeprefix("s3://films/")
        body = aws.client("s3").get_object(Bucket="films", Key=key)["Body"]
        assert body.read() == clip.read_bytes()
        body.close()
        assert aws.client("s3").list_multipart_uploads(Bucket="films").get("Uploads", []) == []
    parts = {each.split("partNumber=")[1].split("&")[0] for each in sent if "partNumber=" in each}
    assert parts == {"1", "2"}
    assert all(each.startswith(aws.url) for each in sent if "partNumber=" in each)
    assert not any("/api/clips" in each for each in sent)


# The door. Needs no browser: these are other programs and other pages


def test_without_its_token_nothing_is_answered(live: Live) -> None:
    for path in ("/", "/api/setup", "/x/api/setup", f"/{token(live)[:-1]}/", f"/{token(live)}x/"):
        assert ask(live, path)[0] == 403


def test_a_report_cannot_learn_the_token(
    chromium: Browser, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague who may write the run's store put a page of his own in the report's place."""
    folder = live.folder / "shared"
    folder.mkdir()
    run = made_run(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(live.folder / "state"))
    known_runs.remember(run)
    run.store.put(
        NAME,
        b"<script>"
        b"const all = [location.href, document.referrer, String(opener), name, origin,"
        b" JSON.stringify(performance.getEntries())];"
        b"document.documentElement.dataset.ready = 'x'; document.title = all.join(' ');"
        b"fetch('/').catch((e) => (document.title += ' refused'));"
        b"</script>",
    )
    chromium.open(f"{live.address}#run={run_id(run.uri)}")
    chromium.wait(lambda: chromium.all("a[href*='/report/']"), "the report")
    page = chromium.driver.current_window_handle
    press(chromium, "Report")
    chromium.wait(lambda: len(chromium.driver.window_handles) == 2, "the report's own tab")
    chromium.driver.switch_to.window(next(e for e in chromium.driver.window_handles if e != page))
    try:
        chromium.wait(lambda: "refused" in chromium.driver.title, "what the report found out")
        assert "/report/" in chromium.driver.title
        assert token(live) not in chromium.driver.title
    finally:
        chromium.driver.close()
        chromium.driver.switch_to.window(page)


def test_a_foreign_name_that_points_here_is_refused(live: Live) -> None:
    port = urlsplit(live.address).port
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1:1"):
        assert ask(live, f"/{token(live)}/", host=host)[0] == 403
    assert ask(live, f"/{token(live)}/", host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}]
)
def test_a_foreign_page_may_not_send(live: Live, headers: dict[str, str]) -> None:
    path = f"/{token(live)}/api/runs/0123456789abcdef/cancel"
    assert ask(live, path, "POST", **headers)[0] == 403
    assert ask(live, path, "POST", Origin=live.address.rsplit("/", 2)[0])[0] == 404, "its own page may"


def test_only_files_of_the_page_are_given_out(live: Live) -> None:
    for name in (
        "../server.py",
        "..%2fserver.py",
        "%2e%2e/guard.py",
        "report.html",
        "app.js/",
        "__init__.py",
    ):
        assert ask(live, f"/{token(live)}/web/{name}")[0] == 404
    status, headers, _ = ask(live, f"/{token(live)}/web/app.js")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/javascript")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


def test_an_unknown_run_is_not_looked_for(live: Live) -> None:
    for number in ("0123456789abcdef", "..%2f..%2fetc", "etc"):
        assert ask(live, f"/report/{number}")[0] == 404
        assert ask(live, f"/{token(live)}/api/runs/{number}/events")[0] == 404


def test_an_upload_keeps_to_its_folder(live: Live) -> None:
    path = f"/{token(live)}/api/clips?name=..%2F..%2F.%2Fescape%00.mkv"
    status, _, said = ask(live, path, "PUT", Content_Length="0")
    assert status == 400
    assert b"0 of 0 bytes" in said
    assert not list(live.folder.rglob("*escape*"))
