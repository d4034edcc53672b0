"""The page's files, headers, health, readiness and configuration over real HTTP."""

import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiortc import RTCCertificate
from cryptography.hazmat.primitives import serialization
from yarl import URL

from engine.api import Persona
from gateway.config import HttpSettings, IceServer
from gateway.page import Page, folder
from tests.live_gateway import LiveGateway, live_gateway


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    ice = IceServer(urls=("turn:turn.example.org",), username="u", credential="c")
    http = HttpSettings(port=0, ice_servers=(ice,), origins=("https://shop.example",))
    personas = {"default": Persona(), "guide": Persona("guide")}
    async with live_gateway(personas=personas, http=http) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_every_file_of_the_page_is_served_with_its_type(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    types = {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}
    names = list(Page(folder()).assets)
    assert {"index.html", "app.js", "style.css"} <= set(names)
    for name in names:
        async with client.get(f"{gateway.url}/{name}") as answer:
            assert answer.status == 200
            assert answer.content_type == types[name.rsplit(".", 1)[1]]
            assert await answer.read() == (folder() / name).read_bytes()


async def test_the_page_may_run_no_foreign_or_inline_script(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    async with client.get(gateway.url) as answer:
        policy = answer.headers["Content-Security-Policy"]
        html = await answer.text()
    assert "script-src 'self'" in policy and "unsafe" not in policy and "default-src 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Permissions-Policy"].startswith("microphone=(self)")
    assert html.count("<script") == html.count('src="app.js"') == 1
    assert "style=" not in html and "onclick" not in html


async def test_errors_carry_the_same_headers(gateway: LiveGateway, client: aiohttp.ClientSession) -> None:
    async with client.get(f"{gateway.url}/nothing.js") as answer:
        assert answer.status == 404
        assert "Content-Security-Policy" in answer.headers


async def test_a_browser_that_has_the_file_is_told_so(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    async with client.get(f"{gateway.url}/app.js") as first:
        tag = first.headers["ETag"]
        assert first.headers["Cache-Control"] == "no-cache"
    async with client.get(f"{gateway.url}/app.js", headers={"If-None-Match": tag}) as second:
        assert second.status == 304 and await second.read() == b""


@pytest.mark.parametrize(
    "path", ["../pyproject.toml", "%2e%2e%2fpyproject.toml", "..%2Fgateway%2Fapp.py", ".keep", "%00"]
)
async def test_nothing_but_the_page_is_served(
    gateway: LiveGateway, client: aiohttp.ClientSession, path: str
) -> None:
    async with client.get(URL(f"{gateway.url}/{path}", encoded=True)) as answer:
        assert answer.status in (400, 404)


async def test_the_page_learns_of_ice_servers_and_personas(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    async with client.get(f"{gateway.url}/api/config") as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        assert await answer.json() == {
            "iceServers": [{"urls": ["turn:turn.example.org"], "username": "u", "credential": "c"}],
            "personas": ["default", "guide"],
        }


async def test_it_is_ready_when_the_engine_is_and_not_while_it_drains(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    async def ready() -> tuple[int, list[str]]:
        async with client.get(f"{gateway.url}/ready") as answer:
            return answer.status, json.loads(await answer.text())["reasons"]

    assert await ready() == (200, [])
    gateway.http.loading = "the engine is loading"
    assert await ready() == (503, ["the engine is loading"])
    gateway.http.loading = None
    gateway.switchboard.draining = True
    assert await ready() == (503, ["draining"])
    async with client.get(f"{gateway.url}/health") as answer:
        assert answer.status == 200, "it lives while it drains"


async def test_a_listed_origin_may_ask_before_it_calls(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    headers = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    async with client.options(f"{gateway.url}/api/call", headers=headers) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert "Content-Type" in answer.headers["Access-Control-Allow-Headers"]
    async with client.options(f"{gateway.url}/api/call/some-id", headers=headers) as answer:
        assert answer.status == 204 and "DELETE" in answer.headers["Access-Control-Allow-Methods"]
    async with client.get(f"{gateway.url}/api/config", headers=headers) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "nope", 404), ("PUT", "call", 405)])
async def test_a_path_that_is_not_there_is_404_and_a_wrong_method_405(
    gateway: LiveGateway, client: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with client.request(method, f"{gateway.url}/api/{path}") as answer:
        assert answer.status == status


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "https://shop.example.evil"])
async def test_a_foreign_page_is_refused(
    gateway: LiveGateway, client: aiohttp.ClientSession, origin: str
) -> None:
    for method in ("OPTIONS", "POST", "GET"):
        async with client.request(method, f"{gateway.url}/api/call", headers={"Origin": origin}) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_our_own_page_and_programs_without_an_origin_may_call(
    gateway: LiveGateway, client: aiohttp.ClientSession
) -> None:
    for headers in ({"Origin": gateway.url}, {}):
        async with client.post(f"{gateway.url}/api/call", json={}, headers=headers) as answer:
            assert answer.status == 400


async def test_two_gateways_never_share_a_metric(gateway: LiveGateway, client: aiohttp.ClientSession) -> None:
    async with live_gateway() as other:
        for one in (gateway, other):
            async with client.get(f"{one.url}/metrics") as answer:
                text = await answer.text()
                assert answer.content_type == "text/plain"
            assert 'engine_slots{state="free"} 2.0' in text
            assert "\nready 1.0" in text


async def test_with_a_certificate_the_page_is_served_over_https(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    certificate = RTCCertificate.generateCertificate()
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(certificate._cert.public_bytes(pem))
    key.write_bytes(certificate._key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with live_gateway(http=HttpSettings(port=0, tls_cert=cert, tls_key=key)) as gateway:
        url = f"https://127.0.0.1:{gateway.http.port}/health"
        async with client.get(url, ssl=trusting) as answer:
            assert answer.status == 200
