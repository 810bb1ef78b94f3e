"""Where the time of a job in waves goes: the accounts of its waves, added up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace

from planner.attribution import Attribution, KindUse, Phase, StreamShare, WhatIf, attribute
from planner.decisions import Decisions
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.operation import KINDS

Weighted = Sequence[tuple[Attribution, int]]
"""Accounts of one wave, and how many waves are like it."""


def attribute_waves(hardware: HardwareProfile, model: ModelSpec, waves: Sequence[Decisions]) -> Attribution:
    """Account for every second of all `waves`; those of one shape are accounted for once.

    Stores that end after a wave's last token hold up the next wave: there they count as exposed, in the wave's last
    phase.
    """
    last = waves[-1].shape
    counts = Counter(wave.shape for wave in waves)
    shapes = {wave.shape: wave for wave in waves}
    found = {shape: attribute(hardware, model, wave) for shape, wave in shapes.items()}
    if len(waves) == 1:
        return found[last]
    before = [(_held_up(found[shape]), count - (shape == last)) for shape, count in counts.items()]
    return _added([(one, count) for one, count in (*before, (found[last], 1)) if count])


def _held_up(wave: Attribution) -> Attribution:
    """`wave` with its late stores as a part of its time."""
    late_s = wave.late_stores_s
    if not late_s:
        return wave
    name = list(wave.phases)[-1]
    phase = wave.phases[name]
    store, d2h = phase.kinds["store"], phase.streams["d2h"]
    longer = replace(
        phase, phase_s=phase.phase_s + late_s, drain_s=phase.drain_s + late_s,
        kinds=phase.kinds | {"store": replace(store, exposed_s=store.exposed_s + late_s)},
        streams=phase.streams | {"d2h": replace(d2h, exposed_s=d2h.exposed_s + late_s)},
    )  # fmt: skip
    return replace(wave, total_s=wave.total_s + late_s, phases=wave.phases | {name: longer}, late_stores_s=0.0)


def _added(waves: Weighted) -> Attribution:
    """Sums of seconds, bytes, FLOP and counts; fractions and rates of the sums."""
    names = list(dict.fromkeys(name for wave, _ in waves for name in wave.phases))
    resources = waves[0][0].without
    return Attribution(
        total_s=sum(wave.total_s * n for wave, n in waves),
        phases={name: _phase([(w.phases[name], n) for w, n in waves if name in w.phases]) for name in names},
        late_stores_s=waves[-1][0].late_stores_s,
        without={name: _what_if([(wave.without[name], n) for wave, n in waves]) for name in resources},
    )


def _phase(parts: Sequence[tuple[Phase, int]]) -> Phase:
    phase_s = sum(part.phase_s * n for part, n in parts)
    streams = {name: _stream([(part.streams[name], n) for part, n in parts], phase_s) for name in parts[0][0].streams}
    kinds = {
        kind: _kind([(p.kinds[kind], n) for p, n in parts if kind in p.kinds], streams, phase_s)
        for kind in KINDS if any(kind in part.kinds for part, _ in parts)
    }  # fmt: skip
    return Phase(
        phase_s=phase_s, steps=sum(part.steps * n for part, n in parts), streams=streams, kinds=kinds,
        **{key: sum(getattr(part, key) * n for part, n in parts)
           for key in ("idle_s", "contention_exposed_s", "fill_s", "drain_s")},
    )  # fmt: skip


def _stream(parts: Sequence[tuple[StreamShare, int]], phase_s: float) -> StreamShare:
    total = {
        field.name: sum(getattr(part, field.name) * n for part, n in parts)
        for field in fields(StreamShare) if field.name in ("busy_s", "exposed_s", "contention_s", "bytes", "flop")
    }  # fmt: skip
    busy_s = total["busy_s"]
    return replace(
        parts[0][0], **total,
        busy_fraction=min(busy_s / phase_s, 1.0) if phase_s else 0.0,
        exposed_fraction=total["exposed_s"] / phase_s if phase_s else 0.0,
        bytes_per_s=total["bytes"] / busy_s if busy_s else 0.0, flop_per_s=total["flop"] / busy_s if busy_s else 0.0,
    )  # fmt: skip


def _kind(parts: Sequence[tuple[KindUse, int]], streams: dict[str, StreamShare], phase_s: float) -> KindUse:
    found = KindUse(parts[0][0].stream)
    terms: dict[str, float] = defaultdict(float)
    gemms: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for part, n in parts:
        found.count += part.count * n
        found.busy_s += part.busy_s * n
        found.exposed_s += part.exposed_s * n
        found.contention_s += part.contention_s * n
        for term, seconds in (part.terms or {}).items():
            terms[term] += seconds * n
        for product, bounds in (part.gemms or {}).items():
            for bound, seconds in bounds.items():
                gemms[product][bound] += seconds * n
    if parts[0][0].terms is not None:
        found.terms, found.gemms = dict(terms), {product: dict(bounds) for product, bounds in gemms.items()}
    stream_s = streams[found.stream].busy_s
    found.each_s = found.busy_s / found.count if found.count else 0.0
    found.stream_fraction = found.busy_s / stream_s if stream_s else 0.0
    found.exposed_fraction = found.exposed_s / phase_s if phase_s else 0.0
    return found


def _what_if(parts: Sequence[tuple[WhatIf, int]]) -> WhatIf:
    """Late stores between waves are left out: they cannot be told for a machine that is not there.

    `then` is that of the wave that takes longest.
    """
    longest = max(parts, key=lambda part: part[0].total_s)[0]
    sums = {key: sum(getattr(part, key) * n for part, n in parts) for key in ("total_s", "prefill_s", "decode_s")}
    return WhatIf(**sums, then=longest.then)
