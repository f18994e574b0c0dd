"""The Open Inference Protocol over gRPC with Triton's extensions, and grpc.health.v1, as messages in bytes."""
