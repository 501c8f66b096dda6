"""Which hooks scripts of the user listen to, and that scripts which come and go are noticed."""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hubcache.mitm.other_addons import OtherAddons
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyauth import ProxyAuth
from mitmproxy.addons.proxyserver import Proxyserver
from support.mitm import taddons


class Own:
    """An addon of this program."""

    __module__ = "hubcache.plugin"

    def request(self, _: object) -> None: ...


class Parent:
    """An addon without hooks that manages others, as mitmproxy's loader of scripts does."""

    name = "parent"

    def __init__(self) -> None:
        self.addons: list[Any] = []


def script(**hooks: Any) -> ModuleType:
    """What mitmproxy makes of a script file."""
    made = ModuleType("script")
    vars(made).update(hooks)
    return made


@pytest.fixture
def context() -> Iterator[taddons.context]:
    with taddons.context(Proxyserver(), NextLayer(), ProxyAuth(), Own()) as running:
        running.others = OtherAddons(running.master.addons)  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def others(context: taddons.context) -> OtherAddons:
    return context.others  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("hook", ["request", "next_layer", "http_connect", "configure"])
def test_addons_of_mitmproxy_and_of_this_program_are_no_others(others: OtherAddons, hook: str) -> None:
    assert not others.listen_to(hook)


def test_script_listens_to_the_hooks_that_it_has_functions_for(context: taddons.context, others: OtherAddons) -> None:
    context.master.addons.add(script(response=lambda flow: None, request="no function"))
    assert others.listen_to("response")
    assert not others.listen_to("request")


def test_addon_that_derives_from_one_of_mitmproxy_is_another(context: taddons.context, others: OtherAddons) -> None:
    context.master.addons.add(type("Derived", (NextLayer,), {})())
    assert others.listen_to("next_layer")


def test_script_that_is_loaded_again_is_noticed_each_time(context: taddons.context, others: OtherAddons) -> None:
    manager, parent = context.master.addons, Parent()
    manager.add(parent)
    before = others.changes
    assert others.changes == before
    for number, hook in enumerate(("request", "response"), 1):
        for old in parent.addons:
            manager.remove(old)
        parent.addons = [manager.register(script(**{hook: lambda flow: None}))]
        assert others.changes == before + number
        assert others.listen_to(hook)
    assert not others.listen_to("request")
    manager.remove(parent)
    assert others.changes == before + 3
    assert not others.listen_to("response")


def test_option_that_changes_is_no_change_of_addons(context: taddons.context, others: OtherAddons) -> None:
    before = others.changes
    context.options.update(confdir="elsewhere")
    assert others.changes == before
    context.master.addons.add(SimpleNamespace(name="other"))
    assert others.changes == before + 1
