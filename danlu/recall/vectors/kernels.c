/* Nearest vectors under a set of rows: every row of the set, or inverted lists in the order of what they may hold.
 *
 * plain.py holds the plain forms, which answer bit for bit the same: codes are whole numbers, whose sums have no order,
 * and floats are summed in sixteen lanes that are then halved, without fused operations. Nothing here but speed depends
 * on the processor. No threads: the caller hands out ranges of queries. Places and rows that lie on a disk may be
 * damaged, so none of them leads outside its array.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang fp contract(off) reassociate(off)
#else
#pragma GCC optimize("no-associative-math", "fp-contract=off")
#endif

#define LANES 16
/* Lists that are put in order together at most, and how often the bar that they pass is halved. */
#define FOREMOST 128
#define HALVINGS 12
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));

enum { INNER_PRODUCT, COSINE, L2 };
enum { ALL, BY_PLACE, BY_ROW };

/* Vectors by row. `inverses` is one over their lengths, for cosine. */
typedef struct {
    const float *values, *inverses;
    long rows, dim, metric;
} vectors;

/* Rows by lists: a place is a row's number in their order. A score is the dot product of codes times `scales`, less
 * `biases` where there are any; codes are 128 more than what they stand for. */
typedef struct {
    const uint8_t *codes, *centres;
    const float *scales, *biases, *centre_scales, *centre_biases, *means, *spreads;
    const uint32_t *row_at;
    const int64_t *starts;
    long places, lists;
} inverted;

/* What is asked: `values` as given, `codes` of what is left when the centre of all rows is taken away; `lengths` of that. */
typedef struct {
    const float *values, *scales, *lengths;
    const int8_t *codes;
    long k, spare;
    float reach, near_reach, far_reach;
    long in_set, of_all; /* how many rows pass, and of how many */
    const uint64_t *mask;
    long mask_kind;
    int64_t *rows, *seen;
    float *scores;
} queries;

typedef struct {
    float score;
    uint32_t row;
} hit;

/* The best so many, the worst of them first (a heap). */
typedef struct {
    hit *hits;
    long count, most;
} best;

static inline int is_before(hit a, hit b) { return a.score > b.score || (a.score == b.score && a.row < b.row); }

static void sink(hit *hits, long count, long at, hit what) {
    for (long child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && is_before(hits[child], hits[child + 1])) child++;
        if (!is_before(what, hits[child])) break;
        hits[at] = hits[child];
    }
    hits[at] = what;
}

static void offer(best *b, hit what) {
    if (b->count == b->most) {
        if (is_before(what, b->hits[0])) sink(b->hits, b->count, 0, what);
        return;
    }
    long at = b->count++;
    for (; at && is_before(b->hits[(at - 1) / 2], what); at = (at - 1) / 2) b->hits[at] = b->hits[(at - 1) / 2];
    b->hits[at] = what;
}

/* Out they come, the best first; the rest is row -1. */
static void put(best *b, int64_t *rows, float *scores) {
    for (long i = b->count; i < b->most; i++) rows[i] = -1, scores[i] = -INFINITY;
    while (b->count) {
        hit worst = b->hits[0];
        b->count--;
        if (b->count) sink(b->hits, b->count, 0, b->hits[b->count]);
        rows[b->count] = worst.row, scores[b->count] = worst.score;
    }
}

/* -- exact scores ------------------------------------------------------------------------------------------------ */

static inline float halved(floats sum) {
    for (long width = LANES / 2; width; width /= 2)
        for (long i = 0; i < width; i++) sum[i] += sum[i + width];
    return sum[0];
}

static inline floats loaded(const float *from, long count) {
    floats lanes = {0};
    memcpy(&lanes, from, count * sizeof(float));
    return lanes;
}

static inline float dot(const float *a, const float *b, long dim) {
    floats sum = {0};
    long i = 0;
    for (; i + LANES <= dim; i += LANES) sum += *(const floats *)(a + i) * *(const floats *)(b + i);
    if (i < dim) sum += loaded(a + i, dim - i) * loaded(b + i, dim - i);
    return halved(sum);
}

static inline float distance(const float *a, const float *b, long dim) {
    floats sum = {0};
    long i = 0;
    for (; i + LANES <= dim; i += LANES) {
        floats apart = *(const floats *)(a + i) - *(const floats *)(b + i);
        sum += apart * apart;
    }
    if (i < dim) {
        floats apart = loaded(a + i, dim - i) - loaded(b + i, dim - i);
        sum += apart * apart;
    }
    return halved(sum);
}

static inline float score(const vectors *v, const float *query, uint32_t row) {
    const float *x = v->values + (long)row * v->dim;
    if (v->metric == L2) return -distance(query, x, v->dim);
    float product = dot(query, x, v->dim);
    return v->metric == COSINE ? product * v->inverses[row] : product;
}

