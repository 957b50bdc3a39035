"""What `ccrk serve` can be told."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

TOKEN_VARIABLE = "CCRK_TOKEN"
MIN_TOKEN = 12  # characters; a shorter one can be guessed

ORIGIN = re.compile(r"https://[a-z0-9.-]+(:\d+)?")

AT_LEAST = {
    "port": 0,
    "max_upload_bytes": 1024,
    "max_json_bytes": 1024,
    "max_pixels": 1024,
    "max_batch": 1,
    "max_wait_ms": 0,
    "max_waiting": 1,
    "max_requests": 1,
    "max_queries": 1,
    "max_k": 1,
    "max_rerank": 1,
    "max_text_chars": 1,
    "body_timeout": 0.1,
    "request_timeout": 0.1,
    "keep_alive": 1,
    "threads": 1,
}


@dataclass
class ServingOptions:
    """Options of the service. Sizes are in bytes, times in seconds if not in ms.

    Attributes:
        model: folder or Hub id.
        gallery: a folder of photos or the URI of an index.
        host: address to listen on; by default only this machine can reach it.
        port: 0 for any that is free.
        token: what clients have to show; by default the environment variable CCRK_TOKEN, if it is set. Never printed.
        allow_hosts: names by which the service may be addressed, beside this machine's; without them a service on
            this machine alone refuses others, so that no web page can reach it under a name of its own. `*` allows
            all.
        photos: folders in which photos may lie that are shown. By default the folder that was indexed.
        page: whether there is a web page.
        embedded_in: origins whose pages may show this one inside them, such as https://huggingface.co.
        bf16: compute in bfloat16.
        threads: of the CPU; torch's choice by default.
        rerank: default of searches: "auto", a number of candidates, or None for no re-ranking.
        max_batch: queries in one pass of the model; 1 is a pass for each request.
        max_wait_ms: how long a query waits for others to share a pass.
        max_waiting: queries that may wait; beyond them the service answers 503.
        max_requests: requests answered at a time; beyond them 503.
        max_queries: of one request.
        max_k: results of one query.
        max_rerank: candidates that one query may have re-ranked.
        max_text_chars: of one text.
        max_upload_bytes: of a photo.
        max_json_bytes: of any other body.
        max_pixels: of a photo, width times height.
        body_timeout: until a request has to have arrived, its head and its body each.
        request_timeout: for an answer; after it 503.
        keep_alive: how long an idle connection stays open.
    """

    model: str = ""
    gallery: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    allow_hosts: Sequence[str] = ()
    photos: Sequence[str] = ()
    page: bool = True
    embedded_in: Sequence[str] = ()
    bf16: bool = False
    threads: int | None = None
    rerank: int | str | None = "auto"
    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_waiting: int = 512
    max_requests: int = 256
    max_queries: int = 64
    max_k: int = 200
    max_rerank: int = 100
    max_text_chars: int = 2000
    max_upload_bytes: int = 20 * 2**20
    max_json_bytes: int = 256 * 2**10
    max_pixels: int = 50_000_000
    body_timeout: float = 20.0
    request_timeout: float = 60.0
    keep_alive: int = 10

    def __post_init__(self):
        """Takes the token from the environment and checks all.

        Raises:
            ValueError: naming the option.
        """
        if self.token is None:
            self.token = os.environ.get(TOKEN_VARIABLE) or None
        if self.token is not None and len(self.token) < MIN_TOKEN:
            raise ValueError(f"the token has {len(self.token)} characters; it needs at least {MIN_TOKEN}")
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it is at least {least}")
        if self.port > 65535:
            raise ValueError(f"--port is {self.port}; it is at most 65535")
        for origin in self.embedded_in:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"embedded_in names '{origin}'; an origin looks like https://huggingface.co")
        if self.rerank not in (None, "auto") and not (isinstance(self.rerank, int) and self.rerank >= 1):
            raise ValueError(f"--rerank is {self.rerank!r}; it is 'auto', 'off' or a whole number from 1 on")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


__all__ = ["TOKEN_VARIABLE", "ServingOptions"]
