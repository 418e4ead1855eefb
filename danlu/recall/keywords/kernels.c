/* BM25 over lists of rows: the k best rows of a set, and how many rows of it have a word.
 *
 * Rows are taken in windows. What each word can add in a window at most follows from the bounds of its blocks; words
 * that together cannot bring a row among the best are looked up only for rows that others have brought near it (MaxScore,
 * Turtle and Flood 1995, with bounds by block). A score that counts is summed over the words in their order, so that it
 * is the same number in whatever way it was found; to be compiled without fused or reordered sums. plain.py holds the
 * plain form, with which all of this is compared. What lies on a disk may be damaged, so no row leads outside an array.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SHARD_ROWS (1L << 20)
#define WINDOW (1L << 14)
#define WINDOW_WORDS (WINDOW / 64)
#define BLOCK 128
/* A bound is rounded as well; so much it is raised. */
#define SLACK (1 + 1e-12)
/* A row of a small set is looked up in the lists instead of walking them: what that costs, in entries walked. */
#define LOOK_UP 4

enum { EMPTY, FULL, SPARSE, DENSE };

typedef struct {
    const uint32_t *rows;
    const void *counts;
    const uint32_t *lengths;
    const uint16_t *most;
    const uint32_t *least;
    long width, size;
} lists;

typedef struct {
    const uint64_t *words;
    const uint8_t *kinds;
    const int64_t *offsets, *counts;
    long rows;
} set;

typedef struct {
    const int64_t *ranges;
    const double *weights;
    long words;
    double base, slope, floor;
    long k;
    uint32_t *rows;
    double *scores;
} query;

typedef struct {
    long from, to;    /* of the list: what lies in the window */
    double bound;
} part;

static inline long count_of(const lists *x, long at) {
    return x->width == 1 ? ((const uint8_t *)x->counts)[at] : ((const uint16_t *)x->counts)[at];
}

static inline double gain(const query *q, double weight, long count, uint32_t length) {
    return weight * ((double)count / ((double)count + (q->base + q->slope * (double)length)));
}

/* The first entry from `at` on whose row is `row` or after it; `stop` if there is none. */
static long seek(const uint32_t *rows, long at, long stop, long row) {
    long step = 1, low = at;
    while (at < stop && rows[at] < row) {
        low = at + 1;
        at += step;
        step *= 2;
    }
    if (at > stop) at = stop;
    while (low < at) {
        const long middle = low + (at - low) / 2;
        if (rows[middle] < row) low = middle + 1;
        else at = middle;
    }
    return low;
}

/* -- the best so far: a heap whose first is the worst ------------------------------------------------------------- */

static inline int worse(double a, uint32_t row_a, double b, uint32_t row_b) {
    return a < b || (a == b && row_a > row_b);
}

static void sink(const query *q, long size, long at, double score, uint32_t row) {
    for (long child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && worse(q->scores[child + 1], q->rows[child + 1], q->scores[child], q->rows[child])) child++;
        if (!worse(q->scores[child], q->rows[child], score, row)) break;
        q->scores[at] = q->scores[child];
        q->rows[at] = q->rows[child];
    }
    q->scores[at] = score;
    q->rows[at] = row;
}

static long offer(const query *q, long size, double score, uint32_t row) {
    if (size == q->k) {
        if (worse(q->scores[0], q->rows[0], score, row)) sink(q, size, 0, score, row);
        return size;
    }
    long at = size;
    for (; at; at = (at - 1) / 2) {
        const long parent = (at - 1) / 2;
        if (!worse(score, row, q->scores[parent], q->rows[parent])) break;
        q->scores[at] = q->scores[parent];
        q->rows[at] = q->rows[parent];
    }
    q->scores[at] = score;
    q->rows[at] = row;
    return size + 1;
}

/* -- one window --------------------------------------------------------------------------------------------------- */

