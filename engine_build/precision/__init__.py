"""Types written into a graph: casts, and what has to stay float32."""
