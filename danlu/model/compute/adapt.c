/* What LoRA adapters add to a product, each to its own rows: out += (x A^T) (scaling B)^T, with float32 sums.
 *
 * Each sum goes over the inputs, or the ranks, in their order, however many rows there are: what a row gets is the same, bit
 * for bit, whatever rows it comes with. Rows of one adapter are taken four at a time, so that its matrices are read once. */
#include "lanes.h"

#define ROWS 4
#define PARTS (16 / LANES)  /* vectors of 16 ranks */
#define STEP (2 * LANES)    /* columns whose sums are in registers */
#define WORTH 65536         /* products from which threads share the work */

/* One adapter of the layers that read x. down (inputs, ranks), the ranks of all parts side by side, filled to whole 16s.
 * plan has five numbers a part: its first column, how many, its first rank, how many, and where its up (ranks, columns)
 * begins. */
typedef struct {
    const void *down, *up;
    const int64_t *plan;
    int64_t ranks, parts;
} Adapter;

typedef struct {
    const Adapter *adapter;
    const int64_t *rows; /* of x and out */
    float *inner;        /* (count, ranks) */
    int count;
} Block;

INLINE const void *row_of(const void *from, long row, long stride, const int is_wide) {
    return (const char *)from + row * stride * (is_wide ? 4 : 2);
}

/* 16 ranks of a block, from `rank` on. */
INLINE void go_down(const Block *block, long rank, const void *x, long stride, long inputs, const int rows,
                    const int is_wide, const int has_wide) {
    const Adapter *own = block->adapter;
    const void *from[ROWS];
    lanes sums[ROWS][PARTS];
    for (int row = 0; row < rows; row++) {
        from[row] = row_of(x, block->rows[row], stride, is_wide);
        for (int n = 0; n < PARTS; n++) sums[row][n] = (lanes){0};
    }
    for (long d = 0; d < inputs; d++)
        for (int n = 0; n < PARTS; n++) {
            const lanes weights = lanes_at(own->down, d * own->ranks + rank + n * LANES, has_wide);
            for (int row = 0; row < rows; row++)
                sums[row][n] = fused(weights, spread(number(from[row], d, is_wide)), sums[row][n]);
        }
    for (int row = 0; row < rows; row++)
        for (int n = 0; n < PARTS; n++) *(lanes *)(block->inner + row * own->ranks + rank + n * LANES) = sums[row][n];
}

/* Columns `start` to `end` of a part, for all rows of a block. */
INLINE void go_up(const Block *block, const int64_t *part, long start, long end, void *out, long stride, const int rows,
                  const int is_wide, const int has_wide) {
    const long ranks = block->adapter->ranks, dim = part[1], rank = part[3];
    const float *inner = block->inner + part[2];
    const void *up = block->adapter->up;
    void *to[ROWS];
    for (int row = 0; row < rows; row++)
        to[row] = (char *)row_of(out, block->rows[row], stride, is_wide) + part[0] * (is_wide ? 4 : 2);
    for (; start + STEP <= end; start += STEP) {
        lanes sums[ROWS][2];
        for (int row = 0; row < rows; row++) sums[row][0] = sums[row][1] = (lanes){0};
        for (long r = 0; r < rank; r++)
            for (int n = 0; n < 2; n++) {
                const lanes weights = lanes_at(up, part[4] + r * dim + start + n * LANES, has_wide);
                for (int row = 0; row < rows; row++)
                    sums[row][n] = fused(weights, spread(inner[row * ranks + r]), sums[row][n]);
            }
        for (int row = 0; row < rows; row++) {
            float made[STEP];
            for (int n = 0; n < 2; n++) *(lanes *)(made + n * LANES) = sums[row][n];
            for (int n = 0; n < STEP; n++) put_number(to[row], start + n, number(to[row], start + n, is_wide) + made[n], is_wide);
        }
    }
    for (; start < end; start++)
        for (int row = 0; row < rows; row++) {
            float sum = 0;
            for (long r = 0; r < rank; r++) sum += inner[row * ranks + r] * number(up, part[4] + r * dim + start, has_wide);
            put_number(to[row], start, number(to[row], start, is_wide) + sum, is_wide);
        }
}

