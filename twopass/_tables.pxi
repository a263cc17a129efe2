# Maps by table: a half type has 65536 values, so for a row with many times as many elements it is
# faster to map each value once and to look the elements up.  What the table holds is computed by
# the same loops, so that it shows in no result.

cdef enum:
    HALVES = 65536
    # Elements of a row that a table is made for.  It takes as long as to map some 200 000.
    TABLED = 1048576


ctypedef struct Table:
    uint16_t halves[HALVES]  # each of them, in the order of their representations
    uint16_t mapped[HALVES]


cdef inline bint packed_halves(const Operand *array, const char *row) noexcept nogil:
    return ((array.kind == KIND_F16 or array.kind == KIND_BF16) and array.line.ndim == 1
            and array.line.strides[0] == 2 and <uintptr_t> row % 2 == 0)


cdef void fill_table(const Row *row, Table *table, real *unused) noexcept nogil:
    """Map every half as if it were an element of the row."""
    cdef Operand x = row.x[0]
    cdef Operand y = row.y[0]
    cdef Row all_halves = row[0]
    cdef Py_ssize_t i
    for i in range(HALVES):
        table.halves[i] = <uint16_t> i
    x.line.shape[0] = HALVES
    y.line.shape[0] = HALVES
    all_halves.x = &x
    all_halves.y = &y
    all_halves.x_row = <const char *> table.halves
    all_halves.y_row = <char *> table.mapped
    all_halves.n = HALVES
    all_halves.chunk = chunk_length(HALVES)
    all_halves.n_chunks = HALVES // all_halves.chunk
    all_halves.overwrites = False
    run_pass(&all_halves, MAP_SCALEEXTEXP, unused)


cdef void look_up(const Row *row, const Table *table, Py_ssize_t index) noexcept nogil:
    cdef Py_ssize_t i = index * row.chunk, j, stop = i + row.chunk
    cdef const uint16_t *x = <const uint16_t *> row.x_row
    cdef uint16_t *y = <uint16_t *> row.y_row
    stop = stop if stop < row.n else row.n
    while i + 8 <= stop:
        for j in range(8):
            y[i + j] = table.mapped[x[i + j]]
        i += 8
    for j in range(i, stop):
        y[j] = table.mapped[x[j]]


cdef bint map_by_table(const Row *row, real *unused) noexcept nogil:
    """run_pass(MAP_SCALEEXTEXP), if the row is one that a table pays for."""
    cdef Table *table = NULL
    cdef Py_ssize_t index
    cdef Environment callers
    if (row.n >= TABLED and row.mask == NULL and row.bound == NULL
            and packed_halves(row.x, row.x_row) and packed_halves(row.y, row.y_row)):
        table = <Table *> malloc(sizeof(Table))
    if table == NULL:
        return False
    fill_table(row, table, unused)
    if row.n_threads == 1:
        for index in range(row.n_chunks):
            look_up(row, table, index)
    else:
        for index in prange(row.n_chunks, num_threads=row.n_threads, schedule="static"):
            callers = enter()
            look_up(row, table, index)
            leave(callers)
    free(table)
    return True
