"""Running the experiments: what they time becomes a report."""

import random
from collections.abc import Mapping, Sequence

from twopass import isa
from twopass._machine import machine
from twopass.analysis import counters
from twopass.analysis.calls import Arrays, Own, pass_call, prepared
from twopass.analysis.experiments import Group, Settings, default_settings, groups
from twopass.analysis.machine import cpu_times, environment, stolen_share
from twopass.analysis.progress import Watch, unwatched
from twopass.analysis.report import MEASURED, Report, Series, labels_of
from twopass.analysis.timing import Timed, interleaved

#: Label and group -> calls per sample, round numbers, seconds per call.
Samples = dict[tuple[str, Group], tuple[int, list[int], list[float]]]


def _run_part(
    members: Sequence[Group], arrays: Arrays, settings: Settings, own: Mapping[str, Own],
    watch: Watch, samples: Samples,
) -> None:  # fmt: skip
    part = f"{members[0].part}, {members[0].dtype}"
    timed: list[dict[tuple[str, Group], Timed]] = []
    work = sum(len(group.labels) for group in members)
    for group in members:
        watch(f"{part}: preparing", sum(len(t) for t in timed), work)
        timed.append(
            {(label, group): prepared(label, arrays, group, own) for label in group.labels}
        )
    rng = random.Random(settings.seed)
    taken = interleaved(timed, settings.rounds, settings.budget_seconds, rng)
    for done, (number, key, calls, seconds) in enumerate(taken, 1):
        _, rounds, times = samples.setdefault(key, (calls, [], []))
        rounds.append(number)
        times.append(seconds)
        watch(part, done, work * settings.rounds)


def _series(plan: Sequence[Group], samples: Samples) -> list[Series]:
    """What was measured, in the plan's order."""
    return [
        Series(
            group.part, label, group.isa, group.dtype, group.threads, group.elements, group.level,
            calls, tuple(rounds), tuple(times),
        )
        for group in plan
        for label in group.labels
        if (label, group) in samples
        for calls, rounds, times in (samples[label, group],)
    ]  # fmt: skip


def run(
    settings: Settings, *, own: Sequence[Own] = (), command: Sequence[str] = (),
    watch: Watch = unwatched,
) -> Report:  # fmt: skip
    """Measure what the settings ask for.

    A KeyboardInterrupt ends the measurement: what was measured is returned, marked as partial.

    Parameters
    ----------
    settings : Settings
    own : sequence of Own, optional
        The user's kernels, judged like passes.
    command : sequence of str, optional
        What the report says it was made by.
    watch : callable, optional
        Is told of the progress.

    Returns
    -------
    Report
    """
    kernels = MEASURED | {entry.kernel.label: entry.kernel for entry in own}
    by_label = {entry.kernel.label: entry for entry in own}
    found = environment(command)
    before = cpu_times()
    plan = groups(settings, machine(), tuple(by_label))
    samples: Samples = {}
    partial = False
    try:
        for dtype in settings.dtypes:
            mine = [group for group in plan if group.dtype == dtype]
            if not mine:
                continue
            arrays = Arrays(max(group.elements for group in mine), dtype, settings.seed)
            for part in settings.parts:
                members = [group for group in mine if group.part == part]
                if members:
                    _run_part(members, arrays, settings, by_label, watch, samples)
            del arrays
    except KeyboardInterrupt:
        partial = True
    found["stolen_share"] = stolen_share(before, cpu_times())
    return Report(found, settings.record(), tuple(_series(plan, samples)), kernels, partial=partial)


def count_events(
    elements: int, dtype: str = "float32", events: Sequence[str] = counters.DEFAULT, seed: int = 0
) -> dict[str, dict[str, int]]:
    """Hardware events of one call of every pass, on one thread.

    Parameters
    ----------
    elements : int
    dtype : str, optional
    events : sequence of str, optional
        Keys of `counters.EVENTS`.
    seed : int, optional

    Returns
    -------
    dict of str to dict of str to int
        By label, the events.

    Raises
    ------
    counters.CountersError
        The machine has no such counters.
    """
    arrays = Arrays(elements, dtype, seed)
    found = {}
    for label in labels_of("pass"):
        group = Group("counters", (label,), isa.active(), dtype, 1, elements, "memory")
        found[label] = counters.count(pass_call(label, arrays, group), events)
    return found


def measure(*own: Own, quick: bool = True, watch: Watch = unwatched, **options) -> Report:
    """Measure the passes, the roofs, and kernels of your own, on this machine.

    Parameters
    ----------
    *own : Own
        From `own_kernel`.
    quick : bool, optional
        Only float32, the best CPU level, L1 and memory: under a minute. Otherwise minutes.
    watch : callable, optional
        Called with the part's name, the work done and all the work.
    **options
        As of `default_settings`.

    Returns
    -------
    Report
        Give it to `roofline`, or save it.

    Examples
    --------
    Is NumPy's addition as fast as this machine's memory?

    >>> import numpy as np
    >>> from twopass import analysis
    >>> add = analysis.own_kernel(
    ...     "np.add", lambda a, b, out: np.add(a, b, out=out), loads=2, stores=1, flops=1
    ... )
    >>> results = analysis.roofline(analysis.measure(add))  # doctest: +SKIP
    >>> for found in results.passes:  # doctest: +SKIP
    ...     if found.point.kernel.label == "np.add":
    ...         print(f"{100 * found.share.median:.0f} %", found.verdict.because)
    """
    settings, _ = default_settings(quick=quick, **options)
    return run(settings, own=own, watch=watch)
