"""``iresnet bench``: throughput, latency, and how far the hardware would allow."""
