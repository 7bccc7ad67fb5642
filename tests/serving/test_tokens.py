"""Who may ask a server: tokens that are exchanged while it runs, and HTTPS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.commands import process
from tests.serving.samples import still
from tests.serving.served import served
from tests.tools import find_tool
from vsr_hpc.errors import JobError
from vsr_hpc.serving.refusals import Refusal
from vsr_hpc.serving.tokens import Tokens, first_token

OLD, NEW = "old-0123456789abcdef", "new-0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "holds no token"), ("# none\n\n", "holds no token"), ("short\n", "at least 16 characters")],
)
def test_a_file_without_a_good_token_is_refused_at_the_start(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    for read in (Tokens, first_token):
        with pytest.raises(JobError, match=why):
            read(path)
    with pytest.raises(JobError, match="No such file"):
        Tokens(tmp_path / "gone")


def test_tokens_follow_their_file_and_stay_where_it_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# of the editors\n{OLD}\n")
    tokens = Tokens(path)
    mark = tokens.caller(f"Bearer {OLD}")
    assert len(mark) == 8 and mark not in OLD
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {OLD}",
        f"Bearer {NEW}",
        f"Bearer {OLD}x",
        "Bearer \udcff",
    ):
        with pytest.raises(Refusal) as refused:
            tokens.caller(wrong)
        assert refused.value.status == 401 and OLD not in refused.value.text
    path.write_text(f"{OLD}\n{NEW}\n")
    assert tokens.caller(f"bearer {NEW}") != tokens.caller(f"Bearer {OLD}")
    path.write_text("")
    assert tokens.caller(f"Bearer {NEW}")
    path.write_text(f"{NEW}\n")
    with pytest.raises(Refusal):
        tokens.caller(f"Bearer {OLD}")


def test_a_server_with_tokens_and_a_certificate(tmp_path: Path) -> None:
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(
        [str(find_tool("openssl")), "req", *made, *names], cwd=tmp_path, check=True, capture_output=True
    )
    (tmp_path / "tokens").write_text(f"{OLD}\n")
    (tmp_path / "others").write_text(f"{NEW}\n")
    (tmp_path / "in.png").write_bytes(still())
    arguments = ["--model", "nearest", "--token-file", "tokens", "--cert", "cert.pem", "--key", "key.pem"]
    places = [str(tmp_path / each) if (tmp_path / each).exists() else each for each in arguments]

    def ask(tokens: str) -> tuple[int, str]:
        said = process(
            "endpoint", "invoke", f"https://localhost:{server.port}", "in.png", "out.png",
            *(["--token-file", tokens] if tokens else []),
            cwd=tmp_path, SSL_CERT_FILE=str(tmp_path / "cert.pem"),
        )  # fmt: skip
        return said.code, said.err

    with served(tmp_path, *places, trusted=tmp_path / "cert.pem") as server:
        assert server.request("GET", "/ping").status == 200
        refused = server.invoke(still(), "image/png")
        assert (refused.status, refused.error["code"]) == (401, "token")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert server.request("GET", "/metrics").status == 401
        assert server.invoke(still(), "image/png", Authorization=f"Bearer {OLD}").status == 200
        assert ask("tokens")[0] == 0
        assert (tmp_path / "out.png").stat().st_size > 0
        code, said = ask("others")
        assert code == 2 and "with one of its tokens" in said
        assert ask("")[0] == 2
        (tmp_path / "tokens").write_text(f"{NEW}\n")
        assert ask("others")[0] == 0
        logged = "".join(server.lines)
        assert '"caller"' in logged and OLD not in logged and NEW not in logged


def test_a_token_does_not_go_over_a_network_in_the_open(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{OLD}\n")
    (tmp_path / "in.png").write_bytes(still())
    said = process(
        "endpoint", "invoke", "http://192.0.2.1:8080", "in.png", "out.png", "--token-file", "tokens",
        cwd=tmp_path,
    )  # fmt: skip
    assert said.code == 2 and "goes over https:// only" in said.err


def test_half_a_certificate_and_a_wrong_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("none")
    half = process("serve", "--model", "nearest", "--cert", "x.pem", cwd=tmp_path)
    assert half.code == 2 and "give both, or neither" in half.err
    wrong = process(
        "serve", "--model", "nearest", "--port", "0", "--cert", "x.pem", "--key", "x.pem", cwd=tmp_path
    )
    assert wrong.code == 2 and "--cert x.pem" in wrong.err and "Traceback" not in wrong.err
