"""Bundles inside other programs: C and C++, and NVIDIA Polygraphy."""
