"""The sentencepiece vocabulary for `AutoTokenizer.from_pretrained(folder, trust_remote_code=True)`.

This file is part of the exported folder and needs only transformers and sentencepiece. Every
caption ends with end-of-text, even when it is truncated. Padding is on the right; it repeats
end-of-text and is masked.
"""

import shutil
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizer


class DinoTxtTokenizer(PreTrainedTokenizer):
    """The trained sentencepiece model; it gives the same token ids as in training."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012  # transformers reads it from the class
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **options: object) -> None:
        self.vocab_file = vocab_file
        self.processor = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        fixed = {
            "unk_token": "<unk>",
            "eos_token": "</s>",
            "pad_token": "</s>",
            "padding_side": "right",
        }
        super().__init__(**{**options, **fixed, "split_special_tokens": True})

    @property
    def vocab_size(self) -> int:
        return self.processor.vocab_size()

    def get_vocab(self) -> dict[str, int]:
        return {self.processor.id_to_piece(index): index for index in range(self.vocab_size)}

    def _tokenize(self, text: str, **options: object) -> list[str]:
        return self.processor.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.processor.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.processor.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.processor.decode(tokens)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [*token_ids_0, *(token_ids_1 or []), self.processor.eos_id()]

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        target = (
            Path(save_directory)
            / f"{filename_prefix + '-' if filename_prefix else ''}tokenizer.model"
        )
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)
