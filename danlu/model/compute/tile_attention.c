/* Attention in bfloat16 on tile registers: prompts being read, beams and single rows.
 *
 * Sixteen queries at a time against the keys of their slot. Keys are read where they lie, as the left factor: a column of
 * scores is then a query's, and the softmax of sixteen queries is one of vectors. tile_attention.py calls.
 */
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include "tiles.h"

#define SOME 16     /* queries, or keys, in a tile */
#define FEW 4       /* queries where there are no more */
#define PAIR 32     /* keys of two */
#define WIDE 64     /* dims of values that are summed in one go */
#define RING 3      /* groups of values being laid out: a tile cannot be loaded at once from what was just stored */
#define AHEAD 4096  /* bytes of keys and values that are fetched before they are read */

/* The tokens of one slot, and what stands in it. */
typedef struct {
    const bf16 *q, *keys, *values, *next; /* next: keys that are read after these values */
    bf16 *out;
    long q_stride, group, dim, heads, rows;
    float scale;
} Slot;

/* bits (tiles, width): whether query u of a tile may look at a key, from may (rows, seen) of the rows that have `group`
 * queries each. Places up to width are nobody's. */
void danlu_bits(const uint8_t *may, long slots, long rows, long seen, long group, uint16_t *bits, long width, int threads) {
    const long tiles = (rows * group + SOME - 1) / SOME;
#pragma omp parallel for num_threads(threads) if (slots * rows * seen > 65536)
    for (long at = 0; at < slots * tiles; at++) {
        uint16_t *to = bits + at * width;
        memset(to, 0, width * sizeof *to);
        for (long u = 0; u < SOME; u++) {
            long row = (at % tiles * SOME + u) / group;
            if (row >= rows) break;
            const uint8_t *from = may + (at / tiles * rows + row) * seen;
            for (long key = 0; key < seen; key++) to[key] |= (uint16_t)(from[key] != 0) << u;
        }
    }
}

INLINE int anybody(const uint16_t *bits) {
    __m512i both = _mm512_loadu_si512(bits);
    return _mm512_test_epi32_mask(both, both) != 0;
}

/* Places `at` to `at + 32` of a run of `count` are read now: fetch those AHEAD, in `then` where the run ends before. The
 * processor foresees how a run goes on, but not where the next one is. */
INLINE void fetch(const bf16 *run, long at, long count, long dim, const bf16 *then) {
    const long size = 2 * dim, from = at * size + AHEAD, left = from - count * size;
    const char *places = left < 0 ? (const char *)run + from : (const char *)then + left;
    for (long line = 0; line < PAIR * size; line += 64) _mm_prefetch(places + line, _MM_HINT_T0);
}

