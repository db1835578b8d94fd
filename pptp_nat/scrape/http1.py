"""HTTP/1 as far as scrapes and health checks need it: a request's head in, a response's out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

LONGEST_HEAD: Final = 8192  #: octets of a request
LINE: Final = re.compile(rb"([A-Z]{1,16}) (?:http://[^/ ]*)?(/[!-~]*) HTTP/1\.([01])")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")


class Request(NamedTuple):
    """What a client wants.  ``path`` has no query; names of fields are in lower case."""

    method: str
    path: str
    fields: Mapping[str, str]


class Response(NamedTuple):
    """What it gets."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    fields: tuple[str, ...] = ()  #: more header lines


class BadRequest(Exception):
    """Octets that are no request that is answered here."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.response = Response(status, f"{reason}\n".encode())


def parse(head: bytes) -> tuple[Request, bool]:
    """Read a request without its final empty line; say too whether the connection stays.

    Raises:
        BadRequest: it is none, or has a body.
    """
    line, *lines = head.split(b"\r\n")
    match = LINE.fullmatch(line)
    if match is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "this is no HTTP/1 request")
    fields: dict[str, str] = {}
    for each in lines:
        field = _FIELD.fullmatch(each)
        if field is None:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "a header line is malformed")
        name, value = field[1].decode().lower(), field[2].decode("latin-1")
        fields[name] = f"{fields[name]},{value}" if name in fields else value
    is_new = match[3] == b"1"
    if is_new and "host" not in fields:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "HTTP/1.1 wants a Host header")
    if "transfer-encoding" in fields or fields.get("content-length", "0") != "0":
        raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "requests here have no body")
    wish = fields.get("connection", "").lower()
    stays = "close" not in wish if is_new else "keep-alive" in wish
    path = match[2].partition(b"?")[0].decode()
    return Request(match[1].decode(), path, fields), stays
