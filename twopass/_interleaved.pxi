# Batches that are streamed: the last pass over a row beside the first one over the next row.
#
# One waits for memory, the other for arithmetic.  Block by block in turn, what is streamed goes on
# behind the arithmetic.  Either pass has the blocks that it has alone.


cdef inline bint interleaves(const Call *call, const real *unused) noexcept nogil:
    """Rows of more than a block: shorter ones take turns as they are."""
    return (
        call.streaming and not call.inside and call.n > block_length(unused)
        and (call.operation == LOG_SOFTMAX
             or call.operation == SOFTMAX and call.algorithm == TWO_PASS_RELOAD))


cdef Sum sum_beside(
    const Row *row, Pass which, const Row *behind, Pass mapping, real *unused
) noexcept nogil:
    """reduce(row, which) and run_pass(behind, mapping).  Both may have their terms in the same
    place: of either block they are read before the other's are written."""
    cdef Py_ssize_t block = block_length(unused), index, i, stop, count
    cdef real *terms = <real *> row.terms if which == REDUCE_STOREEXTEXP else NULL
    cdef Progress progress
    cdef Exact exact
    cdef Sum total
    for index in range(row.n_chunks):
        i = index * row.chunk
        stop = i + row.chunk if row.n - i > row.chunk else row.n
        progress = begin_sum(row, &row.partials[index], unused)
        while i < stop:
            count = stop - i if stop - i < block else block
            map_blocks(behind, mapping, i, i + count, <const real *> behind.terms)
            add_blocks(row, i, i + count, terms, &row.partials[index], &progress)
            i += count
    if row.n_chunks > 1:
        return exact_sum_of(row.partials, row.n_chunks, &exact)
    total = row.partials[0]
    settle(&total)
    return total


cdef void run_interleaved(
    const Call *call, Row *row, Py_ssize_t first, Py_ssize_t last, real *unused
) noexcept nogil:
    """run_rows() for them."""
    cdef bint keep = call.operation == SOFTMAX
    cdef Pass which = REDUCE_STOREEXTEXP if keep else REDUCE_EXTEXP, mapping = MAP_CONSTANT
    cdef Row behind
    cdef Py_ssize_t index
    cdef Sum total
    for index in range(first, last):
        behind = row[0]
        place(call, row, index)
        begin(row)
        if index == first:
            total = reduce(row, which, unused)
        elif mapping == MAP_RESCALE or mapping == MAP_SUBTRACT:
            total = sum_beside(row, which, &behind, mapping, unused)
        else:
            softmax_map(&behind, mapping, unused)
            total = reduce(row, which, unused)
        if keep:
            mapping = softmax_after_sum(row, &total, True, unused)
        else:
            row.summed = True
            mapping = log_softmax_after_sum(row, &total, unused)
    softmax_map(row, mapping, unused)
