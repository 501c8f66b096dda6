"""Bad option values, unknown option names and contradictory arguments end the start with one line."""

import signal
from collections.abc import Iterator
from pathlib import Path
from socket import create_server, socket

import pytest
from support.ports import free_port
from support.program import Product
from support.required import missing
from support.standin import Hub


def unusual_lines(product: Product) -> list[str]:
    """Return the log without the lines of every start; empty when nothing went wrong."""
    usual = ("Loading script", "listening at", "Error logged during startup")
    return [line for line in product.log.splitlines() if line and not any(words in line for words in usual)]


@pytest.fixture
def products(tmp_path: Path, hub: Hub) -> Iterator[list[Product]]:
    """Products that run side by side, because each start takes a second or two."""
    started: list[Product] = []
    yield started
    for product in started:
        product.stop(signal.SIGKILL)


@pytest.mark.parametrize(
    "bad",
    [
        [
            ("hubcache_size=much", "hubcache_size: 'much' is not a size"),
            ("hubcache_registries=http://x", "hubcache_registries: 'http://x'"),
            ("hubcache_registries=ghcr.io", "may not vouch for ghcr.io: to renew it, move "),
            ("hubcache_status=nonsense", "hubcache_status: 'nonsense' is not HOST:PORT"),
        ],
        [
            ("hubcache_tag_ttl=soon", "hubcache_tag_ttl: 'soon' is not a duration"),
            ("hubcache_tag_ttl=-1", "hubcache_tag_ttl: '-1' is not a duration"),
            ("hubcache_offline=maybe", "hubcache_offline"),
            ("hubcache_size=5g --set hubcache_size=6g", "hubcache_size"),
        ],
        [
            ("hubcache_sise=5g", "hubcache: hubcache_sise is not an option; did you mean hubcache_size?"),
            ("HUBCACHE_OFFLINE", "hubcache: HUBCACHE_OFFLINE is not an option; did you mean hubcache_offline?"),
            ("hubcache_admit_after=many", "hubcache_admit_after"),
        ],
    ],
    ids=["text", "typed", "names"],
)
def test_bad_option_ends_the_start_with_one_line(
    products: list[Product], tmp_path: Path, hub: Hub, bad: list[tuple[str, str]]
) -> None:
    for number, (setting, _) in enumerate(bad):
        directory = tmp_path / str(number)
        directory.mkdir()
        product = Product(directory, hub, {})
        name = setting.partition("=")[0]
        at = next((at for at, part in enumerate(product.command) if part.startswith(f"{name}=")), None)
        if at is not None:
            del product.command[at - 1 : at + 1]
        product.command += ["--set", *setting.split()]
        products.append(product)
        product.launch()
    for product, (_, words) in zip(products, bad, strict=True):
        assert product.ended() == 1
        (line,) = unusual_lines(product)
        assert words in line
        assert "Traceback" not in product.log


def test_unknown_name_in_the_config_file_ends_the_start_with_one_line(
    products: list[Product], tmp_path: Path, hub: Hub
) -> None:
    products.append(product := Product(tmp_path, hub, {}))
    (product.confdir / "config.yaml").write_text("hubcache_sise: 5G\n")
    product.launch()
    assert product.ended() == 1
    (line,) = unusual_lines(product)
    assert "hubcache: hubcache_sise is not an option; did you mean hubcache_size?" in line


def test_config_file_may_have_numbers_and_text(products: list[Product], tmp_path: Path, hub: Hub) -> None:
    products.append(product := Product(tmp_path, hub, {}))
    text = "hubcache_size: 1G\nhubcache_tag_ttl: 600\nhubcache_half_life: 3d\nhubcache_admit_after: 3\n"
    (product.confdir / "config.yaml").write_text(text)
    product.start()
    assert product.health["store"]["capacity"] == 1 << 30


def test_status_address_in_use_ends_the_start_with_one_line(products: list[Product], tmp_path: Path, hub: Hub) -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        products.append(product := Product(tmp_path, hub, {"hubcache_status": f"127.0.0.1:{port}"}))
        product.launch()
        assert product.ended() == 1
    (line,) = unusual_lines(product)
    assert f"hubcache_status: cannot listen on 127.0.0.1:{port}" in line


def test_mirror_of_a_registry_that_is_not_configured_ends_the_start_with_one_line(
    products: list[Product], tmp_path: Path, hub: Hub
) -> None:
    products.append(product := Product(tmp_path, hub, {}, mirror_of="ghcr.io"))
    product.launch()
    assert product.ended() == 1
    (line,) = unusual_lines(product)
    assert "ghcr.io is not in hubcache_registries" in line


def test_listeners_without_options_are_the_two_of_the_readme(products: list[Product], tmp_path: Path, hub: Hub) -> None:
    """The proxy's port differs here, only because other programs often listen on 8080."""
    with socket() as probe:
        if probe.connect_ex(("127.0.0.1", 5000)) == 0:
            missing("something listens on port 5000 here")
    for workers in ("1", "2"):
        own = {"listen_port": str(port := free_port()), "hubcache_workers": workers}
        products.append(product := Product(tmp_path / workers, hub, own))
        product.command = [part for part in product.command if part != "--mode" and "@" not in part]
        product.start()
        assert f"hubcache: proxy at 127.0.0.1:{port}" in product.log
        assert "hubcache: mirror at 127.0.0.1:5000" in product.log
        product.proxy, product.mirror = port, 5000
        assert product.door("proxy", hub).request("GET", "/v2/").status == 401
        assert product.door("mirror", hub).request("GET", "/v2/").status == 200
        product.stop()