/* The set's words in a window that begins at `start`; NULL if all rows are in it. Returns how many rows are. */
static long chosen(const set *s, long start, long rows, uint64_t *into, const uint64_t **found) {
    const long shard = start / SHARD_ROWS, inside = start % SHARD_ROWS;
    const uint8_t kind = s->kinds[shard];
    *found = into;
    if (kind == EMPTY) return 0;
    if (kind == FULL) {
        *found = NULL;
        return rows;
    }
    const uint64_t *at = s->words + s->offsets[shard];
    if (kind == DENSE) {
        long count = 0;
        *found = at + inside / 64;
        for (long w = 0; w < (rows + 63) / 64; w++) count += __builtin_popcountll((*found)[w]);
        return count;
    }
    const uint32_t *places = (const uint32_t *)at;
    const long first = seek(places, 0, s->counts[shard], inside), last = seek(places, first, s->counts[shard], inside + rows);
    if (first == last) return 0;
    memset(into, 0, WINDOW_WORDS * 8);
    for (long i = first; i < last; i++) {
        const uint32_t off = places[i] - (uint32_t)inside;
        if (off < WINDOW) into[off / 64] |= 1ULL << off % 64;
    }
    return last - first;
}

static inline int has(const uint64_t *words, long off) { return !words || (words[off / 64] >> off % 64 & 1); }

static double bound_of(const lists *x, const query *q, double weight, long from, long to) {
    double most = 0;
    for (long block = from / BLOCK; block <= (to - 1) / BLOCK; block++) {
        const double one = gain(q, weight, x->most[block], x->least[block]);
        if (one > most) most = one;
    }
    return most * SLACK;
}

/* The score of a row, summed over the words in their order; `parts` go on from there. */
static double exact(const lists *x, const query *q, part *parts, long row, int move) {
    double sum = 0;
    for (long t = 0; t < q->words; t++) {
        const long at = seek(x->rows, parts[t].from, parts[t].to, row);
        if (move) parts[t].from = at;
        if (at < parts[t].to && x->rows[at] == row) sum += gain(q, q->weights[t], count_of(x, at), x->lengths[row]);
    }
    return sum;
}

/* Each row of a small set is looked up. */
static long looked_up(const lists *x, const query *q, part *parts, long start, long rows, const uint64_t *words, long size) {
    for (long w = 0; w < (rows + 63) / 64; w++)
        for (uint64_t left = words[w]; left; left &= left - 1) {
            const long row = start + w * 64 + __builtin_ctzll(left);
            const double score = exact(x, q, parts, row, 1);
            if (score > q->floor) size = offer(q, size, score, (uint32_t)row);
        }
    return size;
}

/* Rows that are brought near the best by `needed` words; of the others, all together add `rest` at most. */
static long walked(const lists *x, const query *q, part *parts, const uint8_t *needed, double rest, long start, long rows,
                   const uint64_t *words, int is_few, double *sums, long size) {
    for (long t = 0; t < q->words; t++) {
        if (!needed[t]) continue;
        const double weight = q->weights[t];
        for (long at = parts[t].from; at < parts[t].to; at++) {
            const long row = x->rows[at], off = row - start;
            if (off < 0 || off >= rows || (is_few && !has(words, off))) continue;
            sums[off] += gain(q, weight, count_of(x, at), x->lengths[row]);
        }
    }
    for (long t = 0; t < q->words; t++) {
        if (!needed[t]) continue;
        for (long at = parts[t].from; at < parts[t].to; at++) {
            const long row = x->rows[at], off = row - start;
            if (off < 0 || off >= rows) continue;
            double score = sums[off];
            if (score == 0) continue;
            sums[off] = 0;
            const double least = size == q->k && q->scores[0] > q->floor ? q->scores[0] : q->floor;
            if ((score + rest) * SLACK < least || !has(words, off)) continue;
            if (rest > 0) score = exact(x, q, parts, row, 0);
            if (score > q->floor) size = offer(q, size, score, (uint32_t)row);
        }
    }
    return size;
}

