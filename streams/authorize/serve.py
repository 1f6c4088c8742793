"""Serves the HTTP door with uvicorn, and the ISO 8583 door beside it, until SIGTERM.

Ready when Redis is whole and a model is promoted; drained before it ends.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from streams import journal, metrics
from streams.authorize.dialect import dialect_of
from streams.authorize.elements import Secrets
from streams.authorize.http import HttpDoor
from streams.authorize.iso8583 import Desk, Gateway, peers_of
from streams.authorize.keys import KeyFile, Keyring
from streams.authorize.live import Live
from streams.authorize.openapi import description, page
from streams.authorize.protocol import HANDSHAKE_S, Door, HttpProtocol
from streams.authorize.tls import listening
from streams.authorize.tokens import tokens_of
from streams.bus import Bus, KafkaBus
from streams.ready import forget_ready, tell_ready
from streams.settings import Settings
from streams.world import World

NAME = "authorize"
BACKLOG, ACCEPTS = 2048, 16
REFRESH_S, NOTED_EVERY = 2.0, 30


class Server(uvicorn.Server):
    """uvicorn, which at the first signal goes on for `drain_s` after `drain`, so that a load balancer sees in time that it is not ready."""

    drain: Callable[[], None] | None = None
    drain_s = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.startup`, which leaves who says nothing of TLS a minute, while no limit counts him."""
        config, loop = self.config, asyncio.get_running_loop()
        made = partial(HttpProtocol, config, self.server_state, None)
        limit_s = None if config.ssl is None else HANDSHAKE_S
        self.servers = [
            await loop.create_server(made, sock=each, backlog=BACKLOG, ssl=config.ssl, ssl_handshake_timeout=limit_s)
            for each in _listening(config.host, config.port)
        ]
        self.started = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server.handle_exit`: called as the handler of signals. A second signal ends it at once."""
        drain, self.drain = self.drain, None
        if drain is None or not self.started:
            super().handle_exit(sig, frame)
            return
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(drain)
        loop.call_soon_threadsafe(loop.call_later, self.drain_s, super().handle_exit, sig, frame)


def serve(settings: Settings, make_world: Callable[[Settings, Bus], Awaitable[World]]) -> int:
    """Runs until SIGTERM or SIGINT; 0 after a clean stop."""
    journal.start(settings, NAME)
    end_metrics = metrics.serve(settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, make_world))
    except KeyboardInterrupt:
        return 0
    finally:
        end_metrics()


async def _serve(settings: Settings, make_world: Callable[[Settings, Bus], Awaitable[World]]) -> int:
    forget_ready(settings, NAME)
    bus = KafkaBus(settings)
    world = await make_world(settings, bus)
    file = KeyFile(settings.keys_dir)
    keys, paths = Keyring(again=file.changed), frozenset(filter(None, settings.open_paths.split(",")))
    secrets = Secrets(settings.token_key.encode(), settings.token_key_id)
    door = HttpDoor(world, *secrets, settings.request_deadline_ms, keys, paths, tokens_of(settings), Live(settings))
    description(), page()  # made once, before anyone waits for it
    server = http_server(door, settings)

    def drain() -> None:
        door.is_draining = True
        forget_ready(settings, NAME)
        journal.logger().info("draining", ms=settings.drain_ms)

    server.drain, server.drain_s = drain, settings.drain_ms / 1000
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them once more after its own clean end, for whom was there before
        signal.signal(number, lambda *_: None)
    gateway = await _gateway(settings, world)
    saying = asyncio.create_task(_say_ready(server, settings))
    keeping = asyncio.create_task(_keep(keys, file))
    try:
        await server.serve()
    finally:
        saying.cancel()
        keeping.cancel()
        _note(keys, file)
        forget_ready(settings, NAME)
        await gateway.close()
        await bus.close()
        if world.tracer is not None:
            await asyncio.to_thread(world.tracer.close)
        if world.close is not None:
            await world.close()
    return 0


def _listening(host: str, port: int) -> list[socket.socket]:
    """The port, several times: the loop takes one connection from each of these in a tick, and under load its ticks are long."""
    first = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)
    return [first, *[first.dup() for _ in range(ACCEPTS - 1)]]


def http_server(door: Door, settings: Settings) -> Server:
    """uvicorn around the door, on the address and with the TLS of the settings."""
    app: Any = door
    config = uvicorn.Config(
        app,
        host=settings.http_host,
        port=settings.http_port,
        http=HttpProtocol,
        interface="asgi3",  # it is none; this keeps uvicorn from asking
        ws="none",
        lifespan="off",
        proxy_headers=False,  # nothing here asks who the peer was
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=5,
    )
    config.load()
    config.ssl = listening(settings, settings.http_client_ca_file)
    return Server(config)


async def _gateway(settings: Settings, world: World) -> Gateway:
    """The ISO 8583 door beside HTTP, over the same World; it listens if it has a port."""
    secrets = Secrets(settings.token_key.encode(), settings.token_key_id)
    desk = Desk(world, dialect_of(settings.iso8583_dialect), secrets, settings.request_deadline_ms)
    gateway = Gateway(desk, settings.iso8583_header, peers_of(settings.iso8583_peers), listening(settings, settings.iso8583_client_ca_file))
    if settings.iso8583_port:
        await gateway.listen(settings.iso8583_host, settings.iso8583_port)
        journal.logger().info("listening", door="iso8583", host=settings.iso8583_host, port=settings.iso8583_port)
    return gateway


async def _keep(keys: Keyring, file: KeyFile) -> None:
    """Forgets what was revoked, within a second or two; notes every minute when keys were used."""
    for turn in itertools.count(1):
        await asyncio.sleep(REFRESH_S)
        keys.refresh()
        if turn % NOTED_EVERY == 0:
            await asyncio.to_thread(_note, keys, file)


def _note(keys: Keyring, file: KeyFile) -> None:
    """Keeps when keys were used. A folder that takes no notes (it is full, or only to be read) keeps nobody from revoking a key."""
    try:
        file.note(keys.used())
    except OSError as error:
        journal.logger().warning("when keys were used cannot be noted", reason=str(error))


async def _say_ready(server: uvicorn.Server, settings: Settings) -> None:
    while not server.started:
        await asyncio.sleep(0.02)
    journal.logger().info("listening", host=settings.http_host, port=settings.http_port)
    tell_ready(settings, NAME)
