"""How both ends set up gRPC: limits, keep-alive, TLS."""

from collections.abc import Sequence
from typing import Any

import grpc

from medfl.transport.mail import MAX_FRAME

SERVICE = "medfl.v1.Federation"
CONNECT = f"/{SERVICE}/Connect"
ENROLMENT = "medfl.v1.Enrolment"
RENEWAL = "medfl.v1.Renewal"
INSPECTION = "medfl.v1.Inspection"

_COMMON = [
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.max_metadata_size", 8192),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # beats tell whether a line lives: on a slow one the answer to a ping waits behind megabytes
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.ping_timeout_ms", 120_000),
]
SERVER_OPTIONS: Sequence[tuple[str, Any]] = (
    *_COMMON,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.so_reuseport", 0),
    # of what a site sends at most a MiB waits in memory; gRPC's own choice grows to many times that for each site. Over
    # 100 ms there and back that lets 80 Mbit/s through
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2**20),
)
CLIENT_OPTIONS: Sequence[tuple[str, Any]] = (
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # two studies of one process do not share a connection
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(address: str, ca: bytes, key: bytes | None = None, certificate: bytes | None = None) -> grpc.Channel:
    """A channel to a server whose certificate the authority `ca` (PEM) signed; with the own key (PEM, unencrypted) and
    certificate where the server asks for one."""
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.secure_channel(address, credentials, options=list(CLIENT_OPTIONS))
