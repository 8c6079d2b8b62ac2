"""The scenarios that the scripted Messages API knows.

A prompt chooses one by `SCENARIO=name`, with parameters as JSON right behind it: `SCENARIO=loop{"turns": 20}`;
`scenario("loop", turns=20)` writes that. Scenarios joined by `+` follow one another in one session, the closing
text of all but the last left out: `SCENARIO=edit+error{"status": 400}` commits work and then meets an error.
The last one found in the user's texts counts. Without any: `text`.

| scenario | parameters (default) | what the agent does |
|---|---|---|
| text | text ("Just text.") | answers without a tool |
| slow_text | words (60), interval (1 s) | answers word by word |
| big_text | mb (1) | answers with one text of that size: one very long stream line |
| edit | file ("note.txt"), message ("Add a note") | looks, writes a file, edits it, runs a check, commits: 5 calls |
| calls | count (12) | so many Bash calls `echo step N`, one a turn |
| parallel | count (2) | so many Bash calls in one turn |
| loop | turns (500), sleep (0 s) | one Bash call a turn, each appending the turn's number to loop.txt |
| bash | command | runs that command; then text |
| failing_tool | | a Bash call that exits 3, then text |
| subagent | count (2) | has a subagent make so many Bash calls |
| denied | tool ("Write"), input | calls a tool that is not allowed (default: denied in spite of any allow list) |
| sleep | seconds (300), file ("bash.pid") | a tool call that lasts, its shell's pid in the file |
| wait_for_file | file | a tool call that ends when the file appears |
| background | kinds (plain, nohup, setsid, double_fork, stubborn) | leaves children behind, pids in KIND.pid |
| | | another kind is `escape`: `env -i setsid`, so no environment, no session, no parent |
| background_task | | a Bash call with run_in_background: holds the program open after its result |
| memory | mb (500), hold (0 s), count (1) | so many children that take so much memory each, wait, exit; then text |
| disk | mb (100), hold (0 s), file ("fill.bin") | fills a file with zeros; then text |
| flood | mb (5) | a tool that prints so much on stdout |
| environment | file | prints the environment, or writes it into the file |
| secret | name, form (raw, base64, url, json; or several of each), file ("leak.txt"), commit, echo (true) | |
| | | commits and prints $NAME |
| | repeat (false) | and then uses what was printed in a call, and says it |
| escapes | | terminal escapes and CI commands in tool output, description and result |
| hostile_workspace | marker | commits, then plants fsmonitor, hooks, textconv and filters that touch the marker |
| idle | after (1) | so many tool calls, then an answer that never comes |
| hang | where ("before"; or "midstream") | no answer at all, or half of one |
| gate | name ("gate") | one tool call, then the answer comes when the test opens the gate |
| drop | where ("before"; or "midstream"), times (-1) | the connection closes |
| error | status, message, kind, times (-1), retry_after | an HTTP error of the API |
| refusal, max_tokens | | ends with that stop reason |

Every scenario takes `delay` (seconds before each answer), `input_tokens` and `output_tokens` (each answer's usage).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fakes.script import Call, Drop, Failure, Gate, Hang, Step, Steps, Text

Parameters = Mapping[str, Any]
_BUILDERS: dict[str, Callable[[Parameters], Steps]] = {}
_OF_EVERY_STEP = ("delay", "input_tokens", "output_tokens")


def scenario(name: str, /, **parameters: Any) -> str:
    """Return the words that make a prompt choose scenario `name`."""
    return f"SCENARIO={name}{json.dumps(parameters) if parameters else ''}"


def names() -> list[str]:
    """Return the names of the built-in scenarios."""
    return sorted(_BUILDERS)


def build(name: str, parameters: Parameters, own: Mapping[str, Steps]) -> Steps:
    """Return the steps of `name` (parts joined by +); those in `own` win. Raises KeyError for an unknown name."""
    parts = [own[part] if part in own else _BUILDERS[part](parameters) for part in name.split("+")]
    steps = [step for part in parts[:-1] for step in part if not step.ends_the_turn]
    common = {key: parameters[key] for key in _OF_EVERY_STEP if key in parameters}
    return [replace(step, **common) for step in [*steps, *parts[-1]]]


def _scenario(builder: Callable[[Parameters], Steps]) -> Callable[[Parameters], Steps]:
    _BUILDERS[builder.__name__.strip("_")] = builder
    return builder


def _bash(command: str, description: str = "Run a command", **more: Any) -> Call:
    return Call("Bash", {"command": command, "description": description, **more})


def _say(text: str) -> Step:
    return Step((Text(text),))


def _then_say(call: Call, text: str) -> Steps:
    return [Step((call,)), _say(text)]


@_scenario
def _text(p: Parameters) -> Steps:
    return [_say(p.get("text", "Just text."))]


@_scenario
def _slow_text(p: Parameters) -> Steps:
    words = " ".join(f"word{number}" for number in range(p.get("words", 60)))
    return [Step((Text(words, interval=p.get("interval", 1.0)),))]


@_scenario
def _big_text(p: Parameters) -> Steps:
    return [_say("0123456789abcde\n" * int(p.get("mb", 1) * 62_500))]


@_scenario
def _edit(p: Parameters) -> Steps:
    name, message = p.get("file", "note.txt"), p.get("message", "Add a note")
    path, quoted = f"$CWD/{name}", shlex.quote(name)
    change = {"file_path": path, "old_string": "first", "new_string": "second"}
    return [
        Step((Text("I will look around first."), _bash("ls -A && git status --short", "Look around"))),
        Step((Call("Write", {"file_path": path, "content": "the first line\n"}),)),
        Step((Call("Edit", change),)),
        Step((_bash(f"grep -q second {quoted}", "Check the change"),)),
        Step((_bash(f"git add -- {quoted} && git commit -q -m {shlex.quote(message)}", "Commit"),)),
        _say("The file is written, changed and committed."),
    ]


@_scenario
def _calls(p: Parameters) -> Steps:
    count = p.get("count", 12)
    return [*(Step((_bash(f"echo step {n}", f"Step {n}"),)) for n in range(1, count + 1)), _say("All steps done.")]


@_scenario
def _parallel(p: Parameters) -> Steps:
    calls = tuple(_bash(f"echo part {n}", f"Part {n}") for n in range(1, p.get("count", 2) + 1))
    return [Step(calls), _say("All parts done.")]


@_scenario
def _loop(p: Parameters) -> Steps:
    def command(turn: int) -> str:
        return f"echo {turn} >> loop.txt" + (f"; sleep {p['sleep']}" if p.get("sleep") else "")

    turns = range(1, p.get("turns", 500) + 1)
    return [*(Step((_bash(command(turn), f"Turn {turn}"),)) for turn in turns), _say("The loop is done.")]


@_scenario
def _bash_(p: Parameters) -> Steps:
    return _then_say(_bash(p["command"], timeout=600_000), "It ran.")


@_scenario
def _failing_tool(_: Parameters) -> Steps:
    return _then_say(_bash("echo bad >&2; exit 3", "Fail"), "It failed.")


@_scenario
def _subagent(p: Parameters) -> Steps:
    inner = scenario("calls", count=p.get("count", 2))
    arguments = {"description": "Do the steps", "prompt": inner, "subagent_type": "general-purpose"}
    return _then_say(Call("Agent", {**arguments, "run_in_background": False}), "The subagent is done.")


@_scenario
def _denied(p: Parameters) -> Steps:
    # A write into the program's own settings needs a yes of its own, whatever the allow list says.
    protected = {"file_path": "$CWD/.claude/settings.json", "content": "{}"}
    return _then_say(Call(p.get("tool", "Write"), p.get("input", protected)), "I was not allowed to.")


@_scenario
def _sleep(p: Parameters) -> Steps:
    # The Bash tool refuses a command whose first word is a long `sleep`.
    command = f"echo $$ > {shlex.quote(p.get('file', 'bash.pid'))}; sleep {p.get('seconds', 300)}"
    return _then_say(_bash(command, "Sleep", timeout=600_000), "I slept.")


@_scenario
def _wait_for_file(p: Parameters) -> Steps:
    wait = f"until [ -e {shlex.quote(p['file'])} ]; do read -r -t 0.05 <> <(:); done; echo seen"
    return _then_say(_bash(wait, "Wait for a file", timeout=600_000), "The file is there.")


_LONG = "tail -f /dev/null >/dev/null 2>&1 </dev/null"
_CHILDREN = {
    "plain": f"{_LONG} & echo $! > plain.pid",
    "nohup": f"nohup {_LONG} & echo $! > nohup.pid",
    "setsid": f"setsid bash -c 'echo $$ > setsid.pid; exec {_LONG}' &",
    "double_fork": f"( ( bash -c 'echo $$ > double_fork.pid; exec {_LONG}' & ) & )",
    "stubborn": f"""bash -c 'trap "" TERM HUP INT; echo $$ > stubborn.pid; exec {_LONG}' &""",
    "escape": f"""env -i "$(command -v setsid)" "$(command -v bash)" -c 'echo $$ > escape.pid; exec {_LONG}' &""",
}


@_scenario
def _background(p: Parameters) -> Steps:
    kinds = p.get("kinds", [kind for kind in _CHILDREN if kind != "escape"])
    # The call ends once each child has said its pid, so that whoever looks afterwards finds them all.
    wait = "".join(f"; until [ -s {kind}.pid ]; do read -r -t 0.02 <> <(:); done" for kind in kinds)
    command = "\n".join(_CHILDREN[kind] for kind in kinds) + "\n:" + wait
    return _then_say(_bash(command, "Start children"), "The children run.")


@_scenario
def _background_task(_: Parameters) -> Steps:
    task = _bash("echo $$ > task.pid; exec tail -f /dev/null", "Watch", run_in_background=True)
    return _then_say(task, "The task runs in the background.")


@_scenario
def _memory(p: Parameters) -> Steps:
    size, hold = int(p.get("mb", 500) * 1_000_000), p.get("hold", 0)
    # tail keeps input without a newline in memory: needs neither python nor perl.
    bash = f"(head -c {size} /dev/zero; sleep {hold}) | tail -n 1 > /dev/null"
    perl = f"perl -e '$x = \"x\" x {size}; sleep {hold}'"
    python = f"python3 -c 'import time; x = b\"x\" * {size}; time.sleep({hold})'"
    has = "command -v {} >/dev/null"
    choose = f"if {has.format('python3')}; then {python}; elif {has.format('perl')}; then {perl}; else {bash}; fi"
    count = p.get("count", 1)
    if count > 1:
        choose = f"for i in {{1..{count}}}; do ({choose}) & done; wait"
    return _then_say(_bash(choose, "Take memory", timeout=600_000), "I go on without that memory.")


@_scenario
def _disk(p: Parameters) -> Steps:
    name = shlex.quote(p.get("file", "fill.bin"))
    command = f"head -c {int(p.get('mb', 100) * 1_000_000)} /dev/zero > {name}; sync {name}; sleep {p.get('hold', 0)}"
    return _then_say(_bash(command, "Fill a file", timeout=600_000), "The file is filled.")


@_scenario
def _flood(p: Parameters) -> Steps:
    lines = int(p.get("mb", 5) * 12_500)
    line = "x" * 79
    return _then_say(_bash(f"yes {line} | head -n {lines}", "Print a lot"), "That was a lot.")


@_scenario
def _environment(p: Parameters) -> Steps:
    into = f" > {shlex.quote(p['file'])}" if "file" in p else ""
    return _then_say(_bash(f"env | LC_ALL=C sort{into}", "Print the environment"), "That is the environment.")


_FORMS = {
    "raw": 'printf %s "$S"',
    "base64": 'printf %s "$S" | base64 -w0',
    "url": """printf %s "$S" | od -An -v -tx1 | tr -d '\\n' | sed 's/ /%/g'""",
    "json": """printf '{"v": "%s"}' "$(printf %s "$S" | sed 's/[\\\\"]/\\\\&/g')\"""",
}


