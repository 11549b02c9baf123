"""Prompts and outputs as token ids: the one place, so that what was sampled is what is tuned on and scored."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import UserError
from .models import Tokenizer
from .types import Message, Prompt, Text

Content = str | tuple[Message, ...]  # a prompt's

# The template of classifiers that bring none, in the form of Anthropic's dialogues
PLAIN_CHAT = (
    "{{ cls_token or bos_token }}{% for turn in messages %}"
    "{{ '\\n\\n' + {'user': 'Human'}.get(turn['role'], turn['role'] | capitalize) + ': ' + turn['content'] }}"
    "{% endfor %}{{ sep_token or eos_token }}"
)


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text with the tokenizer's special tokens, open at the end."""
    ids = _one_bos(tokenizer, tokenizer(text)["input_ids"])
    # Some tokenizers end every text with end-of-sequence; a continuation must not begin behind one.
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """A chat goes through the chat template (which brings its own special tokens), a text gets the tokenizer's."""
    if isinstance(prompt.content, str):
        ids = encode_text(tokenizer, prompt.content)
    else:
        if not tokenizer.chat_template:
            raise UserError("prompts: chat messages need a tokenizer with a chat template; give `prompt` as text")
        ids = _chat(tokenizer, prompt.content, add_generation_prompt=True)
    if not ids:
        raise UserError(f"prompts: {prompt.id!r} has no tokens")
    return ids


def output_ids(tokenizer: Tokenizer, output: Text, chat: bool = False) -> list[int]:
    """The drawn ids where they are known; else (a person, an endpoint) the text tokenized and its end added: the end of
    a turn in a ``chat``, else end-of-sequence."""
    if output.token_ids is not None:
        return list(output.token_ids)
    ids = list(tokenizer(output.text, add_special_tokens=False)["input_ids"])
    end = turn_end(tokenizer) if chat else tokenizer.eos_token_id
    return [*ids, end] if output.finish_reason == "stop" and end is not None else ids


def turn_end(tokenizer: Tokenizer) -> int | None:
    """The token with which the chat template ends an assistant's turn (Gemma's is not its end-of-sequence), or
    end-of-sequence where there is no template, or none of its tokens ends a turn."""
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    ids = _chat(tokenizer, ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
    while ids and not tokenizer.decode(ids[-1:]).strip():
        ids = ids[:-1]
    return ids[-1] if ids and ids[-1] in tokenizer.added_tokens_decoder else tokenizer.eos_token_id


def encode_demonstration(
    tokenizer: Tokenizer, content: str | tuple[Message, ...] | None, output: str
) -> tuple[list[int], list[int]]:
    """Prompt and output of a person's example, its end learned with it; without a prompt (None) the first
    token of the text stands for one (beginning-of-sequence, where the tokenizer writes it)."""
    if content is not None:
        prompt = Prompt("demonstration", content)
        return encode_prompt(tokenizer, prompt), output_ids(tokenizer, Text(output), prompt.is_chat)
    ids = encode_text(tokenizer, output)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return ids[:1], [*ids[1:], *end]


def encode_answered(tokenizer: Tokenizer, content: Content, answer: str) -> list[int]:
    """A prompt with its answer, as a classifier is trained on it and scores it: a chat through the classifier's own
    template with the answer as the last turn, a text joined with it."""
    return encode_answers(tokenizer, [(content, answer)])[0]


def encode_answers(tokenizer: Tokenizer, answered: Sequence[tuple[Content, str]]) -> list[list[int]]:
    """:func:`encode_answered` of many: a fast tokenizer is called once and takes every core."""
    texts = [content + answer for content, answer in answered if isinstance(content, str)]
    chats = [
        [*map(dict, content), {"role": "assistant", "content": answer}]
        for content, answer in answered
        if not isinstance(content, str)
    ]
    if chats and not tokenizer.chat_template:
        raise UserError(
            "reward: chat messages need a classifier with a chat template; train it on chats, or give `prompt` as text"
        )
    of_texts = iter(tokenizer(texts)["input_ids"] if texts else ())
    of_chats = iter(tokenizer.apply_chat_template(chats, return_dict=True)["input_ids"] if chats else ())
    return [_one_bos(tokenizer, next(of_texts if isinstance(content, str) else of_chats)) for content, _ in answered]


def _chat(tokenizer: Tokenizer, messages: tuple[Message, ...], add_generation_prompt: bool = False) -> list[int]:
    turns = [dict(turn) for turn in messages]
    found = tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, return_dict=True)
    return _one_bos(tokenizer, found["input_ids"])


def _one_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A text that begins with the written beginning-of-sequence gets no second one from the tokenizer."""
    twice = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
    return list(ids[1:] if twice else ids)


def reads_as(tokenizer: Tokenizer, output: Text) -> bool:
    """Are ``token_ids`` this tokenizer's? They decode to the text, of which a stop string may have been cut."""
    ids = output.token_ids or ()
    if any(not 0 <= token < len(tokenizer) for token in ids):
        return False
    return tokenizer.decode(list(ids), skip_special_tokens=True).startswith(output.text)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Does every id mean the same to both, the end of a text included?"""
    return one.eos_token_id == other.eos_token_id and one.get_vocab() == other.get_vocab()
