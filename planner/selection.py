"""What the flags of a command select: a job, a machine, policies, options. Every check names its flag."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from planner.costs import CostModel
from planner.errors import HybridserveError, InfeasibleError, InputError, nearest
from planner.files import check_writable, real_path
from planner.hardware import HardwareProfile, load_hardware
from planner.model import CONFIG_FILE, ModelSpec
from planner.peers.catalogue import PEERS, Peer
from planner.peers.forecast import Forecast
from planner.plan import Plan
from planner.planning import make_plan
from planner.policies import POLICIES, Policy
from planner.search import Options
from planner.workload import Workload, check_fits


class NothingFeasibleError(HybridserveError):
    """Every policy asked for is infeasible."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("no policy is feasible\n" + "\n".join(f"{name}: {why}" for name, why in reasons.items()))


def job(requests: int | None, prompt_len: int | None, gen_len: int | None, is_given: bool) -> Workload | None:
    """Equal requests; None when the job `is_given` otherwise. InputError when neither says it, or both."""
    lengths = {"--requests": requests, "--prompt-len": prompt_len, "--gen-len": gen_len}
    given = [flag for flag, value in lengths.items() if value is not None]
    if is_given:
        if given:
            what = f"--workload says the lengths already, and so does {given[0]}"
            raise InputError(what, where="--workload", cure="Give one of them")
        return None
    missing = [flag for flag in lengths if flag not in given]
    if missing:
        raise InputError(f"no workload: {', '.join(missing)} missing", cure="Give all three, or --workload FILE.jsonl")
    assert requests and prompt_len and gen_len
    return Workload.uniform(requests, prompt_len, gen_len)


def capped(profile: HardwareProfile, gpu_memory_gb: float | None) -> HardwareProfile:
    """`profile` with only `gpu_memory_gb` of GPU memory."""
    if gpu_memory_gb is None:
        return profile
    memory, wanted = profile.gpu.memory, gpu_memory_gb * 1e9
    if wanted > memory.usable_bytes.value:
        what = f"{gpu_memory_gb:g} GB is more than the {memory.usable_bytes.value / 1e9:.4g} GB usable"
        raise InputError(what, where="--gpu-memory-gb", cure=f"Give less, or another profile than {profile.id}")
    reserve = memory.context_reserve_bytes.value
    if wanted <= reserve:
        what = f"{gpu_memory_gb:g} GB leaves nothing beside the context reserve of {reserve / 1e9:.4g} GB"
        raise InputError(what, where="--gpu-memory-gb", cure="Give more")
    return profile.with_values(**{"gpu.memory.usable_bytes": wanted})


def options(act_share: float | None, mini_batches: int | None, waves: int | None, workload: Workload) -> Options:
    """What the caller fixes instead of the solver."""
    if mini_batches and mini_batches > len(workload):
        what = f"{mini_batches} mini-batches for {len(workload)} requests"
        raise InputError(what, where="--mini-batches", cure=f"Give at most {len(workload)}")
    if waves and waves > len(workload):
        what = f"{waves} waves for {len(workload)} requests"
        raise InputError(what, where="--waves", cure=f"Give at most {len(workload)}")
    if waves and mini_batches and waves * mini_batches > len(workload):
        what = f"{waves} waves of {mini_batches} mini-batches each for {len(workload)} requests"
        cure = f"Give at most {len(workload) // waves}, or fewer waves"
        raise InputError(what, where="--mini-batches", cure=cure)
    return Options(act_share=act_share, mini_batches=mini_batches, waves=waves)


def check_options(chosen: Iterable[Policy | Peer], flag: str, **fixed: float | None) -> None:
    """What `fixed` holds must be a choice that the policies have: `act_share`, `mini_batches`, `waves`; None is none.

    A forced share of activations needs policies that may cache both forms; other systems take no such choice at all.
    """
    for policy in chosen:
        for name, value in fixed.items():
            if value is not None and isinstance(policy, Peer):
                where = f"--{name.replace('_', '-')}"
                what = f"'{policy.name}' is another system, whose settings it chooses itself"
                raise InputError(what, where=where, cure=f"Leave it out, or leave {policy.name} out of {flag}")
        if fixed.get("act_share") is not None and isinstance(policy, Policy):
            _check_share(fixed["act_share"] or 0.0, policy, flag)


def _check_share(act_share: float, policy: Policy, flag: str) -> None:
    possible = {form.rebuilt for form in policy.forms}
    if (act_share > 0 and True not in possible) or (act_share < 1 and False not in possible):
        what = f"policy '{policy.name}' has an ACT share of {int(True in possible)}, not of {act_share:g}"
        raise InputError(what, where="--act-share", cure=f"Leave it out, or use {flag} hybrid")


