"""Prompts and outputs as token ids: the one place, so that what was sampled is what is tuned on and scored."""

from __future__ import annotations

from .errors import UserError
from .models import Tokenizer
from .types import Prompt, Text


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """A chat goes through the chat template (which brings its own special tokens), a text gets the tokenizer's."""
    if isinstance(prompt.content, str):
        ids = tokenizer(prompt.content)["input_ids"]
        # Some tokenizers end every text with end-of-sequence; a continuation must not begin behind one.
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
    else:
        if not tokenizer.chat_template:
            raise UserError("prompts: chat messages need a tokenizer with a chat template; give `prompt` as text")
        messages = [dict(turn) for turn in prompt.content]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    if not ids:
        raise UserError(f"prompts: {prompt.id!r} has no tokens")
    return list(ids)


def output_ids(tokenizer: Tokenizer, output: Text) -> list[int]:
    """The drawn ids where they are known; else (a person, an endpoint) the text tokenized, end-of-sequence added."""
    if output.token_ids is not None:
        return list(output.token_ids)
    ids = list(tokenizer(output.text, add_special_tokens=False)["input_ids"])
    if output.finish_reason == "stop" and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return ids


def reads_as(tokenizer: Tokenizer, output: Text) -> bool:
    """Are ``token_ids`` this tokenizer's? They decode to the text, of which a stop string may have been cut."""
    ids = output.token_ids or ()
    if any(not 0 <= token < len(tokenizer) for token in ids):
        return False
    return tokenizer.decode(list(ids), skip_special_tokens=True).startswith(output.text)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Does every id mean the same to both, the end of a text included?"""
    return one.eos_token_id == other.eos_token_id and one.get_vocab() == other.get_vocab()
