"""int8, fp8 and mixed precision written into a graph."""
