/* Attention over slots of keys and values, in bfloat16 or float32, with float32 sums on any processor.
 *
 * A query's answer is the same, bit for bit, however many others are asked with it, in one chunk of a prompt or in
 * several, or one token at a time: its scores are sums over the head's numbers in one order. Places are gone over in strips
 * that begin where STRIP has it, whoever asks: of each strip the shares, of what the largest score so far makes one, and
 * their values are added to what earlier strips gave (Milakov & Gimelshein 2018). Queries of a slot that share a key head
 * are taken together; keys and values are laid out once for all of them, a strip at a time.
 *
 * Where the processor multiplies pairs of bfloat16, keys, values and shares stay in it, two to a word: a step of a sum then
 * is a pair of the head's numbers, or of places, and else one of them as floats.
 */
#include "lanes.h"

#define PIECE 32 /* tokens whose queries are taken together */
#define STRIP 256 /* places whose scores are held at a time; a multiple of SHORT */
#define SHORT (4 * LANES) /* those that are laid out at a time where queries are few */
#define MANY (LANES == 16 ? 12 : HAS_MANY ? 6 : 2) /* queries whose scores are in registers */
#define ACROSS (LANES == 16 ? 2 : 1) /* with so many vectors of places */
#define FEW (LANES == 16 ? 3 : HAS_MANY ? 2 : 1) /* those whose scores with four are */
#define WIDE 4 /* vectors of a sum of values that are in registers */
#define LINES (LANES == 16 ? 6 : HAS_MANY ? 2 : 1) /* queries whose sums are */
#define AHEAD 24 /* places that are fetched before they are needed: slots lie apart, which no processor foresees */

/* Compiled once, not for each width of a head: that would take long. */
#define ONCE static __attribute__((noinline))

#if LANES == 16 && defined(__AVX512BF16__)
#define HAS_PAIRS 1
INLINE lanes paired(lanes a, lanes b, lanes c) { return (lanes)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }
#else
#define HAS_PAIRS 0
INLINE lanes paired(lanes a, lanes b, lanes c) { return fused(a, b, c); }
#endif

/* One step of a sum. */
INLINE lanes stepped(lanes a, lanes b, lanes c, const int is_paired) { return is_paired ? paired(a, b, c) : fused(a, b, c); }

typedef struct {
    const char *q, *k, *v;
    long q_stride, k_stride, v_stride; /* numbers from one token to the next */
    char *keys, *values;
    const uint8_t *visible;
    long visible_stride; /* from one token's to the next one's: 0 where all see the same */
    const int64_t *positions, *lengths;
    char *out;
    long rows, kv_heads, group, dim, capacity, window;
    float scale;
    int is_wide;
} Job;

INLINE long bytes_of(const Job *job, long numbers) { return numbers * (job->is_wide ? 4 : 2); }

/* Room for a head's numbers, in whole vectors. */
#define MOST_DIM 256
#define ROOM(DIM) (((DIM) + LANES - 1) / LANES * LANES)

typedef uint32_t uints __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));
typedef uint32_t word_of __attribute__((may_alias));

/* Words of a key or a query. */
INLINE long steps_of(const long dim, const int is_paired) { return is_paired ? dim / 2 : ROOM(dim); }

/* A head's numbers as floats, with zeros behind them. */
INLINE void open_row(const char *from, float *to, const long dim, int is_wide) {
    for (long d = 0; d + LANES <= dim; d += LANES) *(lanes *)(to + d) = lanes_at(from, d, is_wide);
    for (long d = dim / LANES * LANES; d < ROOM(dim); d++)
        to[d] = d >= dim ? 0 : number(from, d, is_wide);
}

INLINE void fetch(const Job *job, const char *row, long dim) {
    __builtin_prefetch(row + bytes_of(job, AHEAD * dim));
    __builtin_prefetch(row + bytes_of(job, AHEAD * dim) + 64);
}

/* Keys of places `start` to `end`: as many places as a vector has numbers, side by side, (vectors, steps, LANES). What
 * stands for places beyond the end is any number. */
