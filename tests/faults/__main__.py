r"""Kill every command at every change of a file, and damage every file that a command reads.

python tests/faults --crashes 0 --damages 400 --seed 0
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.commands import Command, Place
from faults.damages import DAMAGES
from faults.trials import call, differences, tree

# Locks stay; the costs of images depend on how many of them a call still had to make.
_IGNORED = re.compile(r"\.lock$|(^|/)about\.json$")
# (command, the input folder that is damaged, files in it that people may edit or that are images)
_DAMAGED = (
    ("encode codes", "model", r"README"),
    ("prior raster", "codes", r"README"),
    ("prior latents", "codes", r"README"),
    ("assemble", "prior", r"README"),
    ("assemble", "pipeline", r"README"),
    ("generate", "pipeline", r"README"),
    ("reconstruct", "pipeline", r"README"),
    ("describe", "scores", r"\.(md|html|png)$"),
    ("gan generate", "gan", r"README"),
    ("score", "samples", r"\.png$"),
    ("compare", "scores", r"\.(md|html|png)$"),
    ("sweep", "pipeline", r"README"),
)
# Commands that are repeated after a file of what they wrote was damaged.
_REPEATED = ("train vqvae", "train vqgan", "prior raster", "gan sngan", "encode codes", "generate", "gan generate", "reconstruct", "interpolate", "sweep")  # fmt: skip
# What a resumed training keeps: the log, pictures of the past, damaged checkpoints set aside.
_KEPT = re.compile(r"(^|/)(metrics\.jsonl|curves\.png)$|^(samples|progress)/|\.damaged")


def main() -> int:
    """Run the chosen faults; returns 1 if one of them was met ill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crashes", type=int, default=0, help="crash points per command; 0: all")
    parser.add_argument("--damages", type=int, default=400, help="damaged files in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="*", help="only these; the default is all")
    parser.add_argument("--root", type=Path, help="folder to keep; the default is a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        os.environ["LATENT_PRIOR_FAULTS"] = str(root)
        os.environ["LATENT_PRIOR_CACHE"] = str(root / "cache")
        place, chance = Place(root), random.Random(options.seed)
        started, count, ill = time.monotonic(), 0, 0
        chosen = {k: v for k, v in place.commands.items() if k in (options.commands or [k])}
        for case, problem in itertools.chain(
            crashes(place, chosen, options.crashes, chance),
            damages(place, chosen, options.damages, chance),
        ):
            count += 1
            ill += problem is not None
            if problem is not None:
                print(f"ILL {case}: {problem}", flush=True)
        print(
            f"{count} faults, {count - ill} met well, {ill} ill, {time.monotonic() - started:.0f} s"
        )
    return int(ill > 0)


def crashes(
    place: Place, commands: dict[str, Command], most: int, chance: random.Random
) -> Iterator[tuple[str, str | None]]:
    """Kill commands before changes of files, repeat them and compare with a call left alone."""
    for name, command in commands.items():
        place.prepare(command)
        before = {folder: tree(place.work / folder) for folder in command.whole}
        alone = call(command.script, command.words, watched=place.work)
        if alone.code != 0:
            yield name, f"left alone it ends with {alone}"
            continue
        expected = tree(place.work, _ignored)
        after = {folder: tree(place.work / folder) for folder in command.whole}
        points = range(1, len(alone.events) + 1)
        print(f"{name}: {len(points)} changes of files", flush=True)
        for point in sorted(chance.sample(points, min(most, len(points)))) if most else points:
            case = f"{name} killed before {alone.events[point - 1]} ({point})"
            place.prepare(command)
            killed = call(command.script, command.words, watched=place.work, kill_at=point)
            if killed.code != -9:
                yield case, f"it was not killed but ended with {killed}"
                continue
            mixed = _mixed(place, command, before, after, finished=alone.events[: point - 1])
            again = call(command.script, command.words)
            if mixed is not None:
                yield case, mixed
            elif again.code != 0:
                yield case, f"repeated, it ends with {again}"
            else:
                other = differences(expected, tree(place.work, _ignored))
                yield case, f"repeated, other files: {other[:4]}" if other else None


def _mixed(
    place: Place,
    command: Command,
    before: dict[str, dict[str, str]],
    after: dict[str, dict[str, str]],
    finished: list[str],
) -> str | None:
    """Which folder is neither the one of before nor that of after a killed call."""
    for folder in command.whole:
        found = tree(place.work / folder)
        trained = command.script.endswith("train")  # its model is replaced at every checkpoint
        if not before[folder] and trained:
            appeared = any(event.endswith(f"-> ~/{folder}") for event in finished)
            if appeared and not found:
                return f"{folder} was there and is gone"
        elif found not in (before[folder], after[folder]):
            return f"{folder} is neither old nor new: {differences(before[folder], found)[:3]}"
    return None


def damages(
    place: Place, commands: dict[str, Command], most: int, chance: random.Random
) -> Iterator[tuple[str, str | None]]:
    """Damage a file that a command reads: it names the file or its folder, or nothing changes."""
    pairs = [(name, folder, kept) for name, folder, kept in _DAMAGED if name in commands]
    pairs += [(name, "", "") for name in _REPEATED if name in commands]
    expected: dict[tuple[str, str], dict[str, str]] = {}
    for number in range(most if pairs else 0):
        name, folder, kept = pairs[number % len(pairs)]
        command = commands[name]
        if (name, folder) not in expected:
            place.prepare(command)
            alone = call(command.script, command.words)
            assert alone.code == 0, f"{name}: {alone.said}"
            expected[name, folder] = tree(place.work / command.output, _ignored)
        place.prepare(command)
        target = place.work / (folder or command.output)
        if not folder:
            call(command.script, command.words)
        files = sorted(
            path for path in target.rglob("*")
            if path.is_file() and not (kept and re.search(kept, str(path.relative_to(target))))
        )  # fmt: skip
        path, how = chance.choice(files), chance.choice(list(DAMAGES))
        DAMAGES[how](path, chance)
        local = path.relative_to(place.work)
        outcome = call(command.script, command.words)
        yield (
            f"{name}: {local} is {how}",
            _judge(place, command, path, outcome, expected[name, folder], repeated=not folder),
        )


def _judge(
    place: Place,
    command: Command,
    path: Path,
    outcome: object,
    expected: dict[str, str],
    *,
    repeated: bool,
) -> str | None:
    """What is wrong with the answer to a damaged file; None if nothing is."""
    from faults.trials import Outcome

    assert isinstance(outcome, Outcome)
    if outcome.code == 0:
        other = differences(expected, tree(place.work / command.output, _ignored))
        if "has no manifest.json" in outcome.said:
            other = [name for name in other if name != "manifest.json"]  # it was said
        if repeated and command.script.endswith("train"):
            # A part of the run that this call does not read is checked by the one that reads it.
            itself = path.relative_to(place.work / command.output).as_posix()
            other = [name for name in other if name != itself and not _KEPT.search(name)]
        return f"taken silently; other files: {other[:4]}" if other else None
    if outcome.hung or outcome.sentence is None:
        return str(outcome)
    inner = [path, *path.parents]
    named = inner[: inner.index(place.work)]
    if not any(str(each) in outcome.sentence for each in named):
        return f"the message does not name it: {outcome}"
    return None


def _ignored(name: str) -> bool:
    return _IGNORED.search(name) is not None


if __name__ == "__main__":
    sys.exit(main())