def policy_named(name: str, flag: str) -> Policy | Peer:
    """One of ours, or another system."""
    known: dict[str, Policy | Peer] = {**POLICIES, **PEERS}
    one_of(flag, name, known, "policy")
    return known[name]


def policies_named(names: str | None, execute: bool, ours: bool) -> list[Policy | Peer]:
    """Policies by names separated by commas, each once; by default all, or all of `ours`."""
    if names is None:
        return [*POLICIES.values(), *([] if ours else PEERS.values())]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise InputError("no policy given", where="--policies", cure=nearest("", {**POLICIES, **PEERS}))
    chosen = [policy_named(name, "--policies") for name in dict.fromkeys(wanted)]
    others = [policy.name for policy in chosen if isinstance(policy, Peer)]
    if execute and others:
        what = f"{', '.join(others)}: other systems are predicted, our engine does not run as they do"
        raise InputError(what, where="--policies", cure="Leave them out, or leave out --execute")
    return chosen


def try_each(
    profile: HardwareProfile, model: ModelSpec, workload: Workload, policy: Policy | Peer, fixed: Options,
    refused: dict[str, str],
) -> Plan | Forecast | None:  # fmt: skip
    """The plan of one policy, or the forecast for another system; None, with the reason in `refused`, without one."""
    try:
        if isinstance(policy, Peer):
            check_fits(workload, model)
            return policy.forecast(CostModel(profile, model), workload)
        return make_plan(profile, model, workload, policy, fixed)
    except InfeasibleError as error:
        refused[policy.name] = str(error)
        return None


def check_made_for(plan: Plan, hardware: str | None, path: Path) -> None:
    """InputError unless `plan` was made for `hardware`, where that is given."""
    if hardware is None:
        return
    wanted = load_hardware(hardware)
    if wanted.content_hash != plan.hardware.content_hash:
        same = " of another content" if wanted.id == plan.hardware.id else ""
        what = f"made for hardware '{plan.made_for.hardware}', not for this '{wanted.id}'{same}"
        raise InputError(what, where=str(path), cure="Plan again for this hardware")


def check_alone(context: Any, flag: str, others: Iterable[str]) -> None:
    """InputError where one of `others`, named as parameters, is given beside `flag`."""
    for name in others:
        if context.get_parameter_source(name).name == "COMMANDLINE":
            other = f"--{name.replace('_', '-')}"
            what = f"{flag} measures what the profile says, so {other} says nothing"
            raise InputError(what, where=other, cure="Leave out one of them")


def check_profile(device: str, link_gbps: float | None, hidden: int) -> None:
    """What `profile` can measure: a link of its own on a CUDA device, whole heads everywhere."""
    if device == "cuda" and link_gbps:
        raise InputError("the link of a CUDA device is measured, not set", where="--link-gbps", cure="Leave it out")
    if hidden % 64:
        cure = f"Give {max(64, round(hidden / 64) * 64)}"
        raise InputError(f"{hidden} is no multiple of the head size 64", where="--hidden", cure=cure)


def profile_id(output: Path) -> str:
    """An id for the profile written to `output`."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in output.stem) or "measured"


def check_files(
    outputs: dict[str, Path | None], inputs: Iterable[Path | None] = (), checkpoint: Path | None = None
) -> None:
    """Every output can be written, over nothing that is read or written too, and into no checkpoint: asked before the
    work is done."""
    taken = {real_path(path): "what is read" for path in inputs if path is not None}
    for flag, path in outputs.items():
        if path is None:
            continue
        target = real_path(path)
        if target in taken:
            raise InputError(f"{path} would overwrite {taken[target]}", where=flag, cure="Choose another file")
        if checkpoint is not None and target.is_relative_to(real_path(checkpoint)):
            what = f"{path} is inside the checkpoint folder {checkpoint}"
            raise InputError(what, where=flag, cure="Choose a file elsewhere: a checkpoint is only read")
        check_writable(path)
        taken[target] = f"what {flag} writes"


def model_files(model: str) -> list[Path]:
    """What a model is read from: a file, or everything in its folder that is no plan or profile."""
    if not model.strip():
        return []
    path = Path(model)
    try:
        inside = [one for one in path.iterdir() if one.suffix not in (".yaml", ".yml")] if path.is_dir() else []
    except OSError:  # not ours to look into: reported where it is read
        inside = []
    return [path, path / CONFIG_FILE, *inside]


def one_of(flag: str, value: str, known: Iterable[str], what: str = "value") -> None:
    """InputError with the nearest of `known`."""
    known = tuple(known)
    if value not in known:
        raise InputError(f"unknown {what} '{value}'", where=flag, cure=nearest(value, known))