/* Sixteen vectors of 32-bit words turned: word j of vector i becomes word i of vector j. */
INLINE void turn(__m512i *x) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int half = 0; half < 2; half++) {
            x[i + 2 * half] = _mm512_unpacklo_epi64(y[i + half], y[i + half + 2]);
            x[i + 2 * half + 1] = _mm512_unpackhi_epi64(y[i + half], y[i + half + 2]);
        }
    for (int i = 0; i < 4; i++) {
        __m512i low = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88), high = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        __m512i low2 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88), high2 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
        y[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
        y[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        y[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    for (int i = 0; i < 16; i++) x[i] = y[i];
}

/* Queries as a right factor: (dim / 32, 16 pairs of dims, `some` queries, 2). */
INLINE void lay_out_queries(const Slot *slot, long head, long first, uint32_t *to, const long some) {
    memset(to, 0, some * slot->dim * sizeof(bf16));
    for (long u = 0; u < some && first + u < slot->rows * slot->group; u++) {
        long row = (first + u) / slot->group, own = head * slot->group + (first + u) % slot->group;
        const bf16 *from = slot->q + row * slot->q_stride + own * slot->dim;
        for (long pair = 0; pair < slot->dim / 2; pair++) memcpy(to + pair * some + u, from + 2 * pair, 4);
    }
}

/* Products of `some` queries, 16 or 4, with the keys at `count` places: (count, some). */
INLINE void products_of(const bf16 *keys, const bf16 *values, const uint32_t *queries, long dim, long count, float *products,
                        const long some) {
    for (long key = 0; key < count; key += PAIR) {
        const bf16 *from = keys + key * dim;
        fetch(keys, key, count, dim, values);
        _tile_zero(0);
        _tile_zero(1);
        for (long d = 0; d < dim; d += 32) {
            _tile_loadd(4, queries + d / 2 * some, 4 * some);
            _tile_loadd(6, from + d, dim * 2);
            _tile_dpbf16ps(0, 6, 4);
            _tile_loadd(7, from + SOME * dim + d, dim * 2);
            _tile_dpbf16ps(1, 7, 4);
        }
        _tile_stored(0, products + key * some, 4 * some);
        _tile_stored(1, products + (key + SOME) * some, 4 * some);
    }
}

/* Products of sixteen queries become scores times log2(e), -inf where bits forbid. Returns the largest. */
INLINE __m512 scores_of(float *scores, float scaling, const uint16_t *bits, long count) {
    const __m512 scale = _mm512_set1_ps(scaling * LOG2_E), nothing = _mm512_set1_ps(-INFINITY);
    __m512 largest = nothing;
    for (long key = 0; key < count; key++) {
        __m512 some = _mm512_mask_mul_ps(nothing, bits[key], _mm512_load_ps(scores + key * SOME), scale);
        _mm512_store_ps(scores + key * SOME, some);
        largest = _mm512_max_ps(some, largest);
    }
    return largest;
}

/* Scores become weights, as a left factor: (keys / 32, 16 queries, 32 keys). Returns their sum, which every fourth key adds
 * to, as `few_weights_of` does: a query's is the same however many there are. */
INLINE __m512 weights_of(const float *scores, __m512 largest, const uint16_t *bits, long count, bf16 *weights) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    __m512i alternately = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (long key = 0; key < count; key += PAIR) {
        __m512i pairs[16];
        for (int pair = 0; pair < 16; pair++) {
            __m512 both[2];
            for (int odd = 0; odd < 2; odd++) {
                const long at = key + 2 * pair + odd;
                __m512 less = _mm512_sub_ps(_mm512_load_ps(scores + at * SOME), largest);
                both[odd] = _mm512_maskz_mov_ps(bits[at], power_of_two(less));
                sums[at % 4] = _mm512_add_ps(sums[at % 4], both[odd]);
            }
            pairs[pair] = _mm512_permutexvar_epi16(alternately, (__m512i)_mm512_cvtne2ps_pbh(both[1], both[0]));
        }
        turn(pairs);
        for (int u = 0; u < 16; u++) _mm512_store_si512(weights + key * SOME + u * PAIR, pairs[u]);
    }
    return _mm512_add_ps(_mm512_add_ps(sums[0], sums[2]), _mm512_add_ps(sums[1], sums[3]));
}

/* Of four queries: their tiles for scores are narrow, those for sums are low. */
INLINE void shape_for_few(const int is_scores) {
    Shapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        int is_whole = tile >= 6;
        shapes.rows[tile] = is_whole || is_scores ? 16 : FEW;
        shapes.bytes_a_row[tile] = is_whole || !is_scores ? 64 : 4 * FEW;
    }
    _tile_loadconfig(&shapes);
}

/* The bits of four queries at four places. */
INLINE __mmask16 bits_of_four(const uint16_t *bits) {
    uint64_t four;
    memcpy(&four, bits, sizeof four);
    return (__mmask16)_pext_u64(four, 0x000f000f000f000fULL);
}

/* `scores_of` four queries. */
INLINE __m512 few_scores_of(float *scores, float scaling, const uint16_t *bits, long count) {
    const __m512 scale = _mm512_set1_ps(scaling * LOG2_E), nothing = _mm512_set1_ps(-INFINITY);
    __m512 largest = nothing;
    for (long key = 0; key < count; key += 4) {
        __m512 some = _mm512_mask_mul_ps(nothing, bits_of_four(bits + key), _mm512_load_ps(scores + key * FEW), scale);
        _mm512_store_ps(scores + key * FEW, some);
        largest = _mm512_max_ps(some, largest);
    }
    largest = _mm512_max_ps(largest, _mm512_shuffle_f32x4(largest, largest, 0x4e));
    return _mm512_max_ps(largest, _mm512_shuffle_f32x4(largest, largest, 0xb1));
}