ONCE void open_keys(const Job *job, const char *from, long start, long end, float *to, long dim, int is_paired) {
    const long both = job->is_wide ? 0 : dim / (2 * LANES) * (2 * LANES); /* of bfloat16 two neighbours move as one */
    for (; start < end; start += LANES, to += steps_of(dim, is_paired) * LANES) {
        const char *rows[LANES];
        for (long at = 0; at < LANES; at++) {
            rows[at] = from + bytes_of(job, (start + at < end ? start + at : start) * dim);
            fetch(job, rows[at], dim);
        }
        for (long d = 0; d < both; d += 2 * LANES) {
            lanes block[LANES];
            for (long at = 0; at < LANES; at++) block[at] = *(const lanes *)(rows[at] + d * 2);
            transpose(block);
            for (long at = 0; at < LANES; at++) {
                if (is_paired) {
                    *(lanes *)(to + (d / 2 + at) * LANES) = block[at];
                    continue;
                }
                *(lanes *)(to + (d + 2 * at) * LANES) = (lanes)((ints)block[at] << 16);
                *(lanes *)(to + (d + 2 * at + 1) * LANES) = (lanes)((ints)block[at] & (int)0xffff0000);
            }
        }
        if (both == dim) continue;
        float opened[LANES][ROOM(MOST_DIM)];
        for (long at = 0; at < LANES; at++) open_row(rows[at], opened[at], dim, job->is_wide);
        for (long d = both; d < ROOM(dim); d += LANES) {
            lanes block[LANES];
            for (long at = 0; at < LANES; at++) block[at] = *(const lanes *)(opened[at] + d);
            transpose(block);
            for (long at = 0; at < LANES; at++) *(lanes *)(to + (d + at) * LANES) = block[at];
        }
    }
}

/* Values of places `start` to `end`: (places or pairs of them, dim). Returns whether all are numbers. */
ONCE int open_values(const Job *job, const char *from, long start, long end, float *to, long dim, int is_paired) {
    lanes odd = {0}; /* what is not a number, less itself, is none */
    for (long at = start; at < end; at += 1 + is_paired, to += ROOM(dim)) {
        const char *row = from + bytes_of(job, at * dim);
        fetch(job, row, dim);
        if (is_paired) {
            const char *next = row + bytes_of(job, dim);
            fetch(job, next, dim);
            for (long d = 0; d < dim; d += LANES) {
                const lanes first = lanes_at(row, d, 0), second = at + 1 < end ? lanes_at(next, d, 0) : (lanes){0};
                *(ints *)(to + d) = (ints)((uints)first >> 16) | (ints)second;
                odd += (first - first) + (second - second);
            }
            continue;
        }
        open_row(row, to, dim, job->is_wide);
        for (long d = 0; d < ROOM(dim); d += LANES) odd += *(const lanes *)(to + d) - *(const lanes *)(to + d);
    }
    return total(odd) == 0;
}

/* Scores of `lines` queries with `vectors` vectors of places: over the head's numbers in their order. */
INLINE void score(const float *queries, const float *keys, float *scores, const long dim, const int is_paired, const int lines,
                  const int vectors) {
    const long steps = steps_of(dim, is_paired);
    lanes made[MANY][4];
    for (int line = 0; line < lines; line++)
        for (int n = 0; n < vectors; n++) made[line][n] = (lanes){0};
    for (long d = 0; d < (is_paired ? steps : dim); d++) {
        lanes key[4];
        for (int n = 0; n < vectors; n++) key[n] = *(const lanes *)(keys + (n * steps + d) * LANES);
#pragma GCC unroll 12
        for (int line = 0; line < lines; line++) {
            const lanes own = spread(queries[line * steps + d]);
            for (int n = 0; n < vectors; n++) made[line][n] = stepped(own, key[n], made[line][n], is_paired);
        }
    }
    for (int line = 0; line < lines; line++)
        for (int n = 0; n < vectors; n++) *(lanes *)(scores + line * STRIP + n * LANES) = made[line][n];
}

