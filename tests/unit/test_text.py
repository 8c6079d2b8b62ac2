"""Text from agents and targets is made harmless before a terminal or a CI's log sees it."""

from __future__ import annotations

import re

import pytest

from coding_agent.text import neutralise, one_line
from costs import growth
from fakes.scenarios import ESCAPES


@pytest.mark.parametrize(
    "text",
    ["plain\n\ttext", "é ü 中文 العربية 🦊 👩‍👩‍👧", "a::b", "std::vector", "# heading\n## second", "C:\\x", ""],
)
def test_ordinary_text_stays(text: str) -> None:
    """Text without anything that is obeyed stays as it is."""
    assert neutralise(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;2;1;2;3mred", "red"),
        ("\x1b[2J\x1b[Hcleared", "cleared"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1b]8;;http://x.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;cGF5bG9hZA==\x9cafter", "after"),
        ("\x1bP1;2|device\x1b\\after", "after"),
        ("\x1b]0;no end\nnext line", "\nnext line"),
        ("\x1bcreset", "reset"),
        ("\x1b(0lines", "lines"),
        ("end\x1b", "end"),
        ("\x1b\x1b[31m[32mx", "[32mx"),
    ],
)
def test_escape_sequences_are_dropped(text: str, expected: str) -> None:
    """A sequence that a terminal obeys leaves nothing behind, and the text around it stays."""
    assert neutralise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x07b\x08c\x7fd\x00e", "a\\x07b\\x08c\\x7fd\\x00e"),
        ("shown\rhidden", "shown\\x0dhidden"),
        ("a\x85b\x0bc\x0cd", "a\\x85b\\x0bc\\x0cd"),
        ("\u202egnp.exe\u2066x\u200f", "\\u202egnp.exe\\u2066x\\u200f"),
        ("a\u2028b\u200bc\ufeff", "a\\u2028b\\u200bc\\ufeff"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_controls_become_visible(text: str, expected: str) -> None:
    """Controls and characters that reorder or hide text are shown by their number."""
    assert neutralise(text) == expected


def test_windows_line_ends_become_newlines() -> None:
    """CRLF is a line's end and nothing to show."""
    assert neutralise("a\r\nb\r\n") == "a\nb\n"


@pytest.mark.parametrize(
    "line",
    [
        "::set-output name=x::y",
        "  ::add-mask::z",
        "\u00a0::error::x",
        ":::set-env name=x::y",
        "\x1b[0m::stop-commands::x",
        "before\n::save-state name=a::b",
        "before\r::save-state name=a::b",
        "##[error]bad",
        "text ##vso[task.setvariable variable=x]y",
        "##VSO[task.complete]",
        "#\x1b[0m#[group]x",
        "###[warning]x",
    ],
)
def test_ci_commands_do_not_fire(line: str) -> None:
    """No line begins with `::` behind white space, and none holds `##[` or `##vso[`."""
    harmless = neutralise(line)
    assert not any(part.strip().startswith("::") for part in re.split(r"[\r\n]", harmless))
    assert not re.search(r"##(\[|vso\[)", harmless, re.IGNORECASE)


def test_all_at_once_and_twice() -> None:
    """What a hostile agent sends comes out without a control, and a second pass changes nothing."""
    harmless = neutralise(ESCAPES)
    assert all(character in "\n\t" or character.isprintable() for character in harmless)
    assert neutralise(harmless) == harmless


@pytest.mark.parametrize("piece", ["\x1b", "\x1b[", "\x1b]", ":", "#", "\x9d", " \n"])
def test_big_hostile_text_takes_no_long_time(piece: str) -> None:
    """Unfinished sequences take time in proportion to their number: eight times as much, not sixty-four."""
    assert growth(lambda size: neutralise(piece * (size // len(piece))), 5000) < 32


def test_one_line() -> None:
    """White space becomes single spaces, and a cut says that it is one."""
    assert one_line(" a\n\tb  c ") == "a b c"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"