/* Sums of squares of each vector. */
void danlu_squares(const float *values, long rows, long dim, float *out) {
    for (long i = 0; i < rows; i++) out[i] = dot(values + i * dim, values + i * dim, dim);
}

/* The k best of these rows for each of the queries first to last, which share what is read. Returns -1 without memory. */
#define BLOCK 64
long danlu_exact(const vectors *v, const queries *q, const uint32_t *rows, long count, long first, long last) {
    hit *hits = malloc((last - first) * q->k * sizeof(hit) + 1);
    best *bests = malloc((last - first) * sizeof(best) + 1);
    long is_made = hits && bests;
    if (is_made) {
        for (long i = 0; i < last - first; i++) bests[i] = (best){hits + i * q->k, 0, q->k};
        for (long start = 0; start < count; start += BLOCK) {
            long stop = start + BLOCK < count ? start + BLOCK : count;
            for (long j = stop; j < stop + BLOCK && j < count; j++)
                if (rows[j] < v->rows)
                    for (long at = 0; at < v->dim; at += 16)
                        __builtin_prefetch(v->values + (long)rows[j] * v->dim + at);
            for (long i = first; i < last; i++)
                for (long j = start; j < stop; j++)
                    if (rows[j] < v->rows)
                        offer(&bests[i - first], (hit){score(v, q->values + i * v->dim, rows[j]), rows[j]});
        }
        for (long i = first; i < last; i++) put(&bests[i - first], q->rows + i * q->k, q->scores + i * q->k);
    }
    free(hits), free(bests);
    return is_made ? 0 : -1;
}

/* -- inverted lists ---------------------------------------------------------------------------------------------- */

static inline int32_t coded(const uint8_t *codes, const int8_t *query, long dim) {
    int32_t sum = 0;
    for (long i = 0; i < dim; i++) sum += (int32_t)codes[i] * query[i];
    return sum;
}

/* Bits of the places of a set of rows. */
void danlu_marked(const uint32_t *rows, long count, const uint32_t *place_of, long places, uint64_t *mask) {
    for (long i = 0; i < count; i++) {
        uint32_t place = place_of[rows[i]];
        if (place < places) mask[place >> 6] |= 1ULL << (place & 63);
    }
}

typedef struct {
    const vectors *v;
    const inverted *l;
    const queries *q;
    const int8_t *codes;
    int32_t sum;  /* of the codes, 128 times */
    float factor; /* of what a dot product of codes stands for */
    best near, spare;
    long passed, walked_by; /* of the lists so far: the rows that pass, and all */
} walk;

/* Which of 64 places pass. */
static inline uint64_t passing(const walk *w, long word) {
    const queries *q = w->q;
    if (q->mask_kind == ALL) return ~0ULL;
    if (q->mask_kind == BY_PLACE) return q->mask[word];
    const uint32_t *rows = w->l->row_at + word * 64;
    long count = w->l->places - word * 64 < 64 ? w->l->places - word * 64 : 64;
    uint64_t flags = 0;
    for (long i = 0; i < count; i++)
        if (rows[i] < w->v->rows) flags |= (q->mask[rows[i] >> 6] >> (rows[i] & 63) & 1) << i;
    return flags;
}

static inline void look(walk *w, long place) {
    const inverted *l = w->l;
    long dim = w->v->dim;
    float found = (float)(coded(l->codes + place * dim, w->codes, dim) - w->sum) * (l->scales[place] * w->factor);
    if (l->biases) found -= l->biases[place];
    hit what = {found, l->row_at[place]};
    if (w->spare.count == w->spare.most && !is_before(what, w->spare.hits[0])) return;
    if (what.row >= w->v->rows) return;
    offer(&w->spare, what);
    offer(&w->near, what);
}

static void scan(walk *w, long start, long stop) {
    w->walked_by += stop - start;
    for (long word = start / 64; word * 64 < stop; word++) {
        uint64_t flags = passing(w, word);
        if (word * 64 < start) flags &= ~0ULL << (start % 64);
        if (stop - word * 64 < 64) flags &= (1ULL << (stop % 64)) - 1;
        w->passed += __builtin_popcountll(flags);
        if (flags == ~0ULL)
            for (long i = 0; i < 64; i++) look(w, word * 64 + i);
        else
            for (; flags; flags &= flags - 1) look(w, word * 64 + __builtin_ctzll(flags));
    }
}

/* What the best row of each of these lists may score. */
static void bounds(const walk *w, float length, float reach, hit *lists, long count) {
    const inverted *l = w->l;
    float wide = reach * length;
    for (long i = 0; i < count; i++) {
        const long at = lists[i].row;
        int32_t product = coded(l->centres + at * w->v->dim, w->codes, w->v->dim) - w->sum;
        float middle = (float)product * (l->centre_scales[at] * w->factor) - l->centre_biases[at];
        if (w->v->metric == L2) {
            float apart = length * length - middle;
            wide = 2 * reach * sqrtf(apart > 0 ? apart : 0);
        }
        lists[i].score = middle - l->means[at] + wide * l->spreads[at];
    }
}

