"""A web service around a pipeline: images that are asked for together are sampled together.

    python examples/service/app.py --pipeline runs/demo/pipeline
    curl http://127.0.0.1:8000/generate --json '{"label": "7", "seed": 3}' --output seven.png

The tutorial docs/tutorials/web_service.md explains and measures it.
"""

from __future__ import annotations

from dataclasses import dataclass

from latent_prior.cli import answer_early, parse_config, run
from latent_prior.options import ComputeOptions, option


@dataclass(kw_only=True)
class ServiceOptions(ComputeOptions):
    """Answer requests for images over HTTP."""

    pipeline: str = option(path=True)
    """Folder or hub id of the pipeline."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every network of this machine."""
    port: int = option(8000, at_least=0, at_most=65535)
    """Port to listen on; 0 takes a free one."""
    device: str = "cpu"
    """Where the pipeline computes, for example `cuda`."""
    max_batch: int = option(16, at_least=1)
    """Images that are sampled at a time."""
    max_images: int = option(8, at_least=1)
    """Images that one request may ask for."""
    max_waiting: int = option(64, at_least=1)
    """Images that may wait; a request for more is refused with status 503."""
    timeout: float = option(30.0, above=0)
    """Seconds after which a request is refused with status 503, and given up when stopping."""


answer_early(__name__, ServiceOptions)

import asyncio
import base64
import io
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from latent_prior import Pipeline, Sampler
from latent_prior.machine import available_cores

LARGEST_BODY = 64 << 10  # bytes
LONGEST_PROMPT = 2000  # characters
LARGEST_SEED = 2**53 - 1  # JSON numbers are exact up to here
# After a batch, the share of its time in which as many others may arrive: those who got an answer
# ask again, and would otherwise alternate with those who waited, in two small batches.
PAUSE = 0.2
LOG = logging.getLogger("uvicorn.error")


class Wish(BaseModel):
    """What every request may set; the pipeline checks the values."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: int | None = Field(None, ge=0, le=LARGEST_SEED)
    guidance_scale: float | None = None
    temperature: float | None = None


class OneImage(Wish):
    """Body of `/generate`: an image of a class, of a prompt, or any."""

    label: int | str | None = None
    prompt: str | None = Field(None, max_length=LONGEST_PROMPT)


class SeveralImages(Wish):
    """Body of `/v1/images/generations`, as OpenAI's; the fields of `Wish` extend it.

    Of choices that a pipeline does not have only the one that it makes anyway is taken.
    """

    prompt: str = Field(max_length=LONGEST_PROMPT)
    n: int | None = Field(None, ge=1)
    model: str | None = None
    size: str | None = None
    background: Literal["auto", "opaque"] | None = None
    output_format: Literal["png"] | None = None
    quality: Literal["auto"] | None = None
    response_format: Literal["b64_json"] | None = None
    stream: Literal[False] | None = None
    user: str | None = None


@dataclass(eq=False)
class Place:
    """An image's place in the queue."""

    sampler: Sampler
    label: int
    prompt: str | None
    seed: int
    png: asyncio.Future[bytes]


