/* Attention over slots of keys and values, in bfloat16 or float32, with float32 sums on any processor.
 *
 * A query's answer is the same, bit for bit, however many others are asked with it, in one chunk of a prompt or in
 * several, or one token at a time: its scores are sums over the head's numbers in one order, its shares of one whole sum
 * over the places in one order, and so are its values. Queries of a slot that share a key head are taken together; keys
 * and values become floats once for all of them, a strip of places at a time.
 */
#include "lanes.h"

#define PIECE 16 /* tokens whose queries are taken together */
#define STRIP 256 /* places whose keys or values are floats at a time; a multiple of SHORT */
#define SHORT (4 * LANES) /* the same where queries are few */
#define MANY (LANES == 16 ? 12 : HAS_MANY ? 6 : 2) /* queries whose scores with one vector of places are in registers */
#define FEW (LANES == 16 ? 3 : HAS_MANY ? 2 : 1) /* those whose scores with four are */
#define WIDE 4 /* vectors of a sum of values that are in registers */
#define LINES (LANES == 16 ? 6 : HAS_MANY ? 2 : 1) /* queries whose sums are */
#define AHEAD 24 /* places that are fetched before they are needed: slots lie apart, which no processor foresees */

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

INLINE lanes load(const char *from, long at, int is_wide) {
    return is_wide ? *(const lanes *)(from + at * 4) : wide_lanes((const bf16 *)from + at);
}

/* A head's numbers as floats, with zeros behind them. */
INLINE void open_row(const char *from, float *to, const long dim, int is_wide) {
    for (long d = 0; d + LANES <= dim; d += LANES) *(lanes *)(to + d) = load(from, d, is_wide);
    for (long d = dim / LANES * LANES; d < ROOM(dim); d++)
        to[d] = d >= dim ? 0 : is_wide ? ((const float *)from)[d] : wide(((const bf16 *)from)[d]);
}

INLINE void fetch(const Job *job, const char *row, const long dim) {
    __builtin_prefetch(row + bytes_of(job, AHEAD * dim));
    __builtin_prefetch(row + bytes_of(job, AHEAD * dim) + 64);
}

/* Keys of places `start` to `end`: as many places as a vector has numbers, side by side, (vectors, dim, LANES). What stands
 * for places beyond the end is any number. */
INLINE void open_keys(const Job *job, const char *from, long start, long end, float *to, const long dim) {
    const long paired = job->is_wide ? 0 : dim / (2 * LANES) * (2 * LANES); /* of bfloat16 two neighbours move as one */
    for (; start < end; start += LANES, to += ROOM(dim) * LANES) {
        const char *rows[LANES];
        for (long at = 0; at < LANES; at++) {
            rows[at] = from + bytes_of(job, (start + at < end ? start + at : start) * dim);
            fetch(job, rows[at], dim);
        }
        for (long d = 0; d < paired; d += 2 * LANES) {
            lanes block[LANES];
            for (long at = 0; at < LANES; at++) block[at] = *(const lanes *)(rows[at] + d * 2);
            transpose(block);
            for (long at = 0; at < LANES; at++) {
                *(lanes *)(to + (d + 2 * at) * LANES) = (lanes)((ints)block[at] << 16);
                *(lanes *)(to + (d + 2 * at + 1) * LANES) = (lanes)((ints)block[at] & (int)0xffff0000);
            }
        }
        if (paired == dim) continue;
        float opened[LANES][ROOM(MOST_DIM)];
        for (long at = 0; at < LANES; at++) open_row(rows[at], opened[at], dim, job->is_wide);
        for (long d = paired; d < ROOM(dim); d += LANES) {
            lanes block[LANES];
            for (long at = 0; at < LANES; at++) block[at] = *(const lanes *)(opened[at] + d);
            transpose(block);
            for (long at = 0; at < LANES; at++) *(lanes *)(to + (d + at) * LANES) = block[at];
        }
    }
}

/* Values of places `start` to `end`: (places, dim). Returns whether all are numbers. */
INLINE int open_values(const Job *job, const char *from, long start, long end, float *to, const long dim) {
    lanes odd = {0};
    for (long at = start; at < end; at++, to += ROOM(dim)) {
        fetch(job, from + bytes_of(job, at * dim), dim);
        open_row(from + bytes_of(job, at * dim), to, dim, job->is_wide);
        for (long d = 0; d < ROOM(dim); d += LANES) odd += *(const lanes *)(to + d) - *(const lanes *)(to + d); /* 0, or not a number */
    }
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += odd[lane];
    return sum == 0;
}

