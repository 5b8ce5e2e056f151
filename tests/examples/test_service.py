"""The web service: batches of mixed requests, refusals, and images that depend on none of it."""

import asyncio
import base64
import dataclasses
import io
import json
import threading

import httpx
import load_test
import numpy as np
import pytest
import uvicorn
from app import LARGEST_BODY, ServiceOptions, make_app
from PIL import Image

from latent_prior import Pipeline
from latent_prior.stage2_prior.prior import PriorConfig, TransformerPrior
from latent_prior.stage2_prior.text.tokenizer import CaptionTokenizer

PNG = b"\x89PNG"


class Watched(Pipeline):
    """A pipeline that notes its calls and waits until it may begin."""

    def __call__(self, *args, **settings):
        self.calls.append((settings["labels"], settings["guidance_scale"]))
        assert self.may_begin.wait(60)
        if self.fails:
            raise RuntimeError("no memory")
        return super().__call__(*args, **settings)


@pytest.fixture
def pipe(pipeline_folder):
    watched = Watched.from_pretrained(pipeline_folder)
    watched.calls, watched.fails, watched.may_begin = [], False, threading.Event()
    watched.may_begin.set()
    return watched


def serve(pipe, talk, **options):
    """What `talk(client)` returns while the service runs."""

    async def run():
        app = make_app(pipe, ServiceOptions(pipeline="runs/tiny", **options))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://service") as client,
        ):
            return await talk(client)

    return asyncio.run(run())


async def waiting(client, count):
    """Return as soon as this many images wait in the queue."""
    async with asyncio.timeout(60):
        while (await client.get("/health")).json()["waiting"] != count:
            await asyncio.sleep(0.01)


async def begun(pipe, client):
    """A request whose image the pipeline is about to compute, until it may."""
    pipe.may_begin.clear()
    first = asyncio.create_task(client.post("/generate", json={"label": "car", "seed": 0}))
    async with asyncio.timeout(60):
        while not pipe.calls:
            await asyncio.sleep(0.01)
    return first


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)), dtype=int)


def assert_same_picture(one, two):
    """Kernels for other batch sizes round differently: a value may land on the next grey level."""
    assert np.abs(one - two).max() <= 1


def test_the_same_seed_gives_the_same_image_whatever_is_asked_at_the_same_time(pipe):
    wishes = [
        {"label": label, "seed": seed, "guidance_scale": scale}
        for seed in range(4)
        for label in ("bee", 0, -1)
        for scale in (1.0, 2.5)
    ]

    async def talk(client):
        first = await begun(pipe, client)  # alone: it waits for no company
        asked = [asyncio.create_task(client.post("/generate", json=wish)) for wish in wishes]
        await waiting(client, len(wishes))
        pipe.may_begin.set()
        await first
        return await asyncio.gather(*asked)

    answers = serve(pipe, talk, max_batch=5)
    assert {answer.status_code for answer in answers} == {200}
    assert [len(labels) for labels, _ in pipe.calls] == [1, 5, 5, 5, 5, 2, 2]
    assert all(len(set(labels)) > 1 for labels, _ in pipe.calls[1:])
    for wish, answer in zip(wishes, answers, strict=True):
        assert answer.headers["X-Seed"] == str(wish["seed"])
        output = pipe(
            labels=wish["label"], generator=wish["seed"], guidance_scale=wish["guidance_scale"]
        )
        assert_same_picture(pixels(answer.content), np.asarray(output.images[0], dtype=int))


def test_several_images_have_consecutive_seeds_in_the_shape_of_openai(pipe):
    async def talk(client):
        body = {"model": "tiny", "prompt": "car", "n": 3, "size": "16x16", "seed": 5}
        several = await client.post("/v1/images/generations", json=body)
        singles = [
            await client.post("/generate", json={"label": "car", "seed": seed})
            for seed in (5, 6, 7)
        ]
        return several.json(), singles

    several, singles = serve(pipe, talk)
    assert set(several) == {"created", "data", "background", "output_format", "size", "seed"}
    assert several["seed"] == 5
    assert len({single.content for single in singles}) == 3
    for entry, single in zip(several["data"], singles, strict=True):
        png = base64.b64decode(entry["b64_json"])
        assert png.startswith(PNG)
        assert_same_picture(pixels(png), pixels(single.content))


