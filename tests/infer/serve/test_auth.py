"""Tokens from a file, the same for HTTP, gRPC and metrics."""

from __future__ import annotations

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from infer.errors import InputError
from infer.serve.auth import Tokens

TOKEN, OTHER = "correct-horse-battery", "staple-and-more-of-it"


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# those of the team\n\n{TOKEN}\n{OTHER}\n")
    return path


GOOD = [
    {"authorization": f"Bearer {TOKEN}"},
    {"authorization": f"bearer  {OTHER}"},
    {"x-api-key": OTHER},
    {"authorization": "Basic xyz", "x-api-key": TOKEN},
]
BAD = [
    {},
    {"authorization": TOKEN},
    {"authorization": f"Bearer {TOKEN[:-1]}"},
    {"authorization": "Bearer"},
    {"authorization": f"Basic {TOKEN}"},
    {"x-api-key": "# those of the team"},
    {"x-api-key": ""},
    {"x-api-key": "\xe4" * 20},
]


def test_every_door_asks_for_a_token(serve, tokens, pictures):
    with serve(tokens=tokens) as server, server.client() as http, triton.InferenceServerClient(server.grpc) as client:
        for headers in BAD:
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            for path in ("/v2", "/metrics", "/v1/models", "/v2/models/tiny", "/openapi.json"):
                answer = http.get(path, headers=raw)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
                assert TOKEN not in answer.text
            assert http.post("/v1/classify", content=pictures[0], headers=raw).status_code == 401
        for headers in GOOD:
            assert http.get("/metrics", headers=headers).status_code == 200
            assert http.post("/v1/classify", content=pictures[0], headers=headers).status_code == 200
        for headers in BAD[:4]:
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                client.get_server_metadata(headers=headers)
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                client.get_model_repository_index(headers=headers)
        for headers in GOOD:
            assert client.get_server_metadata(headers=headers).name == "iresnet"
        # probes cannot bring a token, and the page has no secret
        assert http.get("/v2/health/ready").status_code == http.get("/").status_code == 200
        assert client.is_server_ready()
        schemes = http.get("/openapi.json", headers=GOOD[0]).json()["components"]["securitySchemes"]
        assert set(schemes) == {"bearer", "key"}


def test_a_body_without_a_token_is_not_read(serve, tokens):
    with serve(tokens=tokens) as server, server.client() as http:
        answer = http.post("/v1/classify", content=b"\0" * (20 << 20))
        assert answer.status_code == 401 and answer.headers["connection"] == "close"
        assert server.service.bodies.used == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a token a line, found none"),
        ("# only\n", "found none"),
        ("short\n", "token 1: expected at least 16"),
        ("with spaces in the middle of it\n", "token 1"),
        (f"{TOKEN}\n\xe4{TOKEN}\n", "token 2"),
    ],
)
def test_files_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "tokens"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Tokens(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="expected a text file with a token a line"):
        Tokens(tmp_path / "none")


def test_without_a_file_everybody_may_ask():
    assert not Tokens(None).required
    Tokens(None).check(None, None)
