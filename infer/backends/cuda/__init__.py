"""The CUDA side of the TensorRT backend: context, buffers, streams, graphs. Needs pycuda only when it is used."""
