"""Flower's Grid as a `Courier`."""

from collections.abc import Iterable, Sequence

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from medfl.errors import RunError
from medfl.integrations.flower.content import content, payload
from medfl.integrations.flower.dispatch import Courier, Reply


class GridCourier(Courier):
    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> set[int]:
        return set(self._grid.get_node_ids())

    def push(self, requests: Sequence[tuple[int, bytes]], seconds: float) -> Sequence[str]:
        messages = [
            Message(content=content(data), message_type=MessageType.QUERY, dst_node_id=node, ttl=seconds)
            for node, data in requests
        ]
        return list(self._grid.push_messages(messages))

    def pull(self, ids: Sequence[str]) -> Iterable[Reply]:
        for message in self._grid.pull_messages(ids):
            asked = message.metadata.reply_to_message_id
            if message.has_error():
                yield Reply(asked, failure=f"{message.error.reason} (code {message.error.code})")
                continue
            try:
                yield Reply(asked, payload(message))
            except RunError as error:
                yield Reply(asked, failure=str(error))
