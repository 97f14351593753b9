"""A server as Flow-GRPO's clients expect them: pickled images in, pickled scores out.

    python flow_grpo_server.py --port 18086

An image's score is the CRC-32 of its file, scaled to 0 to 1. A request with `meta_datas` is answered as GenEval's server
does. Unpickling runs what a request asks for: keep such a server where only you can reach it.
"""

import os
import pickle
import zlib

from serving import arguments, bent, serve

TAGS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]


class Command:
    """Unpickling it runs a shell command, as a hostile server may want a client to."""

    def __reduce__(self):
        return os.system, ("echo this must never run",)


def answer(body, misbehaviour):
    request = pickle.loads(body)
    for file in request["images"]:
        assert file[:3] == b"\xff\xd8\xff", "not a JPEG file"
    scores = bent([zlib.crc32(file) / 2**32 for file in request["images"]], misbehaviour)
    if misbehaviour == "hostile-pickle":
        scores = Command()
    if misbehaviour == "error":
        return pickle.dumps({"error": "the detector has no weights"})
    if "meta_datas" in request:
        return pickle.dumps(geneval(scores, request["meta_datas"], request["only_strict"]))
    return pickle.dumps({"outputs": scores})


def geneval(scores, rows, only_strict):
    strict = [float(score > 0.5) for score in scores]
    loose = [0.0 if only_strict else float(score > 0.25) for score in scores]

    def by_tag(verdicts):
        return {tag: [v if row["tag"] == tag else -10.0 for v, row in zip(verdicts, rows)] for tag in TAGS}

    return {
        "scores": scores,
        "rewards": loose,
        "strict_rewards": strict,
        "group_rewards": by_tag(loose),
        "group_strict_rewards": by_tag(strict),
    }


if __name__ == "__main__":
    serve(arguments(__doc__), "/", "application/octet-stream", answer)
