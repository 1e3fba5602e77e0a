"""The caller's side of enrolment, or of renewal with a certificate, by HTTPS: as `medfl.transport.grpc.enrolment`."""

import logging
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPException

from google.protobuf.message import DecodeError

from medfl.errors import InputError, RunError
from medfl.transport.grpc.enrolment import EnrolmentClient as GrpcClient
from medfl.transport.grpc.enrolment import connect as by_grpc
from medfl.transport.https import NOT_OFFERED, Fallback
from medfl.transport.https.client import Caller, reason_of
from medfl.transport.https.frames import ENROLMENT, RENEWAL
from medfl.transport.https.tls import client_context
from medfl.transport.peers import NotCertified, Unreached
from medfl.transport.protocol.medfl_pb2 import Certificate, EnrolRequest, RenewRequest
from medfl.transport.reception import BROKEN, LARGEST, REFUSED, TOO_OFTEN

log = logging.getLogger(__name__)

_SECONDS = 20.0
_REMEDY = "see that the coordinator runs and that the proxy is right; it may be set to enrol by gRPC only"
_NO = {403: REFUSED, 429: TOO_OFTEN}


class EnrolmentClient:
    """target: host:port of the coordinator; ca: the authority's certificate; key, certificate: those to renew (PEM)."""

    def __init__(self, target: str, ca: bytes, key: bytes | None, certificate: bytes | None) -> None:
        self._target, self._ca, self._key, self._certificate = target, ca, key, certificate

    def enrol(self, token: str, request: bytes, identity: str, proof: bytes) -> bytes:
        """The certificate (PEM). Errors as those of `medfl.transport.grpc.enrolment.EnrolmentClient`."""
        asked = EnrolRequest(token=token, request=request, identity=identity, proof=proof).SerializeToString()
        # without an invitation the answer is no, but who gets it has a connection
        self._post(ENROLMENT, b"", Unreached, (400,))
        return self._certified(self._post(ENROLMENT, asked))

    def renew(self, request: bytes) -> bytes:
        return self._certified(self._post(RENEWAL, RenewRequest(request=request).SerializeToString()))

    def _post(
        self, path: str, body: bytes, error: type[RunError] = RunError, wanted: tuple[int, ...] = (200,)
    ) -> bytes:
        """What is answered; the error when there is no answer, or another than `wanted`."""
        where = f"coordinator {self._target}"
        try:
            with closing(Caller(self._target, client_context(self._key, self._certificate, self._ca))) as caller:
                answer = caller.post(path, body, _SECONDS)
        except (OSError, HTTPException) as problem:
            raise error.at(where, reason_of(problem), _REMEDY) from problem
        if answer.status in wanted:
            return answer.body
        if answer.status in _NO and path == ENROLMENT:
            raise NotCertified.at(where, _NO[answer.status])
        what = BROKEN if answer.status == 503 else f"answered {answer.status}"
        raise error.at(where, what, _REMEDY)

    def _certified(self, answer: bytes) -> bytes:
        if len(answer) > LARGEST:
            raise RunError.at(f"coordinator {self._target}", f"sent a certificate of {len(answer)} bytes")
        try:
            return Certificate.FromString(answer).certificate
        except DecodeError as error:
            raise RunError.at(f"coordinator {self._target}", "sent what is not a certificate") from error


def connect(target: str, ca: bytes, key: bytes | None = None, certificate: bytes | None = None) -> EnrolmentClient:
    """For enrolment, or with key and certificate for renewal."""
    return EnrolmentClient(target, ca, key, certificate)


class EitherClient:
    """By gRPC, and by HTTPS where that does not get through. What was sent by one way is not sent by the other."""

    def __init__(self, grpc: GrpcClient, https: EnrolmentClient) -> None:
        self._grpc, self._https = grpc, https

    def enrol(self, token: str, request: bytes, identity: str, proof: bytes) -> bytes:
        return self._either(lambda client: client.enrol(token, request, identity, proof))

    def renew(self, request: bytes) -> bytes:
        return self._either(lambda client: client.renew(request))

    def _either(self, ask: Callable[[GrpcClient | EnrolmentClient], bytes]) -> bytes:
        try:
            return ask(self._grpc)
        except Unreached as first:
            log.info("trying by HTTPS: %s", first)
            try:
                return ask(self._https)
            except Unreached as second:
                raise Unreached(*first.faults, *second.faults) from second


def connector(
    https: str | None, fallback: Fallback = Fallback.AUTO
) -> Callable[..., GrpcClient | EnrolmentClient | EitherClient]:
    """As `connect`, by the ways that `fallback` names. https: host:port, None where it is not offered. InputError when
    it is, and there is no other way."""
    if fallback is Fallback.ALWAYS and https is None:
        raise InputError.at("--fallback always", NOT_OFFERED, "give --https-port, or ask the study lead")

    def make(
        address: str, ca: bytes, key: bytes | None = None, certificate: bytes | None = None
    ) -> GrpcClient | EnrolmentClient | EitherClient:
        if https is None or fallback is Fallback.NEVER:
            return by_grpc(address, ca, key, certificate)
        by_https = connect(https, ca, key, certificate)
        return (
            by_https if fallback is Fallback.ALWAYS else EitherClient(by_grpc(address, ca, key, certificate), by_https)
        )

    return make
