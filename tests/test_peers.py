"""Other systems on our cost model: closed forms against clocks, hand-computed cases, and what the command line says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers import ideal_hardware, ragged, wide_model

from planner.clocks import run_clocks
from planner.columns import columns_of
from planner.contention import Contention
from planner.costs import CostModel
from planner.errors import InfeasibleError
from planner.hardware import load_hardware
from planner.model import load_model
from planner.operation import STREAM_OF, Operation
from planner.peers import flexgen, hcache, kvpr, streaming
from planner.peers.catalogue import PEERS
from planner.peers.flexgen import FlexGen, Setting
from planner.peers.job import Job, fewest_rounds
from planner.peers.pipeline import Run, Work
from planner.workload import Workload

SERVER = CostModel(load_hardware("rtx4090-pcie4"), load_model("opt-30b"))
IDEAL = CostModel(ideal_hardware(), wide_model(3))
WORK = Workload.uniform(128, 1024, 128)


# ---- a job -----------------------------------------------------------------------------------------


def test_ragged_jobs_are_padded_but_only_real_tokens_count() -> None:
    work = ragged([(100, 10), (300, 4), (200, 20)])
    assert Job.padded(work) == Job(3, 300, 20)
    found = PEERS["deepspeed"].forecast(IDEAL, work)
    equal = PEERS["deepspeed"].forecast(IDEAL, Workload.uniform(3, 300, 20))
    assert found.total_s == equal.total_s
    assert found.throughput_tokens_per_s == pytest.approx(equal.throughput_tokens_per_s * 34 / 60)
    assert found.padding == pytest.approx(1 - 34 / 60)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 12, 13, 64, 100])
def test_fewest_rounds(most: int) -> None:
    job = Job(100, 8, 8)
    found = fewest_rounds(job, lambda part: part.batch <= most)
    by_hand = next(n for n in range(1, 101) if -(-100 // n) <= most)
    assert found == by_hand
    assert fewest_rounds(job, lambda part: False) is None


# ---- FlexGen ---------------------------------------------------------------------------------------


def clocked_step(one: FlexGen, cached: float) -> float:
    """A decode step of FlexGen as operations with barriers: what the closed form must say."""
    costs, setting = one.costs, one.setting
    free = costs.hardware.with_values(**{"link.compute_s_lost_per_byte": 0.0, "link.during_compute": 1.0})
    embed, attention, mlp, head = one.stages(1, cached)
    stages = [embed, *[attention, mlp] * costs.model.layers, head]
    link = costs.hardware.link
    hidden = setting.gpu_batch * costs.model.hidden * costs.model.element_bytes
    ops: list[Operation] = []
    seconds: list[float] = []

    def issue(kind: str, taken: float, waits: list[int]) -> int:
        ops.append(Operation(len(ops), kind, STREAM_OF[kind], 1, 0, 0, tuple(waits)))
        seconds.append(taken)
        return len(ops) - 1

    barrier: list[int] = []
    for j, now in enumerate(stages):
        then = stages[(j + 1) % len(stages)]
        for k in range(setting.batches):
            cache = then.cache if k == setting.batches - 1 else now.cache
            relayed = cache / link.pageable_h2d_bytes_per_s.value - cache / link.h2d_bytes_per_s.value
            moved = costs.h2d((then.weights if k == 0 else 0.0) + hidden)
            weights = issue("load_weights", moved, barrier)
            relay = issue("embed", relayed, barrier)
            loaded = issue("load_kv", costs.h2d(cache), [relay])
            computed = issue("forward", now.compute, barrier)
            back = now.store / link.pageable_d2h_bytes_per_s.value + costs.d2h(hidden)
            stored = issue("store", back, barrier)
            barrier = [weights, relay, loaded, computed, stored]
    quiet = replace_shared(free.link)
    _, ends = run_clocks(columns_of(ops), np.array(seconds), Contention(quiet))
    return float(ends.max())


def replace_shared(link: object) -> object:
    """A link whose directions do not slow each other."""
    return link.model_copy(update={  # type: ignore[attr-defined]
        "h2d_during_d2h_bytes_per_s": link.h2d_bytes_per_s,  # type: ignore[attr-defined]
        "d2h_during_h2d_bytes_per_s": link.d2h_bytes_per_s,  # type: ignore[attr-defined]
    })  # fmt: skip


@pytest.mark.parametrize(
    "setting", [Setting(32, 4), Setting(8, 1, 0.25), Setting(4, 3, 0.5, 0.5), Setting(16, 2, relay=False)]
)
def test_flexgens_sum_of_maxima_is_what_clocks_with_barriers_say(setting: Setting) -> None:
    one = FlexGen(SERVER, setting)
    if not setting.relay:
        pinned = SERVER.hardware.link.h2d_bytes_per_s.value
        hardware = SERVER.hardware.with_values(**{"link.pageable_h2d_bytes_per_s": pinned})
        one = FlexGen(CostModel(hardware, SERVER.model), setting)
    cached = Job(1, 512, 33).mean_cached
    assert one.phases(Job(0, 512, 33)).decode_step_s == pytest.approx(clocked_step(one, cached), rel=1e-9)


def test_flexgen_takes_the_best_setting_that_fits() -> None:
    found = flexgen.forecast(SERVER, WORK)
    job = Job(128, 1024, 128)
    assert found.rounds == 1
    assert found.throughput_tokens_per_s == pytest.approx(max(flexgen.speeds(SERVER, job).values()))
    assert found.memory.fits(SERVER.hardware)
    assert "ordinary memory" in found.limited_by and "barrier" in found.limited_by


# ---- pipelines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batches", "streamed"), [(1, False), (2, False), (3, True), (1, True)])
def test_a_pipeline_lies_between_its_longest_stream_and_their_sum(batches: int, streamed: bool) -> None:
    run = Run(SERVER, Job(64, 512, 64), batches, streamed)
    layers = [Work(act_bytes=3e8, kv_bytes=2e8, rebuild_s=0.02, forward_s=0.004, stored_bytes=1e5)] * 6
    step_s, busy = run._pass(layers, 1e-4, 1e-4, act_alone=False)
    assert max(busy.link_s, busy.compute_s) <= step_s * (1 + 1e-9)
    assert step_s <= 1.1 * (busy.link_s + busy.compute_s)
    alone, _ = run._pass(layers, 1e-4, 1e-4, act_alone=True)
    assert alone >= step_s * (1 - 1e-9)
    weights = 6 * SERVER.model.layer_bytes if streamed else 0
    assert busy.link_bytes == 6 * batches * 5e8 + weights


def test_a_pipeline_of_one_stream_takes_as_long_as_that() -> None:
    run = Run(SERVER, Job(8, 512, 64), 2, streamed=False)
    loads = [Work(kv_bytes=1e9, forward_s=1e-6)] * 4
    step_s, busy = run._pass(loads, 0.0, 0.0, act_alone=False)
    assert step_s == pytest.approx(8 * SERVER.h2d(1e9), rel=0.03) == pytest.approx(busy.link_s, rel=0.03)
    computes = [Work(forward_s=0.1)] * 4
    step_s, busy = run._pass(computes, 0.0, 0.0, act_alone=False)
    assert step_s == pytest.approx(0.8) == pytest.approx(busy.compute_s)


def test_kvpr_rebuilds_the_share_of_its_formula() -> None:
    """MHA, transfers long beside latency: l / s = 1 / (1 + rho), rho = d B / F (facts, section 5)."""
    hardware = ideal_hardware(gemm_flops=1e14, h2d_bytes_per_s=2.5e10)
    costs = CostModel(hardware, load_model("opt-6.7b"))
    rho = 4096 * 2.5e10 / 1e14
    rebuilt, _ = kvpr.prefix(costs, 64, 2000)
    assert rebuilt / 2000 == pytest.approx(1 / (1 + rho), abs=0.01)


def test_hcache_is_never_slower_than_with_k_and_v_everywhere() -> None:
    run = Run(SERVER, Job(128, 1024, 128), 2, streamed=True)
    n = hcache.rebuilt_layers(run)
    assert 0 < n < SERVER.model.layers
    at = [run.step_s(hcache._layers(run, 1087, k), act_alone=False) for k in (0, n, SERVER.model.layers)]
    assert at[1] == min(at)


# ---- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PEERS))
def test_forecasts_keep_within_memory_and_say_what_limits_them(name: str) -> None:
    for work in (WORK, Workload.uniform(3, 200, 1), ragged([(64, 9), (900, 40), (333, 17)])):
        found = PEERS[name].forecast(SERVER, work)
        assert found.memory.fits(SERVER.hardware)
        assert found.total_s == pytest.approx(found.prefill_s + found.decode_s)
        assert found.throughput_tokens_per_s * found.total_s == pytest.approx(work.total_generated_tokens)
        assert found.limited_by and found.settings
        assert 0 <= found.busy_fraction("h2d") <= 1 + 1e-9 and 0 <= found.busy_fraction("compute") <= 1 + 1e-9


@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_request_that_no_round_holds_is_refused_with_what_is_missing(name: str) -> None:
    small = SERVER.hardware.with_values(**{"gpu.memory.usable_bytes": 3.0e9, "host.total_bytes": 40e9})
    with pytest.raises(InfeasibleError) as refused:
        PEERS[name].forecast(CostModel(small, SERVER.model), Workload.uniform(4, 1900, 100))
    assert refused.value.missing_bytes > 0 and name in str(refused.value)


@pytest.mark.parametrize("phases", [streaming.accelerate, streaming.zero_inference])
def test_whole_layer_streaming_is_in_turn_with_compute(phases: Callable[..., object]) -> None:
    found = phases(SERVER, Job(4, 512, 32))
    assert found.decode_step_s == pytest.approx(found.busy.link_s + found.busy.compute_s)  # type: ignore[attr-defined]


def test_more_memory_lets_more_requests_run_together() -> None:
    roomier = SERVER.hardware.with_values(**{"gpu.memory.usable_bytes": 40e9, "gpu.memory.nominal_bytes": 48e9})
    for name in ("deepspeed", "accelerate"):
        less = PEERS[name].forecast(SERVER, WORK)
        more = PEERS[name].forecast(CostModel(roomier, SERVER.model), WORK)
        assert more.rounds < less.rounds and more.total_s < less.total_s


def test_settings_of_flexgen_are_never_fractions_of_requests() -> None:
    for count in (1, 3, 7, 50):
        found = flexgen.forecast(SERVER, replace(WORK, requests=WORK.requests[:count]))
        assert found.rounds * found.memory.host > 0
        assert found.generated_tokens == count * 128
