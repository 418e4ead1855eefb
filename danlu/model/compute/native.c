/* What stands between the matrix products of a decoding step, in bfloat16: one pass each instead of several.
 *
 * Each function is the fast form of a few lines of torch (native.py says which) and is compared with them. Sums are
 * float32. Everything is plain C that a compiler vectorizes; threads are those of the OpenMP runtime that torch has
 * loaded, so no second pool of threads competes with it.
 */
#include "numbers.h"

#define MOST_DIM 256
#define MOST_GROUP 16
#define PART 128 /* numbers of a row whose sums are kept in registers or nearly so */
#define AHEAD 24 /* places that are fetched before they are needed: slots lie apart, which no processor foresees */

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

/* losses = -log softmax(logits)[target] of each row; then logits become the gradient of that, the probabilities less one
   at the target. */
int danlu_head_loss(bf16 *logits, const int64_t *targets, float *losses, long rows, long vocabulary, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) if (rows * vocabulary > 65536)
    {
        float *raised = malloc(vocabulary * sizeof(float));
#pragma omp for
        for (long row = 0; row < rows; row++) {
            if (!raised) {
                failed = 1;
                continue;
            }
            bf16 *x = logits + row * vocabulary;
            float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
            for (long d = 0; d < vocabulary; d++) largest = wide(x[d]) > largest ? wide(x[d]) : largest;
#pragma omp simd reduction(+ : sum)
            for (long d = 0; d < vocabulary; d++) sum += raised[d] = exponential(wide(x[d]) - largest);
            losses[row] = logf(sum) + largest - wide(x[targets[row]]);
            float scale = 1.0f / sum;
            for (long d = 0; d < vocabulary; d++) x[d] = narrow(raised[d] * scale);
            x[targets[row]] = narrow(raised[targets[row]] * scale - 1.0f);
        }
        free(raised);
    }
    return failed;
}

/* What adapters add to the product of x (rows, inputs): inner = x down^T, down (ranks, inputs), and to some columns of
   out a part of it times an up of theirs (ranks of the part, columns). plan has five numbers a part: its first column,
   how many, its first rank, how many, and where its up begins. Rows of x and of out lie apart. */
void danlu_adapt(const bf16 *x, long x_stride, const float *down, const float *up, const int64_t *plan, bf16 *out,
                 long stride, long rows, long inputs, long ranks, long parts, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * ranks * inputs > 65536)
    for (long row = 0; row < rows; row++) {
        const bf16 *from = x + row * x_stride;
        float given[inputs], inner[ranks];
        for (long d = 0; d < inputs; d++) given[d] = wide(from[d]);
        for (long r = 0; r < ranks; r++) {
            const float *weights = down + r * inputs;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long d = 0; d < inputs; d++) sum += given[d] * weights[d];
            inner[r] = sum;
        }
        for (const int64_t *part = plan; part < plan + 5 * parts; part += 5) {
            long dim = part[1], rank = part[3];
            const float *factors = inner + part[2], *of_part = up + part[4];
            bf16 *to = out + row * stride + part[0];
            for (long start = 0; start < dim; start += PART) {
                long size = dim - start < PART ? dim - start : PART;
                float sum[PART];
                for (long d = 0; d < size; d++) sum[d] = wide(to[start + d]);
                for (long r = 0; r < rank; r++)
                    for (long d = 0; d < size; d++) sum[d] += factors[r] * of_part[r * dim + start + d];
                for (long d = 0; d < size; d++) to[start + d] = narrow(sum[d]);
            }
        }
    }
}

/* A number's place among all, as an integer: what is no number lies beyond both infinities. */
INLINE int16_t order_of(bf16 x) { return (int16_t)(x ^ ((uint16_t)((int16_t)x >> 15) & 0x7fff)); }

