/* What stands between the matrix products of a decoding step, in bfloat16: one pass each instead of several.
 *
 * Each function is the fast form of a few lines of torch (native.py says which) and is compared with them. Sums are
 * float32. Everything is plain C that a compiler vectorizes; threads are those of the OpenMP runtime that torch has
 * loaded, so no second pool of threads competes with it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
#define INLINE static inline __attribute__((always_inline))
#define MOST_DIM 256
#define MOST_GROUP 16
#define AHEAD 24 /* places that are fetched before they are needed: slots lie apart, which no processor foresees */

INLINE float wide(bf16 x) {
    union { uint32_t bits; float value; } both = {(uint32_t)x << 16};
    return both.value;
}

/* To the nearest, ties to even; what is not a number stays so. */
INLINE bf16 narrow(float x) {
    union { float value; uint32_t bits; } both = {x};
    uint32_t rounded = (both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16;
    return (both.bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

/* e^x to 2 ulp (Cephes' polynomial), 0 below -87. */
INLINE float exponential(float x) {
    float inside = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float n = floorf(inside * 1.44269504f + 0.5f);
    float r = inside - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    float result = (p * r * r + r + 1.0f) * power.value;
    return x < -87.0f ? 0.0f : result;
}

/* sum = x + y (y may be absent: sum is then x, and not written), out = weight * sum / sqrt(mean(sum^2) + eps). */
void danlu_add_norm(const bf16 *x, const bf16 *y, bf16 *sum, const float *weight, bf16 *out, long rows, long dim,
                    float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * dim > 65536)
    for (long row = 0; row < rows; row++) {
        const bf16 *from = x + row * dim;
        bf16 *to = out + row * dim;
        float squares = 0;
        if (y) {
            const bf16 *other = y + row * dim;
            bf16 *kept = sum + row * dim;
            for (long d = 0; d < dim; d++) kept[d] = narrow(wide(from[d]) + wide(other[d]));
            from = kept;
        }
        for (long d = 0; d < dim; d++) squares += wide(from[d]) * wide(from[d]);
        float scale = 1.0f / sqrtf(squares / dim + eps);
        for (long d = 0; d < dim; d++) to[d] = narrow(wide(from[d]) * scale * weight[d]);
    }
}

/* out = silu(gate) * up, gate and up side by side in (rows, 2 * dim). */
void danlu_swiglu(const bf16 *gate_up, bf16 *out, long rows, long dim, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * dim > 16384)
    for (long row = 0; row < rows; row++) {
        const bf16 *gate = gate_up + row * 2 * dim, *up = gate + dim;
        bf16 *restrict to = out + row * dim;
        for (long d = 0; d < dim; d++) {
            float g = wide(gate[d]);
            to[d] = narrow(g / (1.0f + exponential(-g)) * wide(up[d]));
        }
    }
}

/* Each head of each token turned: (a, b) cos + (b, a) sin, the first half of sin negated; cos and sin (tokens, dim). */
void danlu_rotate(const bf16 *x, long stride, const bf16 *cosine, const bf16 *sine, bf16 *out, long tokens, long heads,
                  long dim, int threads) {
    long half = dim / 2;
#pragma omp parallel for num_threads(threads) if (tokens * heads * dim > 65536)
    for (long token = 0; token < tokens; token++) {
        const bf16 *c = cosine + token * dim, *s = sine + token * dim;
        for (long head = 0; head < heads; head++) {
            const bf16 *a = x + token * stride + head * dim, *b = a + half;
            bf16 *restrict to = out + (token * heads + head) * dim;
            for (long d = 0; d < half; d++) to[d] = narrow(wide(a[d]) * wide(c[d]) + wide(b[d]) * wide(s[d]));
            to += half;
            for (long d = 0; d < half; d++)
                to[d] = narrow(wide(b[d]) * wide(c[d + half]) + wide(a[d]) * wide(s[d + half]));
        }
    }
}

/* Sixteen numbers at once, in whatever registers the processor has. */
typedef float floats __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

INLINE floats wide16(const bf16 *from) {
    halves short_ones;
    memcpy(&short_ones, from, sizeof short_ones);
    return (floats)(__builtin_convertvector(short_ones, words) << 16);
}

INLINE float total16(floats x) {
    float total = 0;
    for (int lane = 0; lane < 16; lane++) total += x[lane];
    return total;
}

/* `group` queries of one key head over `length` places; p (group, length) is scratch. dim is a multiple of 16. */
INLINE void attend_one(const bf16 *q, const bf16 *keys, const bf16 *values, const uint8_t *visible,
                       const int64_t *positions, bf16 *out, float *p, long length, float scale, long window,
                       const long dim, const long group) {
    floats query[MOST_GROUP][MOST_DIM / 16], sum[MOST_GROUP][MOST_DIM / 16];
    float largest[MOST_GROUP], whole[MOST_GROUP];
    const long parts = dim / 16;
    for (long g = 0; g < group; g++) {
        largest[g] = -INFINITY;
        for (long d = 0; d < parts; d++) {
            query[g][d] = wide16(q + g * dim + 16 * d) * scale;
            sum[g][d] = (floats){0};
        }
    }
    int64_t first = window < 0 ? INT64_MIN : positions[length - 1] - window + 1;
    for (long i = 0; i < length; i++) {
        floats key[MOST_DIM / 16];
        for (long d = 0; d < parts; d++) key[d] = wide16(keys + i * dim + 16 * d);
        __builtin_prefetch(keys + (i + AHEAD) * dim);
        __builtin_prefetch(keys + (i + AHEAD) * dim + 32);
        int is_seen = visible[i] && positions[i] >= first;
        for (long g = 0; g < group; g++) {
            floats products = query[g][0] * key[0];
            for (long d = 1; d < parts; d++) products += query[g][d] * key[d];
            float score = is_seen ? total16(products) : -INFINITY;
            p[g * length + i] = score;
            largest[g] = score > largest[g] ? score : largest[g];
        }
    }
    for (long g = 0; g < group; g++) {
        float *row = p + g * length, total = 0;
        for (long i = 0; i < length; i++) {
            row[i] = exponential(row[i] - largest[g]);
            total += row[i];
        }
        whole[g] = total;
    }
    for (long i = 0; i < length; i++) {
        if (!visible[i] || positions[i] < first) continue; /* 0 times what is not a number is no number */
        __builtin_prefetch(values + (i + AHEAD) * dim);
        __builtin_prefetch(values + (i + AHEAD) * dim + 32);
        for (long d = 0; d < parts; d++) {
            floats value = wide16(values + i * dim + 16 * d);
            for (long g = 0; g < group; g++) sum[g][d] += p[g * length + i] * value;
        }
    }
    for (long g = 0; g < group; g++)
        for (long d = 0; d < parts; d++) {
            floats mean = sum[g][d] / whole[g];
            for (int lane = 0; lane < 16; lane++) out[g * dim + 16 * d + lane] = narrow(mean[lane]);
        }
}

/* The next token of `slots` slots of one row: its key and value are put at place length - 1, then it attends.
 *
 * q (slots, kv_heads * group, dim), k and v (slots, kv_heads, dim), each with a stride between slots; keys and values
 * (slots, kv_heads, capacity, dim); visible and positions (slots, capacity); out (slots, kv_heads * group, dim).
 * Returns 1 when there was no memory.
 */
int danlu_attend(const bf16 *q, long q_stride, const bf16 *k, long k_stride, const bf16 *v, long v_stride, bf16 *keys,
                 bf16 *values, const uint8_t *visible, const int64_t *positions, const int64_t *lengths, bf16 *out,
                 long slots, long kv_heads, long group, long dim, long capacity, float scale, long window, int threads) {
    int failed = 0;
#pragma omp parallel for num_threads(threads) if (slots * kv_heads > 1) schedule(dynamic)
    for (long at = 0; at < slots * kv_heads; at++) {
        long slot = at / kv_heads, head = at % kv_heads, length = lengths[slot];
        float *p = malloc(sizeof(float) * group * length);
        if (!p) {
            failed = 1;
            continue;
        }
        bf16 *own_keys = keys + at * capacity * dim, *own_values = values + at * capacity * dim;
        const bf16 *key = k + slot * k_stride + head * dim, *value = v + slot * v_stride + head * dim;
        for (long d = 0; d < dim; d++) {
            own_keys[(length - 1) * dim + d] = key[d];
            own_values[(length - 1) * dim + d] = value[d];
        }
        const bf16 *query = q + slot * q_stride + head * group * dim;
        const uint8_t *seen = visible + slot * capacity;
        const int64_t *where = positions + slot * capacity;
        bf16 *to = out + at * group * dim;
#define CASE(D, G)                                                                                                    \
    if (dim == D && group == G)                                                                                       \
        attend_one(query, own_keys, own_values, seen, where, to, p, length, scale, window, D, G);                    \
    else
        CASE(64, 1) CASE(64, 2) CASE(64, 3) CASE(64, 4) CASE(64, 7) CASE(64, 8)
        CASE(128, 1) CASE(128, 2) CASE(128, 4) CASE(128, 8) CASE(256, 4)
            attend_one(query, own_keys, own_values, seen, where, to, p, length, scale, window, dim, group);
        free(p);
    }
    return failed;
}
