"""Prompt files: what is read, what a plan needs of them, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from planner.errors import InputError
from runtime.completions import completion, write_completions
from runtime.prompt_file import PromptFile, holds_prompts, prompt_workload, read_prompts
from runtime.prompts import Prompt, Text, load_tokenizer
from runtime.sampling import Sampling


def written(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of whole words."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    words = {word: i for i, word in enumerate(("<unk>", "one", "two", "three", "a\u2028b"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder)
    return folder


def test_token_ids_and_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, {"tokens": [1, 2]}, "  ", {"id": "b", "tokens": [3], "max_new_tokens": 4, "seed": None})
    prompts = read_prompts(path, Text(None)).good
    assert [(p.id, p.tokens, p.max_new_tokens) for p in prompts] == [("0", [1, 2], None), ("b", [3], 4)]
    assert [(r.id, r.prompt_len, r.gen_len) for r in prompt_workload(path, Text(None)).requests] == [
        ("0", 2, 16),
        ("b", 1, 4),
    ]


def test_greedy_values_of_sampling_fields_are_accepted(tmp_path: Path) -> None:
    line = {"tokens": [1], "temperature": 0.0, "top_p": 1.0, "top_k": 0, "stop": None}
    assert len(read_prompts(written(tmp_path, line), Text(None))) == 1


def test_text_and_token_ids_in_one_file(tmp_path: Path, checkpoint: Path) -> None:
    text = Text(checkpoint)
    prompts = read_prompts(written(tmp_path, {"tokens": [2]}, {"prompt": "one two three"}), text).good
    assert [p.tokens for p in prompts] == [[2], [1, 2, 3]]
    assert text.decode([3, 1]) == "three one"


def test_a_line_separator_inside_text_does_not_end_the_line(tmp_path: Path, checkpoint: Path) -> None:
    path = written(tmp_path, '{"prompt": "a\u2028b one"}')
    assert [p.tokens for p in read_prompts(path, Text(checkpoint)).good] == [[4, 1]]


def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(InputError, match=r"no tokenizer here: none of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_broken_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="no tokenizer here"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [("{", "config.json: "), ('{"model_type": "opt", "hidden_size": "64"}', "config.json: num_hidden_layers")],
)
def test_a_broken_config_is_not_said_to_be_a_missing_tokenizer(
    config: str, said: str, tmp_path: Path, checkpoint: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(config)
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path / "model")
    assert said in str(error.value) and "no tokenizer" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"tokens": [1]}', True), ('{"prompt": "x"}', True), ('{"prompt_len": 1, "gen_len": 2}', False), ("{", False),
        ('{oops\n{"prompt": "x"}', True),
    ],
)  # fmt: skip
def test_holds_prompts(line: str, expected: bool, tmp_path: Path) -> None:
    assert holds_prompts(written(tmp_path, "", line)) is expected


def test_completions_have_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    asked = PromptFile(path, (Prompt("a", [1]), Prompt("b", [2], place=1)), ())
    write_completions(path, asked, {"a": [3, 4], "b": [5, 9, 6]}, 9, Text(None))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"id": "a", "text": None, "tokens": [3, 4], "finish_reason": "length"},
        {"id": "b", "text": None, "tokens": [5, 9], "finish_reason": "stop"},
    ]


def test_sampling_fields(tmp_path: Path, checkpoint: Path) -> None:
    first = {"prompt": "one", "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 7, "stop": ["two", "b"]}
    second = {"prompt": "one", "temperature": None, "stop": "two", "ignore_eos": True}
    one, other = read_prompts(written(tmp_path, first, second), Text(checkpoint)).good
    assert one.sampling == Sampling(0.5, 3, 0.9, 7) and one.stop == ("two", "b") and not one.ignore_eos
    assert other.sampling.temperature == 0 and other.stop == ("two",) and other.ignore_eos


def test_where_a_completion_ends(checkpoint: Path) -> None:
    text = Text(checkpoint)
    text.encode("one", "here")

    def ended(tokens: list[int], **fields: object) -> tuple[list[int], str | None, str]:
        done = completion(Prompt("a", [1], **fields), tokens, 4, text)  # type: ignore[arg-type]
        return done.tokens, done.text, done.reason

    assert ended([1, 2, 3]) == ([1, 2, 3], "one two three", "length")
    assert ended([1, 4, 3])[::2] == ([1, 4], "stop")
    assert ended([1, 4, 3], ignore_eos=True)[::2] == ([1, 4, 3], "length")
    assert ended([1, 2, 3, 2], stop=("three", "wo t")) == ([1, 2, 3], "one t", "stop")
    assert ended([1, 2, 3], stop=("four",)) == ([1, 2, 3], "one two three", "length")


def test_batch_requests_are_answered_in_kind(tmp_path: Path, checkpoint: Path) -> None:
    text = Text(checkpoint)
    line = {"custom_id": "x", "method": "POST", "url": "/v1/completions",
            "body": {"model": "m", "prompt": "one two", "max_tokens": 2, "stop": None, "n": 1, "seed": 3}}  # fmt: skip
    asked = read_prompts(written(tmp_path, line), text)
    (prompt,) = asked.good
    assert (prompt.id, prompt.tokens, prompt.max_new_tokens, prompt.batch) == ("x", [1, 2], 2, True)
    assert prompt.sampling == Sampling(1.0, seed=3)
    path = tmp_path / "out.jsonl"
    write_completions(path, asked, {"x": [3, 1]}, None, text)
    answer = json.loads(path.read_text())
    assert answer["custom_id"] == "x" and answer["error"] is None and answer["response"]["status_code"] == 200
    body = answer["response"]["body"]
    assert body["choices"][0]["text"] == body["choices"][0]["message"]["content"] == "three one"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert holds_prompts(written(tmp_path, line))


def test_messages_go_through_the_chat_template(tmp_path: Path, checkpoint: Path) -> None:
    line = {"custom_id": "x", "body": {"messages": [{"role": "user", "content": "two"}], "max_tokens": 2}}
    with pytest.raises(InputError, match="do not fit the tokenizer's chat template"):
        read_prompts(written(tmp_path, line), Text(checkpoint))
    made = load_tokenizer(checkpoint)
    made.chat_template = "{% for m in messages %}one {{ m.content }}{% endfor %} three"  # type: ignore[attr-defined]
    made.save_pretrained(tmp_path / "chat")  # type: ignore[attr-defined]
    (prompt,) = read_prompts(written(tmp_path, line), Text(tmp_path / "chat")).good
    assert prompt.tokens == [1, 2, 3]