def test_openais_own_client_is_answered(pipe):
    openai = pytest.importorskip("openai")

    async def talk(client):
        ours = openai.AsyncOpenAI(
            base_url="http://service/v1", api_key="none", max_retries=0, http_client=client
        )
        choices = {"background": "opaque", "output_format": "png", "quality": "auto"}
        answer = await ours.images.generate(
            model="tiny", prompt="car", n=2, size="auto", extra_body={"seed": 5}, **choices
        )
        refusals = []
        for wish in ({"n": 100}, {"output_format": "webp"}, {"stream": True}, {"style": "vivid"}):
            with pytest.raises(openai.BadRequestError) as refused:
                await ours.images.generate(prompt="car", **wish)
            refusals.append(refused.value.body["message"])
        single = await client.post("/generate", json={"label": "car", "seed": 6})
        return answer, refusals, single

    answer, refusals, single = serve(pipe, talk)
    assert (answer.size, answer.output_format, answer.background) == ("16x16", "png", "opaque")
    assert answer.created > 0
    assert len(answer.data) == 2
    assert_same_picture(pixels(base64.b64decode(answer.data[1].b64_json)), pixels(single.content))
    for said, culprit in zip(refusals, ("n", "output_format", "stream", "style"), strict=True):
        assert said.startswith(culprit)


def test_fields_of_openai_that_are_null_are_left_out(pipe):
    async def talk(client):
        body = {"prompt": "car", "n": None, "size": None, "response_format": None, "user": None}
        return await client.post("/v1/images/generations", json=body)

    answer = serve(pipe, talk)
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 1


def test_without_a_seed_the_answer_names_the_one_that_was_drawn(pipe):
    async def talk(client):
        first = await client.post("/generate", json={})
        seed = int(first.headers["X-Seed"])
        return first, await client.post("/generate", json={"seed": seed})

    first, again = serve(pipe, talk)
    assert_same_picture(pixels(first.content), pixels(again.content))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"label": "seven"}, "label 'seven' is out of range: the classes are apple, bee, car"),
        ({"label": 3}, "label 3 is out of range"),
        ({"label": True}, "label: "),
        ({"prompt": "a bee"}, "this pipeline's prior was not trained on captions"),
        ({"temperature": -1}, "temperature must be a number from 0 up"),
        ({"guidance_scale": "much"}, "guidance_scale: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**60}, "seed: "),
        ({"scale": 2}, "scale: Extra inputs are not permitted"),
        ([], "body: "),
    ],
)
def test_a_mistake_is_answered_in_the_pipelines_words(pipe, body, message):
    answer = serve(pipe, lambda client: client.post("/generate", json=body))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].startswith(message)
    assert error["type"] == "invalid_request_error"
    assert not pipe.calls


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": "seven"}, "label 'seven' is out of range"),
        ({"prompt": "bee", "n": 9}, "n must be at most 8, not 9"),
        ({"prompt": "bee", "size": "256x256"}, "size must be 16x16"),
        ({"prompt": "bee", "model": "dall-e-3"}, "there is no model 'dall-e-3' here"),
        ({"prompt": "bee", "response_format": "url"}, "response_format: "),
    ],
)
def test_a_mistake_on_the_path_of_openai_has_its_status(pipe, body, message):
    answer = serve(pipe, lambda client: client.post("/v1/images/generations", json=body))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)


def test_what_is_no_request_is_refused(pipe):
    async def talk(client):
        return [
            await client.post(
                "/generate", content="{", headers={"content-type": "application/json"}
            ),
            await client.post("/generate", content=" " * (LARGEST_BODY + 1)),
            await client.get("/generate"),
            await client.get("/../../etc/passwd"),
            await client.get("/manifest.json"),
        ]

    assert [answer.status_code for answer in serve(pipe, talk)] == [422, 413, 405, 404, 404]


def test_a_full_queue_refuses_with_the_time_to_wait(pipe):
    async def talk(client):
        first = await begun(pipe, client)
        asked = [asyncio.create_task(client.post("/generate", json={})) for _ in range(3)]
        await waiting(client, 3)
        body = {"prompt": "bee", "n": 2}
        refused = await client.post("/v1/images/generations", json=body)
        pipe.may_begin.set()
        return refused, [await each for each in (first, *asked)]

    refused, answered = serve(pipe, talk, max_waiting=4)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "server_error"
    assert [answer.status_code for answer in answered] == [200] * 4


def test_who_waits_too_long_is_refused_and_leaves_the_queue(pipe):
    async def talk(client):
        pipe.may_begin.clear()
        asked = [asyncio.create_task(client.post("/generate", json={})) for _ in range(3)]
        refused = await asyncio.gather(*asked)
        await waiting(client, 0)
        pipe.may_begin.set()
        return refused

    refused = serve(pipe, talk, timeout=0.3, max_batch=1)
    assert {answer.status_code for answer in refused} == {503}
    assert "not sampled within 0.3 seconds" in refused[0].json()["error"]["message"]