@_scenario
def _secret(p: Parameters) -> Steps:
    file = shlex.quote(p.get("file", "leak.txt"))
    each = [(name, form) for name in _several(p["name"]) for form in _several(p.get("form", "raw"))]
    shown = "\n".join(f'S="${{{name}}}"; {_FORMS[form]}; echo' for name, form in each)
    commands = [f"{{ {shown}; }} > {file}"]
    if p.get("echo", True):
        commands.append(f"cat {file}")
    if p.get("commit", True):
        commands.append(f"git add -- {file} && git commit -q -m 'Add a file'")
    use = Step((_bash("\n".join(commands), "Use the secret"),))
    if not p.get("repeat"):
        return [use, _say("The secret is used.")]
    return [use, Step((_bash("cat <<'END'\n$LAST_OUTPUT\nEND", "Use $LAST_OUTPUT"),)), _say("It is:\n$LAST_OUTPUT")]


def _several(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


ESCAPES = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://evil.example/\x07link\x1b]8;;\x07 \x9b2J \u202egnp.exe\u202c\r"
    "overwritten\b\n::set-output name=x::y\n  ::add-mask::z\n##vso[task.setvariable variable=x]y\n##[error]bad"
)


@_scenario
def _escapes(_: Parameters) -> Steps:
    text = "printf %s " + "$'" + "".join(f"\\x{byte:02x}" for byte in ESCAPES.encode()) + "'"
    return _then_say(_bash(text, "\x1b[2JDescribe\n::set-output name=d::e"), ESCAPES)


