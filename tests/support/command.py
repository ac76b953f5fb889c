"""The command, called in this process."""

from ctssl.cli.main import main


def refused(capsys, *args) -> str:
    assert main([str(a) for a in args]) == 2
    words = capsys.readouterr().err
    assert "Traceback" not in words
    return words
