"""`ccrk serve` up to the point where it would listen; tests/serving/test_process.py has it as a process."""

from __future__ import annotations

from dataclasses import fields

import pytest

from ccrk.cli.main import build_parser, main
from ccrk.serving import run as serving_run
from ccrk.serving.options import ServingOptions


@pytest.fixture
def given(monkeypatch) -> list[ServingOptions]:
    """The options that the service would be run with."""
    seen: list[ServingOptions] = []
    monkeypatch.delenv("CCRK_TOKEN", raising=False)
    monkeypatch.setattr(serving_run, "run_service", lambda options: seen.append(options) or 0)
    return seen


def test_without_options_it_has_the_defaults(given):
    assert main(["serve", "my-model", "lance://photos.lance"]) == 0
    assert given == [ServingOptions(model="my-model", gallery="lance://photos.lance")]
    assert given[0].loopback and given[0].token is None


def test_options_arrive(given):
    words = ["--host", "::1", "--port", "80", "--token", "0123456789ab", "--allow-host", "a", "--allow-host", "b"]
    words += ["--no-page", "--photos", "p", "--rerank", "20", "--max-batch", "1", "--bf16", "--max-wait-ms", "0"]
    assert main(["serve", "m", "photos/", *words]) == 0
    (options,) = given
    assert (options.host, options.port, options.token) == ("::1", 80, "0123456789ab")
    assert (options.allow_hosts, options.photos, options.page, options.bf16) == (["a", "b"], ["p"], False, True)
    assert (options.rerank, options.max_batch, options.max_wait_ms) == (20, 1, 0)
    main(["serve", "m", "photos/", "--rerank", "off"])
    assert given[1].rerank is None


def test_every_option_of_the_command_is_one_of_the_service_and_told_with_its_default():
    parser = build_parser("serve")
    command = next(a for a in parser._actions if a.dest == "command").choices["serve"]
    names = {action.dest for action in command._actions} - {"help", "debug"}
    assert names == {one.name for one in fields(ServingOptions)}
    for action in command._actions:
        default = getattr(ServingOptions(), action.dest, None)
        if isinstance(default, int) and not isinstance(default, bool) and default < 10_000:
            assert f"default: {default}" in action.help, action.dest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--token", "short"], "the token has 5 characters; it needs at least 12"),
        (["--port", "99999"], "--port is 99999"),
        (["--max-batch", "0"], "--max-batch is 0; it is at least 1"),
        (["--rerank", "all"], "--rerank is 'all'; it is 'auto', 'off' or a whole number"),
    ],
)
def test_errors_are_one_line(given, capsys, words, message):
    assert main(["serve", "m", "photos/", *words]) == 2
    assert f"ccrk serve: {message}" in capsys.readouterr().err and not given


@pytest.mark.parametrize(
    ("host", "token", "warned"),
    [
        ("127.0.0.1", None, False),
        ("127.9.9.9", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("192.168.1.5", None, True),
        ("::", None, True),
        ("photos.example", None, True),
        ("0.0.0.0", "0123456789ab", False),
    ],
)
def test_others_are_warned_of(monkeypatch, host, token, warned):
    monkeypatch.delenv("CCRK_TOKEN", raising=False)
    told = serving_run.check_exposure(ServingOptions(host=host, token=token))
    assert (told is not None) == warned
    if warned:
        assert host in told and "CCRK_TOKEN" in told


def test_a_gallery_that_is_not_there(tmp_path, capsys, monkeypatch):
    assert main(["serve", str(tmp_path / "no-model"), "lance://" + str(tmp_path / "no.lance"), "--no-page"]) == 2
    assert "no-model" in capsys.readouterr().err
