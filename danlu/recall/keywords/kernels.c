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
#define WINDOW (1L << 13)
#define WINDOW_WORDS (WINDOW / 64)
#define BLOCK 128
/* Entries that are compared with a row at once. */
#define NEAR 16
/* A bound is rounded as well; so much it is raised. */
#define SLACK (1 + 1e-12)
/* A row of a small set is looked up in the lists instead of walking them: what that costs, in entries walked. */
#define LOOK_UP 8
/* Sums of a whole window are compared at once where its lists have an entry for so many rows. */
#define DENSE_ROWS 24
/* Rows of a window by their place modulo so many, and how often the bar is halved towards the k-th of their maxima. */
#define GROUPS 256
/* A word with fewer entries in a window is not worth leaving out. */
#define LEFT_OUT (WINDOW / 4)
#define HALVINGS 8

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

/* Questions whose words follow each other; of each so many are found, in rows of k. */
typedef struct {
    const int64_t *ranges, *starts;
    const double *weights, *floors;
    double base, slope;
    long questions, k;
    uint32_t *rows;
    double *scores;
    int64_t *sizes;
} queries;

typedef struct {
    long from, to; /* of the list: what lies in the window */
    double bound;  /* of what the word adds to a row of the window */
    int needed;    /* rows that no such word is in are not among the best */
} part;

/* What one window is worked on with. */
typedef struct {
    part *parts;
    long *left_out;   /* words that are not needed, those that add least first */
    double *rests;    /* what the words before each of them add together at most */
    long left_outs;
    double sums[WINDOW];
    uint64_t seen[WINDOW_WORDS]; /* rows that may be among the best */
    uint64_t chosen[WINDOW_WORDS];
} desk;

static inline long count_of(const lists *x, long at) {
    return x->width == 1 ? ((const uint8_t *)x->counts)[at] : ((const uint16_t *)x->counts)[at];
}

static inline double gain(const query *q, double weight, long count, uint32_t length) {
    return weight * ((double)count / ((double)count + (q->base + q->slope * (double)length)));
}

