"""`python -m cluster train | plan | eval | ... | options`: what was typed, and who does it."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import config as configuration
from cluster.errors import Stopped

OVERRIDE = re.compile(r"[A-Za-z_][\w.:-]*=")
"""Ahead of the value: an option's path. A recipe's file name has no "=" in it."""

UNSANDBOXED = "allow-unsandboxed-code"

USAGE = """\
python -m cluster train RECIPE.yaml [MORE.yaml ...] [a.b=1] [--c.d 2] [flags]
    --dry-run         print every option with its value and where the value came from, and stop
    --fresh           move an existing run folder aside instead of going on from it
    --replay FOLDER   train on a recorded run's tables: no samplers, bitwise the same on CPU
    --allow-unsandboxed-code
                      run programs of the model where no sandbox is to be had
python -m cluster submit RECIPE.yaml [a.b=1] [--address http://HOST:8265] [--no-wait]
    the same as a Ray job on a cluster: checks recipe, size and token first, and prints its line
python -m cluster plan RECIPE.yaml [a.b=1] --gpu h100 --nodes N [--gpus-per-node 8]
    what a cluster would give: memory, step time, idle time, staleness, the best split
    --measure FILE    measure this machine's constants instead, and write them
    --constants FILE  plan for the machine that they were measured on
    --like RUN        lengths and rewards as that run folder recorded them
    --mean-length N   or lognormal ones with this mean
python -m cluster eval CHECKPOINT [a.b=1]
    evaluate a checkpoint (or any Hugging Face model folder, with eval.dataset=...)
python -m cluster export CHECKPOINT FOLDER [--dtype bfloat16] [--shard-size 5GB]
    write the policy as a Hugging Face checkpoint
python -m cluster data check FILE [RECIPE.yaml] [a.b=1]
python -m cluster data preview FILE [RECIPE.yaml] [--row N] [a.b=1]
    a dataset's layout, lengths, special tokens and answers; one row as the model will see it
python -m cluster ledger show RUN
python -m cluster ledger verify RUN
python -m cluster ledger diff RUN RUN
python -m cluster ledger rescore RUN [a.b=1]
    what a run trained on; whether the record holds; where two runs part; the verifiers again
python -m cluster view FOLDER [--port 8700] [--host 127.0.0.1]
    a run, or all runs below a folder, in a browser: steps, groups, every completion
python -m cluster report RUN [--output FILE.html] [--trace FILE.json]
    a run as one page: curves, who waited, faults, samples, warnings; a trace for Perfetto
python -m cluster doctor [RECIPE.yaml]
    what this machine and its cluster give a run, and what a run would fail of
python -m cluster config from-trl | from-verl | from-openrlhf FILE
    their YAML or command line as a recipe of ours, and what was not translated
python -m cluster options [WORD]
    every option with its default and what it does
"""


@dataclass(frozen=True)
class Arguments:
    words: list[str]
    """Neither flag nor override: files and folders."""
    overrides: list[str]
    flags: dict[str, str]


def parse(argv: Sequence[str], *, switches: set[str], with_value: set[str]) -> Arguments:
    """Flags, overrides in both habits (`a.b=1`, `--a.b 1`), and the rest. Raises ValueError for a
    flag that lacks its value."""
    words: list[str] = []
    overrides: list[str] = []
    flags: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            is_override = OVERRIDE.match(word)
            (overrides if is_override else words).append(word)
            continue
        if name in switches and not equals:
            flags[name] = ""
            continue
        if not equals:
            if not rest:
                raise ValueError(f"{word} needs a value")
            value = rest.pop(0)
        if name in with_value:
            flags[name] = value
        else:
            overrides.append(f"{name}={value}")
    return Arguments(words, overrides, flags)


def train(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches={"dry-run", "fresh", UNSANDBOXED}, with_value={"replay"})
    if not arguments.words:
        raise ValueError("train needs a recipe, for example recipes/demo.yaml")
    unsandboxed = [f"rewards.{UNSANDBOXED.replace('-', '_')}=true"]
    overrides = arguments.overrides + unsandboxed * (UNSANDBOXED in arguments.flags)
    loaded = configuration.load(arguments.words, overrides)
    if "dry-run" in arguments.flags:
        loaded.config.check()
        print(loaded.plan())
        return 0
    from cluster.train import train as run

    replay = arguments.flags.get("replay")
    run(
        loaded.config,
        fresh="fresh" in arguments.flags,
        replay=Path(replay) if replay is not None else None,
    )
    return 0


def submit(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches={"no-wait"}, with_value={"address"})
    if not arguments.words:
        raise ValueError("submit needs a recipe, for example recipes/demo.yaml")
    from cluster.tools.submit import submit as send

    return send(
        arguments.words,
        arguments.overrides,
        address=arguments.flags.get("address", ""),
        wait="no-wait" not in arguments.flags,
    )


PLANNING = ("gpu", "nodes", "gpus-per-node", "measure", "constants", "like", "mean-length")


def plan(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value=set(PLANNING))
    flags = arguments.flags
    if not arguments.words:
        raise ValueError("plan needs a recipe, for example recipes/demo.yaml")
    if sum(way in flags for way in ("gpu", "measure", "constants")) != 1:
        raise ValueError(
            "plan needs one of --gpu NAME --nodes N (a cluster that is not here), --measure FILE "
            "(what this machine's constants are) and --constants FILE (plan for that machine)"
        )
    config = configuration.load(arguments.words, arguments.overrides).config
    config.check()
    if config.is_supervised:
        raise ValueError("a supervised recipe samples nothing: there is nothing to plan")
    from cluster.planner import plan as planner

    if "measure" in flags:
        from cluster.planner.calibrate import measure

        folder = Path(flags["measure"]).resolve().parent
        if not folder.is_dir():
            raise ValueError(f"--measure {flags['measure']}: no folder {folder}")
        found = measure(config, planner.describe(config.model.path))
        found.write(Path(flags["measure"]))
        print(f"wrote {flags['measure']}: plan --constants {flags['measure']} plans with it")
        return 0
    lengths: dict[str, Any] = {
        "like": flags.get("like", ""),
        "mean_length": _number(flags, "mean-length", "0"),
    }
    if "constants" in flags:
        print(planner.of_this(config, constants=Path(flags["constants"]), **lengths))
        return 0
    nodes, per_node = _number(flags, "nodes", "1"), _number(flags, "gpus-per-node", "8")
    print(planner.of_gpus(config, gpu=flags["gpu"], nodes=nodes, per_node=per_node, **lengths))
    return 0


def _number(flags: dict[str, str], name: str, default: str) -> int:
    text = flags.get(name, default)
    if not text.isdecimal():
        raise ValueError(f"--{name} is a whole number, not {text!r}")
    return int(text)


def evaluate(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value=set())
    if len(arguments.words) != 1:
        raise ValueError("eval needs one checkpoint folder")
    from cluster.train import evaluate_checkpoint

    evaluate_checkpoint(Path(arguments.words[0]), arguments.overrides)
    return 0


def export(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value={"dtype", "shard-size"})
    if len(arguments.words) != 2 or arguments.overrides:
        raise ValueError("export needs a checkpoint folder and a folder to write")
    from cluster.checkpoint import export_model

    source, target = map(Path, arguments.words)
    export_model(
        source,
        target,
        dtype=arguments.flags.get("dtype", ""),
        shard_size=arguments.flags.get("shard-size", "5GB"),
    )
    print(f"wrote {target}")
    return 0


def data(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value={"row"})
    verb, file, *recipes = [*arguments.words, "", ""]
    recipes = [word for word in recipes if word]
    if verb not in ("check", "preview") or not file:
        raise ValueError("data needs a verb and a file: data check FILE, or data preview FILE")
    from cluster.tools import dataset

    if verb == "check":
        dataset.check(Path(file), recipes, arguments.overrides)
        return 0
    row = arguments.flags.get("row", "0")
    if not row.isdecimal():
        raise ValueError(f"--row is the number of a row, not {row!r}")
    dataset.preview(Path(file), recipes, arguments.overrides, int(row))
    return 0


def ledger(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value=set())
    verb, *folders = [*arguments.words, ""]
    runs = [Path(folder) for folder in folders if folder]
    if verb not in ("show", "verify", "diff", "rescore") or len(runs) != 1 + (verb == "diff"):
        raise ValueError(
            "ledger needs a verb and a run folder: ledger show RUN, ledger verify RUN, "
            "ledger rescore RUN [a.b=1], ledger diff RUN RUN"
        )
    from cluster.tools import audit

    if verb == "show":
        audit.show(runs[0])
        return 0
    if verb == "verify":
        return audit.verify(runs[0])
    if verb == "diff":
        return audit.diff(runs[0], runs[1])
    return audit.rescore(runs[0], arguments.overrides)


def view(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value={"port", "host"})
    if len(arguments.words) != 1 or arguments.overrides:
        raise ValueError("view needs a run folder, or one that has run folders below it")
    from cluster.web.app import serve

    port = _number(arguments.flags, "port", "8700")
    serve(Path(arguments.words[0]), arguments.flags.get("host", "127.0.0.1"), port)
    return 0


def report(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value={"output", "trace"})
    if len(arguments.words) != 1 or arguments.overrides:
        raise ValueError("report needs one run folder")
    from cluster.web.report import write_report

    folder, trace = Path(arguments.words[0]), arguments.flags.get("trace")
    target = Path(arguments.flags.get("output", folder / "report.html"))
    write_report(folder, target, Path(trace) if trace is not None else None)
    print(f"wrote {target}")
    return 0


def doctor(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value=set())
    from cluster.tools.doctor import examine

    return examine(arguments.words, arguments.overrides)


def convert(argv: Sequence[str]) -> int:
    arguments = parse(argv, switches=set(), with_value=set())
    verb, *files = [*arguments.words, ""]
    files = [file for file in files if file]
    if not verb.startswith("from-") or len(files) != 1:
        raise ValueError("config needs a verb and a file: from-trl, from-verl or from-openrlhf")
    from cluster.tools.coming_from import translate

    system = verb.removeprefix("from-")
    print(translate(system, Path(files[0])).text(Path(files[0]).name), end="")
    return 0


def options(argv: Sequence[str]) -> int:
    wanted = argv[0] if argv else ""
    for name, (kind, default, text) in configuration.options().items():
        if wanted in name or wanted in text:
            print(f"{name}  ({kind}, default {default!r})\n    {text}")
    return 0


COMMANDS = {
    "train": train,
    "submit": submit,
    "plan": plan,
    "eval": evaluate,
    "export": export,
    "data": data,
    "ledger": ledger,
    "view": view,
    "report": report,
    "doctor": doctor,
    "config": convert,
    "options": options,
}


def usage_of(command: str) -> str:
    """The lines of USAGE that are about it."""
    shown, lines = False, []
    for line in USAGE.splitlines(keepends=True):
        if not line.startswith(" "):
            shown = line.split()[3] == command
        lines += [line] * shown
    return "".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input, 1 something of the world failed, 130 and 143 by signal."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        print(f"{argv[0]!r} is no command\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    if {"-h", "--help"} & set(argv[1:]):
        print(usage_of(argv[0]), end="")
        return 0
    try:
        return command(argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Stopped as stop:
        print(f"stopped by {stop}; the same command goes on from the last step", flush=True)
        return stop.exit_code
