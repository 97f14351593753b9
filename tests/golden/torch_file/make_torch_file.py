"""Checkpoints that `torch.save` of PyTorch 2.11 wrote, what they hold in safetensors, and some that nobody should believe.

    python make_torch_file.py
"""
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent


def tensors():
    torch.manual_seed(0)
    shared = torch.randn(40)
    return OrderedDict(
        matrix=torch.randn(3, 5),
        half=torch.randn(7).half(),
        bfloat=torch.randn(2, 2, 2).bfloat16(),
        ids=torch.arange(77).unsqueeze(0),
        scalar=torch.tensor(4.6052),
        empty=torch.zeros(0, 4),
        turned=torch.randn(4, 6).t(),
        part=shared[3:9].view(2, 3),
        every_other=shared[1:20:3],
        repeated=torch.randn(1, 3).expand(4, 3),
    )


class Forger(pickle.Pickler):
    """Pickles tensors as if they were what they are not."""

    def persistent_id(self, thing):
        if isinstance(thing, tuple) and thing[:1] == ("storage",):
            return thing
        return None


class Rebuilt:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def forge(name, thing, storages):
    data = io.BytesIO()
    Forger(data, protocol=2).dump(thing)
    with zipfile.ZipFile(HERE / name, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("forged/data.pkl", data.getvalue())
        for key, content in storages.items():
            archive.writestr(f"forged/data/{key}", content)


def storage(n_elements, kind=torch.FloatStorage):
    return ("storage", kind, "0", "cpu", n_elements)


def view(storage, offset, shape, strides):
    rebuild = torch._utils._rebuild_tensor_v2
    return Rebuilt(rebuild, storage, offset, shape, strides, False, OrderedDict())


good = tensors()
torch.save(good, HERE / "plain.pt")
torch.save({"epoch": 3, "state_dict": good, "args": [1, None, "x"]}, HERE / "nested.pth")
torch.save(torch.nn.Linear(2, 1).state_dict(), HERE / "linear.bin")
torch.save(good, HERE / "old.pt", _use_new_zipfile_serialization=False)
save_file({name: tensor.clone().contiguous() for name, tensor in good.items()}, HERE / "expected.safetensors")

forge("command.pt", {"w": Rebuilt(os.system, "true")}, {})
forge("list.pt", [1, 2], {})
forge("number.pt", {"w": 3}, {})
forge("double.pt", {"w": view(storage(2, torch.DoubleStorage), 0, (2,), (1,))}, {"0": bytes(16)})
forge("beyond.pt", {"w": view(storage(6), 1, (2, 3), (3, 1))}, {"0": bytes(24)})
forge("huge.pt", {"w": view(storage(1), 0, (1 << 40, 1 << 40), (0, 0))}, {"0": bytes(4)})
forge("backwards.pt", {"w": view(storage(6), 5, (6,), (-1,))}, {"0": bytes(24)})
forge("short.pt", {"w": view(storage(6), 0, (6,), (1,))}, {"0": bytes(20)})
forge("lost.pt", {"w": view(storage(6), 0, (6,), (1,))}, {})
