"""Visitors who press *Draw* on the page of `app.py` as fast as they can.

    python benchmarks/page_load.py --pipeline runs/demo/pipeline

Every visitor joins the queue as a browser does, waits for the images, and joins again. Reported are
errors, requests and images per second, the server's resident memory at the start, after a quarter
of the time and at the end, and waits. A visitor who joins behind n others waits for n requests, the
one that is computed included: `overtaken` counts the requests that were started before their turn.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import Options, option

APP = Path(__file__).parents[1] / "pipelines" / "app.py"


@dataclass(kw_only=True)
class LoadOptions(Options):
    """Let many visitors draw images at the same time."""

    pipeline: str = option(path=True)
    """Folder or hub id of a pipeline that draws images."""
    sessions: int = option(20, at_least=1)
    """Visitors at the same time."""
    seconds: float = option(120.0, above=0)
    """How long they stay."""
    num_images: int = option(4, at_least=1)
    """Images of a request."""
    port: int = option(7960, at_least=1)
    """Port of the page."""


answer_early(__name__, LoadOptions)


@dataclass
class Request:
    """One request, times in seconds.

    Attributes:
        joined: when the queue took it.
        started: when it was computed first.
        ended: when its last message came.
        error: what went wrong.
    """

    joined: float
    started: float = 0.0
    ended: float = 0.0
    error: str | None = None


@dataclass
class Load:
    """What all visitors have seen, and the memory of the server in MB by time."""

    requests: list[Request] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)


def main() -> None:
    """Entry point."""
    options = parse_config(LoadOptions)
    words = [sys.executable, str(APP), "--pipeline", options.pipeline, "--port", str(options.port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.match(r"page: (\S+)", line)
            if found is None:
                raise ValueError(f"the page did not start: {line.strip() or 'see above'}")
            load = asyncio.run(visit(found[1], server.pid, options))
        finally:
            server.terminate()
    print(json.dumps(summary(load, options), indent=2))


async def visit(address: str, pid: int, options: LoadOptions) -> Load:
    """All visitors, and a look at the memory every second."""
    load = Load()
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        config = (await client.get("config")).json()
        (event,) = (each for each in config["dependencies"] if each["api_name"] == "generate")
        values = {each["id"]: each["props"].get("value") for each in config["components"]}
        data = [values[number] for number in event["inputs"]]
        data[0] = options.num_images
        body = {"data": data, "fn_index": event["id"]}
        load.requests.append(await draw(client, body, "first"))  # what is made once is made now
        load.requests.clear()
        start = time.monotonic()
        visitors = [
            asyncio.create_task(stay(client, body, start + options.seconds, load))
            for _ in range(options.sessions)
        ]
        while not all(visitor.done() for visitor in visitors):
            load.memory.append((time.monotonic() - start, resident_mb(pid)))
            await asyncio.sleep(1)
        await asyncio.gather(*visitors)
    return load


async def stay(
    client: httpx.AsyncClient, body: dict[str, object], until: float, load: Load
) -> None:
    """One visitor: draws again and again."""
    session = uuid.uuid4().hex
    while time.monotonic() < until:
        load.requests.append(await draw(client, body, session))


async def draw(client: httpx.AsyncClient, body: dict[str, object], session: str) -> Request:
    """Press the button and read the stream of messages to its end."""
    request = Request(time.monotonic())
    try:
        answer = await client.post("gradio_api/queue/join", json={**body, "session_hash": session})
        answer.raise_for_status()
        request.joined = time.monotonic()
        async with client.stream(
            "GET", "gradio_api/queue/data", params={"session_hash": session}
        ) as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_starts":
                    request.started = time.monotonic()
                elif message["msg"] == "process_completed":
                    if not message["success"] or "alert" in str(message["output"]):
                        request.error = str(message["output"])[:200]
                    break
                elif message["msg"] in ("unexpected_error", "queue_full"):
                    request.error = str(message)[:200]
                    break
    except (httpx.HTTPError, ValueError) as error:
        request.error = repr(error)[:200]
    request.ended = time.monotonic()
    return request


def resident_mb(pid: int) -> float:
    """Resident memory of a process, without pages that only lie in the file cache."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def summary(load: Load, options: LoadOptions) -> dict[str, object]:
    """What is reported."""
    good = [each for each in load.requests if each.error is None]
    waits, overtaken, unfair = [], 0, 0
    for each in good:
        ahead = [o for o in good if o.joined < each.joined and o.ended > each.joined]
        before = [o for o in good if each.joined < o.joined and o.started < each.started]
        waits.append((each.started - each.joined, len(ahead)))
        overtaken += bool(before)
        unfair = max(unfair, len(before))
    turn = statistics.median(sorted(each.ended - each.started for each in good))
    longest, ahead_of_longest = max(waits)
    memory = {
        name: round(min(load.memory, key=lambda m: abs(m[0] - at))[1], 1)
        for name, at in (("start", 0.0), ("quarter", options.seconds / 4), ("end", 1e9))
    }
    return {
        "sessions": options.sessions,
        "seconds": options.seconds,
        "requests": len(load.requests),
        "errors": len(load.requests) - len(good),
        "first_error": next((each.error for each in load.requests if each.error), None),
        "images_per_second": round(len(good) * options.num_images / options.seconds, 1),
        "resident_mb": memory,
        "median_turn_s": round(turn, 3),
        "longest_wait_s": round(longest, 2),
        "requests_ahead_of_it": ahead_of_longest,
        "overtaken": overtaken,
        "most_overtaking": unfair,
    }


if __name__ == "__main__":
    run(main)
