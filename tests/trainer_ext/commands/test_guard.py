"""How scripts end: one line and an exit code for what a user can mend, a traceback for a bug."""

from collections.abc import Callable

import pytest

from trainer_ext.commands.guard import guarded, needed


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\n  lines"), 2, "error: two lines\n"),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), 2, "error: x.csv: no such file or directory\n"),
        (SystemExit("--texts x: no such file"), 2, "error: --texts x: no such file\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_one_line_and_a_code(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(error)) == code
    words = capsys.readouterr().err
    assert words.startswith("error: ")
    assert words.endswith(line)
    assert words.count("\n") == 1


def test_the_rest_passes_through() -> None:
    assert guarded(lambda: None) == 0
    assert guarded(lambda: 1) == 1
    with pytest.raises(SystemExit):
        guarded(raising(SystemExit(2)))  # argparse has said what is wrong
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()))


def test_what_an_extra_brings_is_named_where_it_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert needed("json", "train").dumps([1]) == "[1]"

    def main() -> None:
        needed("no_such_library", "ray")

    assert guarded(main) == 2
    assert capsys.readouterr().err == "error: no_such_library is needed here: pip install '.[ray]'\n"
