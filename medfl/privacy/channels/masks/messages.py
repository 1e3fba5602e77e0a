"""The headers of the protocol's messages. What comes from the other side is checked here before it is used."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from medfl.errors import RunError
from medfl.privacy.channels.base import Message, RoundContext

KEYS, SHARES, PEERS, SURVIVORS, OPEN = (
    "masks.keys",
    "masks.shares",
    "masks.peers",
    "masks.survivors",
    "masks.open",
)


def _bytes(value: Any) -> Any:
    return bytes.fromhex(value) if isinstance(value, str) else value


Hex = Annotated[bytes, BeforeValidator(_bytes), PlainSerializer(bytes.hex)]
Key = Annotated[Hex, Field(min_length=32, max_length=32)]
Signature = Annotated[Hex, Field(min_length=64, max_length=64)]
Share = Annotated[Hex, Field(min_length=66, max_length=66)]


class Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def message(self) -> Message:
        return Message(self.model_dump(mode="json"))


class KeysRequest(Header):
    context: RoundContext


class PublicKeys(Header):
    """A site's two public keys of the round, and its signature of them."""

    sealing: Key
    masking: Key
    signature: Signature


class Step(Header):
    """A request after the first: of which round and attempt."""

    round: int
    attempt: int


class SharesRequest(Step):
    keys: dict[str, PublicKeys]


class SharesAnswer(Header):
    """commitment: to the seed of the site's own mask. shares: encrypted, by the site they are for."""

    commitment: Key
    shares: dict[str, Hex]


class PeersRequest(Step):
    """shares: encrypted for the site that is asked, by the site they come from: these are the sites that masks are made
    with."""

    shares: dict[str, Hex]


class SurvivorsRequest(Step):
    survivors: list[str]


class SurvivorsAnswer(Header):
    signature: Signature


class OpenRequest(Step):
    signatures: dict[str, Signature]


class OpenAnswer(Header):
    """One share for each site that masks were made with: of its seed if it survived, else of its masking key."""

    shares: dict[str, Share]


H = TypeVar("H", bound=Header)


def read(kind: type[H], message: Message, where: str) -> H:
    """The message's header as `kind`; RunError that lists what is wrong in it."""
    try:
        return kind.model_validate_json(json.dumps(dict(message.header)))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'header'}: {fault['msg']}" for fault in error.errors()[:5]
        )
        raise RunError.at(
            where, f"got a message that is no {kind.__name__}: {wrong}", "use one medfl version"
        ) from error
