"""A run tells its end to whoever the job names: once, from one process, and names never become commands."""

from __future__ import annotations

import http.server
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.runs import finished, planned_run, tiny_job
from vsr_hpc import launch
from vsr_hpc.errors import JobError
from vsr_hpc.job.options import command_line
from vsr_hpc.job.reading import parse_job
from vsr_hpc.report.facts import reproduce
from vsr_hpc.run.known_runs import remember
from vsr_hpc.run.notification import notify
from vsr_hpc.run.run import Run


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def recorder(folder: Path) -> str:
    """A command that appends its arguments and the facts in its environment to a file, a line a call."""
    script = folder / "record.py"
    script.write_text(
        "import json, os, sys\n"
        "facts = {k: v for k, v in os.environ.items() if k.startswith('VSR_')}\n"
        f"open({str(folder / 'calls')!r}, 'a').write(json.dumps([sys.argv[1:], facts]) + '\\n')\n"
    )
    return shlex.join([sys.executable, str(script), "to", "me"])


def calls(folder: Path) -> list[Any]:
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_in(folder: Path, target: str, name: str = "out.mkv") -> Run:
    folder.mkdir(exist_ok=True)
    job = tiny_job(folder, run={"notify": target})
    return planned_run(job.model_copy(update={"output": str(folder / name)}))


def test_a_finished_run_calls_its_command_once_with_the_facts_in_the_environment(tmp_path: Path) -> None:
    run = run_in(tmp_path / "a", recorder(tmp_path))
    done = finished(run)
    assert launch.finish_here(run) == done
    [(words, facts)] = calls(tmp_path)
    assert words == ["to", "me"]
    assert facts["VSR_EVENT"] == "complete" and facts["VSR_OUTPUT"] == done.output
    assert facts["VSR_RUN"] == run.uri and facts["VSR_FRAMES"] == facts["VSR_FRAMES_DONE"] == "24"


def test_of_many_processes_that_see_it_one_calls(tmp_path: Path) -> None:
    run = run_in(tmp_path / "a", recorder(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: notify(Run.open(run.uri), "complete", "x"), range(8)))
    assert sum(told) == 1 and len(calls(tmp_path)) == 1


def test_names_are_never_words_of_a_command(tmp_path: Path) -> None:
    name = "$(touch PWNED); touch PWNED `touch PWNED` 'a\" %s & .mkv"
    run = run_in(tmp_path / "a", recorder(tmp_path), name)
    assert notify(run, "stuck", f"{name} is stuck")
    [(words, facts)] = calls(tmp_path)
    assert words == ["to", "me"] and facts["VSR_OUTPUT"].endswith(name)
    assert not list(tmp_path.rglob("PWNED")) and not Path("PWNED").exists()


def test_a_round_ends_early_once_and_the_next_may_end_so_again(tmp_path: Path) -> None:
    run = run_in(tmp_path / "a", recorder(tmp_path))
    run.start_round("local", 1, 1)
    assert notify(run, "stopped", "x") and not notify(run, "stuck", "x") and not notify(run, "stopped", "x")
    run.start_round("local", 1, 1)
    assert notify(run, "stuck", "x")
    assert [facts["VSR_EVENT"] for _, facts in calls(tmp_path)] == ["stopped", "stuck"]


def test_whoever_looks_at_a_run_of_others_calls_nothing(tmp_path: Path) -> None:
    run = run_in(tmp_path / "a", recorder(tmp_path))
    run.start_round("local", 1, 1)
    assert launch.cancel(run) and calls(tmp_path) == []
    remember(run)
    assert launch.cancel(run) and [facts["VSR_EVENT"] for _, facts in calls(tmp_path)] == ["stopped"]


@pytest.mark.parametrize("target", ["/no/such/command", "false", "http://127.0.0.1:9/x"])
def test_a_call_that_fails_is_a_warning_and_no_error(
    tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert notify(run_in(tmp_path / "a", target), "complete", "x")
    assert "notification" in caplog.text and "/x" not in caplog.text


@pytest.fixture
def hook() -> Iterator[tuple[str, list[Any]]]:
    got: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret", got
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_the_facts_as_json(tmp_path: Path, hook: tuple[str, list[Any]]) -> None:
    url, got = hook
    run = run_in(tmp_path / "a", url)
    assert notify(run, "stuck", "2 shards cannot be made")
    [facts] = got
    assert facts["event"] == "stuck" and facts["text"] == "vsr: stuck: 2 shards cannot be made"
    assert (facts["frames"], facts["frames_done"], facts["run"]) == ("24", "0", run.uri)


def test_an_address_is_in_no_report(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, run={"notify": "https://hooks.example/secret", "workers": 2})
    made = reproduce(job)
    assert "secret" not in made.command + made.job + command_line(job) and "workers" in made.job


@pytest.mark.parametrize("target", ["", "mail 'unfinished", "  "])
def test_what_is_no_command_is_refused(target: str) -> None:
    document = {"input": "a.mkv", "output": "b.mkv", "run": {"notify": target}}
    with pytest.raises(JobError, match=r"run\.notify"):
        parse_job(document, "job.yaml")
