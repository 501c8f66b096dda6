"""Options that make no sense end the start with one line; so does a command line that contradicts itself."""

import signal
from collections.abc import Iterator
from pathlib import Path
from socket import create_server

import pytest
from proxy import HUB_HOST, Product, free_port
from standin import Hub


def said(product: Product) -> list[str]:
    """What is in the log beside the usual; empty while nothing went wrong."""
    usual = ("Loading script", "listening at", "Error logged during startup")
    return [line for line in product.log.splitlines() if line and not any(words in line for words in usual)]


@pytest.fixture
def products(tmp_path: Path, hub: Hub) -> Iterator[list[Product]]:
    """Products that are started side by side, because each start takes a second or two."""
    started: list[Product] = []
    yield started
    for product in started:
        product.stop(signal.SIGKILL)


def test_each_bad_value_ends_the_start_with_one_line(products: list[Product], tmp_path: Path, hub: Hub) -> None:
    bad: list[tuple[dict[str, str | list[str]], str]] = [
        ({"hubcache_size": "much"}, "hubcache_size: 'much' is not a size"),
        ({"hubcache_registries": ["http://x"]}, "hubcache_registries: 'http://x'"),
        ({"hubcache_registries": [HUB_HOST, "ghcr.io"]}, "may not vouch for"),
        ({"hubcache_status": "nonsense"}, "hubcache_status: 'nonsense' is not HOST:PORT"),
        ({"hubcache_tag_ttl": "-1"}, "hubcache_tag_ttl: -1"),
    ]
    for number, (options, _) in enumerate(bad):
        directory = tmp_path / str(number)
        directory.mkdir()
        product = Product(directory, hub, {})
        for name, value in options.items():
            for one in [value] if isinstance(value, str) else value:
                product.command += ["--set", f"{name}={one}"]
        products.append(product)
        product.launch()
    for product, (_, words) in zip(products, bad, strict=True):
        assert product.ended() == 1
        (line,) = said(product)
        assert words in line
        assert "Traceback" not in product.log


def test_value_of_another_type_is_refused_by_mitmproxy_in_one_line(
    products: list[Product], tmp_path: Path, hub: Hub
) -> None:
    products.append(product := Product(tmp_path, hub, {"hubcache_tag_ttl": "soon"}))
    product.launch()
    assert product.ended() == 1
    (line,) = said(product)
    assert "hubcache_tag_ttl" in line


def test_status_address_that_is_taken_ends_the_start_with_one_line(
    products: list[Product], tmp_path: Path, hub: Hub
) -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        products.append(product := Product(tmp_path, hub, {"hubcache_status": f"127.0.0.1:{port}"}))
        product.launch()
        assert product.ended() == 1
    (line,) = said(product)
    assert f"hubcache_status: cannot listen on 127.0.0.1:{port}" in line


def test_mirror_of_a_registry_that_is_not_configured_ends_the_start_with_one_line(
    products: list[Product], tmp_path: Path, hub: Hub
) -> None:
    products.append(product := Product(tmp_path, hub, {}, mirror_of="ghcr.io"))
    product.launch()
    assert product.ended() == 1
    (line,) = said(product)
    assert "ghcr.io is not in hubcache_registries" in line


def test_default_doors_are_the_two_of_the_readme(products: list[Product], tmp_path: Path, hub: Hub) -> None:
    """Without `--mode`; on other ports only because those may be in use here."""
    products.append(product := Product(tmp_path, hub, {"listen_port": str(port := free_port())}))
    product.command = [part for part in product.command if part != "--mode" and not part.startswith(("reg", "rev"))]
    product.launch()
    product.wait_for_log(f"HTTP(S) proxy listening at 127.0.0.1:{port}")
    product.wait_for_log(":5000")
