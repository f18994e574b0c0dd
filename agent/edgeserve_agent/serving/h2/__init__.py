"""A small HTTP/2 server for gRPC (RFC 9113, RFC 7541, "gRPC over HTTP2"): cleartext, prior knowledge, no push."""
