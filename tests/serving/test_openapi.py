"""The service against its own OpenAPI: requests that schemathesis makes up from it, valid ones and broken ones."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [
    ("POST", "/search"),
    ("POST", "/search/image"),
    ("POST", "/compare"),
    ("GET", "/similar/{id}"),
    ("GET", "/items/{id}"),
    ("GET", "/images/{id}"),
    ("GET", "/health"),
    ("GET", "/info"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def schema(make_app, listening):
    # over a real connection, since schemathesis would start and end an application for each request
    with listening(make_app("lance", max_pixels=10**6, max_k=50)) as port:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


def fuzz(schema, method: str, path: str, examples: int) -> None:
    operation = schema[path][method]
    config = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )

    @config
    @given(data=st.data())
    def run(data):
        mode = data.draw(st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE]))
        try:
            strategy = operation.as_strategy(generation_mode=mode)
        except Exception:  # nothing can be wrong with a request without parameters
            strategy = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        case = data.draw(strategy)
        case.call_and_validate(checks=CHECKS)

    run()


def test_every_operation_is_tested(schema):
    found = {(op.ok().method.upper(), op.ok().path) for op in schema.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_some_requests(schema, method, path):
    fuzz(schema, method, path, 25)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_many_requests(schema, method, path):
    fuzz(schema, method, path, 1000)
