/* Products of sparse rows with the best columns of each, and swing. plain.py holds the plain forms, with which both are
 * compared; kernels.py calls. Sums are of doubles and in the order of the entries, so that they do not depend on how rows
 * are shared among threads; the best are chosen among scores as they are kept, in float, ties by column.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    float score;
    int32_t column;
} found;

/* Whether a is worse than b. */
static inline int worse(found a, found b) {
    return a.score < b.score || (a.score == b.score && a.column > b.column);
}

static void sink(found *heap, long count, long at) {
    for (;;) {
        long least = at, left = 2 * at + 1, right = left + 1;
        if (left < count && worse(heap[left], heap[least])) least = left;
        if (right < count && worse(heap[right], heap[least])) least = right;
        if (least == at) return;
        found kept = heap[at];
        heap[at] = heap[least];
        heap[least] = kept;
        at = least;
    }
}

/* The worst of those that are kept is at the top. */
static long offered(found *heap, long count, long most, found one) {
    if (count < most) {
        heap[count] = one;
        for (long at = count; at > 0 && worse(heap[at], heap[(at - 1) / 2]); at = (at - 1) / 2) {
            found kept = heap[at];
            heap[at] = heap[(at - 1) / 2];
            heap[(at - 1) / 2] = kept;
        }
        return count + 1;
    }
    if (most && worse(heap[0], one)) {
        heap[0] = one;
        sink(heap, count, 0);
    }
    return count;
}

/* The best first. */
static void written(found *heap, long count, int32_t *columns, float *scores) {
    for (long last = count - 1; last >= 0; last--) {
        columns[last] = heap[0].column;
        scores[last] = heap[0].score;
        heap[0] = heap[last];
        sink(heap, last, 0);
    }
}

typedef struct {
    const int64_t *starts;
    const int32_t *columns;
    const float *values;
    const double *times;
} matrix;

/* Sums of one row at once are looked at in blocks of so many. */
#define TOGETHER 64
/* They are, where the row adds at least one number for so many columns. */
#define DENSE_COLUMNS 4

typedef struct {
    const matrix *a, *b, *but;
    double half;
    const double *scale;
    const uint8_t *allowed;
    long width, most;
    double *sums;
    uint8_t *state; /* 1: touched; 2: not to be given */
    int32_t *touched;
    found *heap;
} product;

/* Rows of b that are fetched before they are needed: they lie apart, which no processor foresees. */
#define AHEAD 8
static inline void fetch(const matrix *b, int64_t at) {
    __builtin_prefetch(b->columns + at);
    __builtin_prefetch(b->columns + at + 16);
    __builtin_prefetch(b->values + at);
    __builtin_prefetch(b->values + at + 16);
}

/* acc[j] += a[row][c] * b[c][j], as the times allow, for all c. `DO` is done with each j before. */
#define ADD_ROW(DO)                                                                                                     \
    const matrix a = *p->a, b = *p->b;                                                                                  \
    const double half = p->half;                                                                                        \
    double *restrict sums = p->sums;                                                                                    \
    for (int64_t x = a.starts[row]; x < a.starts[row + 1]; x++) {                                                       \
        const double value = a.values[x];                                                                               \
        if (x + 2 * AHEAD < a.starts[row + 1]) __builtin_prefetch(b.starts + a.columns[x + 2 * AHEAD]);                  \
        if (x + AHEAD < a.starts[row + 1]) fetch(&b, b.starts[a.columns[x + AHEAD]]);                                    \
        const int64_t begin = b.starts[a.columns[x]], stop = b.starts[a.columns[x] + 1];                                \
        if (half > 0)                                                                                                   \
            for (int64_t y = begin; y < stop; y++) {                                                                    \
                const int32_t j = b.columns[y];                                                                         \
                DO;                                                                                                     \
                sums[j] += value * b.values[y] / (1.0 + fabs(a.times[x] - b.times[y]) / half);                          \
            }                                                                                                           \
        else                                                                                                            \
            for (int64_t y = begin; y < stop; y++) {                                                                    \
                const int32_t j = b.columns[y];                                                                         \
                DO;                                                                                                     \
                sums[j] += value * b.values[y];                                                                         \
            }                                                                                                           \
    }

