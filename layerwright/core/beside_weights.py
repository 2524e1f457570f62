"""What lies beside the weights of a model that was reshaped: the base's other files, the record, the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerwright.core.checksums import MANIFEST
from layerwright.core.tied import CODE
from layerwright.core.weight_files import INDEX

RECORD = "reshape.json"
CARD = "README.md"
# Weights in this and other forms, and what is written anew.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".pkl", ".index.json")
_OWN = ("config.json", INDEX, MANIFEST, RECORD, CODE.name)
# Part of the card as long as there is code in the folder.
_ON_CODE = f"""
## Python code in this folder

Blocks of this model share weights, and each shared weight is in the file once. transformers alone does not know such
files, and refuses them. `{CODE.name}` says which weights are one, and **who loads this folder with
`trust_remote_code=True` runs that file**: read it first, or trust whoever published it.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)  # or the Auto class that fits

The safe form is a plain folder, which is larger and needs no code: `lw reshape ... --export plain` writes it. Where
layerwright is installed, `import layerwright.core.tied` is enough, and nothing in the folder is run.
"""


def copy_others(source: Path, target: Path) -> None:
    """Tokenizer, generation settings, licence and the like, also where they are links, as in the hub's cache."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in _OWN and not file.name.endswith(_WEIGHTS) and file.name[0] != ".":
            shutil.copyfile(file, target / file.name)


def write_record(folder: Path, document: Mapping[str, Any]) -> None:
    """Plan, order, provenance, fingerprint and ladder."""
    (folder / RECORD).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def write_card(folder: Path, document: Mapping[str, Any], lines: list[str]) -> None:
    """A section at the end of the model card, or a card of its own; where code comes along, with its warning."""
    plan = document["plan"]
    steps = "\n".join(f"- `{json.dumps(step)}`" for step in plan["steps"])
    why = f"\n{plan['why']}\n" if plan.get("why") else ""
    checks = "\n".join(f"    {line}" for line in lines) or "    not checked"
    section = (
        f"\n## How this model was made\n\nBlocks of `{document['base']['model']}` (fingerprint "
        f"`{document['base']['sha256'][:12]}`), reshaped with layerwright {document['layerwright']}:\n\n{steps}\n{why}"
        f"\n{len(document['order'])} blocks, in the order {document['order']}. What was checked:\n\n{checks}\n\n"
        f"Everything is in `{RECORD}`.\n"
    )
    card = folder / CARD
    before = card.read_text(encoding="utf-8") if card.is_file() else f"# {folder_name(document)}\n"
    code = _ON_CODE if (folder / CODE.name).is_file() else ""
    card.write_text(before.replace(_ON_CODE, "") + section + code, encoding="utf-8")


def folder_name(document: Mapping[str, Any]) -> str:
    """What a card without a title is called."""
    return f"{Path(document['base']['model']).name}, reshaped"