/* Scores of all queries with what is laid out of a strip. */
INLINE void score_all(const float *queries, const float *keys, float *scores, long all, long vectors, const long dim,
                      const int is_paired) {
    const long steps = steps_of(dim, is_paired);
    for (long line = 0, lines; line < all; line += lines) {
        const float *own = queries + line * steps;
        lines = all - line >= MANY ? MANY : all - line >= FEW ? FEW : 1;
        for (long n = 0, some; n < vectors; n += some) {
            const float *block = keys + n * steps * LANES;
            float *to = scores + line * STRIP + n * LANES;
            some = lines == MANY ? ACROSS : 4;
            some = vectors - n < some ? 1 : some;
#define SCORE(COUNT, VECTORS)                                                                                           \
    if (lines == COUNT && some == VECTORS) score(own, block, to, dim, is_paired, COUNT, VECTORS);                       \
    else
            SCORE(MANY, ACROSS) SCORE(MANY, 1) SCORE(FEW, 4) SCORE(FEW, 1) SCORE(1, 4) score(own, block, to, dim, is_paired, 1, 1);
        }
    }
}

/* A query's scores with a strip become shares: of what is not seen, none. Of it `seen` places are looked at, those whose
 * position is `first` or later. Returns what the sums of earlier strips are to be multiplied with. */
ONCE float share(const Job *job, float *scores, long places, long seen, const uint8_t *visible, const int64_t *positions,
                   int64_t first, float *largest, float *whole, int is_paired) {
    const long width = (places + LANES - 1) / LANES * LANES;
    if (job->window >= 0 || memchr(visible, 0, seen))
        for (long at = 0; at < seen; at++) scores[at] = visible[at] && positions[at] >= first ? scores[at] : -INFINITY;
    for (long at = seen; at < width; at++) scores[at] = -INFINITY;
    const float before = *largest;
    const lanes scale = spread(job->scale);
    lanes most = spread(before), sums = {0};
    for (long start = 0; start < width; start += LANES) most = each_larger(*(const lanes *)(scores + start) * scale, most);
    const float now = largest_of(most), base = now == -INFINITY ? 0 : now;
    for (long start = 0; start < width; start += LANES) {
        const lanes raised = raised_to(fused(*(const lanes *)(scores + start), scale, spread(-base)));
        sums += raised;
        put_lanes(scores, start, raised, !is_paired);
    }
    const float factor = exponential(before - base);
    *whole = *whole * factor + total(sums);
    *largest = now;
    return factor;
}

/* What the values of a strip add to the sums of some queries, over the places in their order. */
INLINE void add_values(const float *values, long steps, const float *shares, float *sums, const long dim, const int is_paired,
                       const int lines) {
    for (long from = 0; from < ROOM(dim); from += WIDE * LANES) {
        const long some = (ROOM(dim) - from) / LANES < WIDE ? (ROOM(dim) - from) / LANES : WIDE;
        lanes made[LINES][WIDE];
        for (int line = 0; line < lines; line++)
            for (long n = 0; n < some; n++) made[line][n] = *(const lanes *)(sums + line * ROOM(dim) + from + n * LANES);
#define ADD(SOME)                                                                                                       \
    for (long at = 0; at < steps; at++) {                                                                               \
        lanes value[WIDE];                                                                                              \
        for (long n = 0; n < SOME; n++) value[n] = *(const lanes *)(values + at * ROOM(dim) + from + n * LANES);        \
        for (int line = 0; line < lines; line++) {                                                                      \
            const lanes own = spread(shares[line * STRIP + at]);                                                        \
            for (long n = 0; n < SOME; n++) made[line][n] = stepped(own, value[n], made[line][n], is_paired);           \
        }                                                                                                               \
    }
        if (some == WIDE) {
            ADD(WIDE)
        } else {
            ADD(some)
        }
        for (int line = 0; line < lines; line++)
            for (long n = 0; n < some; n++) *(lanes *)(sums + line * ROOM(dim) + from + n * LANES) = made[line][n];
    }
}