/* Scores of `lines` queries with `vectors` vectors of places: over the head's numbers in their order. */
INLINE void score(const float *queries, const float *keys, float *scores, long width, const long dim, const int lines,
                  const int vectors) {
    lanes made[MANY][4];
    for (int line = 0; line < lines; line++)
        for (int n = 0; n < vectors; n++) made[line][n] = (lanes){0};
    for (long d = 0; d < dim; d++) {
        lanes key[4];
        for (int n = 0; n < vectors; n++) key[n] = *(const lanes *)(keys + (n * ROOM(dim) + d) * LANES);
#pragma GCC unroll 12
        for (int line = 0; line < lines; line++) {
            const lanes own = spread(queries[line * ROOM(dim) + d]);
            for (int n = 0; n < vectors; n++) made[line][n] = fused(own, key[n], made[line][n]);
        }
    }
    for (int line = 0; line < lines; line++)
        for (int n = 0; n < vectors; n++) *(lanes *)(scores + line * width + n * LANES) = made[line][n];
}

/* The same of FEW queries or of one. */
INLINE void score_all(const float *queries, const float *keys, float *scores, long width, const long dim, long lines,
                      const int vectors) {
    if (lines == FEW) score(queries, keys, scores, width, dim, FEW, vectors);
    else score(queries, keys, scores, width, dim, 1, vectors);
}

INLINE lanes larger(lanes a, lanes b) {
    const ints is_larger = a > b;
    return (lanes)(((ints)a & is_larger) | ((ints)b & ~is_larger));
}