/* -- all of them -------------------------------------------------------------------------------------------------- */

/* The k best rows of the set with a score above the floor, the best first. Returns how many; -1: no memory. */
long danlu_best(const lists *x, const set *s, const query *q) {
    part *parts = malloc(q->words * sizeof(part));
    uint8_t *needed = malloc(q->words);
    double *sums = calloc(WINDOW, sizeof(double));
    uint64_t *into = malloc(WINDOW_WORDS * 8);
    long size = 0;
    if ((q->words && (!parts || !needed)) || !sums || !into) size = -1;
    for (long t = 0; t < q->words && size == 0; t++) parts[t].to = q->ranges[2 * t];
    for (long start = 0; start < s->rows && size >= 0 && q->k > 0; start += WINDOW) {
        const long rows = s->rows - start < WINDOW ? s->rows - start : WINDOW;
        const double least = size == q->k && q->scores[0] > q->floor ? q->scores[0] : q->floor;
        const uint64_t *words;
        double all = 0;
        long entries = 0;
        for (long t = 0; t < q->words; t++) {
            parts[t].from = parts[t].to;
            parts[t].to = seek(x->rows, parts[t].from, q->ranges[2 * t + 1], start + rows);
            const int is_there = parts[t].to > parts[t].from;
            parts[t].bound = is_there ? bound_of(x, q, q->weights[t], parts[t].from, parts[t].to) : 0;
            all += parts[t].bound;
            entries += parts[t].to - parts[t].from;
            needed[t] = is_there;
        }
        if (all * SLACK <= least) continue;
        const long count = chosen(s, start, rows, into, &words);
        if (count == 0) continue;
        /* Words that add least are left out, as long as all of them together stay below the worst of the best. */
        double rest = 0;
        for (;;) {
            long next = -1;
            for (long t = 0; t < q->words; t++)
                if (needed[t] && (next < 0 || parts[t].bound < parts[next].bound)) next = t;
            if (next < 0 || (rest + parts[next].bound) * SLACK >= least) break;
            rest += parts[next].bound;
            needed[next] = 0;
            entries -= parts[next].to - parts[next].from;
        }
        if (words && count * q->words * LOOK_UP < entries) {
            size = looked_up(x, q, parts, start, rows, words, size);
        } else {
            size = walked(x, q, parts, needed, rest, start, rows, words, count * 4 < rows, sums, size);
        }
    }
    free(parts);
    free(needed);
    free(sums);
    free(into);
    for (long left = size; left > 1; left--) { /* the worst goes to the end, time and again */
        const double score = q->scores[left - 1];
        const uint32_t row = q->rows[left - 1];
        q->scores[left - 1] = q->scores[0];
        q->rows[left - 1] = q->rows[0];
        sink(q, left - 1, 0, score, row);
    }
    return size;
}

/* How many rows of the set each list has, into `out`. */
long danlu_counted(const lists *x, const set *s, const int64_t *ranges, long words, int64_t *out) {
    uint64_t *into = malloc(WINDOW_WORDS * 8);
    if (!into) return -1;
    for (long t = 0; t < words; t++) {
        long from, to = ranges[2 * t], total = 0;
        for (long start = 0; start < s->rows; start += WINDOW) {
            const long rows = s->rows - start < WINDOW ? s->rows - start : WINDOW;
            from = to;
            to = seek(x->rows, from, ranges[2 * t + 1], start + rows);
            if (from == to) continue;
            const uint64_t *found;
            const long count = chosen(s, start, rows, into, &found);
            if (count == 0) continue;
            for (long at = from; at < to; at++) {
                const long off = (long)x->rows[at] - start;
                total += off >= 0 && off < rows && has(found, off);
            }
        }
        out[t] = total;
    }
    free(into);
    return 0;
}