/* `weights_of` four queries: (keys / 32, 4 queries, 32 keys). */
INLINE __m512 few_weights_of(const float *scores, __m512 largest, const uint16_t *bits, long count, bf16 *weights) {
    const __m512i in_order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512 sum = _mm512_setzero_ps();
    for (long key = 0; key < count; key += PAIR) {
        __m512 turned[2][4];
        for (int half = 0; half < 2; half++) {
            __m512 x[4];
            for (int i = 0; i < 4; i++) {
                long at = key + half * SOME + 4 * i;
                __m512 less = _mm512_sub_ps(_mm512_load_ps(scores + at * FEW), largest);
                x[i] = _mm512_maskz_mov_ps(bits_of_four(bits + at), power_of_two(less));
                sum = _mm512_add_ps(sum, x[i]);
            }
            __m512d low = (__m512d)_mm512_unpacklo_ps(x[0], x[1]), high = (__m512d)_mm512_unpackhi_ps(x[0], x[1]);
            __m512d low2 = (__m512d)_mm512_unpacklo_ps(x[2], x[3]), high2 = (__m512d)_mm512_unpackhi_ps(x[2], x[3]);
            turned[half][0] = (__m512)_mm512_unpacklo_pd(low, low2);
            turned[half][1] = (__m512)_mm512_unpackhi_pd(low, low2);
            turned[half][2] = (__m512)_mm512_unpacklo_pd(high, high2);
            turned[half][3] = (__m512)_mm512_unpackhi_pd(high, high2);
        }
        for (int u = 0; u < FEW; u++) {
            __m512 first = _mm512_permutexvar_ps(in_order, turned[0][u]);
            __m512 second = _mm512_permutexvar_ps(in_order, turned[1][u]);
            _mm512_store_si512(weights + key * FEW + u * PAIR, (__m512i)_mm512_cvtne2ps_pbh(second, first));
        }
    }
    sum = _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0x4e));
    return _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0xb1));
}

/* 32 keys' values as right factors: for each 32 dims two tiles of 16 pairs of keys, 16 dims, 2. unpack takes dims 0-3, 8-11,
 * 16-19, 24-27 into the first and those between into the second. Places from `count` on count as 0. */
INLINE void lay_out_values(const bf16 *values, long dim, long dims, long count, bf16 *to) {
    for (long d = 0; d < dims; d += 32, to += 2 * 512)
        for (int pair = 0; pair < 16; pair++) {
            const bf16 *from = values + 2 * pair * dim + d;
            __m512i even = 2 * pair < count ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
            __m512i odd = 2 * pair + 1 < count ? _mm512_loadu_si512(from + dim) : _mm512_setzero_si512();
            _mm512_store_si512(to + pair * 32, _mm512_unpacklo_epi16(even, odd));
            _mm512_store_si512(to + 512 + pair * 32, _mm512_unpackhi_epi16(even, odd));
        }
}

