from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zmq

from stream_agent.errors import ConfigError
from stream_agent.messages import Clip, ClipEvent, Health, Memory, Notice, Plan, PlanUpdate
from stream_agent.sinks.publisher import Publisher
from stream_agent.sinks.subscriber import Subscriber
from stream_agent.sinks.topics import Message, pack, unpack
from stream_agent.telemetry import Telemetry
from stream_agent.transport.keys import make_keys

MakePlan = Callable[..., Plan]
NOW = 100_500_000_000


def heard(publisher: Publisher, subscriber: Subscriber, message: Message) -> list[Message]:
    """What arrives; sends until something does, for a subscription takes a moment to be known."""
    for _ in range(400):
        publisher.send(message, now_ns=NOW)
        if messages := subscriber.newest(0.02):
            return messages
    raise AssertionError("nothing arrived")


def test_every_kind_of_message_survives_the_trip(make_plan: MakePlan) -> None:
    messages: list[Message] = [
        make_plan(),
        PlanUpdate(stream_id="e", session_id="s", request_id=1, seq=2, text="…"),
        ClipEvent("closed", Clip("Clipping", 1.0, 2.0, 0.5), 2.5),
        Health(stream_id="e", sent_ns=1, state="degraded", parts={"source": "lost"}),
        Telemetry().counters("e"),
        Memory(stream_id="e", session_id="s", case_id="c", now_pts_s=1.0),
        Notice("odd"),
    ]
    assert [unpack(pack(message)) for message in messages] == messages
    assert [pack(message).split(b" ")[0] for message in messages] == [
        b"plan",
        b"plan_update",
        b"clip",
        b"health",
        b"counters",
        b"memory",
        b"notice",
    ]


@pytest.mark.parametrize(
    "data", [b"", b"plan", b"plan {}", b"nonsense {}", b'plan {"type": "plan"', b"\xff\xfe \xff", b"notice \xff"]
)
def test_what_is_none_of_ours_is_nothing(data: bytes) -> None:
    assert unpack(data) is None


def test_one_message_is_one_part_of_topic_and_json(make_plan: MakePlan, ipc: str) -> None:
    publisher = Publisher([ipc])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    try:
        subscriber.subscribe(b"plan ")
        subscriber.connect(ipc)
        while not subscriber.poll(20):
            publisher.send(make_plan(), now_ns=NOW)
        parts = subscriber.recv_multipart()
        assert len(parts) == 1
        assert msgspec.json.decode(parts[0].removeprefix(b"plan "), type=Plan) == make_plan()
    finally:
        subscriber.close(0)
        context.term()
        publisher.close()


def test_a_plan_past_its_expiry_is_not_sent_but_counted(make_plan: MakePlan, ipc: str) -> None:
    publisher = Publisher([ipc])
    plan = make_plan()
    assert publisher.send(plan, now_ns=plan.valid_until_ns)
    assert not publisher.send(plan, now_ns=plan.valid_until_ns + 1)
    assert publisher.counts == {"sent": 1, "expired": 1}
    publisher.close()


def test_sending_never_blocks_with_a_subscriber_that_does_not_read(make_plan: MakePlan, ipc: str) -> None:
    publisher = Publisher([ipc])
    subscriber = Subscriber(ipc)
    heard(publisher, subscriber, make_plan())
    for _ in range(5000):
        publisher.send(make_plan(), now_ns=NOW)
    assert publisher.counts["sent"] > 5000
    subscriber.close()
    publisher.close()


def test_a_subscriber_gets_the_newest_plan_and_everything_else(make_plan: MakePlan, ipc: str) -> None:
    publisher = Publisher([ipc])
    subscriber = Subscriber(ipc)
    heard(publisher, subscriber, Notice("hello"))
    for seq in range(50):
        publisher.send(make_plan(seq=seq), now_ns=NOW)
    publisher.send(Notice("last"), now_ns=NOW)
    received: list[Message] = []
    while Notice("last") not in received:
        received += subscriber.newest(1.0)
    plans = [message.seq for message in received if isinstance(message, Plan)]
    assert plans[-1] == 49
    assert plans == sorted(plans)
    subscriber.close()
    publisher.close()


def test_a_living_ipc_address_is_not_stolen(ipc: str) -> None:
    """Libzmq lets a second bind take a live path: subscribers of the first then hear nothing, for ever."""
    first = Publisher([ipc])
    with pytest.raises(ConfigError, match="in use by another program"):
        Publisher([ipc])
    first.close()


def test_an_ipc_address_left_behind_by_a_dead_process_is_taken_over(ipc: str, make_plan: MakePlan) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(ipc.removeprefix("ipc://"))
    publisher, subscriber = Publisher([ipc]), Subscriber(ipc)
    assert heard(publisher, subscriber, make_plan())
    subscriber.close()
    publisher.close()


def test_only_this_user_may_connect_to_an_ipc_address(ipc: str) -> None:
    publisher = Publisher([ipc])
    assert Path(ipc.removeprefix("ipc://")).stat().st_mode & 0o077 == 0
    publisher.close()


def test_a_file_is_not_deleted_for_an_ipc_address(tmp_path: Path) -> None:
    """Libzmq unlinks whatever lies at the path."""
    file = tmp_path / "notes.txt"
    file.write_text("keep")
    with pytest.raises(ConfigError, match="would be deleted"):
        Publisher([f"ipc://{file}"])
    assert file.read_text() == "keep"


def test_addresses_that_cannot_be_are_refused_with_a_remedy(tmp_path: Path) -> None:
    for endpoint, why in {
        f"ipc://{tmp_path}/{'x' * 120}": "longer than the 107 bytes",
        f"ipc://{tmp_path}/none/p": "does not exist; make it",
        "tcp://127.0.0.1": "is not an address we use",
        "udp://127.0.0.1:5": "is not an address we use",
        "tcp://192.0.2.1:5": "must be encrypted; make keys",
        "tcp://*:5": "must be encrypted; make keys",
        "tcp://0.0.0.0:5": "must be encrypted; make keys",
        "tcp://[::]:5": "must be encrypted; make keys",
    }.items():
        with pytest.raises(ConfigError, match=why):
            Publisher([endpoint])


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="in use by another program; stop it or choose"):
            Publisher([f"tcp://127.0.0.1:{other.getsockname()[1]}"])


def test_the_console_needs_no_keys_where_other_hosts_do(tmp_path: Path, ipc: str, make_plan: MakePlan) -> None:
    make_keys(tmp_path / "keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tcp = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    publisher = Publisher([ipc, tcp], keys=tmp_path / "keys")
    console = Subscriber(ipc)
    remote = Subscriber(tcp, keys=tmp_path / "keys" / "agent")
    stranger = Subscriber(tcp)
    assert heard(publisher, console, make_plan())
    assert heard(publisher, remote, make_plan())
    assert stranger.newest(0.1) == []
    for subscriber in (console, remote, stranger):
        subscriber.close()
    publisher.close()


def test_a_closed_publisher_leaves_no_socket_behind(ipc: str) -> None:
    Publisher([ipc]).close()
    assert not Path(ipc.removeprefix("ipc://")).exists()
