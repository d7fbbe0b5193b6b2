"""Names that their packages do not promise to keep: an upgrade that drops one fails here, by name.

docs/limits.md says what each is used for.
"""

import importlib

import pytest

NAMES = {
    "ray._private.authentication.authentication_token_setup": "cluster/session.py",
    "ray._private.worker.print_to_stdstream": "cluster/servers.py",
    "ray._raylet.InnerGcsClient.get_all_node_info": "cluster/allocation.py",
    "ray.core.generated.gcs_pb2.GcsNodeInfo.ALIVE": "cluster/allocation.py",
    "ray.train.v2._internal.execution.context.get_train_context": "train/interruption.py",
    "ray.train.v2._internal.execution.preemption.PreemptionContext.preemption_info": (
        "train/interruption.py"
    ),
    "ray.train.torch.TorchTrainer._register_sigint_handler": "train/train.py",
    "tyro._errors.on_parse_error": "pipeline/flags.py",
    "torch._foreach_norm": "train/gradients.py",
    "torch._foreach_mul_": "train/gradients.py",
    "torch.cpu._is_vnni_supported": "curation/clusters/integers.py",
    "torch.cpu._is_amx_tile_supported": "curation/clusters/integers.py",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_is_still_there(name: str) -> None:
    words = name.split(".")
    length = next(size for size in range(len(words), 0, -1) if is_module(words[:size]))
    thing: object = importlib.import_module(".".join(words[:length]))
    for word in words[length:]:
        assert hasattr(thing, word), (
            f"{name} is gone in this version of {words[0]}: adapt {NAMES[name]}, or pin the version "
            "of constraints.txt; docs/limits.md says what it is used for"
        )
        thing = getattr(thing, word)


def is_module(words: list[str]) -> bool:
    try:
        importlib.import_module(".".join(words))
    except ImportError:
        return False
    return True