/* The first entry from `at` on whose row is `row` or after it; `stop` if there is none. Most lie near. */
static long seek(const uint32_t *rows, long at, long stop, long row) {
    long step = NEAR;
    while (at + step <= stop && rows[at + step - 1] < row) {
        at += step;
        step *= 2;
    }
    for (; step >= NEAR; step /= 2)
        if (at + step <= stop && rows[at + step - 1] < row) at += step;
    const long left = stop - at < NEAR ? stop - at : NEAR;
    long before = 0;
    if (left == NEAR)
        for (long i = 0; i < NEAR; i++) before += rows[at + i] < row;
    else
        while (before < left && rows[at + before] < row) before++;
    return at + before;
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

/* The score of a row, summed over the words in their order. Rows are asked for in order: `from` goes along. */
static double exact(const lists *x, const query *q, part *parts, long row) {
    double sum = 0;
    for (long t = 0; t < q->words; t++) {
        const long at = parts[t].from = seek(x->rows, parts[t].from, parts[t].to, row);
        if (at < parts[t].to && x->rows[at] == row) sum += gain(q, q->weights[t], count_of(x, at), x->lengths[row]);
    }
    return sum;
}

/* Each row of a small set is looked up. */
static long looked_up(const lists *x, const query *q, desk *d, long start, long rows, const uint64_t *words, long size) {
    for (long w = 0; w < (rows + 63) / 64; w++)
        for (uint64_t left = words[w]; left; left &= left - 1) {
            const long row = start + w * 64 + __builtin_ctzll(left);
            const double score = exact(x, q, d->parts, row);
            if (score > q->floor) size = offer(q, size, score, (uint32_t)row);
        }
    return size;
}

static inline double least_of(const query *q, long size) {
    return size == q->k && q->scores[0] > q->floor ? q->scores[0] : q->floor;
}

/* Entries of a list that are taken together: where their rows lie in the window, and how often the word stands there. */
typedef struct {
    uint32_t offs[BLOCK], counts[BLOCK];
    double gains[BLOCK];
    long size;
} handful;

/* Up to BLOCK entries from `at` on whose rows are in the window, and in the set if one is given. */
static void take(const lists *x, handful *h, long at, long count, long start, long rows, const uint64_t *words) {
    const uint32_t *here = x->rows + at;
    uint32_t furthest = 0;
    for (long i = 0; i < count; i++) {
        h->offs[i] = here[i] - (uint32_t)start;
        furthest = h->offs[i] > furthest ? h->offs[i] : furthest;
    }
    h->size = count;
    if (!words && furthest < rows) {
        for (long i = 0; i < count; i++) h->counts[i] = (uint32_t)count_of(x, at + i);
        return;
    }
    long kept = 0;
    for (long i = 0; i < count; i++) {
        const uint32_t off = h->offs[i], inside = off < rows ? off : 0;
        h->counts[kept] = (uint32_t)i;
        h->offs[kept] = off;
        kept += (off < rows) & has(words, inside);
    }
    for (long i = 0; i < kept; i++) h->counts[i] = (uint32_t)count_of(x, at + h->counts[i]);
    h->size = kept;
}

/* A word's entries in the window are added up; of a set, its rows alone. `notes` says whether these are noted. */
static void add(const lists *x, const query *q, desk *d, long t, long start, long rows, const uint64_t *words, int notes) {
    handful h;
    const uint32_t *lengths = x->lengths + start;
    const double weight = q->weights[t];
    const long to = d->parts[t].to;
    for (long at = d->parts[t].from; at < to; at += BLOCK) {
        take(x, &h, at, to - at < BLOCK ? to - at : BLOCK, start, rows, words);
        for (long i = 0; i < h.size; i++) h.gains[i] = gain(q, weight, h.counts[i], lengths[h.offs[i]]);
        for (long i = 0; i < h.size; i++) d->sums[h.offs[i]] += h.gains[i];
        if (notes)
            for (long i = 0; i < h.size; i++) d->seen[h.offs[i] / 64] |= 1ULL << h.offs[i] % 64;
    }
}

/* Rows of a word that have enough to be among the best are noted; of the others the sums are taken back. */
static void sift(const lists *x, desk *d, const part *one, long start, long rows, const uint64_t *words, double least) {
    const double rest = d->rests[d->left_outs];
    for (long at = one->from; at < one->to; at++) {
        const uint32_t off = x->rows[at] - (uint32_t)start;
        if (off >= rows) continue;
        if ((d->sums[off] + rest) * SLACK >= least && has(words, off)) d->seen[off / 64] |= 1ULL << off % 64;
        else d->sums[off] = 0;
    }
}

/* What at least k rows of the window have: of groups of rows the largest sums, of which at least k are no less. */
static double bar(const query *q, const desk *d, double least) {
    double most[GROUPS], high = 0;
    if (q->k > GROUPS / 2) return least;
    memcpy(most, d->sums, sizeof most);
    for (long at = GROUPS; at < WINDOW; at += GROUPS)
        for (long i = 0; i < GROUPS; i++) most[i] = d->sums[at + i] > most[i] ? d->sums[at + i] : most[i];
    for (long i = 0; i < GROUPS; i++) high = most[i] > high ? most[i] : high;
    for (long round = 0; round < HALVINGS && high > least; round++) {
        const double middle = (least + high) / 2;
        long count = 0;
        for (long i = 0; i < GROUPS; i++) count += most[i] >= middle;
        if (count >= q->k) least = middle;
        else high = middle;
    }
    return least;
}

/* The same as `sift` of all words, for all rows of the window at once. Returns what a row needs to be among the best. */
static double sift_all(const query *q, desk *d, long rows, const uint64_t *words, double least, int is_first) {
    const double rest = d->rests[d->left_outs];
    for (long w = 0; words && w < (rows + 63) / 64; w++)
        for (long i = 0; i < 64; i++) d->sums[w * 64 + i] = words[w] >> i & 1 ? d->sums[w * 64 + i] : 0;
    const double enough = is_first ? bar(q, d, least) : least;
    for (long w = 0; w < WINDOW_WORDS; w++) {
        double *sums = d->sums + w * 64;
        uint64_t noted = 0;
        for (long i = 0; i < 64; i++) {
            const int stays = (sums[i] > 0) & ((sums[i] + rest) * SLACK >= enough);
            noted |= (uint64_t)stays << i;
            sums[i] = stays ? sums[i] : 0;
        }
        d->seen[w] = noted;
    }
    return enough;
}

/* What the needed words bring together, and which rows it may bring among the best. Returns what a row needs for it. */
static double add_up(const lists *x, const query *q, desk *d, long start, long rows, const uint64_t *words, long count,
                   long entries, double least) {
    const int is_few = count * 4 < rows;
    for (long t = 0; t < q->words; t++)
        if (d->parts[t].needed) add(x, q, d, t, start, rows, is_few ? words : NULL, is_few);
    if (is_few) return least;
    if (entries * DENSE_ROWS > WINDOW) return sift_all(q, d, rows, words, least, least <= q->floor);
    for (long t = 0; t < q->words; t++)
        if (d->parts[t].needed) sift(x, d, d->parts + t, start, rows, words, least);
    return least;
}

/* Noted rows that cannot be among the best with so much more are let go. Returns how many are left. */
static long let_go(desk *d, double rest, double least) {
    long count = 0;
    for (long w = 0; w < WINDOW_WORDS; w++) {
        uint64_t kept = 0;
        double *sums = d->sums + w * 64;
        for (uint64_t left = d->seen[w]; left; left &= left - 1) {
            const long at = __builtin_ctzll(left);
            const int stays = (sums[at] + rest) * SLACK >= least;
            kept |= (uint64_t)stays << at;
            sums[at] = stays ? sums[at] : 0;
        }
        d->seen[w] = kept;
        count += __builtin_popcountll(kept);
    }
    return count;
}

/* The same as `add`, for few noted rows in a long list. */
static void look_up(const lists *x, const query *q, desk *d, long t, long start) {
    long at = d->parts[t].from;
    const long to = d->parts[t].to;
    for (long w = 0; w < WINDOW_WORDS; w++)
        for (uint64_t left = d->seen[w]; left; left &= left - 1) {
            const long off = w * 64 + __builtin_ctzll(left), row = start + off;
            at = seek(x->rows, at, to, row);
            if (at < to && x->rows[at] == row)
                d->sums[off] += gain(q, q->weights[t], count_of(x, at), x->lengths[row]);
        }
}

/* Words that were left out are added to noted rows, one after the other; what is left is offered. */
static long walked(const lists *x, const query *q, desk *d, long start, long rows, double least, long size) {
    long near = let_go(d, d->rests[d->left_outs], least);
    for (long out = d->left_outs - 1; out >= 0 && near; out--) {
        const long t = d->left_out[out], entries = d->parts[t].to - d->parts[t].from;
        if (near * LOOK_UP < entries) look_up(x, q, d, t, start);
        else add(x, q, d, t, start, rows, d->seen, 0);
        near = let_go(d, d->rests[out], least);
    }
    for (long w = 0; w < WINDOW_WORDS; w++) {
        for (uint64_t left = d->seen[w]; left; left &= left - 1) {
            const long off = w * 64 + __builtin_ctzll(left);
            const double most = d->sums[off];
            d->sums[off] = 0;
            if (most * SLACK < least_of(q, size)) continue;
            const double score = d->left_outs ? exact(x, q, d->parts, start + off) : most; /* summed in order already */
            if (score > q->floor) size = offer(q, size, score, (uint32_t)(start + off));
        }
        d->seen[w] = 0;
    }
    return size;
}

/* -- all of them -------------------------------------------------------------------------------------------------- */

/* What each word can add in the window; the sum of it. */
static double bounds(const lists *x, const query *q, desk *d, long end) {
    double all = 0;
    for (long t = 0; t < q->words; t++) {
        part *one = d->parts + t;
        one->from = one->to;
        one->to = seek(x->rows, one->from, q->ranges[2 * t + 1], end);
        one->needed = one->to > one->from;
        one->bound = one->needed ? bound_of(x, q, q->weights[t], one->from, one->to) : 0;
        all += one->bound;
    }
    return all;
}

/* Words that add least are left out, as long as all of them together stay below the worst of the best. Returns how long
   the lists of the others are. */
static long leave_out(const query *q, desk *d, double least) {
    double rest = 0;
    d->left_outs = 0;
    for (;;) {
        long next = -1;
        for (long t = 0; t < q->words; t++)
            if (d->parts[t].needed && (next < 0 || d->parts[t].bound < d->parts[next].bound)) next = t;
        if (next < 0 || (rest + d->parts[next].bound) * SLACK >= least) break;
        if (d->parts[next].to - d->parts[next].from < LEFT_OUT) break;
        d->rests[d->left_outs] = rest;
        d->left_out[d->left_outs++] = next;
        rest += d->parts[next].bound;
        d->parts[next].needed = 0;
    }
    d->rests[d->left_outs] = rest;
    long entries = 0;
    for (long t = 0; t < q->words; t++)
        if (d->parts[t].needed) entries += d->parts[t].to - d->parts[t].from;
    return entries;
}

static long windows(const lists *x, const set *s, const query *q, desk *d) {
    long size = 0;
    for (long t = 0; t < q->words; t++) d->parts[t].to = q->ranges[2 * t];
    for (long start = 0; start < s->rows; start += WINDOW) {
        const long rows = s->rows - start < WINDOW ? s->rows - start : WINDOW;
        const double least = least_of(q, size);
        if (bounds(x, q, d, start + rows) * SLACK <= least) continue;
        const uint64_t *words;
        const long count = chosen(s, start, rows, d->chosen, &words);
        if (count == 0) continue;
        const long entries = leave_out(q, d, least);
        if (words && count * q->words * LOOK_UP < entries) {
            size = looked_up(x, q, d, start, rows, words, size);
        } else {
            const double enough = add_up(x, q, d, start, rows, words, count, entries, least);
            size = walked(x, q, d, start, rows, enough, size);
        }
    }
    return size;
}

/* The best first: the worst goes to the end, time and again. */
static void sort(const query *q, long size) {
    for (long left = size; left > 1; left--) {
        const double score = q->scores[left - 1];
        const uint32_t row = q->rows[left - 1];
        q->scores[left - 1] = q->scores[0];
        q->rows[left - 1] = q->rows[0];
        sink(q, left - 1, 0, score, row);
    }
}

/* Of each question the k best rows of the set with a score above its floor, the best first. -1: no memory. */
long danlu_best(const lists *x, const set *s, const queries *all) {
    long most = 0;
    for (long i = 0; i < all->questions; i++) {
        const long words = all->starts[i + 1] - all->starts[i];
        most = words > most ? words : most;
    }
    desk *d = calloc(1, sizeof(desk));
    if (d) {
        d->parts = malloc((most + 1) * sizeof(part));
        d->left_out = malloc((most + 1) * sizeof(long));
        d->rests = malloc((most + 1) * sizeof(double));
    }
    const int has_memory = d && d->parts && d->left_out && d->rests;
    for (long i = 0; has_memory && i < all->questions; i++) {
        const long first = all->starts[i];
        const query q = {
            all->ranges + 2 * first, all->weights + first, all->starts[i + 1] - first, all->base, all->slope,
            all->floors[i], all->k, all->rows + i * all->k, all->scores + i * all->k,
        };
        all->sizes[i] = q.words && q.k ? windows(x, s, &q, d) : 0;
        sort(&q, all->sizes[i]);
    }
    if (d) {
        free(d->parts);
        free(d->left_out);
        free(d->rests);
    }
    free(d);
    return has_memory ? 0 : -1;
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