@_scenario
def _hostile_workspace(p: Parameters) -> Steps:
    touch = f"touch {shlex.quote(p['marker'])}"
    hooks = "post-checkout pre-commit post-merge reference-transaction post-index-change pre-auto-gc post-rewrite"
    plant = "\n".join(
        [
            "git rev-parse --git-dir > /dev/null || exit 1",
            "printf 'evil\\n' > evil.txt; printf '* diff=evil filter=evil merge=evil\\n' > .gitattributes",
            "git add -A && git commit -q -m 'Add a file'",
            f"printf '%s\\n' '#!/bin/sh' {shlex.quote(touch)} 'cat' > .git/evil; chmod +x .git/evil",
            f"for hook in {hooks}; do cp .git/evil .git/hooks/$hook; done",
            'evil="$PWD/.git/evil"',
            *(
                f'git config {key} "$evil"'
                for key in ("core.sshCommand", "core.pager", "diff.evil.textconv", "diff.evil.command", "diff.external")
            ),
            *(f'git config {key} "$evil"' for key in ("filter.evil.clean", "filter.evil.smudge", "merge.evil.driver")),
            'git config uploadpack.packObjectsHook "$evil"; git config credential.helper "$evil"',
            'git config core.fsmonitor "$evil"',
            "printf 'changed\\n' >> evil.txt",
        ]
    )
    return _then_say(_bash(plant, "Prepare the repository"), "The repository is prepared.")


