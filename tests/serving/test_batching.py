"""Batches of concurrent requests: answers as without them, bounds kept, failures stay with those who caused them."""

from __future__ import annotations

import asyncio
import threading

import httpx2 as httpx
import pytest

from ccrk.serving.batching import Batcher, OverloadedError


class Work:
    """Doubles numbers; waits at a gate, and notes batches and threads."""

    def __init__(self, closed: bool = False):
        self.gate, self.batches, self.threads = threading.Event(), [], set()
        self.running = False
        if not closed:
            self.gate.set()

    def __call__(self, payloads):
        self.running = True
        assert self.gate.wait(20)
        self.batches.append(list(payloads))
        self.threads.add(threading.get_ident())
        if "poison" in payloads:
            raise ValueError("poison")
        return [2 * payload for payload in payloads]


def run(test, work: Work, **options):
    async def go():
        batcher = Batcher(work, **{"max_batch": 8, "max_wait": 0.02, "max_waiting": 100, **options})
        batcher.start()
        try:
            return await asyncio.wait_for(test(batcher), 30)
        finally:
            work.gate.set()
            await batcher.close()

    return asyncio.run(go())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_requests_share_a_pass_and_each_gets_its_own_answer():
    work = Work()

    async def test(batcher):
        return await asyncio.gather(*(batcher.submit(n) for n in range(20)))

    assert run(test, work) == [2 * n for n in range(20)]
    assert [len(batch) for batch in work.batches] == [8, 8, 4]
    assert len(work.threads) == 1 and threading.get_ident() not in work.threads


def test_one_is_no_batch():
    work = Work()

    async def test(batcher):
        return await asyncio.gather(*(batcher.submit(n) for n in range(5)))

    assert run(test, work, max_batch=1) == [0, 2, 4, 6, 8]
    assert work.batches == [[0], [1], [2], [3], [4]]


def test_a_request_of_many_queries_is_never_split():
    work = Work(closed=True)

    async def test(batcher):
        first = asyncio.create_task(batcher.submit("f", 1))
        await until(lambda: work.running)
        rest = [asyncio.create_task(batcher.submit(name, size)) for name, size in (("a", 5), ("b", 4), ("c", 50))]
        await until(lambda: batcher.waiting == 59)
        work.gate.set()
        await asyncio.gather(first, *rest)

    run(test, work, max_wait=0)
    assert work.batches == [["f"], ["a"], ["b"], ["c"]]


def test_a_full_queue_refuses():
    work = Work(closed=True)

    async def test(batcher):
        first = asyncio.create_task(batcher.submit(1))
        await until(lambda: work.running)
        waiting = [asyncio.create_task(batcher.submit(n)) for n in range(4)]
        await until(lambda: batcher.waiting == 4)
        with pytest.raises(OverloadedError, match="4 queries are waiting already, and at most 4 may"):
            await batcher.submit(9)
        work.gate.set()
        assert await first == 2 and await asyncio.gather(*waiting) == [0, 2, 4, 6]

    run(test, work, max_waiting=4, max_wait=0)


def test_an_error_stays_with_its_request():
    work = Work()

    async def test(batcher):
        return await asyncio.gather(*(batcher.submit(p) for p in (1, "poison", 3)), return_exceptions=True)

    one, error, three = run(test, work)
    assert (one, three) == (2, 6) and isinstance(error, ValueError)


def test_clients_that_give_up_are_not_computed_for():
    work = Work(closed=True)

    async def test(batcher):
        first = asyncio.create_task(batcher.submit("f"))
        await until(lambda: work.running)
        gone, stays = (asyncio.create_task(batcher.submit(name)) for name in ("gone", "stays"))
        await until(lambda: batcher.waiting == 2)
        gone.cancel()
        await asyncio.sleep(0)
        first.cancel()  # while it is computed
        await asyncio.sleep(0)
        work.gate.set()
        assert await stays == "staysstays"

    run(test, work, max_wait=0)
    assert work.batches == [["f"], ["stays"]]


def test_closing_ends_what_runs_and_refuses_what_waits():
    work = Work(closed=True)

    async def test(batcher):
        running = asyncio.create_task(batcher.submit(1))
        await until(lambda: work.running)
        waiting = asyncio.create_task(batcher.submit(2))
        await until(lambda: batcher.waiting == 1)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        work.gate.set()
        await closing
        assert await running == 2
        for late in (waiting, batcher.submit(3)):
            with pytest.raises(OverloadedError, match="ending"):
                await late
        assert not batcher.alive

    run(test, work, max_wait=0)


# --- the service --------------------------------------------------------------------------------------------------