/* The best of a row, by the columns that it touches: which for the first time cannot be foretold, so without a branch. */
static long by_touched(const product *p, long row) {
    long count = 0, kept = 0;
    int32_t *restrict touched = p->touched;
    uint8_t *restrict state = p->state;
    ADD_ROW(touched[count] = j; count += !state[j]; state[j] = 1)
    if (p->but)
        for (int64_t x = p->but->starts[row]; x < p->but->starts[row + 1]; x++)
            if (state[p->but->columns[x]]) state[p->but->columns[x]] = 2;
    for (long at = 0; at < count; at++) {
        const int32_t j = touched[at];
        if (state[j] == 1 && (!p->allowed || p->allowed[j])) {
            const float score = (float)(p->scale ? sums[j] * p->scale[j] : sums[j]);
            kept = offered(p->heap, kept, p->most, (found){score, j});
        }
        sums[j] = 0;
        state[j] = 0;
    }
    return kept;
}

/* The same for a row that touches many columns, where no sum of any is 0: all are looked at, in their order. */
static long by_column(const product *p, long row) {
    long kept = 0;
    ADD_ROW()
    if (p->but)
        for (int64_t x = p->but->starts[row]; x < p->but->starts[row + 1]; x++) sums[p->but->columns[x]] = 0;
    for (long first = 0; first < p->width; first += TOGETHER) {
        const long size = p->width - first < TOGETHER ? p->width - first : TOGETHER;
        const float least = kept == p->most && kept ? p->heap[0].score : -1;
        float scores[TOGETHER];
        int any = 0;
        if (p->scale)
            for (long i = 0; i < size; i++) scores[i] = (float)(sums[first + i] * p->scale[first + i]);
        else
            for (long i = 0; i < size; i++) scores[i] = (float)sums[first + i];
        for (long i = 0; i < size; i++) any |= (scores[i] > least) & (sums[first + i] > 0);
        for (long i = 0; any && i < size; i++)
            if (scores[i] > least && sums[first + i] > 0 && (!p->allowed || p->allowed[first + i]))
                kept = offered(p->heap, kept, p->most, (found){scores[i], (int32_t)(first + i)});
        memset(sums + first, 0, size * sizeof *sums); /* while it is near */
    }
    return kept;
}

/* How many numbers a row adds. */
static int64_t size_of(const matrix *a, const matrix *b, long row) {
    int64_t total = 0;
    for (int64_t x = a->starts[row]; x < a->starts[row + 1]; x++)
        total += b->starts[a->columns[x] + 1] - b->starts[a->columns[x]];
    return total;
}

static int all_above_zero(const float *values, int64_t first, int64_t last) {
    int all = 1;
    for (int64_t at = first; at < last; at++) all &= values[at] > 0;
    return all;
}

/* For rows first to last of a: acc[j] += a[i][c] * b[c][j] / (1 + |difference of their times| / half), times scale[j];
 * of each row the best `most` that are allowed and not among the row's own of `but`. half 0 leaves times out; scale,
 * allowed and but may be NULL. Returns -1 where there is no memory. */
long danlu_products(const matrix *a, const matrix *b, double half, const double *scale, const uint8_t *allowed,
                    const matrix *but, long width, long rows, long first, long last, long most, int32_t *columns,
                    float *scores, int64_t *counts) {
    const long wide = width ? width : 1;
    const product p = {
        a, b, but, half, scale, allowed, width, most, calloc(wide, sizeof(double)), calloc(wide, 1),
        malloc((wide + 1) * sizeof(int32_t)), malloc((most ? most : 1) * sizeof(found)),
    };
    const long result = p.sums && p.state && p.touched && p.heap ? 0 : -1;
    int is_above_zero = -1; /* not known yet */
    for (long row = first; result == 0 && row < last; row++) {
        int is_dense = size_of(a, b, row) * DENSE_COLUMNS >= width;
        if (is_dense && is_above_zero < 0)
            is_above_zero = all_above_zero(a->values, a->starts[first], a->starts[last]) &&
                            all_above_zero(b->values, 0, b->starts[rows]);
        is_dense = is_dense && is_above_zero;
        counts[row] = is_dense ? by_column(&p, row) : by_touched(&p, row);
        written(p.heap, counts[row], columns + row * most, scores + row * most);
    }
    free(p.sums);
    free(p.state);
    free(p.touched);
    free(p.heap);
    return result;
}