/* The place of each row's largest number, the first of equal ones, and the number; not a number where one of them is none. */
void danlu_largest(const bf16 *x, long rows, long dim, int64_t *place, float *value, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * dim > 65536)
    for (long row = 0; row < rows; row++) {
        const bf16 *from = x + row * dim;
        int16_t largest = INT16_MIN, smallest = INT16_MAX;
        for (long d = 0; d < dim; d++) {
            int16_t order = order_of(from[d]);
            largest = order > largest ? order : largest;
            smallest = order < smallest ? order : smallest;
        }
        long at = 0;
        while (order_of(from[at]) != largest) at++;
        place[row] = at;
        value[row] = largest > order_of(0x7f80) || smallest < order_of(0xff80) ? NAN : wide(from[at]);
    }
}

/* The first numbers of each head of each token turned, (a, b) cos + (b, a) sin, the first half of sin negated; the
   others stay. cos and sin (tokens, turned). */
void danlu_rotate(const bf16 *x, long stride, const bf16 *cosine, const bf16 *sine, bf16 *out, long tokens, long heads,
                  long dim, long turned, int threads) {
    long half = turned / 2;
#pragma omp parallel for num_threads(threads) if (tokens * heads * dim > 65536)
    for (long token = 0; token < tokens; token++) {
        const bf16 *c = cosine + token * turned, *s = sine + token * turned;
        for (long head = 0; head < heads; head++) {
            const bf16 *a = x + token * stride + head * dim, *b = a + half;
            bf16 *restrict to = out + (token * heads + head) * dim;
            for (long d = 0; d < half; d++) to[d] = narrow(wide(a[d]) * wide(c[d]) + wide(b[d]) * wide(s[d]));
            to += half;
            for (long d = 0; d < half; d++)
                to[d] = narrow(wide(b[d]) * wide(c[d + half]) + wide(a[d]) * wide(s[d + half]));
            memcpy(to + half, a + turned, (dim - turned) * sizeof *to);
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

/* The sums of sixteen vectors, in their order: halves are folded onto each other, of two vectors at once. */
INLINE floats totals16(const floats *x) {
    floats folded[8];
#define FOLD(COUNT, FROM, LOW, HIGH)                                                                                  \
    for (int at = 0; at < COUNT; at++)                                                                                \
        folded[at] = __builtin_shufflevector(FROM[2 * at], FROM[2 * at + 1], LOW) +                                   \
                     __builtin_shufflevector(FROM[2 * at], FROM[2 * at + 1], HIGH);
#define EIGHT(A) A, A + 1, A + 2, A + 3, A + 4, A + 5, A + 6, A + 7
#define FOUR(A) A, A + 1, A + 2, A + 3
#define LOW8 EIGHT(0), EIGHT(16)
#define HIGH8 EIGHT(8), EIGHT(24)
#define LOW4 FOUR(0), FOUR(8), FOUR(16), FOUR(24)
#define HIGH4 FOUR(4), FOUR(12), FOUR(20), FOUR(28)
    FOLD(8, x, LOW8, HIGH8)
    FOLD(4, folded, LOW4, HIGH4)
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
    FOLD(2, folded, LOW2, HIGH2)
    FOLD(1, folded, EVEN, ODD)
    return folded[0];
}

/* `group` queries of one row and key head over `length` places, their own one `place`. dim and the places that exist are multiples of 16; p is scratch
 * for (group, length rounded up to 16). */
INLINE void attend_one(const bf16 *q, const bf16 *keys, const bf16 *values, const uint8_t *visible,
                       const int64_t *positions, bf16 *out, float *p, long length, long place, float scale,
                       long window, const long dim, const long group) {
    floats query[MOST_GROUP][MOST_DIM / 16], sum[MOST_GROUP][MOST_DIM / 16];
    float largest[MOST_GROUP], whole[MOST_GROUP];
    const long parts = dim / 16, width = (length + 15) / 16 * 16;
    for (long g = 0; g < group; g++) {
        largest[g] = -INFINITY;
        for (long d = 0; d < parts; d++) {
            query[g][d] = wide16(q + g * dim + 16 * d) * scale;
            sum[g][d] = (floats){0};
        }
    }
    int64_t first = window < 0 ? INT64_MIN : positions[place] - window + 1;
    for (long start = 0; start < width; start += 16) {
        int any = 0;
        for (long i = start; i < start + 16; i++) any |= i < length && visible[i];
        if (!any) { /* what other rows have made */
            for (long g = 0; g < group; g++)
                for (long i = 0; i < 16; i++) p[g * width + start + i] = -INFINITY;
            continue;
        }
        floats key[16][MOST_DIM / 16], products[16];
        for (long i = 0; i < 16; i++) {
            const bf16 *from = keys + (start + i) * dim;
            __builtin_prefetch(from + AHEAD * dim);
            __builtin_prefetch(from + AHEAD * dim + 32);
            for (long d = 0; d < parts; d++) key[i][d] = wide16(from + 16 * d);
        }
        for (long g = 0; g < group; g++) {
            float *scores = p + g * width + start;
            for (long i = 0; i < 16; i++) {
                products[i] = query[g][0] * key[i][0];
                for (long d = 1; d < parts; d++) products[i] += query[g][d] * key[i][d];
            }
            floats totals = totals16(products);
            for (long i = 0; i < 16; i++) {
                int is_seen = start + i < length && visible[start + i] && positions[start + i] >= first;
                scores[i] = is_seen ? totals[i] : -INFINITY;
                largest[g] = scores[i] > largest[g] ? scores[i] : largest[g];
            }
        }
    }
    for (long g = 0; g < group; g++) {
        float *row = p + g * width, total = 0;
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
            for (long g = 0; g < group; g++) sum[g][d] += p[g * width + i] * value;
        }
    }
    for (long g = 0; g < group; g++)
        for (long d = 0; d < parts; d++) {
            floats mean = sum[g][d] / whole[g];
            for (int lane = 0; lane < 16; lane++) out[g * dim + 16 * d + lane] = narrow(mean[lane]);
        }
}

/* The next tokens of `slots` slots of `rows` rows: key and value of row r are put at place length - rows + r, where no
 * other row sees them, then each attends.
 *
 * q (slots * rows, kv_heads * group, dim), k and v (slots * rows, kv_heads, dim), each with a stride between tokens; keys
 * and values (slots, kv_heads, capacity, dim); visible (slots, rows, capacity); positions (slots, capacity);
 * out (slots * rows, kv_heads * group, dim). Returns 1 when there was no memory.
 */
int danlu_attend(const bf16 *q, long q_stride, const bf16 *k, long k_stride, const bf16 *v, long v_stride, bf16 *keys,
                 bf16 *values, const uint8_t *visible, const int64_t *positions, const int64_t *lengths, bf16 *out,
                 long slots, long rows, long kv_heads, long group, long dim, long capacity, float scale, long window, int threads) {
    int failed = 0;
#pragma omp parallel for num_threads(threads) if (slots * rows * kv_heads > 1) schedule(dynamic)
    for (long at = 0; at < slots * rows * kv_heads; at++) {
        long token = at / kv_heads, head = at % kv_heads, slot = token / rows;
        long length = lengths[slot], place = length - rows + token % rows, cache = (slot * kv_heads + head) * capacity;
        float *p = malloc(sizeof(float) * group * (length + 15));
        if (!p) {
            failed = 1;
            continue;
        }
        bf16 *own_keys = keys + cache * dim, *own_values = values + cache * dim;
        memcpy(own_keys + place * dim, k + token * k_stride + head * dim, dim * sizeof(bf16));
        memcpy(own_values + place * dim, v + token * v_stride + head * dim, dim * sizeof(bf16));
        const bf16 *query = q + token * q_stride + head * group * dim;
        const uint8_t *seen = visible + token * capacity;
        const int64_t *where = positions + slot * capacity;
        bf16 *to = out + at * group * dim;
#define CASE(D, G)                                                                                                    \
    if (dim == D && group == G)                                                                                       \
        attend_one(query, own_keys, own_values, seen, where, to, p, length, place, scale, window, D, G);             \
    else
        CASE(64, 1) CASE(64, 2) CASE(64, 3) CASE(64, 4) CASE(64, 7) CASE(64, 8)
        CASE(128, 1) CASE(128, 2) CASE(128, 4) CASE(128, 8) CASE(256, 4)
            attend_one(query, own_keys, own_values, seen, where, to, p, length, place, scale, window, dim, group);
        free(p);
    }
    return failed;
}
