"""The C library ``libiresnet_infer``: its sources, and what compiles and installs them (``python -m infer.embed``)."""
