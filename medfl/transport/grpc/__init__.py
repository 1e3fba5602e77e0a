"""Frames over gRPC with mutual TLS: one stream that each site opens."""
