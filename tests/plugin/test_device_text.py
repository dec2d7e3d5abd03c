"""What the engine computes on, in one sentence."""

import pytest

CPU = {"device": "cpu", "name": "a CPU", "cores": 8, "usable": True}
GPU = {"device": "cuda", "name": "NVIDIA RTX 4060", "memory_mb": 8188, "usable": True}
OLD = {**GPU, "usable": False, "reason": "DRIVER_OLD"}


@pytest.mark.parametrize(
    ("devices", "reason", "chosen", "text"),
    [
        ([GPU, CPU], "", "auto", "Computes on: NVIDIA RTX 4060 (8 GB)"),
        ([GPU, CPU], "", "cuda", "Computes on: NVIDIA RTX 4060 (8 GB)"),
        (
            [GPU, CPU],
            "",
            "cpu",
            "Computes on the CPU (8 cores), as chosen in the options; NVIDIA RTX 4060 (8 GB) is not used",
        ),
        ([CPU], "NO_DRIVER", "auto", "Computes on the CPU (8 cores): no NVIDIA driver was found"),
        ([CPU], "NO_DRIVER", "cpu", "Computes on the CPU (8 cores)"),
        (
            [OLD, CPU],
            "DRIVER_OLD",
            "auto",
            "Computes on the CPU (8 cores): the NVIDIA driver is too old; install a newer one",
        ),
        ([CPU], "NO_DRIVER", "cuda", "CUDA is chosen in the options, but no NVIDIA driver was found"),
        ([GPU, CPU], "", "mps", "MPS is chosen in the options, but this machine has none"),
        ([], "", "auto", ""),
        ([CPU], "SOMETHING_NEW", "auto", "Computes on the CPU (8 cores)"),
    ],
)
def test_device_and_reason_in_one_sentence(qgis_app, devices, reason, chosen, text):
    from geopeft_qgis.device_text import summary

    assert summary({"devices": devices, "gpu_reason": reason}, chosen) == text


def test_every_reason_of_the_engine_has_its_words(qgis_app):
    import ast
    from pathlib import Path

    from geopeft_qgis.device_text import REASONS

    tree = ast.parse((Path(__file__).resolve().parents[2] / "engine/geopeft/devices.py").read_text())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    tables = [node for node in assigned if ast.unparse(node.targets[0]) == "REASONS"]
    assert set(ast.literal_eval(tables[0].value)) == set(REASONS)
