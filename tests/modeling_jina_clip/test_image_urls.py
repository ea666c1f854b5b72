"""Fetching an image: against a real HTTP server on loopback, and against everything that must not be asked.

The rule for addresses is an argument of the inner ``_fetch``: here it lets loopback through, where the server listens.
What a caller reaches (``fetch_url``, ``encode_image``) has no such argument, and is tested with the rule as it is.
"""

import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPModel, JinaCLIPProcessor, image_urls
from modeling_jina_clip.image_processing_jina_clip import open_image
from modeling_jina_clip.image_urls import MAX_REDIRECTS, _fetch, fetch_url, is_public, is_url
from tests.modeling_jina_clip.picture_server import Handler, picture, png


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        Handler.stop.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_urls, "is_public", lambda address: address.is_loopback)


def fetch(url: str, **limits) -> bytes:
    return _fetch(url, lambda address: address.is_loopback, **{"timeout": 20.0, **limits})


@pytest.mark.parametrize("path", ["picture", "chunked", "unframed", "to?/picture", "to?to?/picture", "picture#part"])
def test_a_picture_arrives(server: str, path: str) -> None:
    path = path.replace("to?to?", "to?/to?")
    assert fetch(f"{server}/{path}") == png()


def test_what_is_asked(server: str) -> None:
    Handler.asked.clear()
    with pytest.raises(ValueError, match="answers 404"):
        fetch(f"{server}/Bücher/a%20b.png?q=ü&r=%2F")
    path, headers = Handler.asked[0]
    assert path == "/B%C3%BCcher/a%20b.png?q=%C3%BC&r=%2F"
    assert headers["Host"] == server.removeprefix("http://")
    assert headers["Accept-Encoding"] == "identity"
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}  # nothing of the user's


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("text", None, None),  # fetched; that it is no picture is for the decoder to say
        ("announced", ValueError, "it has 1000000000000 bytes, above 100000; download it yourself"),
        ("endless", ValueError, "it has more than 100000 bytes"),
        ("endless_chunks", ValueError, "it has more than 100000 bytes"),
        ("cut", ConnectionError, "stopped after 50 of "),
        ("cut_chunk", ConnectionError, "IncompleteRead"),
        ("missing", ValueError, "the server answers 404 Not Found"),
        ("nowhere", ValueError, "it redirects without a location"),
        ("nonsense", ConnectionError, "cannot be fetched"),
        ("to?file:///etc/hostname", ValueError, "the scheme 'file' is not allowed"),
        ("to?ftp://127.0.0.1/x", ValueError, "the scheme 'ftp' is not allowed"),
        ("to?http://user:word@127.0.0.1/", ValueError, "it names a user"),
        ("to?http://10.0.0.1/x.png", ValueError, "'10.0.0.1' is 10.0.0.1, which is not an address of the public"),
        ("to?http://169.254.169.254/latest/meta-data", ValueError, "not an address of the public internet"),
        ("to?http://[fd00:ec2::254]/", ValueError, "not an address of the public internet"),
    ],
)
def test_servers_that_misbehave(server: str, path: str, error: type[Exception] | None, message: str | None) -> None:
    if error is None:
        assert fetch(f"{server}/{path}") == b"<html>no</html>"
        return
    with pytest.raises(error, match=message) as caught:
        fetch(f"{server}/{path}", max_bytes=100_000)
    assert f"{server}/{path}" in str(caught.value)


def test_a_loop_of_redirects_ends(server: str) -> None:
    Handler.asked.clear()
    url = f"{server}/to?" + f"{server}/to?" * 9
    with pytest.raises(ValueError, match=f"it redirects more than {MAX_REDIRECTS} times"):
        fetch(url)
    assert len(Handler.asked) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("path", ["drip", "drip_headers"])
def test_the_time_limit_is_for_all_of_it(server: str, path: str) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"was not received within 0\.3 seconds"):
        fetch(f"{server}/{path}", timeout=0.3)
    assert time.monotonic() - begin < 10  # at this drip, a limit per read would wait for the whole body: 20 s


def test_a_name_that_takes_too_long_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    awake = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: awake.wait(30))
    try:
        with pytest.raises(TimeoutError, match="was not received within"):
            fetch("http://slow.example/x.png", timeout=0.1)
    finally:
        awake.set()


def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(TimeoutError):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.2)


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ConnectionError, match=r"cannot be fetched: .*refused"):
        fetch(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/hostname", "the scheme 'file' is not allowed; use http or https"),
        ("ftp://example.com/x.png", "the scheme 'ftp' is not allowed"),
        ("gopher://example.com/", "the scheme 'gopher'"),
        ("http://user@1.1.1.1/", "it names a user"),
        ("http://user:word@1.1.1.1/", "it names a user"),
        ("http://1.1.1.1\\@127.0.0.1/", "backslashes"),
        ("http://1.1.1.1/a b", "spaces"),
        ("http://1.1.1.1/\r\nHost: other", "control characters"),
        ("http:///x.png", "it names no host"),
        ("http://1.1.1.1:0/", "port 0"),
        ("http://1.1.1.1:99999/", "Port out of range"),
        ("http://[::1/", "Invalid IPv6"),
        ("http://127.0.0.1/", "not an address of the public internet"),
        ("http://127.1/", "'127.1' is 127.0.0.1"),
        ("http://2130706433/", "'2130706433' is 127.0.0.1"),
        ("http://0x7f000001/", "'0x7f000001' is 127.0.0.1"),
        ("http://0177.0.0.1/", "'0177.0.0.1' is 127.0.0.1"),
        ("http://0/", "is 0.0.0.0"),
        ("http://localhost/", "'localhost' is "),
        ("http://①②⑦.⓪.⓪.①/", "'127.0.0.1' is 127.0.0.1"),
        ("http://[::1]/", "'::1' is ::1"),
        ("http://[::ffff:127.0.0.1]/", "not an address of the public internet"),
        ("http://[::ffff:a9fe:a9fe]/", "not an address of the public internet"),
        ("http://[fe80::1]/", "not an address of the public internet"),
    ],
)
def test_what_is_never_asked(url: str, message: str) -> None:
    """With the rule as it is: none of these may open a connection."""
    with pytest.raises(ValueError, match=message):
        fetch_url(url)


