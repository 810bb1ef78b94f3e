"""What binds a plan and what would shorten it, in words."""

from __future__ import annotations

from planner.attribution import Attribution, Phase

KIND_NAMES = {
    "load_weights": "loading weights", "load_act": "loading activations", "load_kv": "loading K and V",
    "embed": "embedding", "prefill": "prefill's layers", "rebuild": "rebuilding K and V",
    "forward": "the new tokens' layers", "sample": "sampling", "store": "storing", "begin_decode": "storing",
}  # fmt: skip
"""What people call the kinds of operations, as a subject."""
_BALANCED, _LITTLE, _MUCH = 0.03, 0.01, 0.10
"""Fractions of a phase: what no single resource gains more than, what is not worth a word, what is worth one."""
_TERM_NAMES = {
    "arithmetic_s": "matrix products bound by arithmetic", "memory_s": "matrix products bound by memory traffic",
    "attention_s": "attention", "elementwise_s": "element-wise kernels", "overhead_s": "overhead of each operation",
}  # fmt: skip


def verdict(found: Attribution) -> list[str]:
    """A sentence or two for each phase: what binds, what a faster link or faster compute could gain at most."""
    sentences = []
    for name, phase in found.phases.items():
        gains = {resource: _gain(found, resource, name, phase) for resource in found.without}
        then = {resource: what_if.then.get(name, "") for resource, what_if in found.without.items()}
        sentences.append(f"{name.capitalize()}: {_binding(phase, gains, then)}")
        sentences += _compute(name, phase) + _contention(name, phase)
    return sentences


def _gain(found: Attribution, resource: str, name: str, phase: Phase) -> float:
    """Of the phase, what this resource could save if it took no time at all."""
    left_s = getattr(found.without[resource], f"{name}_s")
    return max(0.0, 1 - left_s / phase.phase_s) if phase.phase_s else 0.0


def _binding(phase: Phase, gains: dict[str, float], then: dict[str, str]) -> str:
    link, compute = gains["link"], gains["compute"]
    if not phase.streams["h2d"].busy_s and not phase.streams["d2h"].busy_s:
        return f"nothing crosses the link, so compute binds, mostly {KIND_NAMES[_most_exposed(phase)]}"
    if max(link, compute) < _BALANCED:
        return (
            f"link and compute are balanced. A faster link alone shortens it by at most {link:.1%}, faster compute "
            f"alone by at most {compute:.1%}: only both together help"
        )
    binds, other = ("link", "compute") if link > compute else ("compute", "link")
    subject, faster = {"link": "the link", "compute": "compute"}, {"link": "a faster link", "compute": "faster compute"}
    beyond = f": beyond that it is bound by {KIND_NAMES[then[binds]]}" if then[binds] else ""
    return (
        f"{subject[binds]} binds, mostly {KIND_NAMES[_most_exposed(phase, binds)]}. {faster[binds].capitalize()} "
        f"shortens it by at most {gains[binds]:.0%}{beyond}; {faster[other]} by at most {gains[other]:.1%}"
    )


def _most_exposed(phase: Phase, resource: str = "") -> str:
    """The kind with most exposed seconds, of one resource where it has any."""
    exposed = {kind: use.exposed_s for kind, use in phase.kinds.items()}
    mine = {k: s for k, s in exposed.items() if s and (phase.kinds[k].stream == "compute") == (resource == "compute")}
    chosen = mine if resource and mine else exposed
    return max(chosen, key=lambda kind: chosen[kind])


def term_seconds(phase: Phase) -> dict[str, float]:
    """Compute of a phase by term, products split by what bounds them, and `contention_s`; sums to its busy seconds."""
    found = dict.fromkeys(_TERM_NAMES, 0.0) | {"contention_s": phase.streams["compute"].contention_s}
    for use in phase.kinds.values():
        for term, seconds in (use.terms or {}).items():
            if term != "gemm_s":
                found[term] += seconds
        for product in (use.gemms or {}).values():
            for bound, seconds in product.items():
                found[bound] += seconds
    return found


def _compute(name: str, phase: Phase) -> list[str]:
    """What compute is made of, where it is a good part of the phase's exposed time."""
    compute = phase.streams["compute"]
    if compute.exposed_fraction < _MUCH:
        return []
    parts = [(s, _TERM_NAMES[term]) for term, s in term_seconds(phase).items() if term in _TERM_NAMES]
    said = [f"{s / compute.busy_s:.0%} {term}" for s, term in sorted(parts, reverse=True) if s > _MUCH * compute.busy_s]
    return [f"Compute in {name} is {', '.join(said)}"] if said else []


def _contention(name: str, phase: Phase) -> list[str]:
    lost = phase.contention_exposed_s / phase.phase_s if phase.phase_s else 0.0
    if lost < _LITTLE:
        return []
    return [f"Streams slow each other: {lost:.1%} of {name} is lost to that on the critical path"]
