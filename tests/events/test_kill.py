"""Three real kill -9 for each bus and each kind of ingestion; benchmarks/kill_ingestion.py does twenty."""

import pytest

from tests.kill_ingestion import survive

KILLS = {
    "bounded": ("job", "ray::Read", "job"),
    "continuous": ("ray::Reader", "ray::CommitterActor", "job"),
}


@pytest.mark.parametrize("mode", KILLS)
@pytest.mark.parametrize("bus", ["redis_url", "kafka_url"])
def test_killed_three_times_every_event_is_there_once(request, tmp_path, bus, mode):
    count = 20_000 if mode == "bounded" else 1000  # at once, or a second
    found = survive(request.getfixturevalue(bus), mode, tmp_path / "work", targets=KILLS[mode], count=count)
    assert found["kills"] == 3
