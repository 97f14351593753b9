"""Records what the reference clients send and what their servers answer, for two small pictures.

    python make_exchanges.py

Needs Pillow and numpy; Python 3.11, Pillow 13.0, numpy 2.4. Reads ../jpeg/*.png and writes beside itself: NAME.request as the
clients of yifan123/flow_grpo (54809b5), verl-project/verl-omni (0ef63e5) and X-GenGroup/Flow-Factory (a0b2bc5) make it, and
NAME.reply as the servers of yifan123/reward-server (7131478) and Flow-Factory do.
"""

import base64
import io
import json
import pickle
from pathlib import Path

import numpy
from PIL import Image

HERE = Path(__file__).parent
PROMPTS = ["a photo of two bears", 'a sign that says "café 猫"']
ROWS = [
    {
        "tag": "counting",
        "include": [{"class": "bear", "count": 2}],
        "exclude": [{"class": "bear", "count": 3}],
        "prompt": PROMPTS[0],
    },
    {
        "tag": "position",
        "include": [{"class": "laptop", "count": 1}, {"class": "cow", "count": 1, "position": ["right of", 0]}],
        "prompt": PROMPTS[1],
    },
]
QUESTION = (
    "<image>\nYou are given a text caption and a generated image based on that caption. Your task is to evaluate this "
    "image based on two key criteria:\n1. Alignment with the Caption: Assess how well this image aligns with the provided "
    "caption. Consider the accuracy of depicted objects, their relationships, and attributes as described in the "
    "caption.\n2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\nBased on the above criteria, assign a score from 1 to "
    "5 after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [{prompt}]"
)


def picture(name):
    return Image.open(HERE.parent / "jpeg" / f"{name}.png").convert("RGB")


def pictures():
    return [picture("waves_64x48"), picture("noise_17x13")]


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def write(name, request, reply):
    (HERE / f"{name}.request").write_bytes(request)
    (HERE / f"{name}.reply").write_bytes(reply)


def pickled():
    images = [encoded(image, "JPEG") for image in pictures()]
    scores = [0.75, 0.5]
    write("deqa", pickle.dumps({"images": images}), pickle.dumps({"outputs": [0.8125, 0.4375]}))
    # The client cuts the rows up with numpy, which leaves an object array's elements as they are.
    rows = list(numpy.array_split(ROWS, 1)[0])
    request = {"images": images, "meta_datas": rows, "only_strict": False}
    reply = {
        "scores": scores,
        "rewards": [1.0, 0.0],
        "strict_rewards": [0.0, 0.0],
        "group_rewards": by_tag([1.0, 0.0]),
        "group_strict_rewards": by_tag([0.0, 0.0]),
    }
    write("geneval", pickle.dumps(request), pickle.dumps(reply))
    request = {"images": images, "prompts": PROMPTS, "metadata": {}}
    write("verl_omni", pickle.dumps(request), pickle.dumps({"scores": numpy.array(scores, dtype=numpy.float32)}))


def by_tag(verdicts):
    """As the server groups them: -10 where an image has another tag."""
    tags = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    return {tag: [v if row["tag"] == tag else -10.0 for v, row in zip(verdicts, ROWS)] for tag in tags}


def in_json():
    images = [base64.b64encode(encoded(image, "PNG")).decode() for image in pictures()]
    request = {"prompt": PROMPTS, "image": images, "video": None, "condition_images": None, "condition_videos": None}
    write("flow_factory", json.dumps(request).encode(), json.dumps({"rewards": [0.25, -1.5]}).encode())
    png = base64.b64encode(encoded(picture("shapes_16x16").resize((512, 512)), "PNG")).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image;base64,{png}"}},
        {"type": "text", "text": QUESTION.format(prompt=PROMPTS[1])},
    ]
    request = {
        "messages": [{"role": "user", "content": content}],
        "model": "UnifiedReward-7b-v1.5",
        "temperature": 0,
    }
    answer = "The caption asks for more.\nAlignment: 3\nFinal Score: 4.25"
    message = {"role": "assistant", "content": answer, "reasoning_content": None, "tool_calls": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "matched_stop": 151645}
    reply = {
        "id": "4f0c",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "UnifiedReward-7b-v1.5",
        "choices": [choice],
        "usage": {"prompt_tokens": 470, "total_tokens": 490, "completion_tokens": 20},
    }
    write("unifiedreward", json.dumps(request).encode(), json.dumps(reply).encode())


if __name__ == "__main__":
    pickled()
    in_json()