def asked(captions):
    """Requests of all kinds, as (method, path, arguments)."""
    requests = [("POST", "/search", {"json": {"queries": text, "k": 1 + n}}) for n, text in enumerate(captions)]
    requests += [("POST", "/search", {"json": {"queries": captions[n:], "k": 3, "rerank": 4}}) for n in range(3)]
    requests += [("POST", "/search", {"json": {"queries": t, "where": {"width": {"min": 50}}}}) for t in captions[:3]]
    requests += [("GET", f"/similar/{n:02d}.png", {"params": {"k": 2 + n}}) for n in (0, 1, 3)]
    requests += [("GET", "/similar/no.png", {})]
    requests += [("POST", "/compare", {"json": {"queries": {"a": captions[0], "b": captions[1]}, "k": 3}})]
    return requests


async def ask_all(app, requests, together: bool):
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client,
    ):
        tasks = [client.request(method, path, **arguments) for method, path, arguments in requests]
        if together:
            return await asyncio.gather(*tasks)
        return [await task for task in tasks]


def rounded(value):
    """An answer without its time, numbers as far as a batch leaves them alone."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items() if name != "took_ms"}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return pytest.approx(value, abs=2e-4) if isinstance(value, float) else value


def test_answers_are_those_without_batches(make_app):
    from ccrk.serving.service import SearchService

    captions = ["a dog in the snow", "ein Hund im Schnee", "un chat noir", "the sun", "a green tree"]
    requests = asked(captions)
    alone = asyncio.run(ask_all(make_app(max_batch=1), requests, together=False))
    app = make_app(max_batch=16, max_wait_ms=50)
    service: SearchService = app.state.service
    sizes = []
    service.batcher._watch = sizes.append
    together = asyncio.run(ask_all(app, requests, together=True))
    assert max(sizes) > 4, "they did share passes"
    for one, other, request in zip(alone, together, requests, strict=True):
        assert one.status_code == other.status_code, request
        answer = other.json()
        answer.pop("took_ms", None)
        assert answer == rounded(one.json()), request


def test_too_much_to_do_is_told(make_app, search, uris):
    """The model is held up; the service goes on answering what needs no model, and refuses what it cannot take."""
    pipe, gate = search(uris["lance"]), threading.Event()

    class Slow:
        gallery, processor, model = pipe.gallery, pipe.processor, pipe.model

        def __call__(self, *args, **kwargs):
            assert gate.wait(20)
            return pipe(*args, **kwargs)

    app = make_app(pipe=Slow(), max_waiting=2, max_wait_ms=0, max_requests=6, request_timeout=20)
    body = {"json": {"queries": "a dog", "k": 1}}

    async def test():
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client,
        ):
            service = app.state.service
            first = asyncio.create_task(client.post("/search", **body))
            await until(lambda: service.batcher._jobs or service.batcher._thread._threads)
            await until(lambda: service.batcher.waiting == 0)
            rest = [asyncio.create_task(client.post("/search", **body)) for _ in range(2)]
            await until(lambda: service.batcher.waiting == 2)
            refused = await client.post("/search", **body)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert "2 queries are waiting already" in refused.json()["detail"]
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/images/00.png")).status_code == 200
            gate.set()
            assert [answer.status_code for answer in await asyncio.gather(first, *rest)] == [200] * 3

    asyncio.run(test())


def test_an_answer_that_takes_too_long(make_app, search, uris):
    pipe, gate = search(uris["lance"]), threading.Event()

    class Stuck:
        gallery, processor, model = pipe.gallery, pipe.processor, pipe.model

        def __call__(self, *args, **kwargs):
            assert gate.wait(20)
            return pipe(*args, **kwargs)

    async def test():
        app = make_app(pipe=Stuck(), request_timeout=0.2)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client,
        ):
            late = await client.post("/search", json={"queries": "a dog"})
            gate.set()
            assert late.status_code == 503 and "no answer within 0.2 s" in late.json()["detail"]

    asyncio.run(test())


def test_more_requests_than_may_run(make_app, search, uris):
    pipe, gate = search(uris["lance"]), threading.Event()

    class Slow:
        gallery, processor, model = pipe.gallery, pipe.processor, pipe.model

        def __call__(self, *args, **kwargs):
            assert gate.wait(20)
            return pipe(*args, **kwargs)

    async def test():
        app = make_app(pipe=Slow(), max_requests=2)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client,
        ):
            tasks = [asyncio.create_task(client.post("/search", json={"queries": "a"})) for _ in range(2)]
            await asyncio.sleep(0)
            await until(lambda: app.state.service.batcher._thread._threads)
            refused = await client.get("/health")
            assert refused.status_code == 503 and "2 requests at a time" in refused.json()["detail"]
            gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * 2

    asyncio.run(test())