/* Tiles 0 to 3 become the weighted sums of `dims` (32 or 64) dims of values. */
INLINE void sums_of(const bf16 *values, long dim, const long dims, const bf16 *weights, long count, long real, bf16 *ring,
                    const bf16 *then, const long some) {
    const long size = PAIR * WIDE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long key = 0; key < (RING - 1) * PAIR && key < count; key += PAIR)
        lay_out_values(values + key * dim, dim, dims, real - key, ring + key / PAIR * size);
    for (long key = 0; key < count; key += PAIR) {
        long next = key + (RING - 1) * PAIR;
        fetch(values, key, count, dim, then);
        if (next < count) lay_out_values(values + next * dim, dim, dims, real - next, ring + next / PAIR % RING * size);
        const bf16 *from = ring + key / PAIR % RING * size;
        _tile_loadd(4, weights + key * some, 64);
        _tile_loadd(6, from, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, from + 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (dims == WIDE) {
            _tile_loadd(6, from + 2 * 512, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, from + 3 * 512, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
}

/* Dims put in order again, divided by the sum of weights, and written where their query's are. */
INLINE void write_dims(const Slot *slot, long head, long first, long dim_at, long dims, const float *total) {
    float sums[4][256] __attribute__((aligned(64)));
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    if (dims == WIDE) {
        _tile_stored(2, sums[2], 64);
        _tile_stored(3, sums[3], 64);
    }
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (long u = 0; u < SOME && first + u < slot->rows * slot->group; u++) {
        long row = (first + u) / slot->group, own = head * slot->group + (first + u) % slot->group;
        bf16 *to = slot->out + (row * slot->heads + own) * slot->dim + dim_at;
        __m512 share = _mm512_set1_ps(1.0f / total[u]);
        for (long half = 0; half < dims / 32; half++) {
            __m512 one = _mm512_mul_ps(_mm512_load_ps(sums[2 * half] + u * 16), share);
            __m512 other = _mm512_mul_ps(_mm512_load_ps(sums[2 * half + 1] + u * 16), share);
            __m512 dims_low = _mm512_permutex2var_ps(one, low, other), dims_high = _mm512_permutex2var_ps(one, high, other);
            _mm512_storeu_si512(to + half * 32, (__m512i)_mm512_cvtne2ps_pbh(dims_high, dims_low));
        }
    }
}

/* `some` queries, 16 or 4, of one key head: the tile'th of their slot. */
INLINE int attend_some(const Slot *slot, long head, long tile, const uint16_t *bits, long length, const long some) {
    long start = 0, end = (length + PAIR - 1) / PAIR * PAIR;
    while (start < end && !anybody(bits + start)) start += PAIR;
    while (end > start && !anybody(bits + end - PAIR)) end -= PAIR;
    const long count = end - start, dim = slot->dim;
    float *scores = aligned_alloc(64, (count + PAIR) * some * (sizeof(float) + sizeof(bf16)));
    if (!scores) return 1;
    bf16 *weights = (bf16 *)(scores + count * some);
    uint32_t queries[SOME * 256 / 2] __attribute__((aligned(64)));
    bf16 ring[RING * PAIR * WIDE] __attribute__((aligned(64)));
    float total[SOME] __attribute__((aligned(64)));
    const bf16 *keys = slot->keys + start * dim, *values = slot->values + start * dim;
    lay_out_queries(slot, head, tile * SOME, queries, some);
    bits += start;
    if (some == FEW) shape_for_few(1);
    products_of(keys, values, queries, dim, count, scores, some);
    if (some == FEW) {
        __m512 largest = few_scores_of(scores, slot->scale, bits, count);
        _mm512_store_ps(total, few_weights_of(scores, largest, bits, count, weights));
        shape_for_few(0);
    } else {
        __m512 largest = scores_of(scores, slot->scale, bits, count);
        _mm512_store_ps(total, weights_of(scores, largest, bits, count, weights));
    }
    for (long d = 0; d < dim; d += WIDE) {
        if (dim - d >= WIDE)
            sums_of(values + d, dim, WIDE, weights, count, length - start, ring, slot->next, some);
        else
            sums_of(values + d, dim, 32, weights, count, length - start, ring, slot->next, some);
        write_dims(slot, head, tile * SOME, d, dim - d >= WIDE ? WIDE : 32, total);
    }
    free(scores);
    return 0;
}

/* The next tokens of `slots` slots, `rows` of each: their keys and values are put at the last places, then they attend.
 *
 * q (slots * rows, kv_heads * group, dim), k and v (slots * rows, kv_heads, dim), each with a stride between tokens; keys
 * and values (slots, kv_heads, capacity, dim); bits (slots, tiles, width); lengths (slots), the new tokens included;
 * out (slots * rows, kv_heads * group, dim). dim is a multiple of 32 up to 256, capacity of 32. Returns 1 when there was no
 * memory.
 */
int danlu_tile_attend(const bf16 *q, long q_stride, const bf16 *k, long k_stride, const bf16 *v, long v_stride, bf16 *keys,
                      bf16 *values, const uint16_t *bits, const int64_t *lengths, bf16 *out, long slots, long rows,
                      long kv_heads, long group, long dim, long capacity, long width, float scale, int threads) {
    const long tiles = (rows * group + SOME - 1) / SOME, heads = kv_heads * group, tasks = slots * kv_heads * tiles;
    const int in_turn = rows * group > FEW ? 1 : tasks < 32 * threads ? (tasks + threads - 1) / threads : 8;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        shape_tiles(32);
#pragma omp for
        for (long token = 0; token < slots * rows; token++) {
            const long place = lengths[token / rows] - rows + token % rows;
            for (long head = 0; head < kv_heads; head++) {
                long at = ((token / rows * kv_heads + head) * capacity + place) * dim;
                memcpy(keys + at, k + token * k_stride + head * dim, dim * sizeof(bf16));
                memcpy(values + at, v + token * v_stride + head * dim, dim * sizeof(bf16));
            }
        }
#pragma omp for schedule(dynamic, in_turn)
        for (long task = 0; task < tasks; task++) {
            const long tile = task % tiles, head = task / tiles % kv_heads, slot = task / tiles / kv_heads, first = slot * rows;
            const long cache = (slot * kv_heads + head) * capacity * dim;
            const bf16 *next = keys + (tile + 1 < tiles ? cache : cache + capacity * dim);
            const Slot own = {q + first * q_stride, keys + cache, values + cache, next, out + first * heads * dim, q_stride,
                              group, dim, heads, rows, scale};
            const uint16_t *seen = bits + (slot * tiles + tile) * width;
            if (rows * group <= FEW ? attend_some(&own, head, tile, seen, lengths[slot], FEW)
                                    : attend_some(&own, head, tile, seen, lengths[slot], SOME))
                failed = 1;
        }
        _tile_release();
    }
    return failed;
}
#endif
