"""What an auditor asks the coordinator for: the evidence of its run, and nothing else."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc

from medfl.errors import MedflError, RunError
from medfl.transport.grpc.channel import INSPECTION, open_channel
from medfl.transport.parcels import CHUNK
from medfl.transport.peers import Peer
from medfl.transport.protocol.medfl_pb2 import EvidencePart, EvidenceRequest

log = logging.getLogger(__name__)

_SECONDS = 120.0
_LARGEST = 2**28


def handler(
    peer_of: Callable[[grpc.ServicerContext], Peer],
    note: Callable[[str, dict[str, Any]], None],
    evidence: Callable[[], dict[str, Any]],
) -> grpc.GenericRpcHandler:
    """Adds the call to a server that asks for certificates. evidence: makes what is told."""

    def tell(_: EvidenceRequest, context: grpc.ServicerContext) -> Iterator[EvidencePart]:
        peer = peer_of(context)
        if peer.role != "auditor":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "is for auditors")
        try:
            text = json.dumps(evidence()).encode()
        except MedflError as error:
            log.warning("auditor %s: %s", peer.name, error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.faults[0].what)
            raise
        note("inspected", {"peer": peer.name, "bytes": len(text)})
        for start in range(0, len(text), CHUNK):
            yield EvidencePart(text=text[start : start + CHUNK])

    call = grpc.unary_stream_rpc_method_handler(tell, EvidenceRequest.FromString, EvidencePart.SerializeToString)
    return grpc.method_handlers_generic_handler(INSPECTION, {"Evidence": call})


def ask(address: str, ca: bytes, key: bytes, certificate: bytes) -> dict[str, Any]:
    """The evidence of the coordinator's run. RunError when it refuses, cannot be reached or answers nonsense."""
    text = bytearray()
    with closing(open_channel(address, ca, key, certificate)) as channel:
        call = channel.unary_stream(
            f"/{INSPECTION}/Evidence", EvidenceRequest.SerializeToString, EvidencePart.FromString
        )
        try:
            for part in call(EvidenceRequest(), timeout=_SECONDS):
                text += part.text
                if len(text) > _LARGEST:
                    raise RunError.at(f"coordinator {address}", f"sends more than {_LARGEST} bytes of evidence")
            found = json.loads(text)
        except grpc.RpcError as error:
            what = str(error.details() if isinstance(error, grpc.Call) else error)
            raise RunError.at(f"coordinator {address}", what, "ask the study lead whether the service runs") from error
        except (ValueError, RecursionError) as error:
            raise RunError.at(f"coordinator {address}", "sent evidence that is not JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("checks"), list):
        raise RunError.at(f"coordinator {address}", "sent evidence without checks")
    return found