/* Rows of what two users have in common, as bits over the items that at least two of the row's users have. */
typedef struct {
    int32_t *local, *items; /* item -> place; place -> item */
    int32_t *times;         /* how many of the users have an item */
    uint64_t *bits;
    double *sums;
    found *heap;
    long room;
} swing_scratch;

static long gathered(swing_scratch *s, const matrix *users, const int32_t *who, long count, int32_t own) {
    long places = 0;
    for (long at = 0; at < count; at++)
        for (int64_t x = users->starts[who[at]]; x < users->starts[who[at] + 1]; x++) s->times[users->columns[x]]++;
    for (long at = 0; at < count; at++)
        for (int64_t x = users->starts[who[at]]; x < users->starts[who[at] + 1]; x++) {
            const int32_t item = users->columns[x];
            if (s->times[item] < 0) continue; /* it has its place */
            s->local[item] = s->times[item] > 1 && item != own ? (int32_t)places : -1;
            if (s->local[item] >= 0) s->items[places++] = item;
            s->times[item] = -1;
        }
    for (long at = 0; at < count; at++)
        for (int64_t x = users->starts[who[at]]; x < users->starts[who[at] + 1]; x++) s->times[users->columns[x]] = 0;
    return places;
}

static int filled(swing_scratch *s, const matrix *users, const int32_t *who, long count, long words) {
    const long needed = count * words;
    if (needed > s->room) {
        free(s->bits);
        s->bits = malloc(needed * sizeof *s->bits);
        s->room = s->bits ? needed : 0;
        if (!s->bits) return 0;
    }
    memset(s->bits, 0, needed * sizeof *s->bits);
    for (long at = 0; at < count; at++)
        for (int64_t x = users->starts[who[at]]; x < users->starts[who[at] + 1]; x++) {
            const int32_t place = s->local[users->columns[x]];
            if (place >= 0) s->bits[at * words + place / 64] |= 1ULL << (place % 64);
        }
    return 1;
}

/* acc[j] += w[u] w[v] / (alpha + items that u and v share) for each pair u < v of the users of an item, and each j that
 * both have beside it (Yang et al. 2020, arXiv:2010.05525, eq. 1). Times `scale` of the row. */
long danlu_swing(const matrix *items, const matrix *users, const double *weights, double alpha, const int32_t *rows,
                 long width, long first, long last, long most, int32_t *columns, float *scores, int64_t *counts) {
    const long wide = width ? width : 1;
    swing_scratch s = {malloc(wide * sizeof(int32_t)), malloc(wide * sizeof(int32_t)), calloc(wide, sizeof(int32_t)),
                       NULL, malloc(wide * sizeof(double)), malloc((most ? most : 1) * sizeof(found)), 0};
    long result = s.local && s.items && s.times && s.sums && s.heap ? 0 : -1;
    for (long row = first; result == 0 && row < last; row++) {
        const int32_t own = rows[row];
        const int32_t *who = items->columns + items->starts[own];
        const long count = items->starts[own + 1] - items->starts[own];
        const long places = gathered(&s, users, who, count, own), words = (places + 63) / 64;
        if (places && !filled(&s, users, who, count, words)) result = -1;
        if (result) break;
        memset(s.sums, 0, places * sizeof *s.sums);
        for (long u = 0; places && u < count; u++)
            for (long v = u + 1; v < count; v++) {
                const uint64_t *a = s.bits + u * words, *b = s.bits + v * words;
                long common = 1;
                for (long w = 0; w < words; w++) common += __builtin_popcountll(a[w] & b[w]);
                if (common == 1) continue;
                const double part = weights[who[u]] * weights[who[v]] / (alpha + common);
                for (long w = 0; w < words; w++)
                    for (uint64_t some = a[w] & b[w]; some; some &= some - 1)
                        s.sums[w * 64 + __builtin_ctzll(some)] += part;
            }
        long kept = 0;
        for (long at = 0; at < places; at++)
            if (s.sums[at] > 0) kept = offered(s.heap, kept, most, (found){(float)s.sums[at], s.items[at]});
        written(s.heap, kept, columns + row * most, scores + row * most);
        counts[row] = kept;
    }
    free(s.local);
    free(s.items);
    free(s.times);
    free(s.bits);
    free(s.sums);
    free(s.heap);
    return result;
}
