"""Ten faults while a run is at work: the short version of chaos.py."""

from __future__ import annotations

import random

import pytest

from tests.require import require
from tests.slurm.chaos import OPTIONS, QUICK, Round, film_of, play, redone
from tests.slurm.fixtures import DevCluster, why_not

pytestmark = pytest.mark.slurm


def test_ten_faults_during_a_run_change_no_byte_of_its_output() -> None:
    if (reason := why_not(OPTIONS)) is not None:
        require("slurm", reason)
    with DevCluster(OPTIONS) as cluster:
        film = film_of(cluster, "film", 480)
        film.submit()
        state = Round(film, random.Random(5), 0.0)
        play(state, QUICK)
        assert film.wait_done() == film.alone()
        assert sum(state.faults.values()) >= 6 and {"hung worker", "source outage"} <= set(state.faults)
        assert redone(film.run) <= 2 * len(QUICK)