/* The same of one query, where a place that is not seen may hold what is no number. */
ONCE void add_seen(const float *values, long steps, const float *shares, float *sums, long dim, int is_paired) {
    for (long at = 0; at < steps; at++) {
        const uint32_t word = ((const word_of *)shares)[at];
        const uint32_t halves = (word & 0x7fff ? 0xffff : 0) | (word & 0x7fff0000 ? 0xffff0000 : 0);
        const uint32_t kept = is_paired ? halves : word << 1 ? 0xffffffff : 0;
        for (long n = 0; kept && n < ROOM(dim); n += LANES) {
            const lanes value = (lanes)(*(const ints *)(values + at * ROOM(dim) + n) & (int)kept);
            lanes *sum = (lanes *)(sums + n);
            *sum = stepped(spread(shares[at]), value, *sum, is_paired);
        }
    }
}

/* Tokens `first` to `last` of a slot with one key head. scratch: of a strip, of the queries and of their scores. */
INLINE void attend_piece(const Job *job, long slot, long head, long first, long last, float *scratch, const long dim,
                         const int is_paired) {
    const long group = job->group, lines = (last - first) * group, own = job->lengths[slot] - job->rows;
    const long places = own + last, room = ROOM(dim), steps = steps_of(dim, is_paired);
    const long at_once = lines < MANY ? SHORT : STRIP;
    float *opened = scratch, *queries = opened + STRIP * room, *sums = queries + lines * room, *scores = sums + lines * room;
    float *largest = scores + lines * STRIP, *whole = largest + lines, *factors = whole + lines;
    const char *keys = job->keys + bytes_of(job, (slot * job->kv_heads + head) * job->capacity * dim);
    const char *values = job->values + bytes_of(job, (slot * job->kv_heads + head) * job->capacity * dim);
    const int64_t *positions = job->positions + slot * job->capacity;
    int64_t earliest = INT64_MIN;
    for (long token = first; job->window >= 0 && token < last; token++) {
        const int64_t sees_from = positions[own + token] - job->window + 1;
        earliest = token == first || sees_from < earliest ? sees_from : earliest;
    }
    memset(sums, 0, lines * room * sizeof(float));
    for (long line = 0; line < lines; line++) {
        const long token = slot * job->rows + first + line / group;
        const char *query = job->q + bytes_of(job, token * job->q_stride + (head * group + line % group) * dim);
        if (is_paired) memcpy(queries + line * steps, query, dim * 2);
        else open_row(query, queries + line * steps, dim, job->is_wide);
        largest[line] = -INFINITY, whole[line] = 0;
    }
    for (long start = 0; start < places; start += STRIP) {
        const long end = start + STRIP < places ? start + STRIP : places;
        int is_seen = job->window < 0;
        for (long at = start; !is_seen && at < end; at++) is_seen = positions[at] >= earliest;
        if (!is_seen) continue;
        for (long at = start; at < end; at += at_once) {
            const long until = at + at_once < end ? at + at_once : end;
            open_keys(job, keys, at, until, opened, dim, is_paired);
            score_all(queries, opened, scores + at - start, lines, (until - at + LANES - 1) / LANES, dim, is_paired);
        }
        for (long line = 0; line < lines; line++) {
            const long row = first + line / group, seen = own + row + 1 < end ? own + row + 1 - start : end - start;
            const uint8_t *visible = job->visible + (slot * job->rows + row) * job->visible_stride + start;
            const int64_t sees_from = job->window < 0 ? INT64_MIN : positions[own + row] - job->window + 1;
            factors[line] = share(job, scores + line * STRIP, end - start, seen < 0 ? 0 : seen, visible, positions + start,
                                  sees_from, largest + line, whole + line, is_paired);
        }
        for (long line = 0; line < lines; line++)
            for (long d = 0; factors[line] != 1 && d < room; d += LANES)
                *(lanes *)(sums + line * room + d) *= spread(factors[line]);
        for (long at = start; at < end; at += at_once) {
            const long until = at + at_once < end ? at + at_once : end, count = is_paired ? (until - at + 1) / 2 : until - at;
            const float *shares = scores + (is_paired ? (at - start) / 2 : at - start);
            const int is_clean = open_values(job, values, at, until, opened, dim, is_paired);
            for (long line = 0; line < lines;) {
                const float *mine = shares + line * STRIP;
                float *to = sums + line * room;
                if (!is_clean) add_seen(opened, count, mine, to, dim, is_paired), line++;
                else if (lines - line < LINES) add_values(opened, count, mine, to, dim, is_paired, 1), line++;
                else add_values(opened, count, mine, to, dim, is_paired, LINES), line += LINES;
            }
        }
    }
    for (long line = 0; line < lines; line++) {
        const long token = slot * job->rows + first + line / group;
        const long at = (token * job->kv_heads * group + head * group + line % group) * dim;
        for (long d = 0; d < dim; d++) put_number(job->out, at + d, sums[line * room + d] / whole[line], job->is_wide);
    }
}

