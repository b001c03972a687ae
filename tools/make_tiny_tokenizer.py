"""Make the byte-level BPE tokenizer of the tiny checkpoints. It was run once; its output is committed.

python tools/make_tiny_tokenizer.py parity/assets/tiny_tokenizer
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 320  # 3 special tokens, 256 bytes, 61 merges
SPECIAL = ["<unk>", "<s>", "</s>"]


def main(folder: Path) -> None:
    """Train on the project's own prompts and write ``tokenizer.json`` and ``tokenizer_config.json``."""
    prompts = Path(__file__).parents[1] / "parity" / "prompts"
    records = [json.loads(line) for path in sorted(prompts.glob("*.jsonl")) for line in path.read_text().splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([r["text"] + r["continuation"] for r in records], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
