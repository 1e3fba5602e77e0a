"""Bytes in Flower's messages."""

from flwr.app import Array, ArrayRecord, Message, RecordDict

from medfl.errors import RunError

_KEY = "medfl"


def content(data: bytes) -> RecordDict:
    """Bytes as ONE array: Flower makes a request for each array."""
    array = Array(dtype="uint8", shape=(len(data),), stype="medfl", data=data)
    return RecordDict({_KEY: ArrayRecord(array_dict={_KEY: array})})


def payload(message: Message) -> bytes:
    """The bytes again; RunError when the message holds something else."""
    records = message.content.array_records
    found = records[_KEY].get(_KEY) if _KEY in records else None
    if found is None or found.stype != "medfl":
        raise RunError.at("message of Flower", "is not one of medfl", "run medfl's app on both sides")
    return bytes(found.data)