@_scenario
def _idle(p: Parameters) -> Steps:
    calls = [Step((_bash(f"echo before {n}", "Work"),)) for n in range(1, p.get("after", 1) + 1)]
    return [*calls, Step((Hang(),))]


@_scenario
def _hang(p: Parameters) -> Steps:
    return [Step((Text("Half of an"), Hang()) if p.get("where") == "midstream" else (Hang(),))]


@_scenario
def _gate(p: Parameters) -> Steps:
    return [
        Step((_bash("echo at the gate", "Come to the gate"),)),
        Step((Gate(p.get("name", "gate")), Text("Through."))),
    ]


@_scenario
def _drop(p: Parameters) -> Steps:
    drop = Drop(times=p.get("times", -1))
    midstream = p.get("where") == "midstream"
    return [Step((Text("Half of an"), drop, Text(" answer.")) if midstream else (drop, Text("The connection held.")))]


@_scenario
def _error(p: Parameters) -> Steps:
    fields = {key: p[key] for key in ("status", "message", "kind", "times", "retry_after") if key in p}
    return [Step((Text("The error is over."),), failure=Failure(**fields))]


@_scenario
def _refusal(_: Parameters) -> Steps:
    return [Step((), stop="refusal")]


@_scenario
def _max_tokens(_: Parameters) -> Steps:
    return [Step((Text("Cut off in the"),), stop="max_tokens")]
