"""Who listens where."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from enginerouter.engines.ports import (
    Listener,
    accepts,
    free_port,
    holder_of,
    is_local,
    parse_table,
    receivers,
    who_listens,
)

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 4713 1 0 100 0 0 10 0
"""
TABLE6 = """\
  sl  local_address                         remote_address                        st tx rx tr uid timeout inode
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4714 1 0 100
   1: 0000000000000000FFFF00000100007F:1F91 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4715 1 0 100
"""


def test_listening_sockets_are_read_from_the_tables_of_the_kernel() -> None:
    assert parse_table(TABLE) == [
        Listener("127.0.0.1", 8080, inode="4711"),
        Listener("0.0.0.0", 22, inode="4712"),
    ]
    assert [(found.address, found.port) for found in parse_table(TABLE6)] == [
        ("::1", 8080),
        ("127.0.0.1", 8081),
    ]
    assert parse_table("") == []


def test_the_most_exact_socket_receives_a_connection() -> None:
    exact, v4, v6 = (Listener(address, 80, inode=address) for address in ("127.0.0.1", "0.0.0.0", "::"))
    elsewhere = Listener("192.168.1.5", 80, inode="e")
    assert receivers([v6, v4, exact, elsewhere], ["127.0.0.1"]) == [exact]
    assert receivers([v6, v4, elsewhere], ["127.0.0.1"]) == [v4]
    assert receivers([v6, elsewhere], ["127.0.0.1", "::1"]) == [v6]
    assert receivers([elsewhere], ["127.0.0.1"]) == []


def test_a_free_port_is_free() -> None:
    port = free_port()
    assert holder_of("127.0.0.1", port) is None
    assert holder_of("localhost", port) is None
    assert not accepts("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_holder_of_a_port_is_named_without_a_word_of_http(host: str) -> None:
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        holder = holder_of("127.0.0.1", port)
        assert holder is not None
        assert holder.pids == {os.getpid()}
        assert str(os.getpid()) in str(holder)
        assert who_listens("127.0.0.1", port, {os.getpid()}).is_all_ours is True
        assert who_listens("127.0.0.1", port, {1}).is_all_ours is False
    assert who_listens("127.0.0.1", port, {1}).is_all_ours is None


async def test_a_socket_of_two_processes_is_ours_if_one_of_them_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        child = await asyncio.create_subprocess_exec("sleep", "100", close_fds=False)
        found = who_listens("127.0.0.1", listener.getsockname()[1], {child.pid})
        assert found.is_all_ours is True
        child.kill()
        await child.wait()


def test_an_unknown_host_holds_nothing_and_raises_nothing() -> None:
    assert holder_of("no-such-host.invalid", 80) is None
    assert holder_of("x" * 300, 80) is None


def test_only_addresses_of_this_machine_are_local() -> None:
    assert is_local("127.0.0.1")
    assert is_local("::1")
    assert not is_local("192.0.2.1")
