"""``iresnet verify``: accuracy against labels and against FP32."""