def test_a_client_that_goes_away_leaves_the_queue(pipe):
    """Real messages of a server: the body, then the end of the connection."""
    gone = asyncio.Event()
    body = json.dumps({"label": "bee"}).encode()
    sent = []

    async def talk(client):
        first = await begun(pipe, client)
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive():
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/generate", "raw_path": b"/generate", "query_string": b"",
            "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("service", 80), "client": ("c", 1),
            "headers": [(b"content-type", b"application/json")], "asgi": {"version": "3.0"},
        }  # fmt: skip
        second = asyncio.create_task(client._transport.app(scope, receive, send))
        await waiting(client, 1)
        gone.set()
        await second
        await waiting(client, 0)
        pipe.may_begin.set()
        return await first

    assert serve(pipe, talk).status_code == 200
    assert [labels for labels, _ in pipe.calls] == [[2]]
    assert sent[0]["status"] == 499


def test_a_batch_that_fails_spoils_no_other(pipe, caplog):
    async def talk(client):
        pipe.fails = True
        failed = await client.post("/generate", json={})
        pipe.fails = False
        return failed, await client.post("/generate", json={})

    failed, answered = serve(pipe, talk)
    assert (failed.status_code, answered.status_code) == (500, 200)
    assert failed.json()["error"]["message"] == "the image could not be sampled"
    assert "no memory" in caplog.text


def test_prompts_reach_a_pipeline_that_reads_them_and_a_long_one_spoils_no_other(parts):
    autoencoder = parts["vqvae"]()
    tokenizer = CaptionTokenizer.train(["a red circle", "a blue square"] * 2, 300)
    spec = dataclasses.replace(autoencoder.code_spec, class_names=()).to_dict()
    shape = {"width": 16, "depth": 1, "heads": 2, "condition": "text", "text": tokenizer.spec}
    prior = TransformerPrior(PriorConfig(code_spec=spec, **shape))
    prior.tokenizer = tokenizer
    pipe = Pipeline(autoencoder, prior)
    prompts = ["a red circle", "a blue square", "red " * 200, " "]

    async def talk(client):
        wishes = [{"prompt": prompt, "seed": 2} for prompt in prompts]
        answers = [client.post("/generate", json=wish) for wish in [*wishes, {"label": 1}]]
        body = {"prompt": "a red circle", "seed": 2}
        return await asyncio.gather(*answers, client.post("/v1/images/generations", json=body))

    *answers, as_openai = serve(pipe, talk)
    assert [answer.status_code for answer in answers] == [200, 200, 422, 422, 422]
    messages = [answer.json()["error"]["message"] for answer in answers[2:]]
    for message, part in zip(messages, ("tokens, more than", "is empty", "no labels"), strict=True):
        assert part in message
    for prompt, answer in zip(prompts, answers[:2], strict=False):
        own = pipe(prompt=[prompt], generator=2).images[0]
        assert_same_picture(pixels(answer.content), np.asarray(own, dtype=int))
    assert base64.b64decode(as_openai.json()["data"][0]["b64_json"]).startswith(PNG)


def test_a_service_that_stops_answers_what_it_has_accepted(pipe):
    app = make_app(pipe, ServiceOptions(pipeline="runs/tiny"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    running = threading.Thread(target=server.run)
    running.start()
    answers = []

    def ask(url):
        answers.append(httpx.post(url, json={"label": "bee", "seed": 1}, timeout=60))

    try:
        while not server.started:
            assert running.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        pipe.may_begin.clear()
        asking = threading.Thread(target=ask, args=(f"http://127.0.0.1:{port}/generate",))
        asking.start()
        while not pipe.calls:
            assert asking.is_alive()
    finally:
        server.should_exit = True
        pipe.may_begin.set()
        running.join(60)
    asking.join(60)
    assert answers[0].status_code == 200


def test_the_load_test_compares_what_was_served_with_the_pipeline(pipeline_folder, capsys):
    """Also the only test with the service's own process and command line."""
    flags = {"clients": 4, "seconds": 0.5, "rounds": 1, "checked": 8, "cpu_threads": 1}
    options = load_test.LoadOptions(pipeline=str(pipeline_folder), **flags)
    with load_test.service(options, max_batch=4) as url:
        flags |= {"pipeline": pipeline_folder, "url": url}
        load_test.main([f"--{name}={value}" for name, value in flags.items()])
    said = capsys.readouterr().out
    assert "p95" in said
    assert "images are the pipeline's own" in said


def test_images_of_another_pipeline_are_noticed(pipe):
    png = io.BytesIO()
    pipe(labels=0, generator=1, guidance_scale=1.0).images[0].save(png, "PNG")
    answers = [load_test.Answer({"label": 0, "seed": seed}, png.getvalue(), 0.1) for seed in (1, 2)]
    own = Pipeline(pipe.autoencoder, pipe.prior, pipe.sampler)
    same, other = load_test.differences(own, answers)
    assert same <= 1 < other


def test_a_load_test_without_a_service_says_so(pipeline_folder):
    words = ["--pipeline", str(pipeline_folder), "--url", "http://127.0.0.1:9"]
    with pytest.raises(ValueError, match=r"no service answers at http://127\.0\.0\.1:9"):
        load_test.main(words)
