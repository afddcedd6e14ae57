"""A job's command line: what is wrong with it is one line and exit code 2."""

from contextlib import nullcontext

import pytest

from jobs import session


def run(monkeypatch, *arguments, job=lambda settings, progress: {}):
    monkeypatch.setattr(session, "ray_session", lambda settings: nullcontext())
    monkeypatch.setattr("sys.argv", ["job", *arguments])
    with pytest.raises(SystemExit) as ended:
        session.run_job(job, description="A job.")
    return ended.value.code


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("seed", "--set 'seed': write KEY=VALUE"),
        ("seed=[", "--set 'seed=[': '[' is not YAML"),
        ("seed=-1", "seed = -1: must be from 0 to"),
        ("seed=9223372036854775808", "seed = 9223372036854775808: must be from 0 to"),
    ],
)
def test_a_wrong_override_is_told(monkeypatch, capsys, override, text):
    assert run(monkeypatch, "--set", override) == 2
    assert text in capsys.readouterr().err


def test_an_interrupted_job_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(settings, progress):
        raise KeyboardInterrupt

    assert run(monkeypatch, job=interrupted) == 130
    assert not capsys.readouterr().err