@pytest.mark.parametrize(
    ("addresses", "public"),
    [
        ("1.1.1.1 93.184.215.14 2606:4700:4700::1111 ::ffff:1.1.1.1", True),
        ("0.0.0.0 10.0.0.1 100.64.0.1 127.0.0.1 169.254.169.254 172.16.0.1 192.168.0.1 198.18.0.1", False),
        ("224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 192.0.0.192 168.63.129.16 192.88.99.1", False),
        ("192.0.2.1 198.51.100.1 203.0.113.1", False),
        (":: ::1 ::ffff:10.0.0.1 fc00::1 fd00::1 fe80::1 fec0::1 ff02::1 2001:db8::1 100::1", False),
        ("64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1::1 2001:0:7f00:1::1 ::7f00:1 4000::1", False),
    ],
)
def test_addresses(addresses: str, public: bool) -> None:
    for address in addresses.split():
        assert is_public(ipaddress.ip_address(address)) is public, address


def test_one_private_address_of_several_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, 80)) for name in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: rows)
    with pytest.raises(ValueError, match=r"'both\.example' is 10\.0\.0\.1"):
        fetch_url("http://both.example/")


def test_the_connection_goes_to_the_address_that_was_checked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a name that is public when it is checked and private when it is used. It is resolved only once."""
    port = int(server.rpartition(":")[2])
    answers = [("127.0.0.1", port), ("10.0.0.1", port)]
    asked = []

    def resolve(host: str, port: int, *args: object, **kwargs: object) -> list[tuple]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", answers[len(asked) - 1])]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert fetch(f"http://pictures.example:{port}/picture") == png()
    assert asked == ["pictures.example"]


def test_certificates_are_checked(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as https:
        https.handle_error = lambda *args: None  # the client turns away, which is the point
        https.socket = context.wrap_socket(https.socket, server_side=True)
        thread = threading.Thread(target=https.serve_forever, args=(0.01,))
        thread.start()
        url = f"https://127.0.0.1:{https.server_address[1]}/"
        try:
            with pytest.raises(ConnectionError, match=r"certificate verify failed|self.signed"):
                fetch(url + "picture")
            with pytest.MonkeyPatch.context() as patch:  # and with a certificate it trusts, it is a picture
                patch.setenv("SSL_CERT_FILE", str(certificate))
                assert fetch(url + "picture") == png()
                with pytest.raises(ValueError, match=r"it redirects from https to 'http://127\.0\.0\.1/'"):
                    fetch(url + "to?http://127.0.0.1/")
        finally:
            https.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def tokenizer(golden: Path):
    return AutoTokenizer.from_pretrained(golden / "tiny_model", trust_remote_code=False)


def test_through_the_image_processor_and_the_processor(server: str, tokenizer, loopback_is_public: None) -> None:
    images = JinaCLIPImageProcessor(size=16)
    expected = images([picture()], return_tensors="np")["pixel_values"]
    url = f"{server}/picture"
    np.testing.assert_array_equal(images([url], return_tensors="np", allow_urls=True)["pixel_values"], expected)
    both = JinaCLIPProcessor(images, tokenizer)(images=[url], return_tensors="np", allow_urls=True)
    np.testing.assert_array_equal(both["pixel_values"], expected)
    with pytest.raises(ValueError, match=f"image 1: .*{server}/text.* is not an image in a known format"):
        images([url, f"{server}/text"], allow_urls=True)
    with pytest.raises(ConnectionError, match=r"image 1: .*stopped after 50"):
        images([url, f"{server}/cut"], allow_urls=True)


def test_through_encode_image(golden: Path, server: str, loopback_is_public: None) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    urls = [f"{server}/picture", f"{server}/chunked"]
    np.testing.assert_allclose(
        model.encode_image(urls, allow_urls=True), model.encode_image([picture()] * 2), atol=1e-6
    )


@pytest.mark.parametrize("name", ["https://example.com/a.png", "HTTP://example.com/a.png", "ftp://x/a.png", "s3://b/a"])
def test_without_the_option_the_error_names_it(name: str) -> None:
    assert is_url(name)
    with pytest.raises(ValueError, match="not fetched unless you pass allow_urls=True"):
        open_image(name)


def test_no_file_of_a_model_switches_it_on(tmp_path: Path, server: str, tokenizer, loopback_is_public: None) -> None:
    images = JinaCLIPImageProcessor(size=16, allow_urls=True)  # as a preprocessor_config.json would
    images.save_pretrained(tmp_path)
    url = f"{server}/picture"
    Handler.asked.clear()
    for processor in (images, JinaCLIPImageProcessor.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="allow_urls=True"):
            processor([url])
    # sentence-transformers hands a repository's `processing_kwargs` on in these two.
    for nested in ("images_kwargs", "common_kwargs"):
        with pytest.raises(ValueError, match="allow_urls is an argument of the call only"):
            JinaCLIPProcessor(images, tokenizer)(images=[url], **{nested: {"allow_urls": True}})
    assert Handler.asked == []
