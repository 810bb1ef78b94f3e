"""Cache forms: the sizes of the table in the docs, for plain and for grouped-query attention."""

from __future__ import annotations

import pytest
from helpers import small_model

from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, FORM_BY_NAME, FORMS, KV_GPU, KV_HOST, blocks_for
from planner.model import load_model


def test_the_table_is_complete_and_named() -> None:
    assert [form.name for form in FORMS] == ["act@gpu", "act@host", "kv@gpu", "kv@host"]
    assert all(FORM_BY_NAME[form.name] is form for form in FORMS)
    assert [form.on_gpu for form in FORMS] == [True, False, True, False]
    assert [form.rebuilt for form in FORMS] == [True, True, False, False]


@pytest.mark.parametrize("name", ["opt-6.7b", "opt-30b", "opt-66b", "llama-2-7b"])
def test_sizes_with_one_kv_head_per_head(name: str) -> None:
    model = load_model(name)
    d = model.hidden
    assert KV_HOST.token_bytes(model) == KV_GPU.token_bytes(model) == 4 * d
    assert ACT_HOST.token_bytes(model) == ACT_GPU.token_bytes(model) == 2 * d


@pytest.mark.parametrize(("name", "act", "kv"), [("llama-3-8b", 8192, 4096), ("llama-2-70b", 16384, 4096)])
def test_sizes_with_grouped_queries(name: str, act: int, kv: int) -> None:
    model = load_model(name)
    assert (ACT_HOST.token_bytes(model), KV_HOST.token_bytes(model)) == (act, kv)


def test_an_activation_is_smaller_only_below_two_queries_per_kv_head() -> None:
    for kv_heads, smaller in ((4, True), (2, False), (1, False)):
        model = small_model(kv_heads=kv_heads)
        assert (ACT_HOST.token_bytes(model) < KV_HOST.token_bytes(model)) is smaller


def test_bytes_follow_the_dtype() -> None:
    for form in FORMS:
        assert form.token_bytes(small_model(dtype="float32")) == 2 * form.token_bytes(small_model())


def test_only_host_forms_cross_the_link() -> None:
    model = small_model()
    for form in FORMS:
        assert form.h2d_bytes(model) == (0 if form.on_gpu else form.token_bytes(model))
        assert form.block_bytes(model) == 16 * 3 * form.token_bytes(model)


def test_blocks_for() -> None:
    assert [blocks_for(n) for n in (0, 1, 15, 16, 17, 32, 33)] == [0, 1, 1, 1, 2, 2, 3]
    assert BLOCK_TOKENS == 16  # plans written before would no longer fit
