"""A YAML file -> data with places; what can't be read is a problem with its place, and no other exception."""

from __future__ import annotations

import doctest
import random
from pathlib import Path

import pytest

from coding_agent import document, git_names, near_files, quantities, task_text
from coding_agent.document import InvalidFile, load
from coding_agent.yaml_subset import MOST_VALUES
from costs import calls

FILE = Path("x.yaml")


def problems(text: str) -> list[str]:
    """Return what is wrong with a text."""
    try:
        return [str(problem) for problem in load(FILE, text).problems]
    except InvalidFile as error:
        return [str(problem) for problem in error.problems]


@pytest.mark.parametrize("module", [document, git_names, near_files, quantities])
def test_the_examples_in_the_documentation_run(module: object) -> None:
    """Every example in the docstrings shows what the functions return."""
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("0755", 755),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e3", 1000.0),
        (".5", 0.5),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1_000", "1_000"),
        ("True", True),
        ("~", None),
        ("", None),
        ('"true"', "true"),
        ("'12'", "12"),
        ("[a, {b: [1, -2]}]", ["a", {"b": [1, -2]}]),
        ("|\n  a\n   b\n\n", "a\n b\n"),
        (">-\n  a\n  b\n", "a b"),
        ('"a\\r\\n\\u2028\\U0001F600"', "a\r\n\u2028\U0001f600"),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """A value means what YAML 1.2 says: `no` and `1:30` are texts, and so are infinity and dates."""
    found = load(FILE, f"key: {text}\n")
    assert found.problems == []
    assert found.data == {"key": value}
    assert type(found.data["key"]) is type(value)


def test_places_are_those_of_an_editor() -> None:
    """Lines and columns count from 1, in characters, also behind a byte order mark and non-ASCII text."""
    found = load(FILE, '\ufeffä: "ö"\nlist:\n  - a: 1\n    é: [x, y]\n')
    assert found.places[("ä",)] == (1, 4)
    assert found.key_places[("list", 0, "é")] == (4, 5)
    assert found.places[("list", 0, "é", 1)] == (4, 12)


def test_aliases_are_expanded() -> None:
    """An alias stands for the value of its anchor; a problem with it is placed at the anchor."""
    found = load(FILE, "a: &x {k: 1}\nb: *x\nc: [*x, *x]\n")
    assert found.data == {"a": {"k": 1}, "b": {"k": 1}, "c": [{"k": 1}, {"k": 1}]}
    assert found.places[("c", 1, "k")] == (1, 11)


def test_windows_line_ends_are_accepted() -> None:
    """A file with CRLF line ends reads as one with LF, as YAML says."""
    assert load(FILE, "a: |\r\n  x\r\n  y\r\nb: 1\r\n").data == {"a": "x\ny\n", "b": 1}


def test_several_problems_come_at_once_and_in_order() -> None:
    """Problems that leave the rest readable are collected: tags, keys twice, keys that aren't text, NULs."""
    assert problems('z: !a 1\ny: "\\0"\n1: x\nz: 2\n') == [
        "x.yaml:1:4: z: has the tag !a; tags are not used here, remove it",
        "x.yaml:2:4: y: a NUL character, which no program can be given; remove it",
        'x.yaml:3:1: 1: a key is text; put it in quotes: "1"',
        "x.yaml:4:1: z: the key stands here a second time, first on line 1; keep one of them",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\n" + "".join(f"k{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else '*a'] * 20)}]\n" for n in range(20)),
        "[" * 100_000,
        "a: " + "{b: " * 50_000,
        "- " * 50_000,
        "a: [" + "1, " * 2_000_000 + "]",
        "".join(f"k{n}: &a{n} x\n" for n in range(200_000)),
        "? " * 50_000,
    ],
    ids=["bomb", "lists", "mappings", "dashes", "wide", "anchors", "complex-keys"],
)
def test_a_file_made_to_be_huge_is_left_early(text: str) -> None:
    """A file that would grow or nest without end is refused at its limit: whatever follows is not read."""
    found: list[str] = []
    taken = calls(lambda: found.extend(problems(text)))
    (problem,) = found
    assert "make" in problem or "write" in problem
    assert taken < (1000 if "deep" in problem else 10 * MOST_VALUES)


def test_a_large_text_is_no_problem() -> None:
    """A text of 9 MB in one line or in many reads exactly."""
    for value in ("x" * 9_000_000, "line: `$(x)`\n" * 700_000):
        text = task_text.dump({"prompt": value})
        assert load(FILE, text).data == {"prompt": value}


def test_what_a_message_quotes_is_harmless() -> None:
    """Control characters of keys and values don't reach a terminal through a message, and long ones are cut."""
    (problem,) = problems('"\\e[31m\\n::error::x": !t 1\n')
    assert "\x1b" not in problem
    assert "\n" not in problem
    assert len(document.quoted("x" * 10_000)) < 100
    assert "\u202e" not in document.quoted("\u202e")


def test_any_bytes_give_data_or_problems(tmp_path: Path) -> None:
    """Whatever the bytes of a file are: it is read, or `InvalidFile` says what is wrong; nothing else is raised."""
    chance = random.Random(20260101)
    seed = b"prompt: |\n  a\nlist: [1, {b: &x 'q'}]\nother: *x\n\"k\\t\": !t >-\n  z\n# c\n? k\n: v\n"
    file = tmp_path / "x.yaml"
    refused = 0
    for _ in range(1500):
        raw = bytearray(seed)
        for _ in range(chance.randint(1, 2)):
            at = chance.randrange(len(raw))
            raw[at : at + chance.randint(0, 3)] = bytes(
                chance.choices(b"\t\0\xff    ::--?[]{}&*!|>'\"%@`\n\n#,abcdefgh", k=2)
            )
        file.write_bytes(raw)
        try:
            found = load(file).problems
        except InvalidFile as error:
            found = list(error.problems)
            refused += 1
        assert all(each.line >= 1 and each.column >= 1 and each.message for each in found)
    assert 100 < refused < 1400


def test_an_error_says_what_to_do_next() -> None:
    """The exception carries its problems, exit code 2 and a next step."""
    with pytest.raises(InvalidFile) as caught:
        load(FILE, "")
    assert caught.value.exit_code == 2
    assert "validate" in (caught.value.next_step or "")
    assert caught.value.problems[0].field == "file"