/* How far rows are to be looked for: a set lies near the query where of the lists so far more than twice as many pass as of
 * all, and far from it where not half as many do. */
static float reach_of(const walk *w) {
    const long found = w->passed * w->q->of_all, expected = w->walked_by * w->q->in_set;
    return found > 2 * expected ? w->q->near_reach : 2 * found < expected ? w->q->far_reach : w->q->reach;
}

static inline int is_sooner(hit a, hit b) { return a.score > b.score || (a.score == b.score && a.row < b.row); }

static void settle(hit *lists, long count, long at) {
    hit what = lists[at];
    for (long child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && is_sooner(lists[child + 1], lists[child])) child++;
        if (!is_sooner(lists[child], what)) break;
        lists[at] = lists[child];
    }
    lists[at] = what;
}

/* The lists that may hold the best, some dozens, are put first; returns how many. All of them where they are few. */
static long foremost(hit *lists, long count) {
    float low = INFINITY, high = -INFINITY, bar = 0;
    for (long i = 0; i < count; i++) {
        low = lists[i].score < low && lists[i].score > -INFINITY ? lists[i].score : low;
        high = lists[i].score > high ? lists[i].score : high;
    }
    long size = count;
    for (long round = 0; round < HALVINGS && (size > FOREMOST || size < FOREMOST / 8); round++) {
        bar = low + (high - low) / 2;
        size = 0;
        for (long i = 0; i < count; i++) size += lists[i].score >= bar;
        if (size > FOREMOST) low = bar;
        else high = bar;
    }
    if (size == 0 || size > FOREMOST) return count;
    long put = 0;
    for (long i = 0; put < size; i++) {
        if (lists[i].score < bar) continue;
        const hit other = lists[put];
        lists[put++] = lists[i];
        lists[i] = other;
    }
    return size;
}

/* Lists from the one that may hold the best on, until none may hold one of the k best that are known. Where the set turns
 * out to lie near the query or far from it, the lists that are left are bounded by the reach for that, once. */
static void walked(walk *w, float length, hit *lists) {
    long left = w->l->lists;
    float reach = w->q->reach;
    for (long i = 0; i < left; i++) lists[i].row = (uint32_t)i;
    bounds(w, length, reach, lists, left);
    while (left) {
        const long part = left > FOREMOST ? foremost(lists, left) : left;
        long size = part;
        for (long i = part / 2 - 1; i >= 0; i--) settle(lists, part, i);
        for (; size; lists[0] = lists[--size], settle(lists, size, 0)) {
            const hit next = lists[0];
            if (w->near.count == w->near.most && next.score <= w->near.hits[0].score) break;
            const int64_t start = w->l->starts[next.row], stop = w->l->starts[next.row + 1];
            if (0 <= start && stop <= w->l->places) scan(w, start, stop);
        }
        if (size && (reach != w->q->reach || reach_of(w) == reach)) return;
        memmove(lists + part - size, lists, size * sizeof(hit));
        lists += part - size;
        left -= part - size;
        if (size) bounds(w, length, reach = reach_of(w), lists, left);
    }
}

/* The k best of the set for the queries first to last, out of `spare` by codes. Returns -1 without memory. */
long danlu_listed(const vectors *v, const inverted *l, const queries *q, long first, long last) {
    hit *lists = malloc(l->lists * sizeof(hit) + 1), *hits = malloc((2 * q->k + q->spare) * sizeof(hit));
    long is_made = lists && hits;
    for (long i = first; is_made && i < last; i++) {
        const int8_t *codes = q->codes + i * v->dim;
        walk w = {v, l, q, codes, 0, q->scales[i], {hits, 0, q->k}, {hits + q->k, 0, q->spare}, 0, 0};
        for (long j = 0; j < v->dim; j++) w.sum += 128 * codes[j];
        walked(&w, q->lengths[i], lists);
        q->seen[i] = w.passed;
        best exact = {hits + q->k + q->spare, 0, q->k};
        for (long j = 0; j < w.spare.count; j++)
            for (long at = 0; at < v->dim; at += 16)
                __builtin_prefetch(v->values + (long)w.spare.hits[j].row * v->dim + at);
        for (long j = 0; j < w.spare.count; j++) {
            uint32_t row = w.spare.hits[j].row;
            offer(&exact, (hit){score(v, q->values + i * v->dim, row), row});
        }
        put(&exact, q->rows + i * q->k, q->scores + i * q->k);
    }
    free(lists), free(hits);
    return is_made ? 0 : -1;
}
