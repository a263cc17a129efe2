# Rows of one block that need a logarithm: a group of them at a time.
#
# Each row is summed by itself; what comes after, long chains of operations, is done in vectors over
# the rows, by the loops of _log.pxi.  Rows that these cannot do are left to _rows.pxi, which gives
# the same bits.

cdef enum:
    # Rows of a group together: so few that log_softmax's second pass finds them in L1.
    GROUP_BYTES = 12288


ctypedef struct Group:
    # Of each row its sum, normalised and cut,
    double high[TILE]
    double low[TILE]
    double exponent[TILE]
    # an element, the largest if that holds a large share, and where it is,
    Py_ssize_t position[TILE]
    int64_t whole[TILE]  # and whether all this was found: else log_from_sum() has to do the row.
    Sum sums[TILE]  # as they were found
    BlockSum blocks[TILE]


cdef inline bint in_groups(const Call *call, const real *unused) noexcept nogil:
    return (
        (call.operation == LOG_SOFTMAX or call.operation == LOGSUMEXP)
        and call.n <= block_length(unused) and call.scales == NULL and not call.inside)


cdef inline Py_ssize_t position_in_lanes(
    const real *x, Py_ssize_t n, const double *total, double least
) noexcept nogil:
    """First position of the largest element of those lanes that hold at least so much; 0 if none
    does."""
    cdef Py_ssize_t found = -1, lane, first, i
    cdef double most[LANES]
    for lane in range(8):
        most[lane] = total[lane] if total[lane] > total[lane + 8] else total[lane + 8]
    for lane in range(4):
        most[lane] = most[lane] if most[lane] > most[lane + 4] else most[lane + 4]
    for lane in range(2):
        most[lane] = most[lane] if most[lane] > most[lane + 2] else most[lane + 2]
    if most[0] < least and most[1] < least:
        return 0
    for lane in range(LANES):
        if not total[lane] >= least:
            continue
        first = lane
        i = lane + LANES
        while i < n:
            first = i if x[i] > x[first] else first
            i += LANES
        if found < 0 or x[first] > x[found] or x[first] == x[found] and first < found:
            found = first
    return found


cdef inline void take(
    const Call *call, Row *row, Py_ssize_t index, BlockSum *block
) noexcept nogil:
    """Make `row` the one of that number, of which `block` is what the sum has left."""
    place(call, row, index)
    begin(row)
    row.blocks = block


cdef void sum_group(
    const Call *call, Row *row, Py_ssize_t start, Py_ssize_t count, Group *group, real *largest
) noexcept nogil:
    cdef const real *x
    cdef Py_ssize_t r
    cdef Sum *sum
    for r in range(count):
        take(call, row, start + r, &group.blocks[r])
        sum = &group.sums[r]
        if not sum_block(row, REDUCE_EXTEXP, sum, largest):
            sum[0] = reduce(row, REDUCE_EXTEXP, largest)
            row.blocks.ref = NAN
        # What needs_maximum() would say no to, in the loops' fast range.
        group.whole[r] = row.blocks.ref == row.blocks.ref and fabs(sum.top) < exponent_limit(
            <real> 0) - 1
        group.high[r] = sum.high
        group.low[r] = sum.low
        group.exponent[r] = sum.exponent
        largest[r] = 0
        if group.whole[r]:
            # dominated() asks for 0.4.
            x = <const real *> row.x_row
            group.position[r] = position_in_lanes(
                x, call.n, row.blocks.lanes.total, 0.39 * sum.high)
            largest[r] = x[group.position[r]]
    normalise_each(group.high, group.low, group.exponent)


cdef void log_group(
    const Call *call, Row *row, Py_ssize_t start, Py_ssize_t count, Group *group,
    real *largest, Logs *out
) noexcept nogil:
    """log_from_sum() of each row that is `whole`; those that it cannot do are so no longer."""
    cdef real n[TILE]
    cdef real scale[TILE]
    cdef double rest_low[TILE]
    cdef double others[TILE]
    cdef double others_exponent[TILE]
    cdef int64_t large[TILE]
    cdef int64_t again[TILE]
    cdef Py_ssize_t r, width = (count + 7) // 8 * 8
    cdef Sum rest
    others_of(
        width, <const real *> largest, False, <const real *> scale, group.high, group.low,
        group.exponent, n, others, large, again)
    for r in range(TILE):
        rest_low[r] = 0
        others_exponent[r] = group.exponent[r]
    for r in range(count):
        if again[r] and group.whole[r]:
            take(call, row, start + r, &group.blocks[r])
            row.summed = True
            row.skip = group.position[r]
            rest = reduce_without(row, NULL, largest)
            row.skip = -1
            others[r] = rest.high + rest.low
            others_exponent[r] = rest.exponent
            group.whole[r] = not needs_maximum(&rest, <real> 0, largest)
    logs_of(
        width, <const real *> largest, <const double *> rest_low, <const real *> n, group.high,
        group.low, group.exponent, others, others_exponent, <const int64_t *> large, out.high,
        out.low, out.whole)
    for r in range(count):
        group.whole[r] &= out.whole[r]


cdef void run_groups(
    const Call *call, Row *row, Py_ssize_t first, Py_ssize_t last, real *unused
) noexcept nogil:
    """run_rows() for them."""
    cdef Group group
    cdef real largest[TILE]
    cdef Logs logs
    cdef BlockSum *blocks = row.blocks
    cdef Py_ssize_t start = first, count, r, most = GROUP_BYTES // (call.n * sizeof(real))
    most = most if most < TILE and call.operation == LOG_SOFTMAX else TILE
    most = most if most > 2 else 2
    for r in range(TILE):
        group.high[r] = 1
        group.low[r] = 0
        group.exponent[r] = 0
        largest[r] = 0
    while start < last:
        count = last - start if last - start < most else most
        sum_group(call, row, start, count, &group, largest)
        log_group(call, row, start, count, &group, largest, &logs)
        for r in range(count):
            take(call, row, start + r, &group.blocks[r])
            if group.whole[r]:
                row.high = logs.high[r]
                row.rest = 0
                row.low = logs.low[r]
            else:
                row.summed = True
                settle(&group.sums[r])
                row.blocks.sum = group.sums[r]
                log_from_sum(row, &group.sums[r], unused)
            if call.operation == LOGSUMEXP:
                row.blocks = blocks  # in double a row has more of them
                write_log(row, unused)
            else:
                subtract_log(row, unused)
        start += count
