"""What SageMaker, Batch, enroot and people start the image with becomes one command of ours."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.containers.files import FOLDER, ROOT, part

entrypoint, healthcheck, sbom = part("entrypoint"), part("healthcheck"), part("sbom")


@pytest.mark.parametrize(
    ("started_with", "means"),
    [
        ("serve", "serve"),
        ("worker s3://b/r --threads 4", "worker s3://b/r --threads 4"),
        ("vsr batch worker s3://b/r", "batch worker s3://b/r"),
        ("/opt/vsr/bin/vsr worker r", "worker r"),
        ("vsr", ""),
        ("--help", "--help"),
        ("train --images a --out b", "models train --images a --out b"),
    ],
)
def test_words_reach_vsr_as_they_are_but_for_its_own_name(started_with: str, means: str) -> None:
    assert entrypoint.command(started_with.split(), None) == means.split()


def test_train_takes_hyperparameters_as_options() -> None:
    found = {"stop_at": "100", "images": '"/opt/ml/input/data/films"', "resume": "true", "json": "false"}
    assert entrypoint.command(["train"], found) == [
        "models", "train", "--images", "/opt/ml/input/data/films", "--out", "/opt/ml/model",
        "--stop-at", "100", "--resume",
    ]  # fmt: skip


def test_train_runs_another_command_where_one_is_named() -> None:
    found = {"command": "upscale '/opt/ml/in 1.mkv' out.mkv", "scale": "2", "sagemaker_region": "x"}
    assert entrypoint.command(["train"], found) == ["upscale", "/opt/ml/in 1.mkv", "out.mkv", "--scale", "2"]


def test_a_training_jobs_hyperparameters_are_read_where_sagemaker_puts_them(tmp_path: Path) -> None:
    assert entrypoint.read_hyperparameters(tmp_path) is None
    (tmp_path / "input/config").mkdir(parents=True)
    (tmp_path / "input/config/hyperparameters.json").write_text('{"steps": "1"}')
    assert entrypoint.read_hyperparameters(tmp_path) == {"steps": "1"}
    (tmp_path / "input/config/hyperparameters.json").write_text("[]")
    with pytest.raises(SystemExit, match="no JSON object"):
        entrypoint.read_hyperparameters(tmp_path)


def test_a_training_job_that_fails_leaves_its_reason_where_sagemaker_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, "argv", ["vsr"])
    with pytest.raises(SystemExit) as ended:
        entrypoint.train(["models", "show", "no-such-model"], tmp_path)
    assert ended.value.code not in (0, None)
    assert "no-such-model" in (tmp_path / "output/failure").read_text()


def test_a_training_job_that_succeeds_leaves_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vsr"])
    with pytest.raises(SystemExit) as ended:
        entrypoint.train(["--version"], tmp_path)
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.startswith("vsr ")
    assert not (tmp_path / "output").exists()


def test_last_words_are_the_end_of_what_was_said() -> None:
    heard = io.StringIO()
    words = entrypoint.LastWords(heard)
    words.write("x" * 2000)
    words.write("the end")
    assert len(words.text) == 1024 and words.text.endswith("the end") and len(heard.getvalue()) == 2007


def test_the_images_weights_stand_in_the_cache(tmp_path: Path) -> None:
    baked = tmp_path / "baked"
    (baked / "a").mkdir(parents=True)
    (baked / "a" / "net.pth").write_bytes(b"w")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for _ in range(2):  # the second start of a container finds the first one's links
        entrypoint.link_weights(baked, cache)
    assert (tmp_path / "cache/vsr_hpc/weights/a/net.pth").read_bytes() == b"w"


def test_weights_that_cannot_be_linked_are_said_and_no_reason_to_die(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "baked/a").mkdir(parents=True)
    (tmp_path / "cache").write_text("a file")
    entrypoint.link_weights(tmp_path / "baked", {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert "weights are not used" in capsys.readouterr().err


def test_an_image_without_weights_touches_no_cache(tmp_path: Path) -> None:
    entrypoint.link_weights(tmp_path / "none", {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert not (tmp_path / "cache").exists()


def test_the_entry_point_is_vsr_with_its_exit_codes() -> None:
    command = [sys.executable, str(FOLDER / "entrypoint.py")]
    said = subprocess.run([*command, "vsr", "--version"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout[:4]) == (0, "vsr ")
    said = subprocess.run([*command, "no-such-command"], capture_output=True, text=True, check=False)
    assert said.returncode == 2 and "no-such-command" in said.stderr


def test_sigterm_ends_a_command_that_has_no_handler_of_its_own() -> None:
    """The first process of a container ignores signals that nobody handles."""
    program = (
        "import runpy, signal, sys, time\n"
        "names = runpy.run_path(sys.argv[1], run_name='part')\n"
        "signal.signal(signal.SIGTERM, names['leave'])\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(FOLDER / "entrypoint.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            child.send_signal(signal.SIGTERM)
            assert child.wait(90) == 128 + signal.SIGTERM
        finally:
            child.kill()


# Health


@pytest.mark.parametrize(
    ("arguments", "environment", "port"),
    [
        (["python", "entrypoint.py", "serve", ""], {}, 8080),
        (["entrypoint.py", "serve"], {"SAGEMAKER_BIND_TO_PORT": "9090"}, 9090),
        (["entrypoint.py", "serve", "--port", "81"], {"SAGEMAKER_BIND_TO_PORT": "9090"}, 81),
        (["entrypoint.py", "serve", "--port=82"], {}, 82),
        (["docker-init", "--", "entrypoint.py", "serve"], {}, 8080),
        (["entrypoint.py", "worker", "run"], {}, None),
    ],
)
def test_health_asks_the_port_that_the_server_was_told(
    arguments: list[str], environment: dict[str, str], port: int | None
) -> None:
    assert healthcheck.port_of(arguments, environment) == port


# The list of what is inside


def test_the_list_of_contents_names_packages_of_both_kinds() -> None:
    listing = "ii \tpython3.11\tlibpython3.11\t3.11.2-6+deb12u6\tamd64\nrc \tgone\tgone\t1\tall\n"
    components = [
        *sbom.debian_packages(listing),
        *sbom.python_packages(sbom.importlib.metadata.distributions()),
    ]
    found = {each["name"]: each for each in sbom.document(components)["components"]}
    assert found["libpython3.11"]["purl"] == "pkg:deb/debian/libpython3.11@3.11.2-6%2Bdeb12u6?arch=amd64"
    assert "gone" not in found
    assert found["torch"]["purl"].startswith("pkg:pypi/torch@")
    assert json.loads(json.dumps(found["pydantic"]))["version"] == found["pydantic"]["version"]


def test_every_library_inside_a_wheel_is_listed_with_its_licence_and_named_in_the_notice() -> None:
    """Among them are the encoders that make an image GPL software."""
    found = {each["name"]: each for each in sbom.bundled_libraries(Path(sysconfig.get_path("platlib")))}
    assert {"x264", "x265", "SvtAv1Enc", "dav1d", "avcodec"} <= set(found)
    for name in ("x264", "x265"):
        assert found[name]["licenses"] == [{"expression": "GPL-2.0-or-later"}]
    notice = " ".join((ROOT / "NOTICE").read_text().split())
    for name in found:
        project, _ = sbom.LIBRARIES[name]
        for word in project.partition(", with")[0].split():
            assert word in notice, f"NOTICE does not name {project}"


def test_a_library_of_unknown_licence_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "odd.libs").mkdir()
    (tmp_path / "odd.libs" / "libodd-0123abcd.so.1.0").touch()
    with pytest.raises(SystemExit, match=r"libodd.*licence"):
        list(sbom.bundled_libraries(tmp_path))


def test_health_follows_the_server() -> None:
    """Against a server that is really there, and when it has gone."""
    import http.server
    import threading

    class Ping(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Ping) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            assert healthcheck.asked(server.server_address[1]) == (True, "/ping: 200")
            Ping.status = 503
            assert healthcheck.asked(server.server_address[1]) == (False, "/ping: 503")
        finally:
            server.shutdown()
            thread.join()
    is_well, said = healthcheck.asked(server.server_address[1])
    assert not is_well and "refused" in said
