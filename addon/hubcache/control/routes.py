"""The paths of the control socket, and the command behind each."""

from aiohttp import web

from .commands import Commands
from .errors import InvalidCommand
from .http import (
    digest_field,
    flag_field,
    image_field,
    json_answer,
    parse_image,
    query_value,
    read_fields,
    stream_events,
)
from .transfer_routes import transfer_routes


def all_routes(commands: Commands) -> list[web.RouteDef]:
    """Return the routes of all commands.

    A group of commands has a function of its own that returns its routes. A handler reads and checks the request with
    `http.read_fields`, and calls a method that does not know HTTP; it answers with `http.json_answer`, or for long work
    with `http.stream_events`. Errors are raised: `http.errors_as_json` answers them.
    """
    return [
        *(*_status_routes(commands), *_image_routes(commands), *_pin_routes(commands)),
        *_content_routes(commands),
        *transfer_routes(commands),
    ]


def _status_routes(commands: Commands) -> list[web.RouteDef]:
    async def status(_: web.Request) -> web.Response:
        return await json_answer(commands.status())

    async def fleet(_: web.Request) -> web.Response:
        return await json_answer(await commands.fleet.show())

    async def probe(request: web.Request) -> web.Response:
        return await json_answer(await commands.registry_probe.run(query_value(request, "registry")))

    return [
        web.get("/v1/status", status, allow_head=False),
        web.get("/v1/fleet", fleet, allow_head=False),
        web.get("/v1/registry-probe", probe, allow_head=False),
    ]


def _image_routes(commands: Commands) -> list[web.RouteDef]:
    async def images(_: web.Request) -> web.Response:
        return await json_answer({"images": await commands.images.list()})

    async def image(request: web.Request) -> web.Response:
        return await json_answer(await commands.images.show(parse_image(query_value(request, "name"))))

    return [web.get("/v1/images", images, allow_head=False), web.get("/v1/image", image, allow_head=False)]


def _pin_routes(commands: Commands) -> list[web.RouteDef]:
    async def pin(request: web.Request) -> web.Response:
        return await json_answer(await commands.pins.pin(image_field(await read_fields(request, "image"), "image")))

    async def unpin(request: web.Request) -> web.Response:
        return await json_answer(await commands.pins.unpin(image_field(await read_fields(request, "image"), "image")))

    return [web.post("/v1/pin", pin), web.post("/v1/unpin", unpin)]


def _content_routes(commands: Commands) -> list[web.RouteDef]:
    async def purge(request: web.Request) -> web.Response:
        fields = await read_fields(request, "image", "digest", "force")
        force = flag_field(fields, "force")
        if ("image" in fields) == ("digest" in fields):
            raise InvalidCommand("expected one of the fields 'image' and 'digest'")
        if "image" in fields:
            return await json_answer(await commands.purge.image(image_field(fields, "image"), force=force))
        return await json_answer(await commands.purge.content(digest_field(fields, "digest"), force=force))

    async def verify(request: web.Request) -> web.StreamResponse:
        repair = flag_field(await read_fields(request, "repair"), "repair")
        return await stream_events(request, commands.verify.run(repair=repair))

    return [web.post("/v1/purge", purge), web.post("/v1/verify", verify)]
