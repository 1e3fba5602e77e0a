"""Enrolment and renewal of certificates: two small calls."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import grpc

from medfl.errors import MedflError, RunError
from medfl.transport.grpc.channel import ENROLMENT, RENEWAL, SERVER_OPTIONS, open_channel
from medfl.transport.peers import AdmissionError, Doorkeeper, NotCertified, Peer, Unreached
from medfl.transport.protocol.medfl_pb2 import Certificate, EnrolRequest, RenewRequest
from medfl.transport.reception import BROKEN, LARGEST, REFUSED, TOO_OFTEN, Reception, TooOften

log = logging.getLogger(__name__)

_SECONDS = 20.0
_REMEDY = "see that the coordinator runs, that the address is right and that nothing in between blocks it"


class EnrolmentServer:
    """Answers invitations, without a certificate of the caller, and nothing else."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._server: grpc.Server | None = None

    def start(self, address: str, key: bytes, certificate: bytes) -> int:
        """Listen on host:port; the port (of its own choice for 0)."""
        options = [(name, LARGEST if "message_length" in name else value) for name, value in SERVER_OPTIONS]
        self._server = grpc.server(ThreadPoolExecutor(4, "enrolment"), options=options, maximum_concurrent_rpcs=8)
        handler = grpc.unary_unary_rpc_method_handler(
            self._enrol, EnrolRequest.FromString, Certificate.SerializeToString
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ENROLMENT, {"Enrol": handler}),))
        port = _listen(self._server, address, grpc.ssl_server_credentials([(key, certificate)]))
        self._server.start()
        return port

    def _enrol(self, request: EnrolRequest, context: grpc.ServicerContext) -> Certificate:
        host, _, port = unquote(context.peer().partition(":")[2]).rpartition(":")
        try:
            return self._reception.enrol(request, host.strip("[]"), port)
        except TooOften:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_OFTEN)
            raise
        except AdmissionError:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, REFUSED)
            raise
        except MedflError:
            context.abort(grpc.StatusCode.UNAVAILABLE, BROKEN)
            raise

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0.5).wait()


class RenewalHandler:
    """Adds the call for a new certificate to a server that asks for certificates."""

    def __init__(self, doorkeeper: Doorkeeper, peer_of: Callable[[grpc.ServicerContext], Peer]) -> None:
        self._doorkeeper = doorkeeper
        self._peer_of = peer_of

    def handlers(self) -> grpc.GenericRpcHandler:
        handler = grpc.unary_unary_rpc_method_handler(
            self._renew, RenewRequest.FromString, Certificate.SerializeToString
        )
        return grpc.method_handlers_generic_handler(RENEWAL, {"Renew": handler})

    def _renew(self, request: RenewRequest, context: grpc.ServicerContext) -> Certificate:
        try:
            return Certificate(certificate=self._doorkeeper.renew(self._peer_of(context), request.request))
        except AdmissionError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, error.faults[0].what)
            raise
        except MedflError as error:
            log.error("a certificate could not be renewed: %s", error)
            context.abort(grpc.StatusCode.UNAVAILABLE, BROKEN)
            raise


def _listen(server: grpc.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise RunError.at(
            address, "cannot be listened on", "is another coordinator there? choose a free port"
        ) from error


class EnrolmentClient:
    """The caller's side of enrolment, or of renewal with a certificate."""

    def __init__(self, address: str, channel: grpc.Channel) -> None:
        self._address = address
        self._channel = channel

    def enrol(self, token: str, request: bytes, identity: str, proof: bytes) -> bytes:
        """The certificate (PEM). NotCertified when the coordinator refuses, Unreached when it cannot be reached; any
        other RunError may mean that the answer was lost."""
        message = EnrolRequest(token=token, request=request, identity=identity, proof=proof)
        return self._call(f"/{ENROLMENT}/Enrol", EnrolRequest.SerializeToString, message)

    def renew(self, request: bytes) -> bytes:
        return self._call(f"/{RENEWAL}/Renew", RenewRequest.SerializeToString, RenewRequest(request=request))

    def _call(self, method: str, serialise: Callable[[Any], bytes], message: Any) -> bytes:
        call, where = (
            self._channel.unary_unary(method, serialise, Certificate.FromString),
            f"coordinator {self._address}",
        )
        try:
            self._reach(where)
            found: Certificate = call(message, timeout=_SECONDS)
        except grpc.RpcError as error:
            what = str(error.details())
            if error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise NotCertified.at(where, what) from error
            raise RunError.at(where, what, _REMEDY) from error
        finally:
            self._channel.close()
        return found.certificate

    def _reach(self, where: str) -> None:
        """Ask for what there is not: whoever gets a no has a connection, and what is asked next arrives or is lost."""
        try:
            nothing: Any = self._channel.unary_unary(f"/{ENROLMENT}/Reach")
            nothing(b"", timeout=_SECONDS)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise Unreached.at(where, str(error.details()), _REMEDY) from error


def connect(address: str, ca: bytes, key: bytes | None = None, certificate: bytes | None = None) -> EnrolmentClient:
    """For enrolment the enrolment port's address; for renewal the coordinator's, with key and certificate."""
    return EnrolmentClient(address, open_channel(address, ca, key, certificate))
