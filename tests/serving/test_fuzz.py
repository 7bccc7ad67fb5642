"""No request brings the server to a fault: some hundred here, thousands by soak_fuzz.py."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from tests.serving import fuzz
from tests.serving.samples import still
from tests.serving.served import Served


@settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(sent=fuzz.requests)
def test_no_request_is_answered_by_a_fault(server: Served, sent: fuzz.Request) -> None:
    fuzz.check(server, *sent)


def test_after_all_that_the_server_is_well(server: Served) -> None:
    assert server.request("GET", "/ping").status == 200
    assert server.invoke(still(), "image/png").status == 200
    assert server.metric("vsr_requests_inside") == 0
