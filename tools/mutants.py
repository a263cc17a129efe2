"""Mutation testing: whether the tests notice small errors in the kernels.

Every mutant is one replacement in one file. For each, the kernels are built from a changed copy of
`twopass/` and the fast tests run against them until the first fails: then the mutant is caught.

    python tools/mutants.py            all of them, two at a time
    python tools/mutants.py two_sum    those whose file, text or description has these letters
    python tools/mutants.py --check    that the list applies to the tree, in no time
    python tools/mutants.py --sample 8  so many, spread over the list: others every day

Needs twopass installed with its test and build dependencies: compiler flags, headers and the
modules that no mutant touches are the installation's.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import importlib.machinery
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEVEL = "x86-64-v3"
#: Seconds that the tests may take: far more than they need, so that endless loops are caught.
LIMIT = 600


@dataclasses.dataclass(frozen=True)
class Mutant:
    """`old`, which is in `file` of `twopass/` exactly once, becomes `new`.

    `equivalent` says why no test can tell the difference; then none is run.
    """

    file: str
    old: str
    new: str
    what: str
    equivalent: str = ""
    level: str = LEVEL


def m(file, old, new, what, equivalent="", level=LEVEL):
    suffix = "" if "." in file else ".pxi"
    return Mutant(f"_{file}{suffix}", old, new, what, equivalent, level)


MUTANTS = [
    # The exponential
    m("exp", "C6_F32 0x1.6a244ep-10f", "C6_F32 0x1.7a244ep-10f", "last coefficient, float"),
    m("exp", "C9_F64 0x1.71df253b57dd2p-19", "C9_F64 0x1.71ef253b57dd2p-19", "a coefficient"),
    m("exp", "C3_F32 0x1.555492p-3f", "C3_F32 0x1.555556p-3f", "Taylor's coefficient"),
    m("exp", "LN2_LOW_F32 0x1.0bfbe8p-15f", "LN2_LOW_F32 0x1.0bfbp-15f", "ln 2, low part, float"),
    m("exp", "LN2_LOW_F64 -0x1.718432a1b0e26p-35", "LN2_LOW_F64 -0x1.718432b1b0e26p-35",
      "ln 2, low part, double"),
    m("exp", "MAGIC_F32 0x1.8p+23f", "MAGIC_F32 0x1p+23f", "magic number at a binade's edge"),
    m("exp", "rest = fma(x, scale, -product)", "rest = 0", "product_rest: nothing, double"),
    # With FMA nobody asks for the rest of an infinite product.
    m("exp", "return rest if rest - rest == 0 else 0", "return rest", "product_rest: NaN",
      level="x86-64-v2"),
    m("exp", "return fma(x, scale, -value)", "return x * scale - value",
      "product_minus: rounded, double"),
    m("exp", "x_high = upper_half(x)", "x_high = x", "product_rest: one half",
      level="x86-64-v2"),
    m("exp", "r = product_minus(x, scale, n * LN2_HIGH_F32)",
      "r = x * scale - n * LN2_HIGH_F32", "mantissa_at: the product rounded, float"),
    m("exp", "return fmaf(r * r, q, r)", "return r * fmaf(r, q, 1)",
      "Horner to the end: results in the wrong order, float"),
    m("exp", "return fma(r * r, q, r)", "return r * fma(r, q, 1)",
      "Horner to the end, double"),
    m("exp", "return fmaf(less_1, scale, scale)", "return less_1 * scale + scale",
      "a term rounded twice, float", "less_1 times a power of two is exact"),
    m("exp", "return ref - EXPONENT_BIAS_F32", "return ref", "a term's power of two, float"),
    # The logarithm
    m("log", "A7_F64 0x1.2f02e7451c03ep-3", "A7_F64 0x1.2f12e7451c03ep-3", "last coefficient"),
    m("log", "A2_F64 0x1.999999997fee8p-2", "A2_F64 0x1.999999999999ap-2", "Taylor's coefficient"),
    m("log", "halved = z > M_SQRT2 - 1", "halved = z > 1", "halves: never below 2"),
    m("log", "LN2_HIGH_F64 + (LN2_LOW_F64 + f)", "LN2_HIGH_F64 + f", "halves: ln 2, low part"),
    m("log", "halved = total[0] > 1.5", "halved = total[0] > 3", "log near 0: cancellation"),
    m("log", "rest[0] = 0.5 * rest[0] if halved else rest[0]", "rest[0] = rest[0]",
      "log: the rest not halved"),
    m("log", "(log1p_of(total - 1) + rest / total)", "log1p_of(total - 1)", "log: no rest"),
    m("log", "fma(n, -LN2_HIGH_F64, high) + low)", "fma(n, -LN2_HIGH_F64, high))",
      "beside: low part of a scaled element"),
    # Blocks
    m("blocks", "LOWEST_F32 = -72", "LOWEST_F32 = -127", "range reaches subnormal numbers"),
    m("blocks", "LOWEST_F64 = -700", "LOWEST_F64 = -1060", "the same in double"),
    m("blocks", "HIGHEST_F32 = 56", "HIGHEST_F32 = 127", "range reaches infinity"),
    m("blocks", "WINDOW_F32 = 8", "WINDOW_F32 = 40", "reference elsewhere in the window",
      "which reference is taken never shows in the bits: scaling is exact; only speed differs"),
    m("blocks", "    EXPONENT_LIMIT = 0x200000", "    EXPONENT_LIMIT = 0x800000",
      "magic numbers beyond their range"),
    m("blocks", "EXPONENT_LIMIT_F32_UNFUSED = 0x7F0", "EXPONENT_LIMIT_F32_UNFUSED = 0x7F000",
      "n times ln 2 no longer exact"),
    m("blocks", "    if exponent < -1022:", "    if exponent < -1021:", "power: 2**-1022 is 0"),
    m("blocks", "error[0] += (total[0] - (s - d)) + (value - d)", "error[0] += value - d",
      "two_sum: half of the rest"),
    m("blocks", "        two_sum(total, error, value)", "        total[0] += value",
      "accumulate: doubles not compensated"),
    m("blocks", "out.low = error[0] + error[1]", "out.low = error[0]", "collapse: a lane's rest"),
    m("blocks", "            error[j] += error[j + 8]\n", "", "collapse: eight lanes' rests"),
    m("blocks", "        nans |= value != value\n", "", "block_max: NaN in the tail"),
    m("blocks", "unordered[j] = unordered[j] if value == value else value", "unordered[j] = 0",
      "block_max: NaN in the lanes"),
    m("blocks", "                most[j] = b if b > most[j] else most[j]\n", "",
      "sum_steps: range of the second half"),
    m("blocks", "kept[LANES + i * vector + j] = q", "kept[LANES + i * vector + j] = p",
      "sum_steps: keeps the first half twice"),
    m("blocks", "        least = i if i < least else least\n", "", "segment: no lower bound"),
    m("blocks", "return fmaf(value, factor, value * factor_low)", "return value * factor",
      "times_pair: 1/sum rounded, float"),
    m("blocks", "return fma(value, factor, value * factor_low)", "return value * factor",
      "times_pair: 1/sum rounded, double"),
    m("blocks", "pad[j] = pad[j] if j < n else 0", "pad[j] = pad[j] if j <= n else 0",
      "unpad_step: one term too many"),
    m("blocks", "            if j < n:\n                to[j] = pad[j]",
      "            if j <= n:\n                to[j] = pad[j]", "unpad_step: one store too many"),
    m("blocks", "    if whole < n:\n        pad_step(x + whole, n - whole, pad)\n        segment(",
      "    if whole < n - 1:\n        pad_step(x + whole, n - whole, pad)\n        segment(",
      "a tail of one element is forgotten"),
    m("blocks", "count, whole = n // STEP * STEP\n    if streaming:",
      "count, whole = (n + 1) // STEP * STEP\n    if streaming:", "tile rounded up"),
    m("blocks", "and high32 <= bits_of(zero + highest(x), low32))", "and True)",
      "no upper bound, float"),
    m("blocks", "return 0 if product < floor else v", "return v", "clamped_term: no clamp"),
    m("blocks", "kept = 0 if value < threshold else value",
      "kept = 0 if value <= threshold else value", "the smallest normal number is flushed"),
    m("blocks", "smallest_exponent(unused) - lowest(unused) + 2 <= exponent <= highest(unused)",
      "exponent <= highest(unused)", "block_rescale: subnormal results"),
    m("blocks", "rest = <real> power(exponent - exponent // 2)",
      "rest = <real> power(exponent // 2)", "block_rescale: odd exponents"),
    m("blocks", "        if not folds(factor, inverse_low):", "        if False:",
      "block_rescale: subnormal low products"),
    m("short", "(fabs(scale_low[r]) * factor >= normal)", "(factor > 0)",
      "tiles: subnormal low products"),
    m("blocks", "y[i] = (x[i] - high) - low", "y[i] = x[i] - (high + low)",
      "log_softmax: low part lost"),
    # Rows
    m("rows", "buffer[i] = 0 if buffer[i] - buffer[i] == 0 else buffer[i]", "buffer[i] = 0",
      "scale 0 hides NaN"),
    m("rows", "(product - row.high) + product_rest(x, row.scale, product)",
      "product - row.high", "set_high: rest of the product"),
    m("rows", "    a.too_low |= b.too_low\n", "", "combine: too_low lost"),
    m("rows", "        a.low += b.low * scale\n", "", "combine: low part of the smaller"),
    m("rows", "        a.low *= scale\n", "", "combine: low part not scaled"),
    m("rows", "    if a.exponent >= b.exponent:", "    if a.exponent <= b.exponent:",
      "combine: the smaller exponent"),
    m("rows", "    s.low = (s.high - high) + s.low", "    s.low = s.high - high",
      "normalise: low part dropped"),
    m("rows", "    s.low *= power(-k)\n", "", "normalise: low part not scaled"),
    m("rows", "to = term_buffer if <const real *> terms + i == x else terms + i",
      "to = terms + i", "terms over the input that a repetition needs"),
    m("rows", "value if value > result or value != value else result\n        if",
      "value if value > result else result\n        if", "largest_of: NaN passed over"),
    m("rows", "skipping = i <= row.skip < i + count", "skipping = i < row.skip < i + count",
      "skip: the first element of a block"),
    m("rows", "            buffer[row.skip - i] = <real> -INFINITY\n", "", "skip: not skipped"),
    m("rows", "if fabs(row.base) > exponent_limit(<real> row.scale):",
      "if fabs(row.base) > exponent_limit(<real> 0):", "anchor: the limit without a scale"),
    m("rows", "fma(-row.inverse, total.high, 1.0) - row.inverse * total.low)",
      "fma(-row.inverse, total.high, 1.0))", "invert: low part of the sum"),
    m("rows", "row.constant = row.vacant if maximum == -INFINITY else NAN", "row.constant = NAN",
      "three passes: all_masked"),
    m("rows", "MAP_RESCALE if keep and row.base != row.base else", "MAP_RESCALE if keep else",
      "reload: terms of another reference"),
    m("rows", "power(total.top - exponent) < 0.25 * total.high",
      "power(total.top - exponent) < 2.5 * total.high", "dominated: the cheap no is always no"),
    m("rows", "    if rest < 0.5 * total.high:", "    if rest < 0.25 * total.high:",
      "dominated: the rounding of a pair"),
    m("rows", "    if rest < 0.5 * total.high:", "    if rest < 0:",
      "dominated: rest by cancellation"),
    m("blocks", "    terms[skip // LANES] = 0\n", "", "leave_out: nothing left out"),
    m("blocks", "        if lane + i * LANES >= n:\n            terms[i] = 0\n", "        pass\n",
      "leave_out: the padding counts"),
    m("blocks", "    lanes.error[lane] = 0\n", "", "leave_out: errors of the old total"),
    m("rows", "kept.ref = ref if here == FAST else NAN", "kept.ref = ref",
      "lanes of a loop that left elements out"),
    m("rows", "combine(row.partials, &part if i == index else &row.blocks[i].sum)",
      "combine(row.partials, &row.blocks[i].sum)", "sum_without: nothing left out"),
    m("rows", "    clear(row.partials)\n", "", "sum_without: added to the old sum"),
    m("rows", "exponent_limit(<real> row.scale) + lowest(unused) - highest(unused):",
      "INFINITY:", "sum_without: beside the limit",
      "relative to the maximum the sum has the same terms in the same order"),
    m("rows", "if row.blocks[i // block].sum.top >= top - 1:",
      "if row.blocks[i // block].sum.top >= top + 1:", "largest_of_blocks: none"),
    m("rows", "    if row.blocks != NULL and row.n <= block_length(unused):\n"
      "        normalise(&total)\n        row.blocks.sum = total\n", "",
      "reduce: the only block's sum not kept"),
    m("choosing", "total = reduce_exact(row, REDUCE_EXTEXP, NULL, unused)",
      "total = reduce(row, REDUCE_EXTEXP, unused)", "draws from sums of another row"),
    m("rows", "            or row.skip >= 0 or <const real *> terms == x\n",
      "            or <const real *> terms == x\n", "sum_block: nothing skipped"),
    m("rows", "            or row.skip >= 0 or <const real *> terms == x\n",
      "            or row.skip >= 0\n", "sum_block: terms over the input"),
    m("rows", "            careful_terms(x, terms, row.n, scale, &part)\n", "            pass\n",
      "sum_block: rows that only the careful loop does"),
    m("rows", "row.blocks.ref = ref if fast else NAN", "row.blocks.ref = ref",
      "sum_block: lanes of a loop that did not do"),
    m("rows", "    while k < n and x[k] != value:", "    while k < n - 1 and x[k] != value:",
      "first_equal: absent in a block",
      "blocks before the last one are whole lanes, and in the last one it is there"),
    m("blocks", "        top[j] = top[j + 4] if top[j + 4] > top[j] else top[j]\n",
      "        pass\n", "block_max: half of a tree"),
    m("rows", "INFINITY > fabs(total.top) > limit - 1", "INFINITY > fabs(total.top) > limit + 9",
      "limit: two passes where three are relative to the maximum"),
    m("rows", "total.exponent < highest(unused) - lowest(unused) - limit)",
      "total.exponent < -2 * limit)", "limit: elements left out show"),
    m("rows", "        if needs_maximum(&others, scale, unused):", "        if False:",
      "limit: sum without the largest lacks all"),
    m("rows", "fabs(result) < 0.5:", "fabs(result) < 0:", "logsumexp near 0, float"),
    # Exact sums
    m("partial", "exact.bins[source] if source >= 0 else 0",
      "exact.bins[source] if source > 0 else 0", "raise_index: a bin dropped"),
    m("partial", "    limb = exact.bins[0] + carry\n", "    limb = exact.bins[0]\n",
      "round_exact: carry into the top bin"),
    m("partial", "        if to < BINS:\n", "        if to < BINS - 1:\n",
      "add_exact: the last bin"),
    m("partial", "            special += part.high", "            special = part.high",
      "NaN forgotten beside +inf of another chunk"),
    m("partial", "        too_low |= part.too_low\n", "", "chunks: too_low lost"),
    m("partial", "if logarithm_of(a) >= logarithm_of(b):", "if logarithm_of(a) < logarithm_of(b):",
      "merge: moved to the smaller shift"),
    m("partial", "a.largest >= b.largest", "a.largest <= b.largest", "hold: the smaller element"),
    m("partial", "exponent_limit(<real> 0) + 64", "exponent_limit(<real> 0)",
      "sums of elements below the limit moved"),
    m("partial", "total.low * m + product * low", "total.low * m", "move_shift: low part"),
    # Columns
    m("columns", "least[j] >= limit_low and most[j] <= limit_high", "least[j] >= limit_low",
      "no upper bound"),
    m("columns", "inside &= least[j] >= limit_low", "inside = least[j] >= limit_low",
      "the range of the last lane alone"),
    m("columns", "while rows >= 4:", "while rows >= 3:", "a row too many"),
    m("columns", "return p if single else p + q", "return p + q", "the last row twice"),
    m("columns", "return not careful", "return True",
      "terms kept, though not all of one reference"),
    m("columns", "all_normal &= (exponent >= least) & ", "all_normal &= ",
      "terms kept that are not to be scaled by a normal number"),
    m("columns", "(fabs(inverse_low[j]) * factor >= normal)", "1",
      "terms kept: subnormal low products"),
    m("columns", "p = 0 if a == left_out else p", "pass", "logarithms: the element counts twice"),
    m("columns", "q = 0 if b == left_out else q", "pass", "the second of a pair counts twice"),
    m("columns", "p = 0 if a[j] == left_out[j] else p", "pass",
      "careful: the element counts twice"),
    m("columns", "value = <real> -INFINITY if value == left_out[j] else value", "pass",
      "careful: the reference of what is left out"),
    m("columns", "others[j] = sums.high[j] + sums.low[j] if again[j]",
      "others[j] = sums.high[j] if again[j]", "the others' low part",
      "half a unit in the last place of a sum that is off by more"),
    m("columns", "regular[j] &= whole[j] | (again[j] ^ 1)", "pass",
      "others that need their maximum"),
    m("columns", "rest[j] = product_low[j] if large[j] else 0", "rest[j] = 0",
      "scaled: what the product of the largest element left over"),
    m("columns", "regular[j] &= fabs(high[j]) >= 0.5", "pass",
      "logsumexp near 0, from float terms"),
    m("columns", "magic[j] = <real> (rest[j] if exact else 0)", "magic[j] = 0",
      "log_softmax: what the product left over"),
    m("columns", "s, VECTOR_BYTES)", "r, VECTOR_BYTES)", "terms kept: the third row twice"),
    m("columns", "(<real *> (y + 3 * y_stride))[n] = s[0]", "(<real *> y)[n] = s[0]",
      "terms kept: a row of the last columns elsewhere"),
    m("columns", "if i + 1 < start + rows:", "if i + 1 <= start + rows:",
      "odd last row: a row too many"),
    m("columns", "if sums.high[j] == 0 or k > sums.exponent[j] + highest(floor):",
      "if k > sums.exponent[j] + highest(floor):", "first elements far below the reference"),
    m("columns", "            sums.low[j] *= scale\n", "", "low part not scaled"),
    m("columns", "elif scale == 0 and to[j] - to[j] == 0:", "elif scale == 0:",
      "scale 0 hides NaN"),
    m("columns", "if mask[j * block.mask_column]", "if mask[j]", "strided mask"),
    m("columns", "careful |= shift[j] != 0 or not inverse[j] > 0", "careful |= shift[j] != 0",
      "columns of NaN in the fast loop",
      "NaN times 1/sum, which is NaN there, is NaN too; columns of -inf alone are not in range"),
    m("columns", "careful = least32 < low32 or most32 > high32", "careful = most32 > high32",
      "map: no lower bound, float"),
    m("columns", "block.mask + j * block.mask_column", "block.mask",
      "a column alone: the first one's mask"),
    m("columns", "    if (block.scales == NULL or block.scale_step == 0", "    if (True",
      "columns without a scale beside scaled ones"),
    m("columns", "    for index in range(1, block.n_chunks):",
      "    for index in range(2, block.n_chunks):", "a chunk forgotten"),
    m("columns", "            smaller = rest if other > larger else smaller\n", "",
      "mended: the other of another pair"),
    m("columns", "total[j] - pair * factor, other * factor, &rest",
      "total[j] - pair * factor, 0, &rest", "mended: the other of the pair is lost"),
    m("columns", "rest += rest_low + low[j]", "rest += rest_low",
      "mended: the others' low part"),
    m("columns", "pair = term + other  #", "pair = <double> term + other  #",
      "mended: the pair as it was not added"),
    m("columns", "(rest >= least * total[j])", "1",
      "mended: where nothing but rounding is left"),
    m("columns", "if (largest[j] - partner[j]) * size < 60 else largest[j]", "",
      "mended: exponents out of range of what is far away"),
    m("columns", "partners[j] = partners[index * COLUMNS + j] if value > maxima[j] else",
      "partners[j] =", "mended: a partner of another chunk"),
    m("columns", "head = head if head < block.width else block.width", "pass",
      "a row within a line: written beyond its end"),
    m("columns", "tail = head + (block.width - head) // line_length(x) * line_length(x)",
      "tail = head + (block.width - head + 15) // line_length(x) * line_length(x)",
      "streaming: a last line beyond the columns"),
    m("kernels.pyx", "inner - j if inner - j < block.widest else block.widest", "block.widest",
      "the last block of columns too wide"),
    m("short_training", "<= array.rows.shape[last])", "<= array.rows.shape[last] + TILE)",
      "a tile over the end of its columns"),
    m("short_training", "lane = k % LANES * TILE", "lane = k % 8 * TILE", "tiles of other lanes"),
    m("short_training", "((total[r] - high[r]) + (error[r] if real is double else 0))",
      "(total[r] - high[r])", "backward: low part of a tile's sums"),
    m("short_training", "(total[r] + (error[r] if real is double else 0)) / n", "total[r] / n",
      "the mean logit's low part"),
    m("short_training", "            part[r] = INFINITY\n", "            pass\n",
      "smoothing with a masked logit"),
    m("short_training", "        tile[labels.place[r] * TILE + r] = 0\n    add_terms",
      "        pass\n    add_terms", "the label's logit in the sum of the others"),
    m("short_training", "good[r] = found.in_range[r] & ", "good[r] = 1 & ", "rows not in range"),
    m("short_training", "(scaled * factor >= least) & ", "", "subnormal gradients"),
    m("short_training", " & weights.whole[r] & (", " & (", "rows that weigh_each() cannot do"),
    m("short_training", "        good[r] |= labels.ignored[r]\n", "", "ignored rows one by one",
      "slower, and training_row() writes the same zeros"),
    m("short_training", "0 if labels.ignored[r] else weights.loss[r]", "weights.loss[r]",
      "losses of ignored rows"),
    m("short_training", "* sign[r] - offset[r]", "- offset[r]", "negative scales"),
    m("short_training", "lies_beside(array, start, tile) and all_of(chosen, count):",
      "lies_beside(array, start, tile):", "columns stored over rows that are read again"),
    m("short", "evenly_spaced(y, count, tile) and all_of(chosen, count):",
      "evenly_spaced(y, count, tile):", "a tile stored over rows that are read again"),
    m("short", "        if chosen != NULL and not chosen[r]:\n            continue\n", "",
      "rows of a part of a tile stored over rows that are read again"),
    # Weights
    m("weighted", "if b[j] == 0 or start + j == row.skip else", "if b[j] == 0 else",
      "the largest term is not left out"),
    m("weighted", "    if lacks_terms(row, total):", "    if False:",
      "weights that outweigh exponentials"),
    m("weighted", "row.partials[index].top > top[0]", "row.partials[index].top < top[0]",
      "largest term of the wrong chunk"),
    # Training
    m("training", "            if whole + j < n:", "            if whole + j < n - 1:",
      "sum of products: last element"),
    m("training", "        error[0] += fma(a, b, -product)\n", "", "products of doubles rounded"),
    m("training", "    row.skip = label\n", "    row.skip = -1\n",
      "the label's logit in the sum of the others"),
    m("training", "elif reduced > -700 and k <= 1:", "elif reduced > -700:",
      "a label far below overflows"),
    m("training", "share[0] = 1 / (1 + 1 / ratio)", "share[0] = 1 - 1 / (1 + ratio)",
      "share by cancellation"),
    m("training", "has_label = i <= label < i + count and", "has_label = i < label < i + count and",
      "label at a block's beginning"),
    m("training", "return <real> value if not fabs(value) < power(smallest_exponent(unused)) else "
      "<real> 0", "return <real> value", "subnormal gradients"),
    m("training", "row.enlarged = shift > HIGHEST_SCALE", "row.enlarged = False",
      "large scales in the loops"),
    m("training", "slope.reloads = call.keep and fabs(scale) <= 1 and",
      "slope.reloads = call.keep and", "enlarged terms that were flushed"),
    m("training", "scale * ((smoothing - share) - smoothing / row.n)",
      "scale * (smoothing - share)", "smoothing at the label"),
    m("training", "out[i] = y[i] * ((g[i] - high) - low)", "out[i] = y[i] * (g[i] - high)",
      "backward: low part"),
    # Threads, arrays, memory, environment
    m("kernels.pyx", "total // parts * part + total % parts * part // parts",
      "total // parts * part", "share: the last rows are nobody's"),
    m("kernels.pyx", "walk.strides[last] == shape[axis] * strides[axis]", "True",
      "axes joined that do not lie like one"),
    m("operands", "bits >= 0x0F800000 else 0", "bits > 0x0F800000 else 0", "infinite halves"),
    m("operands", "0x0FFF + ((bits >> 13) & 1)", "0x0FFF", "ties of float16"),
    m("operands", "bits if bits < 0x47800000 else 0x47800000", "bits",
      "float16: what is too large"),
    m("operands", "bits if bits < 0x47800000 else 0x47800000",
      "bits if bits < 0x477FF000 else 0x477FEFFF", "float16: the tie at infinity"),
    m("operands", "0x7FFF + ((bits >> 16) & 1)", "0x7FFF", "ties of bfloat16"),
    m("operands", "-<int32_t> (mask[i * stride] != 0)", "-<int32_t> (mask[i] != 0)",
      "strided mask"),
    m("blocks", "to[j] = 0 if sinking and x[j] < bottom else p", "to[j] = p",
      "segment: masked elements do not sink"),
    m("blocks", "        value = floor if sinking and x[j] < bottom else x[j]\n",
      "        value = floor if sinking else x[j]\n", "segment: everything counts as masked"),
    m("blocks", "                    q = 0 if x[k + LANES + i * vector + j] < bottom else q\n", "",
      "sum_steps: masked elements do not sink"),
    m("blocks", "(ref + 4 * lowest(x)) * M_LN2", "(ref + lowest(x)) * M_LN2",
      "elements sink that count"),
    # Short rows
    m("short", "n - k - LANES if n - k < STEP else LANES)",
      "n - k - LANES - 1 if n - k < STEP else LANES)", "tile_sums: a pair is broken"),
    m("short", "count = TILE * (n - k if", "count = TILE * (n - k - 1 if",
      "tile_sums: a lane is forgotten"),
    m("short", "tile[k * TILE + r] = 0 if sinking and x < lowest_kept[r] else p",
      "tile[k * TILE + r] = p", "tiles: what is masked has the term of the floor"),
    m("short", "(out.ref[r] + 4 * lowest(tile)) * M_LN2", "(out.ref[r] - 60) * M_LN2",
      "tiles: small elements sink"),
    m("short", "scales.of_row[r] = row.scale if row.scale != 0 else 1", "scales.of_row[r] = 1",
      "tiles: no scale"),
    m("short", "store(y, row_of(y, start + r), 0, n,",
      "store(y, row_of(y, start + r), 0, n - 1,",
      "tiles: a half is not stored"),
    m("short", "all_in_range &= found.in_range[r] != 0", "pass",
      "tiles: rows with -inf one by one",
      "the same bits, later"),
    m("short", "        error[0] += other_error\n", "",
      "tile_sums: a lane's rest, double"),
    m("short", "(lanes - half if lanes < 2 * half else half)", "(half if lanes >= 2 * half else 0)",
      "tile_sums: lanes that have no partner's partner"),
    m("short", "(low32[r] >= lowest32)", "1", "tiles: no lower bound, float"),
    m("short", "& (high64[r] <= highest64)", "", "tiles: no upper bound, double"),
    m("short", "out.in_range[r] = 1 if fabs(ref) < limit else 0", "out.in_range[r] = 1",
      "tiles: references that are no numbers",
      "elements so far away, and sums of NaN, are not in range, or need the maximum"),
    m("short", "(exponent >= least) & ", "",
      "tiles: subnormal results"),
    m("short", "start, count, found.in_range)\n    for r in range(count):\n"
      "        if not found.in_range[r]:", "start, count, NULL)\n    for r in range(count):\n"
      "        if False:", "tiles: rows out of range"),
    m("log", "t >= 0.4 * high[r]", "t >= 0.9 * high[r]",
      "tiles: one large element is not noticed"),
    m("log", "if others[r] < 0.5 * high[r]", "if others[r] < 0",
      "tiles: rest by cancellation"),
    m("short", "left_out[r] = largest_term[r] if again[r] else 0", "left_out[r] = 0",
      "tiles: the largest term is not left out"),
    m("short", "        low[r] = 0 if real is float else error[r]\n    normalise_each",
      "        low[r] = 0\n    normalise_each", "tiles: low part of the others, double"),
    m("short", "out.low[r] = 0 if real is float else error[r]", "out.low[r] = 0",
      "tiles: low part of a sum, double"),
    m("rows", "leave_out(x, count, row.skip - start, exponent,", "leave_out(x, count, 0, exponent,",
      "the wrong element is left out"),
    m("training", "near if ratio[i] < 1.75 else low", "low", "weigh_each: losses near 0"),
    m("training", "near if ratio[i] < 1.75 else low", "near", "weigh_each: large losses"),
    m("training", "1 if fabs(k[i]) < 900 else 0", "1", "weigh_each: labels far away"),
    m("log", "((others[r] > 0) & (k > -900))", "1",
      "tiles: rests of nothing, or below the smallest normal number"),
    m("short", "(logs.low[r] if exact else total - high[r])", "logs.low[r]",
      "tiles: log_softmax's high part, float"),
    m("short", "rest = n - half\n", "rest = n - half\n    n -= 1\n",
      "tile_largest: nothing is compared of two"),
    m("short", "(rest - half) * TILE * sizeof(real))", "0)",
      "tile_largest: without the middle element"),
    m("short", "        out.in_range[r] &= fabs(out.top[r]) <= limit - 1\n", "",
      "limit: tiles take two passes where a row takes three"),
    m("short", "(low[r] + magic) - magic", "low[r]",
      "tiles: sums that keep more digits than those of rows",
      "below 2**-96 of the sum: one result in 2**40 may differ"),
    m("short", "1, stride, rows + k)\n        if k + length == n:",
      "1, stride, rows + k)\n        if k + 2 * length > n:",
      "tiles: the last piece is not stored"),
    m("short", "tile + k * TILE)\n            if k + length == n:",
      "tile + k * TILE)\n            if k + 2 * length > n:",
      "tiles: the last piece is not read"),
    m("short", "near_0[r] = good[r] & (fabs(result[r]) < 0.5)",
      "near_0[r] = 0", "tiles: logarithms near 0 from float terms"),
    m("short", "            result[places[r]] = logs", "            result[r] = logs",
      "precise_logs: other rows' results"),
    m("short", "            wanted[places[r]] = 0", "            wanted[places[r]] = 1",
      "precise_logs: computed again", "slower, and the same bits"),
    m("short", "    memset(tile + n * TILE, 0, (whole - n) * TILE * sizeof(real))\n", "",
      "sum_few: what lies behind the rows is added, too"),
    m("short", "t[j] = tile[j * TILE + r] + tile[(LANES + j) * TILE + r]",
      "t[j] = <double> tile[j * TILE + r] + <double> tile[(LANES + j) * TILE + r]",
      "sum_few: pairs are not rounded"),
    m("log", "z if large[r] else total - 1", "total - 1",
      "logs_of: what is beside a large element"),
    m("memory", "        head = count\n", "        pass\n",
      "streaming: pieces shorter than a line"),
    m("memory", "return left // line_length(to) * line_length(to)", "return left",
      "streaming: lines beyond the row"),
    m("blocks", "                line[i * vector + j] = p\n", "                line[j] = p\n",
      "streaming: one vector of a line"),
    m("columns", "maxima[j] = value if value > maxima[j] else maxima[j]", "pass",
      "a column's largest element, of its first chunk"),
    m("rows", "    row.maximum = NAN\n", "", "the largest element of another row"),
    m("tables", "all_halves.n_chunks = HALVES // all_halves.chunk", "all_halves.n_chunks = 3",
      "a table without its last quarter"),
    m("tables", "    for j in range(i, stop):\n", "    for j in range(i, stop - 1):\n",
      "a table: the last element"),
    m("tables", " and row.mask == NULL", "", "a table in spite of a mask"),
    # Choosing
    m("choosing", "return a.index < b.index if a.value == b.value else a.value > b.value",
      "return a.value > b.value", "before: equal ones in any order"),
    m("choosing", "if child + 1 < n and", "if child + 2 < n and", "sift: the last child"),
    m("choosing", "for i in range(n // 2 - 1, -1, -1):", "for i in range(n // 2 - 1, 0, -1):",
      "make_heap: not the root"),
    m("choosing", "    if count < k:\n        return -INFINITY",
      "    if count < k - 1:\n        return -INFINITY", "bound_of: one top too few"),
    m("choosing", "if tops[lane] < bound:", "if tops[lane] <= bound:",
      "select: lanes whose top is the bound"),
    m("choosing", "if x[j] >= bound:", "if x[j] > bound:", "select: elements that are the bound"),
    m("choosing", "    target[0] -= sum_before\n", "", "pick: the target not relative"),
    m("choosing", "        if sum >= mass:\n            return i + 1",
      "        if sum >= mass:\n            return i", "reaching: one candidate too few"),
    m("choosing", "    make_heap(c.heap, n)\n    sort_heap(c.heap, n)\n    for", "    for",
      "draw_candidate: by size, not by index"),
    m("choosing", "row.n_chunks, &target)\n    if row.base != row.base:",
      "row.n_chunks, &target)\n    if False:", "draw_element: not relative to the chunk"),
    m("choosing", "return i32 ^ (i32 >> 31 & INT32_MAX)", "return i32",
      "key_of: the order of negative numbers, float"),
    m("choosing", "high = middle - 1", "high = middle - 2", "narrow: beside the least"),
    m("choosing", "    bound.last = <Py_ssize_t> low\n", "",
      "narrow: one of equal elements more or less"),
    m("choosing", "reaching(c.heap, n, c.p * mass)", "reaching(c.heap, n, c.p)",
      "draw_largest: p of one, not of the candidates' mass"),
    # Rows of a batch together
    m("rows", "or total.exponent != row.refs[0] or total.too_low", "or total.too_low",
      "rescale_sum: terms of another reference"),
    m("rows", "            or not fabs(total.top) < exponent_limit(<real> row.scale) - 1):\n",
      "            ):\n", "rescale_sum: exponents near the limit"),
    m("rows", "    progress.ref = ref\n    progress.speed = speed\n", "",
      "a chunk's reference lost", "which reference was taken shows in no bit"),
    m("groups", "GROUP_BYTES // (call.n * sizeof(real))", "TILE",
      "groups beyond L1", "slower, the same bits"),
    m("groups", "not total[lane] >= least", "total[lane] < 2 * least", "a lane passed over"),
    m("groups", "first = i if x[i] > x[first] else first", "first = i",
      "the last element of the lane"),
    m("groups", "x[first] == x[found] and first < found", "x[first] == x[found]",
      "of equal elements another", "either may be left out: the other has the same term"),
    m("groups", "if found < 0 or x[first] > x[found] or", "if found < 0 or",
      "the largest of the first large lane"),
    m("groups", "0.39 * sum.high", "0.6 * sum.high", "lanes with half the sum passed over"),
    m("groups", "row.blocks.ref == row.blocks.ref and fabs(sum.top)", "fabs(sum.top)",
      "lanes that no fast loop made"),
    m("groups", "fabs(sum.top) < exponent_limit(\n            <real> 0) - 1", "True",
      "groups: exponents near the limit"),
    m("groups", "            row.skip = group.position[r]\n", "            row.skip = 0\n",
      "groups: another element left out"),
    m("groups", "            others_exponent[r] = rest.exponent\n", "",
      "groups: the others' exponent"),
    m("groups", "                row.blocks.sum = group.sums[r]\n", "",
      "groups: the block's top unknown"),
    m("training", "            has_label = count == 0\n", "            pass\n",
      "gradient: the label's element in the lines before its own",
      "slower: it is written to its place, too, and its line later streamed over it"),
    m("training", "        lines = lines and not has_label\n", "        pass\n",
      "gradient: the label's line streamed before it is complete",
      "slower: streamed to the buffer, which is read for the line that is streamed"),
    m("training", "count = (label - i) // line_length(y) * line_length(y)", "count = label - i",
      "gradient: lines that end at the label",
      "slower: the line is streamed as a whole, and from the label on written again"),
    m("training", "    if slope.filled and waiting != NULL:\n", "    if False:\n",
      "gradient: the row before one that is ignored"),
    m("groups", "    normalise_each(group.high, group.low, group.exponent)\n", "    pass\n",
      "groups: sums as they were added"),
    m("groups", "                row.blocks = blocks  # in", "                # in",
      "groups: blocks of the next row"),
    m("interleaved", "        progress = begin_sum(row, &row.partials[index], unused)\n",
      "        if index == 0:\n"
      "            progress = begin_sum(row, &row.partials[index], unused)\n",
      "interleaved: sums of another row"),
    m("interleaved",
      "            map_blocks(behind, mapping, i, i + count, <const real *> behind.terms)\n"
      "            add_blocks(row, i, i + count, terms, &row.partials[index], &progress)\n",
      "            add_blocks(row, i, i + count, terms, &row.partials[index], &progress)\n"
      "            map_blocks(behind, mapping, i, i + count, <const real *> behind.terms)\n",
      "interleaved: terms written over those that wait"),
    m("interleaved", "    total = row.partials[0]\n    settle(&total)\n",
      "    total = row.partials[0]\n", "interleaved: a sum not cut"),
    m("interleaved", "            row.summed = True\n", "", "interleaved: a row summed again",
      "slower, the same bits"),
    m("interleaved", "            softmax_map(&behind, mapping, unused)\n", "",
      "interleaved: a row before one of three passes not written"),
    m("memory", "(count - head - body) * sizeof(real))", "0)", "streaming: tail"),
    m("environment", "        _mm_setcsr(0x1F80);\n", "", "the caller's rounding mode"),
    m("environment", "        _mm_setcsr(callers);\n", "", "the caller's environment not restored"),
    m("edits.py", "given.astype(computed).astype(np.float64)", "given.astype(np.float64)",
      "scale not rounded to the type computed in"),
    m("edits.py", "if not finite.all():", "if False:", "infinite scales"),
    m("edits.py", "self._replace(where=self.where.copy())", "self", "mask under the output"),
]  # fmt: skip

#: Which tests run, fast and strict ones first; after those that are about the file in question.
TESTS = [
    "test_exp.py", "test_passes.py", "test_backward.py", "test_halves.py", "test_training.py",
    "test_edits.py", "test_extended.py", "test_special.py", "test_columns.py", "test_bits.py",
    "test_exactness.py", "test_interface.py", "test_environment.py", "test_short.py",
    "test_far_exponents.py", "test_choosing.py", "test_streaming.py", "test_batches.py",
]  # fmt: skip
#: What is in a mutant's file, description or text -> the tests that are likely to notice.
FIRST = {
    "_columns": ["test_columns.py"],
    "_partial": ["test_extended.py"],
    "training": ["test_training.py", "test_backward.py"],
    "_weighted": ["test_exactness.py"],
    "_operands": ["test_halves.py"],
    "_short": ["test_short.py"],
    "_groups|_interleaved|rescale_sum": ["test_batches.py"],
    "_log": ["test_exactness.py"],
    "_choosing": ["test_choosing.py"],
    "_memory|unpad|tile|tail": ["test_bits.py"],
    "streaming": ["test_streaming.py"],
    "_tables": ["test_halves.py"],
    "_environment": ["test_environment.py"],
    "limit|too_low": ["test_far_exponents.py"],
    "scale|product|mask|limit": ["test_edits.py"],
    "NaN|flushed|subnormal|clamp|infinit|bound": ["test_special.py"],
    "combine|two_sum|normalise|collapse|accumulate": ["test_extended.py"],
    "skip|dominated|log": ["test_exactness.py"],
}
#: Long ones, and those that read the sources rather than run them.
LEFT_OUT = (
    "64_mi", "16_mi", "hundred_million", "million", "out_of_cache", "large_columns",
    "extra_memory", "boundaries", "sorted_rows", "spread_blocks", "in_place", "strided",
    "alignment_of", "threads_inside", "threads_over_columns", "place_in", "repeated_calls",
    "longer_chunks", "test_constants", "two_parts_of_ln_2",
)  # fmt: skip


def problems():
    """What keeps a mutant from being applied."""
    for mutant in MUTANTS:
        count = (ROOT / "twopass" / mutant.file).read_text().count(mutant.old)
        if count != 1:
            yield f"{mutant.file}: {mutant.what}: the text is there {count} times"
        if mutant.old == mutant.new:
            yield f"{mutant.file}: {mutant.what}: nothing changes"


def sample(mutants, count):
    """`count` of them, evenly spread; with which one it begins, the last commit's day decides."""
    step = -(-len(mutants) // count)
    day = subprocess.run(
        ["git", "log", "-1", "--format=%cs"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    return mutants[datetime.date.fromisoformat(day).toordinal() % step :: step]


def build(folder, mutant):
    """An importable copy of the package with one level, whose kernels are the mutant's.

    Raises
    ------
    subprocess.CalledProcessError
        It does not compile.
    """
    import numpy as np

    import twopass

    flags = twopass.build_config()
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    level = mutant.level if mutant else LEVEL
    name = "_kernels_" + level.replace("-", "_")
    package = folder / "twopass"
    shutil.copytree(
        pathlib.Path(twopass.__file__).parent, package,
        ignore=shutil.ignore_patterns("_kernels*", "__pycache__", "_config.py"),
    )  # fmt: skip
    shutil.copytree(ROOT / "twopass", package, dirs_exist_ok=True)
    config = (pathlib.Path(twopass.__file__).parent / "_config.py").read_text()
    config = re.sub(r'"levels": .*', f'"levels": ["{level}"],', config)
    (package / "_config.py").write_text(config)
    if mutant:
        path = package / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))

    def run(*command):
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    run(sys.executable, "-m", "cython", "--module-name", f"twopass.{name}", "-o", "kernels.c",
        package / "_kernels.pyx")  # fmt: skip
    # -O1 compiles in half the time. The bits are the same: nothing that may change them is on.
    run(
        "cc", *re.split(r" (?=-)", flags["flags"]), *flags["level_flags"][level].split(), "-O1",
        "-w", "-DNDEBUG", "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION", "-fPIC", "-shared",
        "-fopenmp", "-I", sysconfig.get_path("include"), "-I", np.get_include(), "kernels.c",
        "-lm", "-o", package / (name + suffix),
    )  # fmt: skip


def judge(mutant):
    """caught, survived or did not compile; and by which test."""
    import os

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        try:
            build(folder, mutant)
        except subprocess.CalledProcessError as problem:
            return "did not compile", problem.stderr.decode()[-300:]
        about = f"{mutant.file} {mutant.what} {mutant.old}" if mutant else ""
        first = [test for text, tests in FIRST.items() if re.search(text, about) for test in tests]
        tests = [ROOT / "tests" / test for test in dict.fromkeys([*first, *TESTS])]
        command = [
            sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
            "--hypothesis-seed=0", "-k", f"not ({' or '.join(LEFT_OUT)})", *tests,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=folder, timeout=LIMIT, capture_output=True, text=True, check=False,
                # Threads that wait without spinning: several mutants share the cores.
                env={**os.environ, "PYTHONPATH": name, "OMP_WAIT_POLICY": "passive"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "caught", "endless"
    if done.returncode == 0:
        return "survived", ""
    failed = re.search(r"^(?:FAILED|ERROR) .*?(\w+\.py\S*)", done.stdout, re.MULTILINE)
    if done.returncode == 1 or failed:
        return "caught", failed[1][:90] if failed else ""
    if done.returncode < 0 or done.returncode >= 128:
        return "caught", f"ended by signal {abs(done.returncode)}"
    raise RuntimeError(f"the tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="?", default="", help="part of file, text or description")
    parser.add_argument("--check", action="store_true", help="only whether the list applies")
    parser.add_argument("--sample", type=int, metavar="N", help="N of them, by the day")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time (default: 2)")
    options = parser.parse_args()
    found = list(problems())
    if found or options.check:
        print("\n".join(found) or f"{len(MUTANTS)} mutants apply")
        return 1 if found else 0
    chosen = [
        mutant for mutant in MUTANTS
        if options.which in " ".join((mutant.file, mutant.old, mutant.what))
    ]  # fmt: skip
    run = [mutant for mutant in chosen if not mutant.equivalent]
    equivalent = len(chosen) - len(run)
    if options.sample:
        run = sample(run, options.sample)
    counts = {"caught": 0, "survived": 0, "did not compile": 0}
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        # The tests have to pass where nothing was changed, or catching means nothing.
        waiting = {pool.submit(judge, mutant): mutant for mutant in (None, *run)}
        for future in concurrent.futures.as_completed(waiting):
            mutant = waiting[future]
            try:
                verdict, by = future.result()
            except RuntimeError:
                pool.shutdown(cancel_futures=True)
                raise
            if mutant is None:
                print(f"unchanged: {verdict}{by and ': '}{by}", flush=True)
                if verdict != "survived":
                    pool.shutdown(cancel_futures=True)
                    return 2
                continue
            counts[verdict] += 1
            print(f"{verdict}: {mutant.file}: {mutant.what}{by and ': '}{by}", flush=True)
    print(
        f"{len(run)} mutants: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()),
        f"in {(time.monotonic() - start) / 60:.0f} minutes; {equivalent} equivalent",
    )
    # One of a few says nothing of all: look at it, but go on.
    most = max(1, 0.05 * len(run))
    return 1 if counts["survived"] + counts["did not compile"] > most else 0


if __name__ == "__main__":
    sys.exit(main())
