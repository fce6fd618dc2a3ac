"""Names of the deployed graph's input and outputs, alike in every bundle and on every target."""

from __future__ import annotations

INPUT, LOGITS, SCORES, CLASSES = "images", "logits", "scores", "classes"
#: In the order in which plans, arrays and the C interface give them.
OUTPUTS = (LOGITS, SCORES, CLASSES)
