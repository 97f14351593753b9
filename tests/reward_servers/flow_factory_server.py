"""A server as Flow-Factory's remote rewards expect them: JSON with PNG files in base64.

    python flow_factory_server.py --port 8000

An image's score is its mean brightness, 0 to 1.
"""

import base64
import json

from png import mean_brightness
from serving import arguments, bent, serve


def answer(body, misbehaviour):
    request = json.loads(body)
    assert len(request["prompt"]) == len(request["image"])
    if misbehaviour == "error":
        return json.dumps({"error": "the model has no weights"}).encode()
    scores = [mean_brightness(base64.b64decode(image)) for image in request["image"]]
    return json.dumps({"rewards": bent(scores, misbehaviour)}).encode()


if __name__ == "__main__":
    serve(arguments(__doc__), "/compute", "application/json", answer)