/* Piece number `piece` of the columns of each part. */
INLINE void go_up_each(const Block *block, long piece, long pieces, void *out, long stride, const int rows, const int is_wide,
                       const int has_wide) {
    const int64_t *plan = block->adapter->plan;
    for (const int64_t *part = plan; part < plan + 5 * block->adapter->parts; part += 5) {
        const long steps = part[1] / STEP, start = steps * piece / pieces * STEP;
        const long end = piece + 1 == pieces ? part[1] : steps * (piece + 1) / pieces * STEP;
        go_up(block, part, start, end, out, stride, rows, is_wide, has_wide);
    }
}

/* A function whose loops over rows are unrolled, for as many as a block has. */
#define BY_ROWS(COUNT, CALL)                                                                                            \
    switch (COUNT) {                                                                                                    \
    case 1: CALL(1); break;                                                                                             \
    case 2: CALL(2); break;                                                                                             \
    case 3: CALL(3); break;                                                                                             \
    default: CALL(ROWS);                                                                                                \
    }

INLINE void adapt(const Block *blocks, long count, long most, long pieces, const void *x, long x_stride, void *out,
                  long stride, long inputs, const int is_wide, const int has_wide, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic)
        for (long at = 0; at < count * most; at++) {
            const Block *block = blocks + at / most;
            const long rank = at % most * 16;
            if (rank >= block->adapter->ranks) continue;
#define DOWN(COUNT) go_down(block, rank, x, x_stride, inputs, COUNT, is_wide, has_wide)
            BY_ROWS(block->count, DOWN)
        }
#pragma omp for schedule(dynamic)
        for (long at = 0; at < count * pieces; at++) {
            const Block *block = blocks + at / pieces;
#define UP(COUNT) go_up_each(block, at % pieces, pieces, out, stride, COUNT, is_wide, has_wide)
            BY_ROWS(block->count, UP)
        }
    }
}

/* rows: of x (tokens, inputs) and out (tokens, columns), whose numbers lie `x_stride` and `stride` apart: first those of the
 * first adapter, counts[0] of them, then those of the next. x and out are float32 where is_wide, the matrices where has_wide,
 * else bfloat16. Returns 1 when there was no memory. */
int danlu_adapt(const void *x, long x_stride, const Adapter *adapters, const int64_t *counts, long held, const int64_t *rows,
                void *out, long stride, long inputs, int is_wide, int has_wide, int threads) {
    long count = 0, inside = 0, most = 0, products = 0;
    for (long a = 0; a < held; a++) {
        count += (counts[a] + ROWS - 1) / ROWS;
        inside += counts[a] * adapters[a].ranks;
        if (counts[a] && adapters[a].ranks > most) most = adapters[a].ranks;
        products += counts[a] * adapters[a].ranks * inputs;
    }
    if (!inside) return 0;
    float *inner = malloc(inside * sizeof(float));
    Block *blocks = malloc(count * sizeof(Block)), *block = blocks;
    if (!inner || !blocks) {
        free(inner);
        free(blocks);
        return 1;
    }
    float *room = inner;
    for (long a = 0; a < held; a++)
        for (long left = counts[a], taken; left; left -= taken, rows += taken) {
            taken = left < ROWS ? left : ROWS;
            *block++ = (Block){adapters + a, rows, room, taken};
            room += taken * adapters[a].ranks;
        }
    if (products < WORTH) threads = 1;
    const long pieces = count >= 4 * threads ? 1 : threads;
#define RUN(IS_WIDE, HAS_WIDE)                                                                                          \
    adapt(blocks, count, most / 16, pieces, x, x_stride, out, stride, inputs, IS_WIDE, HAS_WIDE, threads)
    if (is_wide) RUN(1, 1);
    else if (has_wide) RUN(0, 1);
    else RUN(0, 0);
    free(inner);
    free(blocks);
    return 0;
}