class Batcher:
    """A queue of images and the one thread that computes them."""

    def __init__(self, pipe: Pipeline, options: ServiceOptions) -> None:
        """Keep the pipeline to this queue alone: its caches serve one call at a time."""
        self.pipe, self.options = pipe, options
        self.queue: list[Place] = []
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="pipeline")
        self.batch_seconds = 1.0

    async def images(
        self, request: Request, wish: Wish, count: int, label: int | str | None, prompt: str | None
    ) -> tuple[int, list[bytes]]:
        """The first seed, and PNG files of `count` images with consecutive seeds.

        Raises:
            ValueError: a setting, the label or the prompt does not suit the pipeline.
            HTTPException: the queue is full, the time is over or the client has gone.
        """
        settings = {"guidance_scale": wish.guidance_scale, "temperature": wish.temperature}
        sampler = self.pipe.resolve(settings)
        (number,) = self.pipe.label_numbers([-1 if label is None else label], 1)
        seed = secrets.randbelow(2**32) if wish.seed is None else wish.seed
        if len(self.queue) + count > self.options.max_waiting:
            raise self.busy("too many images are waiting")
        loop = asyncio.get_running_loop()
        places = [
            Place(sampler, number, prompt, seed + index, loop.create_future())
            for index in range(count)
        ]
        self.queue += places
        self.arrived.set()
        every: asyncio.Future[list[bytes]] = asyncio.gather(*(each.png for each in places))
        # The body is read: the next message says that the client has gone.
        gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
        ends: set[asyncio.Future[Any]] = {every, gone}
        try:
            await asyncio.wait(
                ends, timeout=self.options.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if every.done():
                return seed, every.result()
            if gone.done():
                raise HTTPException(499, "the client has gone")
            raise self.busy(f"not sampled within {self.options.timeout:g} seconds")
        finally:
            self.queue = [each for each in self.queue if each not in places]
            for waiting in (*ends, *(each.png for each in places)):
                waiting.cancel()

    def busy(self, reason: str) -> HTTPException:
        """A refusal that says when the queue will be empty."""
        batches = len(self.queue) / self.options.max_batch
        seconds = max(1, math.ceil(batches * self.batch_seconds))
        headers = {"Retry-After": str(seconds)}
        return HTTPException(503, f"{reason}: try again in {seconds} seconds", headers)

    async def work(self) -> None:
        """Compute batches one after another, each as soon as the thread is free."""
        loop = asyncio.get_running_loop()
        while True:
            await self.until_there_are(1)
            batch = self.next_batch()
            started = time.monotonic()
            results: Sequence[bytes | Exception]
            try:
                results = await loop.run_in_executor(self.thread, self.sample, batch)
            except Exception:
                LOG.exception("a batch of %d images failed", len(batch))
                results = [HTTPException(500, "the image could not be sampled")] * len(batch)
            self.batch_seconds = time.monotonic() - started
            for each, result in zip(batch, results, strict=True):
                if each.png.done():  # nobody waits for it any more
                    continue
                if isinstance(result, Exception):
                    each.png.set_exception(result)
                else:
                    each.png.set_result(result)
            with suppress(TimeoutError):
                async with asyncio.timeout(PAUSE * self.batch_seconds):
                    await self.until_there_are(len(batch))

    async def until_there_are(self, count: int) -> None:
        """Return as soon as this many images are in the queue."""
        while len(self.queue) < count:
            self.arrived.clear()
            await self.arrived.wait()

    def next_batch(self) -> list[Place]:
        """Take the oldest image and those with the same settings out of the queue."""
        alike = [each for each in self.queue if each.sampler == self.queue[0].sampler]
        batch = alike[: self.options.max_batch]
        self.queue = [each for each in self.queue if each not in batch]
        return batch

    def sample(self, batch: Sequence[Place]) -> list[bytes | Exception]:
        """PNG files, or why there is none; called on the thread that owns the pipeline."""
        pipe = self.pipe
        results: dict[Place, bytes | Exception] = {}
        for each in batch:  # each on its own: a prompt that is too long must not spoil the others
            try:
                if each.prompt is not None:
                    pipe.prompts_for([each.prompt], 1)
            except ValueError as error:
                results[each] = error
        valid = [each for each in batch if each not in results]
        if valid:
            settings: Any = {name: getattr(valid[0].sampler, name) for name in pipe.settings}
            output = pipe(
                len(valid),
                labels=[each.label for each in valid],
                prompt=[each.prompt for each in valid] if pipe.prompt_reader else None,
                generator=[each.seed for each in valid],
                batch_size=len(valid),
                **settings,
            )
            for each, image in zip(valid, output.images, strict=True):
                file = io.BytesIO()
                image.save(file, "PNG")
                results[each] = file.getvalue()
        return [results[each] for each in batch]


def make_app(pipe: Pipeline, options: ServiceOptions) -> FastAPI:
    """The service of one pipeline."""
    batcher = Batcher(pipe, options)
    name = Path(options.pipeline).name
    size = f"{pipe.code_spec.image_size}x{pipe.code_spec.image_size}"

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        working = asyncio.create_task(batcher.work())
        yield
        working.cancel()
        batcher.thread.shutdown()

    app = FastAPI(title="latent-prior", lifespan=lifespan, max_body_size=LARGEST_BODY)
    for kind in (ValueError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, explain)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": name,
            "size": size,
            "classes": pipe.class_names,
            "takes_prompts": pipe.prompt_reader is not None,
            "max_images": options.max_images,
            "waiting": len(batcher.queue),
        }

    @app.post("/generate", response_class=Response)
    async def generate(request: Request, body: OneImage) -> Response:
        seed, (png,) = await batcher.images(request, body, 1, body.label, body.prompt)
        return Response(png, media_type="image/png", headers={"X-Seed": str(seed)})

    @app.post("/v1/images/generations")
    async def generations(request: Request, body: SeveralImages) -> dict[str, Any]:
        if body.model not in (None, name):
            raise ValueError(
                f"there is no model {body.model!r} here: leave it out or ask for {name!r}"
            )
        if body.size not in (None, "auto", size):
            raise ValueError(f"size must be {size}, the only one of this model, not {body.size!r}")
        count = 1 if body.n is None else body.n
        if count > options.max_images:
            raise ValueError(f"n must be at most {options.max_images}, not {count}")
        label, prompt = (None, body.prompt) if pipe.prompt_reader else (body.prompt, None)
        seed, files = await batcher.images(request, body, count, label, prompt)
        data = [{"b64_json": base64.b64encode(png).decode()} for png in files]
        shown = {"background": "opaque", "output_format": "png", "size": size}
        return {"created": int(time.time()), "data": data, **shown, "seed": seed}

    return app


async def explain(request: Request, error: Exception) -> JSONResponse:
    """An error in the shape of OpenAI's."""
    status, message, parameter, headers = 422, str(error), None, None
    if isinstance(error, HTTPException):
        status, message, headers = error.status_code, error.detail, error.headers
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        parameter = next((part for part in first["loc"][1:] if isinstance(part, str)), "body")
        message = f"{parameter}: {first['msg']}"
    if status == 422 and request.url.path.startswith("/v1/"):
        status = 400  # as OpenAI's
    kind = "server_error" if status >= 500 else "invalid_request_error"
    said = {"message": message, "type": kind, "param": parameter, "code": None}
    return JSONResponse({"error": said}, status, headers)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Raises:
        ValueError: the options or the pipeline are wrong.
    """
    options = parse_config(ServiceOptions, argv)
    torch.set_num_threads(options.cpu_threads or available_cores())
    pipe = Pipeline.from_pretrained(options.pipeline).to(options.device)
    pipe(2)  # refuses a pipeline that cannot sample; the first call is the slowest
    uvicorn.run(
        make_app(pipe, options),
        host=options.host,
        port=options.port,
        timeout_graceful_shutdown=math.ceil(options.timeout),
    )


if __name__ == "__main__":
    run(main)
