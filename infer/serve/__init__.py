"""Bundles behind HTTP and gRPC: ``iresnet serve``."""
