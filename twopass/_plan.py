"""The planner: from shape, dtype and machine to what will run, and why. Pure arithmetic.

A plan never changes a result: all algorithms, store kinds and thread counts give the same bits.
"""

from dataclasses import dataclass

from twopass._machine import Machine
from twopass.passes import ALGORITHMS

#: A row of terms that is kept in scratch memory rather than in the output: under 1 MiB a thread.
SCRATCH_BYTES = 768 << 10
#: Rows up to this are computed a tile at a time and written by ordinary stores, as in the kernels.
SHORT_ROW_BYTES = {"softmax": 640, "log_softmax": 800}
#: An inner axis at least this long has the kernel for columns; a shorter one is gathered.
MIN_COLUMNS = 8
#: Columns of a block of theirs, at least, as in the kernels.
NARROW_COLUMNS = 64
#: Elements of the grid that threads share one row by, or a column, as in the kernels.
CHUNK = 16384
COLUMN_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Geometry:
    """An array as the kernels see it: `outer` rows of `n`, or of `n` x `inner` columns.

    Attributes
    ----------
    outer, n, inner : int
    itemsize : int
        Bytes of an element that is read.
    out_itemsize : int
        Bytes of an element that is written; 0 for logsumexp, which writes next to nothing.
    direct : bool
        The output's rows are contiguous and of the type that the kernel computes in.
    in_place : bool
    columns : bool
        The reduced axis is not last, and the last one is contiguous.
    masked : bool
        A mask of one byte an element is read beside it.
    """

    outer: int
    n: int
    inner: int
    itemsize: int
    out_itemsize: int
    direct: bool
    in_place: bool
    columns: bool
    masked: bool = False

    @property
    def elements(self) -> int:
        """Elements that are read."""
        return self.outer * self.n * self.inner

    @property
    def read_itemsize(self) -> int:
        """Bytes that are read for an element."""
        return self.itemsize + self.masked


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call will run, and why. ``str(plan)`` is a sentence.

    Attributes
    ----------
    function : str
        ``"softmax"``, ``"log_softmax"`` or ``"logsumexp"``.
    algorithm : str
        A key of `twopass.passes.ALGORITHMS`; for log_softmax and logsumexp ``"two_pass"``, whose
        first pass they share.
    layout : str
        ``"rows"`` or ``"columns"`` (the axis is not last and has its own kernel).
    isa : str
        The CPU level.
    n_threads : int
    inside_row : bool
        The threads share one row at a time, rather than the rows.
    nontemporal : bool
        The output is written past the caches.
    terms_in : str
        Where the exponentials of a reload algorithm wait: ``"out"``, ``"scratch"`` or ``""``.
    bytes_moved : int
        Expected traffic between the caches and what holds the arrays, without write-allocate.
    bytes_allocated_by_stores : int
        What write-allocate adds to it: lines read only to be overwritten.
    scratch_bytes : int
        Memory used beside the output, all threads together.
    reason : str
        Why, in words.
    """

    function: str
    algorithm: str
    layout: str
    isa: str
    n_threads: int
    inside_row: bool
    nontemporal: bool
    terms_in: str
    bytes_moved: int
    bytes_allocated_by_stores: int
    scratch_bytes: int
    reason: str

    def __str__(self) -> str:
        threads = "one thread"
        if self.n_threads > 1:
            how = "inside each row" if self.inside_row else f"over {self.layout}"
            threads = f"{self.n_threads} threads {how}"
        stores = "" if self.function == "logsumexp" else (
            ", non-temporal stores" if self.nontemporal else ", ordinary stores"
        )  # fmt: skip
        name = "one read" if self.function == "logsumexp" else self.algorithm
        return (
            f"{self.function} along {self.layout} by {name} on {self.isa} with {threads}{stores}:"
            f" {self.reason}."
        )


def _share_threads(g: Geometry, n_threads: int) -> tuple[int, bool]:
    """Threads that have work, and whether they share one row at a time."""
    chunks = -(-g.n // (COLUMN_CHUNK if g.columns else CHUNK))
    # Blocks of columns are made narrow where threads would have none, but no work is cut across.
    width = NARROW_COLUMNS if chunks <= 1 else 4 * NARROW_COLUMNS
    tasks = g.outer * -(-g.inner // width) if g.columns else g.outer
    if n_threads == 1 or tasks >= 4 * n_threads or chunks <= 1:
        return max(1, min(n_threads, tasks)), False
    if tasks % n_threads == 0:
        return n_threads, False
    return max(1, min(n_threads, chunks)), True


def _bytes(count: int) -> str:
    """`count` as text, in the unit that suits it."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def choose(
    function: str, g: Geometry, algorithm: str, n_threads: int, machine: Machine, isa: str
) -> Plan:
    """The plan for one call.

    Parameters
    ----------
    function : str
    g : Geometry
    algorithm : str
        A key of `ALGORITHMS`, or ``"auto"``.
    n_threads : int
        Threads granted.
    machine : Machine
    isa : str

    Returns
    -------
    Plan
    """
    total = g.elements * (g.read_itemsize + (0 if g.in_place else g.out_itemsize))
    # What the kernel computes in: float for float and half arrays, double for all others.
    row = g.n * (8 if max(g.itemsize, g.out_itemsize) == 8 else 4)
    cached = total <= machine.last_level
    fits_scratch = row <= SCRATCH_BYTES
    row_in_l2 = 2 * row <= machine.l2 + SCRATCH_BYTES // 2
    size = _bytes(total)
    threads, inside = _share_threads(g, n_threads)

    writes = function != "logsumexp"
    nontemporal = writes and not cached and not g.in_place and g.direct
    nontemporal = nontemporal and (g.columns or row > SHORT_ROW_BYTES[function])
    # Columns keep their exponentials in the output alone, of one chunk.
    keeps = g.columns and g.direct and not g.in_place and g.n <= COLUMN_CHUNK
    terms_in = ""
    chosen = algorithm
    if function != "softmax" or g.columns:
        chosen = "two_pass"
        where = "stay in the last-level cache" if cached else "are more than the caches hold"
        reason = f"the {size} {where}"
        if function == "logsumexp":
            reason += ", and the extended sum needs no maximum"
        elif function == "softmax" and keeps and (
            algorithm == "two_pass_reload" or (algorithm == "auto" and cached)
        ):  # fmt: skip
            chosen = "two_pass_reload"
            nontemporal = False
            reason += ", so each exponential is computed once"
        if algorithm not in ("auto", "two_pass", chosen):
            reason += f"; columns have no {algorithm}"
    elif algorithm != "auto":
        reason = f"asked for; {size}"
    elif (cached or fits_scratch) and ((g.direct and not g.in_place) or fits_scratch):
        chosen = "two_pass_reload"
        reason = f"a row of {_bytes(row)} stays cached, so each exponential is computed once"
    else:
        chosen = "two_pass"
        reason = f"rows of {_bytes(row)} are read twice rather than written twice"

    if function == "softmax" and ALGORITHMS[chosen].keeps_terms:
        terms_in = "out" if g.direct and not g.in_place and not nontemporal else "scratch"
        if terms_in == "scratch" and inside and g.direct and not g.in_place:
            terms_in, nontemporal = "out", False
        if terms_in == "scratch" and not fits_scratch:
            if g.direct and not g.in_place:
                terms_in, nontemporal = "out", False
            else:
                # The twin that recomputes gives the same bits and needs no place for the terms.
                terms_in = ""
                twin = {"two_pass_reload": "two_pass", "three_pass_reload": "three_pass_recompute"}
                chosen = twin[chosen]
                reason += "; no place for a row of exponentials, so they are computed again"

    words = ALGORITHMS[chosen]
    reads, stores = g.elements * g.read_itemsize, g.elements * g.out_itemsize
    passes = 1 if function == "logsumexp" else len(words.passes)
    if not writes:
        moved, allocated = reads, 0
    elif terms_in == "scratch":
        # Passes after the first find x, or the terms, in the scratch row's cache.
        moved, allocated = reads + stores, 0 if nontemporal or g.in_place else stores
    elif row_in_l2 or (g.columns and cached):
        moved, allocated = reads + stores, 0 if nontemporal or g.in_place else stores
    else:
        again = 1 if terms_in else 0
        moved = (passes - again) * reads + (1 + 2 * again) * stores
        allocated = 0 if nontemporal or g.in_place else stores
    scratch = threads * row if terms_in == "scratch" else 0
    return Plan(
        function, chosen, "columns" if g.columns else "rows", isa, threads, inside, nontemporal,
        terms_in, moved, allocated, scratch, reason,
    )  # fmt: skip