/* The next `rows` tokens of `slots` slots: their keys and values are put behind the others, then each attends to the places
 * up to its own that it sees.
 *
 * q (slots * rows, kv_heads * group, dim), k and v (slots * rows, kv_heads, dim), each with a stride between tokens; keys
 * and values (slots, kv_heads, capacity, dim); visible: of each token (capacity), `visible_stride` apart; positions (slots,
 * capacity); out (slots * rows, kv_heads * group, dim). dim is at most 256. may_pair: bfloat16 may be multiplied in pairs
 * where the processor can. Returns 1 when there was no memory.
 */
int danlu_attention(const void *q, long q_stride, const void *k, long k_stride, const void *v, long v_stride, void *keys,
                    void *values, const uint8_t *visible, long visible_stride, const int64_t *positions,
                    const int64_t *lengths, void *out, long slots, long rows, long kv_heads, long group, long dim,
                    long capacity, float scale, long window, int is_wide, int may_pair, int threads) {
    const Job job = {q, k, v, q_stride, k_stride, v_stride, keys, values, visible, visible_stride, positions, lengths, out,
                     rows, kv_heads, group, dim, capacity, window, scale, is_wide};
    const long pieces = (rows + PIECE - 1) / PIECE, all = slots * pieces * kv_heads;
    const long lines = (rows < PIECE ? rows : PIECE) * group;
    const long bytes = (STRIP * ROOM(dim) + lines * (2 * ROOM(dim) + STRIP + 3)) * sizeof(float);
    const int is_paired = HAS_PAIRS && may_pair && !is_wide && dim % (2 * LANES) == 0;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (all > 1)
    {
        float *scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!scratch) failed = 1;
#pragma omp for schedule(static)
        for (long at = 0; at < slots * rows * kv_heads; at++) {
            const long token = at / kv_heads, head = at % kv_heads, slot = token / rows;
            const long place = (slot * kv_heads + head) * capacity + lengths[slot] - rows + token % rows;
            memcpy(job.keys + bytes_of(&job, place * dim), job.k + bytes_of(&job, token * k_stride + head * dim), bytes_of(&job, dim));
            memcpy(job.values + bytes_of(&job, place * dim), job.v + bytes_of(&job, token * v_stride + head * dim), bytes_of(&job, dim));
        }
#pragma omp for schedule(dynamic)
        for (long at = all - 1; at >= 0; at--) { /* the longest first */
            const long piece = at / (slots * kv_heads), slot = at / kv_heads % slots, head = at % kv_heads;
            const long first = rows * piece / pieces, last = rows * (piece + 1) / pieces;
            if (!scratch) continue;
#define CASE(DIM, PAIRED)                                                                                               \
    if (dim == DIM && is_paired == PAIRED) attend_piece(&job, slot, head, first, last, scratch, DIM, PAIRED);           \
    else
#if HAS_PAIRS
            CASE(64, 1) CASE(128, 1) CASE(dim, 1)
#endif
            CASE(64, 0) CASE(128, 0) attend_piece(&job, slot, head, first, last, scratch, dim, 0);
        }
        free(scratch);
    }
    return failed;
}
