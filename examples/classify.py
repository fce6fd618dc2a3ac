"""Pictures to classes.

python examples/classify.py engines/iresnet50_fashion-fp32 cat.jpg dog.png
"""

from __future__ import annotations

import sys

from infer import IResNetError, open_bundle


def main(bundle: str, pictures: list[str]) -> None:
    """Print the best class of each picture, or why it could not be read."""
    with open_bundle(bundle) as runner:  # the fastest target that runs on this machine
        for prediction in runner.classify(pictures):
            if prediction.error is None:
                best = prediction.top[0]
                print(f"{prediction.name}: {best.label} {best.score:.1%}")
            else:
                print(f"{prediction.name}: {prediction.error}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2:])
    except IResNetError as error:  # every error of the package; says what to do
        raise SystemExit(f"error: {error}") from None
