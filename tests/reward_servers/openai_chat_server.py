"""A judge behind OpenAI's chat completions: says how bright an image is, from 1 to 5.

    python openai_chat_server.py --port 17140

Answers "Final Score: " and a number with four digits behind the point.
"""

import base64
import json

from png import mean_brightness
from serving import arguments, bent, serve


def answer(body, misbehaviour):
    request = json.loads(body)
    assert request["temperature"] == 0
    image, text = request["messages"][0]["content"]
    assert text["type"] == "text"
    kind, file = image["image_url"]["url"].split(",", 1)
    assert kind == "data:image;base64"
    [score] = [1 + 4 * mean_brightness(base64.b64decode(file))]
    words = "I would rather not say." if misbehaviour == "error" else f"It is so bright.\nFinal Score: {score:.4f}"
    choices = [{"index": 0, "message": {"role": "assistant", "content": words}, "finish_reason": "stop"}]
    return json.dumps({"object": "chat.completion", "choices": bent(choices, misbehaviour)}).encode()


if __name__ == "__main__":
    serve(arguments(__doc__), "/v1/chat/completions", "application/json", answer)
