/* What stands between the matrix products of a decoding step, in bfloat16: one pass each instead of several.
 *
 * Each function is the fast form of a few lines of torch (native.py says which) and is compared with them. Sums are
 * float32. Everything is plain C that a compiler vectorizes; threads are those of the OpenMP runtime that torch has
 * loaded, so no second pool of threads competes with it.
 */
#include "numbers.h"


/* weight * from / sqrt(mean(from^2) + eps) */
INLINE void norm(const bf16 *from, const float *weight, bf16 *to, long dim, float eps) {
    float squares = 0;
    for (long d = 0; d < dim; d++) squares += wide(from[d]) * wide(from[d]);
    float scale = 1.0f / sqrtf(squares / dim + eps);
    for (long d = 0; d < dim; d++) to[d] = narrow(wide(from[d]) * scale * weight[d]);
}

/* sum = x + y (y may be absent: sum is then x, and not written), out = weight * sum / sqrt(mean(sum^2) + eps). */
void danlu_add_norm(const bf16 *x, const bf16 *y, bf16 *sum, const float *weight, bf16 *out, long rows, long dim,
                    float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * dim > 65536)
    for (long row = 0; row < rows; row++) {
        const bf16 *from = x + row * dim;
        if (y) {
            const bf16 *other = y + row * dim;
            bf16 *kept = sum + row * dim;
            for (long d = 0; d < dim; d++) kept[d] = narrow(wide(from[d]) + wide(other[d]));
            from = kept;
        }
        norm(from, weight, out + row * dim, dim, eps);
    }
}

/* RMS norm of each head: those of x (tokens, heads, dim) lie `apart`, tokens `stride`, those of out next to each other. */
void danlu_norm_heads(const bf16 *x, long stride, long apart, const float *weight, bf16 *out, long out_stride, long tokens,
                      long heads, long dim, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens * heads * dim > 65536)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++)
            norm(x + token * stride + head * apart, weight, out + token * out_stride + head * dim, dim, eps);
}

/* The gradients of gate and up from that of their silu(gate) * up; all contiguous, `size` numbers. */
void danlu_swiglu_back(const bf16 *grad, const bf16 *gate, const bf16 *up, bf16 *restrict of_gate, bf16 *restrict of_up,
                       long size, int threads) {
#pragma omp parallel for num_threads(threads) if (size > 16384)
    for (long d = 0; d < size; d++) {
        float pull = wide(grad[d]), g = wide(gate[d]), share = 1.0f / (1.0f + exponential(-g));
        of_up[d] = narrow(pull * g * share);
        of_gate[d] = narrow(pull * wide(up[d]) * share * (1.0f + g * (1.0f - share)));
    }
}

/* The gradient of x from that of weight * x / sqrt(mean(x^2) + eps), and what each chunk of rows says of the weight:
   of_weight is (chunks, dim) or absent. */
void danlu_norm_back(const bf16 *grad, const bf16 *x, const float *weight, bf16 *of_x, float *of_weight, long rows,
                     long chunk, long dim, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * dim > 16384)
    for (long start = 0; start < rows; start += chunk) {
        float *sums = of_weight ? of_weight + start / chunk * dim : 0;
        if (sums) memset(sums, 0, dim * sizeof *sums);
        for (long row = start; row < rows && row < start + chunk; row++) {
            const bf16 *pull = grad + row * dim, *from = x + row * dim;
            bf16 *restrict to = of_x + row * dim;
            float squares = 0, dot = 0;
            for (long d = 0; d < dim; d++) squares += wide(from[d]) * wide(from[d]);
            for (long d = 0; d < dim; d++) dot += wide(pull[d]) * weight[d] * wide(from[d]);
            float scale = 1.0f / sqrtf(squares / dim + eps), less = dot * scale * scale * scale / dim;
            for (long d = 0; d < dim; d++) to[d] = narrow(wide(pull[d]) * weight[d] * scale - wide(from[d]) * less);
            if (sums)
                for (long d = 0; d < dim; d++) sums[d] += wide(pull[d]) * wide(from[d]) * scale;
        }
    }
}

/* The sum of squares: of blocks of so many in float, of these in double, in their order whatever the number of threads.
   sums has a number for each block. */
double danlu_squares(const bf16 *x, long size, long chunk, double *sums, int threads) {
    const long blocks = (size + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) if (size > 65536)
    for (long block = 0; block < blocks; block++) {
        const bf16 *from = x + block * chunk;
        const long many = size - block * chunk < chunk ? size - block * chunk : chunk;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long d = 0; d < many; d++) sum += wide(from[d]) * wide(from[d]);
        sums[block] = sum;
    }
    double all = 0;
    for (long block = 0; block < blocks; block++) all += sums[block];
    return all;
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

/* a c + b s, rounded once, or each product as well. */
INLINE bf16 turned_by(bf16 a, bf16 c, bf16 b, bf16 s, const int in_steps) {
    const float one = wide(a) * wide(c), other = wide(b) * wide(s);
    return in_steps ? narrow(wide(narrow(one)) + wide(narrow(other))) : narrow(one + other);
}

INLINE void rotate(const bf16 *a, const bf16 *c, const bf16 *s, bf16 *restrict to, long half, const int in_steps) {
    const bf16 *b = a + half;
    for (long d = 0; d < half; d++) to[d] = turned_by(a[d], c[d], b[d], s[d], in_steps);
    for (long d = 0; d < half; d++) to[half + d] = turned_by(b[d], c[half + d], a[d], s[half + d], in_steps);
}

/* The first numbers of each head of each token turned, (a, b) cos + (b, a) sin, the first half of sin negated; the
   others stay. cos and sin (tokens, turned). in_steps: products are rounded before they are added. */
void danlu_rotate(const bf16 *x, long stride, const bf16 *cosine, const bf16 *sine, bf16 *out, long tokens, long heads,
                  long dim, long turned, int in_steps, int threads) {
    long half = turned / 2;
#pragma omp parallel for num_threads(threads) if (tokens * heads * dim > 65536)
    for (long token = 0; token < tokens; token++) {
        const bf16 *c = cosine + token * turned, *s = sine + token * turned;
        for (long head = 0; head < heads; head++) {
            const bf16 *a = x + token * stride + head * dim;
            bf16 *to = out + (token * heads + head) * dim;
            if (in_steps) rotate(a, c, s, to, half, 1);
            else rotate(a, c, s, to, half, 0);
            memcpy(to + turned, a + turned, (dim - turned) * sizeof *to);
        }
    }
}