/* Scores become shares of one, times the sum that is returned. What is not seen has none. */
static float share(const Job *job, float *scores, long width, const uint8_t *visible, const int64_t *positions, long place) {
    const int64_t first = job->window < 0 ? INT64_MIN : positions[place] - job->window + 1;
    if (job->window >= 0 || memchr(visible, 0, place + 1))
        for (long at = 0; at <= place; at++) scores[at] = visible[at] && positions[at] >= first ? scores[at] : -INFINITY;
    for (long at = place + 1; at < width; at++) scores[at] = -INFINITY;
    lanes most = spread(-INFINITY);
    for (long start = 0; start < width; start += LANES) most = larger(*(const lanes *)(scores + start), most);
    float largest = most[0];
    for (int lane = 1; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
    lanes sums = {0};
    for (long start = 0; start < width; start += LANES) {
        float raised[LANES];
        for (long lane = 0; lane < LANES; lane++) raised[lane] = exponential(scores[start + lane] - largest);
        sums += *(const lanes *)raised;
        *(lanes *)(scores + start) = *(const lanes *)raised;
    }
    float whole = 0;
    for (int lane = 0; lane < LANES; lane++) whole += sums[lane];
    return whole;
}

/* What the values of a strip add to the sums of some queries, over the places in their order. */
INLINE void add_values(const float *values, long places, const float *shares, long width, float *sums, const long dim,
                       const int lines) {
    for (long from = 0; from < ROOM(dim); from += WIDE * LANES) {
        const long some = (ROOM(dim) - from) / LANES < WIDE ? (ROOM(dim) - from) / LANES : WIDE;
        lanes made[LINES][WIDE];
        for (int line = 0; line < lines; line++)
            for (long n = 0; n < some; n++) made[line][n] = *(const lanes *)(sums + line * ROOM(dim) + from + n * LANES);
#define ADD(SOME)                                                                                                       \
    for (long at = 0; at < places; at++) {                                                                              \
        lanes value[WIDE];                                                                                              \
        for (long n = 0; n < SOME; n++) value[n] = *(const lanes *)(values + at * ROOM(dim) + from + n * LANES);              \
        for (int line = 0; line < lines; line++) {                                                                      \
            const lanes own = spread(shares[line * width + at]);                                                        \
            for (long n = 0; n < SOME; n++) made[line][n] = fused(own, value[n], made[line][n]);                        \
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

/* The same where a place that is not seen may hold what is no number. */
static void add_seen(const float *values, long places, const float *shares, float *sums, long dim) {
    for (long at = 0; at < places; at++)
        for (long n = 0; shares[at] != 0 && n < ROOM(dim); n += LANES) {
            lanes *sum = (lanes *)(sums + n);
            *sum = fused(spread(shares[at]), *(const lanes *)(values + at * ROOM(dim) + n), *sum);
        }
}

/* Tokens `first` to `last` of a slot with one key head. scratch: of a strip, of the queries and of their scores. */
INLINE void attend_piece(const Job *job, long slot, long head, long first, long last, float *scratch, const long dim) {
    const long group = job->group, lines = (last - first) * group, length = job->lengths[slot];
    const long places = length - job->rows + last, width = (places + LANES - 1) / LANES * LANES;
    const long strip = lines < MANY ? SHORT : STRIP, room = ROOM(dim);
    float *opened = scratch, *queries = opened + STRIP * room, *sums = queries + lines * room, *whole = sums + lines * room;
    float *shares = whole + ROOM(lines);
    const char *keys = job->keys + bytes_of(job, (slot * job->kv_heads + head) * job->capacity * dim);
    const char *values = job->values + bytes_of(job, (slot * job->kv_heads + head) * job->capacity * dim);
    memset(sums, 0, lines * room * sizeof(float));
    for (long line = 0; line < lines; line++) {
        const long token = slot * job->rows + first + line / group;
        float *query = queries + line * room;
        open_row(job->q + bytes_of(job, token * job->q_stride + (head * group + line % group) * dim), query, dim, job->is_wide);
        for (long d = 0; d < room; d += LANES) *(lanes *)(query + d) *= spread(job->scale);
    }
    for (long start = 0; start < width; start += strip) {
        const long end = start + strip < places ? start + strip : places, vectors = (end - start + LANES - 1) / LANES;
        open_keys(job, keys, start, end, opened, dim);
        for (long line = 0, some; line < lines; line += some) {
            const float *own = queries + line * room;
            float *to = shares + line * width + start;
            some = lines - line >= MANY ? MANY : lines - line >= FEW ? FEW : 1;
            for (long n = 0; n < vectors;) {
                const float *block = opened + n * room * LANES;
                if (some == MANY) score(own, block, to + n++ * LANES, width, dim, MANY, 1);
                else if (vectors - n < 4) score_all(own, block, to + n++ * LANES, width, dim, some, 1);
                else score_all(own, block, to + n * LANES, width, dim, some, 4), n += 4;
            }
        }
    }
    for (long line = 0; line < lines; line++) {
        const long row = first + line / group;
        const uint8_t *visible = job->visible + (slot * job->rows + row) * job->visible_stride;
        whole[line] = share(job, shares + line * width, width, visible, job->positions + slot * job->capacity,
                            length - job->rows + row);
    }
    for (long start = 0; start < width; start += strip) {
        const long end = start + strip < places ? start + strip : places;
        const int is_clean = open_values(job, values, start, end, opened, dim);
        for (long line = 0; line < lines; line += LINES) {
            const float *own = shares + line * width + start;
            if (is_clean && lines - line >= LINES) {
                add_values(opened, end - start, own, width, sums + line * room, dim, LINES);
                continue;
            }
            for (long at = line; at < lines && at < line + LINES; at++, own += width)
                if (is_clean) add_values(opened, end - start, own, width, sums + at * room, dim, 1);
                else add_seen(opened, end - start, own, sums + at * room, dim);
        }
    }
    for (long line = 0; line < lines; line++) {
        const long token = slot * job->rows + first + line / group;
        const long at = (token * job->kv_heads * group + head * group + line % group) * dim;
        for (long d = 0; d < dim; d++) {
            const float mean = sums[line * room + d] / whole[line];
            if (job->is_wide) ((float *)job->out)[at + d] = mean;
            else ((bf16 *)job->out)[at + d] = narrow(mean);
        }
    }
}

/* The next `rows` tokens of `slots` slots: their keys and values are put behind the others, then each attends to the places
 * up to its own that it sees.
 *
 * q (slots * rows, kv_heads * group, dim), k and v (slots * rows, kv_heads, dim), each with a stride between tokens; keys
 * and values (slots, kv_heads, capacity, dim); visible: of each token (capacity), `visible_stride` apart; positions (slots,
 * capacity); out (slots * rows, kv_heads * group, dim). dim is at most 256. Returns 1 when there was no
 * memory.
 */
int danlu_attention(const void *q, long q_stride, const void *k, long k_stride, const void *v, long v_stride, void *keys,
                    void *values, const uint8_t *visible, long visible_stride, const int64_t *positions,
                    const int64_t *lengths, void *out, long slots, long rows, long kv_heads, long group, long dim,
                    long capacity, float scale, long window, int is_wide, int threads) {
    const Job job = {q, k, v, q_stride, k_stride, v_stride, keys, values, visible, visible_stride, positions, lengths, out,
                     rows, kv_heads, group, dim, capacity, window, scale, is_wide};
    const long pieces = (rows + PIECE - 1) / PIECE, all = slots * pieces * kv_heads;
    long longest = 0;
    for (long slot = 0; slot < slots; slot++) longest = lengths[slot] > longest ? lengths[slot] : longest;
    const long lines = (rows < PIECE ? rows : PIECE) * group, width = (longest + LANES - 1) / LANES * LANES;
    const long bytes = (STRIP * ROOM(dim) + lines * (2 * ROOM(dim) + width) + ROOM(lines)) * sizeof(float);
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
#define CASE(DIM)                                                                                                       \
    if (dim == DIM) attend_piece(&job, slot, head, first, last, scratch, DIM);                                          \
    else
            CASE(64) CASE(128) attend_piece(&job, slot, head, first, last, scratch, dim);
        }
        free(scratch);
    }
    return failed;
}
